"""The health protocol: what is answered, what is refused, and what watchers hear of a stop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from caller_limits import caller_limits
from grpc_health.v1 import health_pb2 as pb
from waiting import DEADLINE_SECONDS

from evalrpc.errors import InvalidRequestError, NotFoundError, ServerStoppingError
from evalrpc.server.error_status import status_of
from evalrpc.server.handlers import handlers_of
from evalrpc.server.health import SERVICE, Health
from evalrpc.testing.in_process import InProcessTransport

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def use() -> Callable[[Callable[[InProcessTransport, Health], Awaitable[None]]], None]:
    """Run a coroutine with a transport and the service behind it."""

    async def within(coroutine: Callable[[InProcessTransport, Health], Awaitable[None]]) -> None:
        health = Health(("acme.Service",))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await coroutine(InProcessTransport(handlers_of(SERVICE, health, caller_limits())), health)

    return lambda coroutine: asyncio.run(within(coroutine))


Use = Callable[[Callable[[InProcessTransport, Health], Awaitable[None]]], None]


def request(service: str) -> bytes:
    return pb.HealthCheckRequest(service=service).SerializeToString()


async def check(transport: InProcessTransport, service: str) -> int:
    return pb.HealthCheckResponse.FromString(await transport.unary("Check", request(service))).status


async def next_of(watch: AsyncIterator[bytes]) -> int:
    return pb.HealthCheckResponse.FromString(await anext(watch)).status


def test_the_server_and_its_services_serve_until_they_refuse(use: Use) -> None:
    async def call(transport: InProcessTransport, health: Health) -> None:
        assert [await check(transport, name) for name in ("", "acme.Service")] == [SERVING, SERVING]
        health.refuse()
        assert [await check(transport, name) for name in ("", "acme.Service")] == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(NotFoundError, match=r"no service acme.Other"):
            await check(transport, "acme.Other")

    use(call)


def test_a_long_name_that_is_not_here_is_cut_so_that_the_trailers_hold_it(use: Use) -> None:
    async def call(transport: InProcessTransport, _: Health) -> None:
        with pytest.raises(NotFoundError) as caught:
            await check(transport, "y" * 10_000)
        assert status_of(caught.value).ByteSize() < 4096

    use(call)


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
def test_what_can_not_be_decoded_is_refused(use: Use, method: str, garbage: bytes) -> None:
    async def call(transport: InProcessTransport, _: Health) -> None:
        with pytest.raises(InvalidRequestError):
            await (transport.unary(method, garbage) if method == "Check" else anext(transport.stream(method, garbage)))

    use(call)


def test_every_watcher_hears_of_the_stop_though_another_one_left(use: Use) -> None:
    async def call(transport: InProcessTransport, health: Health) -> None:
        leaver, stayer = (transport.stream("Watch", request("")) for _ in range(2))
        assert [await next_of(leaver), await next_of(stayer)] == [SERVING, SERVING]
        await leaver.aclose()  # type: ignore[attr-defined]
        health.stop()
        assert await next_of(stayer) == NOT_SERVING
        with pytest.raises(ServerStoppingError):
            await next_of(stayer)

    use(call)


def test_a_watcher_hears_of_each_change_until_the_server_refuses_for_good(use: Use) -> None:
    async def call(transport: InProcessTransport, health: Health) -> None:
        watch = transport.stream("Watch", request("acme.Service"))
        assert await next_of(watch) == SERVING
        for _ in range(2):
            health.suspend()
            assert await next_of(watch) == NOT_SERVING
            health.suspend()
            health.resume()
            assert await next_of(watch) == SERVING
        health.refuse()
        assert await next_of(watch) == NOT_SERVING
        health.suspend()
        health.resume()
        assert await check(transport, "") == NOT_SERVING
        health.stop()
        with pytest.raises(ServerStoppingError):
            await next_of(watch)

    use(call)


def test_a_service_that_is_not_here_is_unknown_once(use: Use) -> None:
    async def call(transport: InProcessTransport, health: Health) -> None:
        watch = transport.stream("Watch", request("acme.Other"))
        assert await next_of(watch) == UNKNOWN
        health.stop()
        with pytest.raises(ServerStoppingError):
            await next_of(watch)

    use(call)
