"""A stub of an engine: `python -m benchmarks.engine SECONDS`. It parses each request, as engines do, and answers all alike."""

import asyncio
import json
import signal
import sys
from typing import Final, cast

import httptools
import uvloop

_BODY: Final = (
    b'{"id":"x","object":"chat.completion","created":0,"model":"tiny","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"The answer is 4."}}],'
    b'"usage":{"prompt_tokens":18,"completion_tokens":6,"total_tokens":24}}'
)
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class _Connection(asyncio.Protocol):
    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        json.loads(b"".join(self._body))
        self._body.clear()
        asyncio.get_running_loop().call_later(self._delay_seconds, self._transport.write, _ANSWER)


async def serve(delay_seconds: float) -> None:
    """Serve on a free loopback port until SIGTERM, and print the address to stdout."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: _Connection(delay_seconds), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"engine listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
