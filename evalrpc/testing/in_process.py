"""Calls of a server in the same process, without a network: messages in, messages or errors out."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from evalrpc.server.call import ANONYMOUS, Call, Principal
from evalrpc.server.handlers import Handler


class InProcessTransport:
    """A client of handlers, which are given by method. Raises the EvalrpcError of whatever fails, as it was raised."""

    def __init__(self, handlers: Mapping[str, Handler], principal: Principal = ANONYMOUS) -> None:
        self._handlers = handlers
        self._principal = principal

    async def unary(self, method: str, request: bytes) -> bytes:
        """Return the serialised answer to a serialised message."""
        return await self._handlers[method](request, Call(self._principal, _refuse))

    async def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        """Yield the serialised messages of a streaming answer. The handler never runs ahead of the reader by more than one;
        closing the iterator ends it."""
        messages: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        handling = asyncio.ensure_future(self._handlers[method](request, Call(self._principal, messages.put)))
        try:
            while not (handling.done() and messages.empty()):
                reading = asyncio.ensure_future(messages.get())
                await asyncio.wait((reading, handling), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    yield reading.result()
                else:
                    reading.cancel()
            handling.result()
        finally:
            handling.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait((handling,))


async def _refuse(_: bytes) -> None:
    raise AssertionError("a unary method has sent a message of a stream")
