"""A call as a handler sees it, whichever transport it came through."""

from typing import Final, NamedTuple

from evalrpc.watching.feed import Send


class Principal(NamedTuple):
    """Who calls."""

    name: str


ANONYMOUS: Final = Principal("anonymous")
"""Whoever calls a server that asks nobody who they are."""


class Call(NamedTuple):
    """Who calls, and where the messages of a streaming answer go."""

    principal: Principal
    send: Send
    """Sends one serialised message, and returns when the transport has taken it. Not used by unary calls."""
