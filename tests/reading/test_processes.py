"""How many processes callers have together, and what becomes of them."""

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes_of_tests import is_alive
from waiting import eventually

from evalrpc.errors import ReadLimitError
from evalrpc.reading.processes import ReadingProcesses
from evalrpc.scheduling.limited_process import Limits

MOST = 2
LIMITS = Limits()


@pytest.fixture
def processes() -> Iterator[ReadingProcesses]:
    with ThreadPoolExecutor(MOST) as threads:
        processes = ReadingProcesses(threads, MOST)
        yield processes
        processes.close()


def test_many_callers_at_a_time_share_few_processes_that_end_with_them(processes: ReadingProcesses) -> None:
    async def read() -> list[int]:
        return await asyncio.gather(*(processes.call(LIMITS, os.getpid) for _ in range(12)))

    pids = set(asyncio.run(read()))
    assert 1 <= len(pids) <= MOST
    assert all(map(is_alive, pids))
    processes.close()
    eventually(lambda: not any(map(is_alive, pids)), "for the processes to end")


def test_who_leaves_while_waiting_ends_no_process_and_who_leaves_a_read_ends_that(processes: ReadingProcesses) -> None:
    async def leave() -> tuple[set[int], set[int]]:
        before = set(await asyncio.gather(*(processes.call(LIMITS, os.getpid) for _ in range(12))))
        reading = [asyncio.ensure_future(processes.call(LIMITS, time.sleep, 3600)) for _ in range(MOST)]
        waiting = [asyncio.ensure_future(processes.call(LIMITS, os.getpid)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        reading[0].cancel()
        after = {await each for each in waiting[1:]}
        assert not reading[1].done()
        reading[1].cancel()
        await asyncio.wait([*reading, *waiting])
        return before, after

    before, after = asyncio.run(leave())
    assert not before & after
    eventually(lambda: not any(map(is_alive, before)), "for what nobody waits for to end")


def test_each_call_has_limits_of_its_own(processes: ReadingProcesses) -> None:
    async def read() -> None:
        for _ in range(2):
            with pytest.raises(ReadLimitError, match="more than 300 MiB of memory"):
                await processes.call(Limits(memory_bytes=300 * 1024**2), bytearray, 400 * 1024**2)
            assert len(await processes.call(LIMITS, bytes, 400 * 1024**2 // 100)) == 400 * 1024**2 // 100

    asyncio.run(read())
