"""Clients that are slow, rude or hostile, too many of them, and the end of the gateway."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_stub import EngineStub, Gate, waits
from gateway_process import TOKEN, GatewayProcess, chat, engine_of, gateway_process, route_to
from waiting import eventually, in_background

from evalrpc.engines.gateway.budget import ByteBudget
from evalrpc.engines.gateway.client_connection import ClientConnection, ClientRequest, Limits
from evalrpc.engines.gateway.replies import error_reply

QUESTION = f"POST /j/{TOKEN}/v1/chat/completions HTTP/1.1\r\nHost: x\r\n".encode()
BODY = json.dumps(chat("hi")).encode()
WHOLE = QUESTION + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def exchange(gateway: GatewayProcess, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the gateway closes the connection."""
    with gateway.raw() as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (QUESTION + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /j/x HTTP/1.1\r\n\r\n", 400),
        (QUESTION + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (QUESTION + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}", 400),
        (QUESTION + b"Content-Length: -5\r\n\r\n", 400),
        (QUESTION + b"Content-Length: 5 \x0b\r\n\r\n", 400),
        (QUESTION + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (QUESTION + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (QUESTION + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415),
        (QUESTION + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (QUESTION + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (QUESTION + b"A : b\r\n\r\n", 400),
        (QUESTION + b" folded: b\r\n\r\n", 400),
        (QUESTION + b"A: \x00\r\n\r\n", 400),
        (QUESTION + b"Content-Length: 99999999999\r\n\r\n", 413),
        (QUESTION + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 501),
        (QUESTION + b"A: b\r\n" * 20_000, 431),
        (b"GET /j/" + b"x" * 100_000, 431),
        (QUESTION + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: " + b"x" * 1_000_000, 431),
        (QUESTION + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"x" * 1_000_000, 431),
        (b"GET /j/" + b"x" * 10_000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_what_is_no_good_request_is_refused(served: GatewayProcess, stub: EngineStub, data: bytes, status: int) -> None:
    answer = exchange(served, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nHTTP/1.1" not in answer
    assert b'"evalrpc gateway: ' in answer
    assert not stub.asked


def test_chunks_beyond_the_bound_are_refused(served: GatewayProcess, stub: EngineStub) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(70):
            yield b"x" * (1 << 20)

    connection = served.connect()
    try:
        connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", chunks(), encode_chunked=True)
    except ConnectionError:
        pass  # it was refused before all was sent
    else:
        assert connection.getresponse().status == 413
    connection.close()
    assert not stub.asked
    eventually(lambda: served.client.status().bytes_in_flight == 0)


def test_a_request_may_come_byte_by_byte(served: GatewayProcess, stub: EngineStub) -> None:
    with served.raw() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in WHOLE:
            client.sendall(bytes((byte,)))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_waits_to_be_invited_is(served: GatewayProcess, stub: EngineStub) -> None:
    with served.raw() as client:
        client.sendall(QUESTION + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_sent_before_the_answer_are_not_read(served: GatewayProcess, stub: EngineStub) -> None:
    """The first is answered, and the connection closed, so that the client asks the others again: HTTP says it has to."""
    answer = exchange(served, WHOLE * 3)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert stub.questions == 1


def test_what_follows_a_body_is_no_part_of_it(served: GatewayProcess, stub: EngineStub) -> None:
    answer = exchange(served, WHOLE + b"GET /j/secret/v1/models HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert stub.asked[0].body == BODY


def test_a_client_that_goes_while_it_sends_leaves_nothing(served: GatewayProcess, stub: EngineStub) -> None:
    for data in (b"", b"POST", QUESTION, QUESTION + b"Content-Length: 1000000\r\n\r\n" + b"x" * 500_000):
        with served.raw() as client:
            client.sendall(data)
            eventually(lambda: served.client.status().connections == 1)
    eventually(lambda: (status := served.client.status()) and (status.connections, status.bytes_in_flight) == (0, 0))
    assert not stub.asked


def test_a_client_that_goes_within_its_second_request_leaves_nothing(served: GatewayProcess, stub: EngineStub) -> None:
    with served.raw() as client:
        client.sendall(WHOLE)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(QUESTION + b"Content-Length: 1000000\r\n\r\n" + b"x" * 500_000)
        eventually(lambda: served.client.status().bytes_in_flight == 1_000_000)
    eventually(lambda: served.client.status().bytes_in_flight == 0)


def test_a_client_that_does_not_read_holds_nobody_back(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = lambda asked: asked.send(b'{"choices": [], "x": "' + b"x" * (6 << 20) + b'"}')
    with served.raw() as client:
        client.sendall(WHOLE)
        eventually(lambda: (counters := served.client.counters(TOKEN)) and counters.answered == 1)
        assert served.ask(chat("ho")).status == 200
        assert served.client.status().bytes_in_flight >= 6 << 20  # of the one that does not read
    eventually(lambda: served.client.status().bytes_in_flight == 0)


def test_more_connections_than_allowed_wait(tmp_path: Path, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    with gateway_process(tmp_path, "--max-connections", "4") as gateway:
        gateway.client.declare([engine_of(stub, max_in_flight=64)], [route_to()])
        waiting = [in_background(lambda text=text: gateway.ask(chat(text)).status) for text in "abcdefgh"]  # type: ignore[misc]
        gate.wait_for_arrivals(4)
        assert gateway.client.status().connections == 4
        gate.open.set()
        assert [wait() for wait in waiting] == [200] * 8
        assert stub.most_in_flight == 4


def test_idle_connections_make_room_for_others(tmp_path: Path, stub: EngineStub) -> None:
    with gateway_process(tmp_path, "--max-connections", "4") as gateway:
        gateway.client.declare([engine_of(stub)], [route_to()])
        idle = [gateway.raw() for _ in range(4)]
        eventually(lambda: gateway.client.status().connections == 4)
        assert gateway.ask(chat("hi")).status == 200
        for client in idle:
            client.close()


def test_a_gateway_without_descriptors_goes_on_when_it_has_some(tmp_path: Path, stub: EngineStub) -> None:
    import resource

    with gateway_process(tmp_path) as gateway:
        gateway.client.declare([engine_of(stub)], [route_to(hold_seconds=60.0)])
        used = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (used + 4, 4096))
        clients = [gateway.raw() for _ in range(12)]
        eventually(lambda: "no connection can be accepted" in gateway.log.read_text())
        for client in clients:
            client.close()
        assert gateway.ask(chat("hi")).status == 200


@pytest.mark.parametrize("data", [b"", b"POST /", QUESTION + b"Content-Length: 5\r\n\r\n{", WHOLE])
def test_a_client_that_is_too_slow_is_cut_off(data: bytes) -> None:
    """With an answer that is larger than all buffers, and nobody who reads it."""

    async def answer(request: ClientRequest) -> None:
        request.reply(error_reply(200, "x" * (64 << 20)))
        await request.drain()

    async def serve() -> None:
        ours, theirs = socket.socketpair()
        connections: set[ClientConnection] = set()
        limits = Limits(1000, ByteBudget(1000))
        loop = asyncio.get_running_loop()
        _, connection = await loop.connect_accepted_socket(lambda: ClientConnection(answer, limits, connections), ours)
        await asyncio.to_thread(theirs.sendall, data)
        while data == WHOLE and connection._writable is None:  # noqa: ASYNC110 - it says so to nobody
            await asyncio.sleep(0)
        connection.check_time(time.monotonic() + 30)
        assert connections
        connection.check_time(time.monotonic() + 301)
        while connections:  # noqa: ASYNC110 - it says so to nobody
            await asyncio.sleep(0)
        theirs.close()

    asyncio.run(serve())


def test_sigterm_lets_requests_end(mortal: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    asking = in_background(lambda: mortal.ask(chat("hi")))
    gate.wait_for_arrivals()
    stopping = in_background(mortal.terminate)
    eventually(lambda: "the gateway stops" in mortal.log.read_text())
    gate.open.set()
    answer = asking()
    assert (answer.status, answer.headers["connection"]) == (200, "close")  # type: ignore[attr-defined]
    assert stopping() == 0


def test_sigterm_breaks_off_what_takes_too_long(tmp_path: Path, stub: EngineStub, recording: Path) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    with gateway_process(tmp_path, "--stop-seconds", "0.1") as gateway:
        gateway.client.declare([engine_of(stub)], [route_to(recording)])
        connection = gateway.connect()
        connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat("hi")))
        gate.wait_for_arrivals()
        assert gateway.terminate() == 0
        with pytest.raises(ConnectionError):
            connection.getresponse()
        gate.open.set()


def test_a_gateway_that_is_started_again_keeps_its_port(mortal: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    assert mortal.ask(chat("hi")).status == 200
    assert mortal.terminate() == 0
    asking = in_background(lambda: mortal.ask(chat("ho")).status)  # connects while nobody accepts
    mortal.start()
    mortal.client.declare([engine_of(stub)], [route_to(recording)])
    assert asking() == 200
