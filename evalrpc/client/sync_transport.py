# Generated from aio_transport.py by scripts/generate-sync-client: do not edit.
"""The blocking client's connection, with its three kinds of calls: unary, a paged listing, a stream read to its end.

The decisions are in `resumable`, `retrying` and `failures`.
"""

from __future__ import annotations  # grpc's classes are generic only in its type stubs

import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc

from evalrpc.client import core
from evalrpc.client.addresses import Address
from evalrpc.client.credentials import Bearer, FilePath, TlsOptions, bearer, tls_options
from evalrpc.client.reconnect import ReconnectPolicy
from evalrpc.client.resumable import ItemT, MessageT, Reader, RequestT
from evalrpc.client.retrying import RETRY_SECONDS, Retries
from evalrpc.errors import ClientClosedError
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

ResponseT = TypeVar("ResponseT")


class PageRequest(Protocol):
    """What every listing's request has."""

    page_token: str


class Page(Protocol):
    """What every listing's response has."""

    next_page_token: str


PageRequestT = TypeVar("PageRequestT", bound=PageRequest)
PageT = TypeVar("PageT", bound=Page)


class Transport:
    """A connection to the server."""

    def __init__(
        self,
        address: str | None = None,
        *,
        channel: grpc.Channel | None = None,
        timeout_seconds: float | None = 30.0,
        tls_ca: FilePath | None = None,
        tls_cert: FilePath | None = None,
        tls_key: FilePath | None = None,
        token: str | None = None,
        token_file: FilePath | None = None,
    ) -> None:
        """Connect to a server when it is first called; `timeout_seconds` is the timeout of unary calls, and None means none.

        `address` is HOST:PORT, a URL, or another of gRPC's own forms (see `evalrpc.client.addresses`). Default:
        EVALRPC_ADDRESS, else 127.0.0.1:50051. A loopback address or a socket is never reached through a proxy.

        TLS is for addresses that begin with `https://`. `tls_ca` is a file with the certificates to trust, as PEM (default:
        EVALRPC_TLS_CA, else those that the machine trusts); `tls_cert` and `tls_key` are those of the client, for mutual TLS
        (default: EVALRPC_TLS_CLIENT_CERT and EVALRPC_TLS_CLIENT_KEY).

        The token is `token`, else that in `token_file`, which is read for every call, else EVALRPC_TOKEN, else that which
        `evalrpc login` keeps for this address. It is sent with TLS only, or to this machine.

        Or pass a `channel` of your own, for credentials or interceptors of yours. It is used as it is and never closed here;
        `evalrpc.client.channel_options()` has the retries and the keepalive of ours.

        Raises ValueError for an address, a certificate or a token that makes no sense, OSError for a file that can't be read.
        """
        self._bearer = Bearer()
        if channel is not None:
            core.require_channel(channel, grpc.Channel, address, tls_ca, tls_cert, tls_key, token, token_file)
            self.address, self._channel = "a given channel", channel
        else:
            server = core.server_address(address)
            self._bearer = bearer(server, token, token_file)
            self.address, self._channel = server.target, _connect(server, tls_options(server, tls_ca, tls_cert, tls_key))
        self._owns_channel = channel is None
        self._is_closed = False
        self._timeout_seconds = timeout_seconds
        self._stub = EvaluationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end every call on it, unless the channel was given. Idempotent.

        Calls made later raise ClientClosedError, and so do streams that were under way.
        """
        if self._owns_channel:
            self._is_closed = True
            self._channel.close()

    def is_healthy(self) -> bool:
        """Return whether the server answers and is ready to serve. Raises nothing."""
        if self._is_closed:
            return False
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(core.HEALTH_CHECK_METHOD)
        try:
            return check(core.HEALTH_CHECK_REQUEST, timeout=self._timeout_seconds) == core.HEALTH_SERVING
        except grpc.RpcError:
            return False

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        policy: ReconnectPolicy | None = None,
    ) -> ResponseT:
        retries = Retries(request, policy or ReconnectPolicy(RETRY_SECONDS, self._timeout_seconds))
        while True:
            self._require_open()
            try:
                return method(request, timeout=retries.timeout_seconds(), metadata=self._bearer.metadata())
            except grpc.RpcError as error:
                delay_seconds = retries.failed(error)
            time.sleep(delay_seconds)

    def _pages(
        self,
        method: grpc.UnaryUnaryMultiCallable[PageRequestT, PageT],
        request: PageRequestT,
        policy: ReconnectPolicy | None = None,
    ) -> Iterator[PageT]:
        while True:
            page = self._call(method, request, policy)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _read(
        self, method: grpc.UnaryStreamMultiCallable[RequestT, MessageT], reader: Reader[RequestT, MessageT, ItemT]
    ) -> Generator[ItemT, None, None]:
        while not reader.is_finished():
            self._require_open()
            call = method(reader.request(), timeout=reader.timeout_seconds(), metadata=self._bearer.metadata())
            try:
                for message in call:
                    yield from reader.accept(message)
                    if reader.is_finished():
                        return
                delay_seconds = reader.ended()
            except grpc.RpcError as error:
                delay_seconds = reader.failed(error)
            finally:
                call.cancel()
            time.sleep(delay_seconds)

    def _require_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError("the client was closed, so it makes no call any more: make a new one")


def _connect(server: Address, tls: TlsOptions | None) -> grpc.Channel:
    options = core.channel_options(use_proxy=not server.is_local)
    if tls is None:
        return grpc.insecure_channel(server.target, options=options)
    return grpc.secure_channel(server.target, grpc.ssl_channel_credentials(*tls), options=options)
