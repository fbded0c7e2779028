"""Endpoints over TLS, such as a vendor's API: by aiohttp, which knows the certificates and the proxies of the machine."""

import asyncio
import ssl
from typing import Final

import aiohttp
from yarl import URL

from evalrpc.engines.gateway.upstream import Address, Headers, NotConnectedError, OutgoingRequest, UpstreamError

_CONNECT_SECONDS: Final = 30.0
_CHUNK_BYTES: Final = 256 << 10


class SecureUpstream:
    """The connections to one endpoint."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None
        self._closing: asyncio.Task[None] | None = None

    async def ask(self, request: OutgoingRequest, silence_seconds: float) -> "_SecureAnswer":
        """Send a request, and return its answer as soon as its head is there. Raises UpstreamError."""
        if self._session is None:
            # As many connections as requests: the gateway bounds those. Proxies are those of the environment.
            connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context())
            self._session = aiohttp.ClientSession(
                connector=connector,
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
        try:
            response = await self._session.request(
                request.method.decode(),
                URL(self._address.url(request.target), encoded=True),
                headers=[*headers, ("accept-encoding", "identity")],
                data=request.body or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds),
            )
        except aiohttp.ClientConnectorError as error:
            raise NotConnectedError(f"the endpoint can't be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"the endpoint gave no answer: {error or type(error).__name__}") from error
        return _SecureAnswer(response)

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._closing = asyncio.get_running_loop().create_task(self._session.close())


class _SecureAnswer:
    """An answer that has begun."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = [(name.lower(), value) for name, value in response.raw_headers]

    async def chunk(self) -> bytes:
        """Return the next piece of the body; empty: it is whole. Raises UpstreamError."""
        try:
            return await self._response.content.read(_CHUNK_BYTES)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"the endpoint broke off its answer: {error or type(error).__name__}") from error

    def close(self) -> None:
        """Keep the connection if the answer is whole, else close it."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
