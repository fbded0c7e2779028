"""Processes that read for callers: few at a time, and each kept for a while, since its start takes some tenths of a second."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from evalrpc.errors import EvalrpcError
from evalrpc.reading.disk import read_in, read_on
from evalrpc.reading.turns import Turns
from evalrpc.scheduling.limited_process import LimitedProcess, Limits

IDLE_SECONDS: Final = 30.0
"""How long a process waits for more work before it ends."""

_T = TypeVar("_T")


class ReadingProcesses:
    """Carries out reads in processes. Runs on the event loop; `threads`, one for each at least, wait for them."""

    def __init__(self, threads: Executor, max_processes: int) -> None:
        self._threads = threads
        self._turns = Turns(max_processes)  # whoever waits for one has no process yet
        self._idle: list[tuple[LimitedProcess, asyncio.TimerHandle]] = []

    async def call(self, limits: Limits, read: Callable[..., _T], *arguments: object, owner: str = "") -> _T:
        """Call a function of a module in a process, and keep that for a while, unless nobody waits for the answer any more.
        `owner`: who asks for it.

        Raises what `read_on` and `read_in` do.
        """
        async with self._turns.turn(owner):
            process = self._take()
            process.limits = limits
            try:
                answer = await read_on(self._threads, lambda: read_in(process, read, *arguments))
            except EvalrpcError:
                self._keep(process)
                raise
            except BaseException:  # above all that nobody waits for the answer any more
                process.close()
                raise
            self._keep(process)
            return answer

    def close(self) -> None:
        """End the processes that are kept."""
        while self._idle:
            process, timer = self._idle.pop()
            timer.cancel()
            process.close()

    def _take(self) -> LimitedProcess:
        if not self._idle:
            return LimitedProcess(Limits(), is_kept=True)
        process, timer = self._idle.pop()
        timer.cancel()
        return process

    def _keep(self, process: LimitedProcess) -> None:
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end, process)
        self._idle.append((process, timer))

    def _end(self, process: LimitedProcess) -> None:
        self._idle = [each for each in self._idle if each[0] is not process]
        self._threads.submit(process.close)  # which waits for its end
