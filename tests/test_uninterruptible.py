"""Work that can't be interrupted: whoever waits for it leaves only when it is over, and nothing is logged as a bug."""

import asyncio
import gc
from typing import Any

import pytest

from evalrpc.uninterruptible import uninterruptible


class Work:
    """Something that goes on until a test ends it."""

    def __init__(self) -> None:
        self.end = asyncio.get_running_loop().create_future()
        self.is_over = False

    async def go_on(self) -> str:
        try:
            return await self.end
        finally:
            self.is_over = True


async def until_all_wait() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_comes_of_it_is_returned_or_raised() -> None:
    async def wait() -> None:
        done, failed = Work(), Work()
        done.end.set_result("done")
        failed.end.set_exception(ValueError("bad"))
        assert await uninterruptible(done.go_on()) == "done"
        with pytest.raises(ValueError, match="bad"):
            await uninterruptible(failed.go_on())

    asyncio.run(wait())


@pytest.mark.parametrize("cancel_count", [1, 2])
def test_whoever_is_cancelled_leaves_only_when_it_is_over(cancel_count: int) -> None:
    problems: list[dict[str, Any]] = []

    async def wait() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        work = Work()
        waiter = asyncio.create_task(uninterruptible(work.go_on()))
        await until_all_wait()
        for _ in range(cancel_count):
            waiter.cancel()
            await until_all_wait()
            assert not waiter.done()
        work.end.set_exception(ValueError("bad"))
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert work.is_over

    asyncio.run(wait())
    gc.collect()
    assert not problems
