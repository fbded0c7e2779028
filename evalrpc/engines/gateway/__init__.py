"""The gateway: a program between harnesses and the engines that answer them.

    python -m evalrpc.engines.gateway --listen fd:3 --folder DIR

A harness talks to `http://HOST:PORT/j/TOKEN/v1`. The gateway finds the route of the token, answers what was asked before from
the recording of its job, and asks an engine the rest: when that has room, again when it failed, and later when it is away.

It outlives the server, which declares engines and routes over a socket in the gateway's folder (`control.py`; the messages are
in `contract.py`), by `evalrpc.engines.gateway_client`. It needs no other package of evalrpc, so that it starts fast and stays
small.
"""
