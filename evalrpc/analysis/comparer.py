"""Comparisons for callers: of small samples files in the server itself, and of others in a process of its own."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import ReadLimitError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.registry import build_harness
from evalrpc.reading.disk import read_in, read_on
from evalrpc.scheduling.limited_process import LimitedProcess, Limits
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, CompareJobsResponse
from evalrpc.v1.jobs_pb2 import JobInfo

IN_PLACE_LIMITS: Final = ReadLimits(max_bytes=32 * 1024**2, max_seconds=5.0, max_row_bytes=512 * 1024)
"""For a comparison in the server itself. The longest row of these holds the interpreter for about 40 ms."""

PROCESS_LIMITS: Final = ReadLimits(max_bytes=16 * 1024**3, max_seconds=120.0)
"""For a comparison in a process."""

PROCESS_USE: Final = Limits(memory_bytes=2 * 1024**3, processor_seconds=120)
"""What such a process may use."""


class Comparer:
    """Compares jobs. Runs on the event loop; `comparers` do the work, or wait for the process that does."""

    def __init__(
        self,
        data_dir: Path,
        harnesses: Mapping[str, Harness],
        harness_settings: Mapping[str, HarnessSettings],
        comparers: Executor,
    ) -> None:
        self._data_dir = data_dir
        self._harnesses = harnesses
        self._harness_settings = harness_settings
        self._comparers = comparers

    async def compare(self, call: CompareJobsRequest, baseline: JobInfo, candidates: Sequence[JobInfo]) -> CompareJobsResponse:
        """Compare the candidates with the baseline. Raises what `evalrpc.analysis.comparison.compare` does."""
        jobs = [_needed_of(job) for job in (baseline, *candidates)]
        budget = ReadBudget(IN_PLACE_LIMITS)
        try:
            return await read_on(
                self._comparers, lambda: _compare(call, jobs, self._harnesses, self._data_dir, budget), budget.stop
            )
        except ReadLimitError:
            pass
        process = LimitedProcess(PROCESS_USE)
        return await read_on(self._comparers, lambda: self._compare_in(process, call, jobs), process.close)

    def _compare_in(self, process: LimitedProcess, call: CompareJobsRequest, jobs: Sequence[JobInfo]) -> CompareJobsResponse:
        names = {job.request.harness for job in jobs} & self._harness_settings.keys()
        settings = [self._harness_settings[name] for name in names]
        return read_in(process, _compare_in_process, call, jobs, settings, self._data_dir, PROCESS_LIMITS)


def _needed_of(job: JobInfo) -> JobInfo:
    """Return a job without its arguments, which may be large, and of which a comparison needs nothing."""
    needed = JobInfo()
    needed.CopyFrom(job)
    harness = job.request.harness
    needed.request.Clear()
    needed.request.harness = harness
    return needed


def _compare(
    call: CompareJobsRequest,
    jobs: Sequence[JobInfo],
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
) -> CompareJobsResponse:
    from evalrpc.analysis.comparison import compare  # here, so that a server that compares nothing never loads NumPy and SciPy

    return compare(call, jobs[0], jobs[1:], harnesses, data_dir, budget)


def _compare_in_process(
    call: CompareJobsRequest, jobs: Sequence[JobInfo], settings: Sequence[HarnessSettings], data_dir: Path, limits: ReadLimits
) -> CompareJobsResponse:
    harnesses = {each.name: build_harness(each) for each in settings}
    return _compare(call, jobs, harnesses, data_dir, ReadBudget(limits))
