"""What a request over HTTP says of itself."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import DEADLINE_SECONDS

from evalrpc.errors import InvalidRequestError
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.transports.http.connection import SCOPE_KEY
from evalrpc.server.transports.http.request import MAX_PARAMETERS, HttpRequest
from evalrpc.server.unread import UnreadBytes


async def nothing(*_: object) -> Any:
    return None


def request(query: bytes) -> HttpRequest:
    scope = {"method": "GET", "path": "/", "raw_path": b"/", "query_string": query, "headers": []}
    return HttpRequest({**scope, SCOPE_KEY: SimpleNamespace()}, nothing, nothing, 1000, UnreadBytes(1, lambda peers: None))


def test_parameters_are_as_many_as_the_limit_allows() -> None:
    most = b"&".join([b"a=%C3%A4"] * MAX_PARAMETERS)
    assert request(most).parameters == [("a", "ä")] * MAX_PARAMETERS
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_PARAMETERS} parameters"):
        _ = request(most + b"&a=b").parameters


@pytest.mark.parametrize("query", [b"a=\xff", b"a=%FF"])
def test_a_query_that_is_no_url_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="NAME=VALUE pairs"):
        _ = request(query).parameters


class Connection:
    """The connection of a client that sends its body part by part, as it is let."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        part = await self.parts.get()
        return {"type": "http.request", "body": part, "more_body": bool(part)}


def test_bodies_that_are_not_sent_to_their_end_take_no_more_memory_than_there_is_room() -> None:
    async def test() -> None:
        cut_off = asyncio.get_running_loop().create_future()
        bodies = UnreadBytes(SMALL_BYTES * 5, lambda peers: cut_off.done() or cut_off.set_result(peers), stall_seconds=0.0)
        clients = [Connection(str(number)) for number in range(3)]
        scope = {"method": "POST", "path": "/", "raw_path": b"/", "query_string": b""}
        headers = [(b"content-length", b"%d" % (2 * SMALL_BYTES))]
        requests = [
            HttpRequest({**scope, "headers": headers, SCOPE_KEY: client}, client.receive, nothing, 10**9, bodies)
            for client in clients
        ]
        reading = [asyncio.ensure_future(each.body()) for each in requests]
        for client in clients:
            client.parts.put_nowait(b"x" * (SMALL_BYTES + 1))
        assert await cut_off == {"0", "1"}, "not the one that waits for room"
        assert bodies.held_bytes == 4 * SMALL_BYTES
        reading[0].cancel()
        await asyncio.wait(reading[:1])
        requests[0].give_room_back()
        for part in (b"y" * (SMALL_BYTES - 1), b""):
            clients[2].parts.put_nowait(part)
        assert len(await reading[2]) == 2 * SMALL_BYTES
        reading[1].cancel()
        await asyncio.wait(reading[1:2])
        for each in requests[1:]:
            each.give_room_back()
        assert bodies.held_bytes == 0

    asyncio.run(asyncio.wait_for(test(), DEADLINE_SECONDS))
