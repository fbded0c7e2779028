"""Results from another thread reach the coroutines that wait for them."""

import asyncio
import threading
from concurrent.futures import Future

import pytest
from waiting import DEADLINE_SECONDS

from evalrpc.errors import StoreUnavailableError
from evalrpc.watching.wakeups import Results

COUNT = 2000


def test_everyone_gets_their_own_result_whatever_comes_at_once() -> None:
    async def wait_for_all() -> list[int]:
        results = Results()
        futures: list[Future[int]] = [Future() for _ in range(COUNT)]
        waiters = [results.of(future) for future in futures]
        halves = (futures[: COUNT // 2], futures[COUNT // 2 :])
        threads = [
            threading.Thread(target=resolve, args=(half, start)) for half, start in zip(halves, (0, COUNT // 2), strict=True)
        ]
        for thread in threads:
            thread.start()
        answers = await asyncio.wait_for(asyncio.gather(*waiters), DEADLINE_SECONDS)
        for thread in threads:
            thread.join()
        return answers

    def resolve(futures: list[Future[int]], start: int) -> None:
        for number, future in enumerate(futures, start):
            future.set_result(number)

    assert asyncio.run(wait_for_all()) == list(range(COUNT))


def test_an_error_is_raised_where_the_result_is_waited_for() -> None:
    async def wait() -> None:
        future: Future[int] = Future()
        waiter = Results().of(future)
        threading.Thread(target=future.set_exception, args=(StoreUnavailableError("full"),)).start()
        await waiter

    with pytest.raises(StoreUnavailableError, match="full"):
        asyncio.run(wait())


def test_a_result_that_nobody_waits_for_any_more_keeps_none_from_theirs() -> None:
    async def wait() -> int:
        results = Results()
        left: Future[int] = Future()
        kept: Future[int] = Future()
        gone, waiter = results.of(left), results.of(kept)
        gone.cancel()
        left.set_result(1)
        kept.set_result(2)
        return await waiter

    assert asyncio.run(wait()) == 2
