"""Comparisons, decisions, plans, flips and trends for callers, computed in processes of their own. So NumPy and SciPy, which
take more memory than the rest of an idle server, are never loaded into it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from evalrpc.analysis import work
from evalrpc.analysis.evidence import Evidence, Measured
from evalrpc.analysis.flip_lists import Flips
from evalrpc.analysis.run_series import Series
from evalrpc.config import HarnessSettings
from evalrpc.errors import ReadLimitError
from evalrpc.files.read_budget import ReadLimits
from evalrpc.protobuf.copies import without
from evalrpc.reading import page_tokens
from evalrpc.reading.processes import ReadingProcesses
from evalrpc.reading.remembered import Remembered
from evalrpc.reading.turns import Turns
from evalrpc.scheduling.limited_process import Limits, ProcessLimitError
from evalrpc.v1.comparison_pb2 import (
    CompareJobsRequest,
    CompareJobsResponse,
    ListFlipsRequest,
    ListFlipsResponse,
    PlanComparisonRequest,
    PlanComparisonResponse,
)
from evalrpc.v1.history_pb2 import MetricTrend, TrendOptions
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.suites_pb2 import Suite, SuiteDecision, SuiteEntry

QUICK_BYTES: Final = 256 * 1024**2
QUICK_SECONDS: Final = 5.0
"""What work may read, and how long it may take, without being long work, of which little is done at a time."""

QUICK_USE: Final = Limits(memory_bytes=1024**3, processor_seconds=20)

READ_LIMITS: Final = ReadLimits(max_bytes=16 * 1024**3, max_seconds=120.0, max_hole_bytes=1024**2)
"""What reading may cost."""

PROCESS_USE: Final = Limits(memory_bytes=2 * 1024**3, processor_seconds=120)
"""What it may use of the machine."""

_MAX_REMEMBERED: Final = 1_000_000  # flips, of all listings: 32 bytes each
_FLIPS_OF_A_LISTING: Final = 25  # for so many it takes as much memory, beside its own


class Comparer:
    """Compares jobs, in processes. Runs on the event loop.

    All work begins as quick work. What turns out to be long begins again in its turn, of which there are fewer than processes:
    so however many large files are compared, the others wait for seconds at most. `owner`, everywhere: who asks.
    """

    def __init__(
        self, data_dir: Path, harness_settings: Mapping[str, HarnessSettings], processes: ReadingProcesses, max_long: int
    ) -> None:
        self._data_dir = data_dir
        self._harness_settings = harness_settings
        self._processes = processes
        self._long_turns = Turns(max_long)
        self._known_flips = Remembered[Flips](_MAX_REMEMBERED, lambda flips: _FLIPS_OF_A_LISTING + len(flips))

    async def compare(
        self, call: CompareJobsRequest, baseline: JobInfo, candidates: Sequence[JobInfo], owner: str
    ) -> CompareJobsResponse:
        """Compare the candidates with the baseline. Raises what `evalrpc.analysis.comparison.compare` does."""
        answer: CompareJobsResponse = await self._read(owner, work.compare, call, [baseline, *candidates])
        return answer

    async def plan(self, call: PlanComparisonRequest, jobs: Sequence[JobInfo], owner: str) -> PlanComparisonResponse:
        """Plan a comparison from the samples of jobs, or without any. Raises what
        `evalrpc.analysis.planning.plan_from_jobs` does."""
        answer: PlanComparisonResponse = await self._read(owner, work.plan, call, jobs)
        return answer

    async def measure(
        self, suite: Suite, entry: SuiteEntry, candidate: JobInfo, baseline: JobInfo | None, owner: str
    ) -> Measured:
        """Compare the metrics of an entry of a suite with the baseline's, if there is one. Raises what
        `evalrpc.analysis.suite_metrics.measure` does."""
        jobs = [candidate] if baseline is None else [candidate, baseline]
        definition = Suite(alpha=suite.alpha, max_bad_answer_ratio=suite.max_bad_answer_ratio)
        measured: Measured = await self._read(owner, work.measure, (definition, entry), jobs)
        return measured

    async def decide(self, suite: Suite, evidence: Sequence[Evidence], owner: str, *, has_ended: bool) -> SuiteDecision:
        """Decide over all entries of a suite, which have been measured. See `evalrpc.analysis.decisions.decide`."""
        decision: SuiteDecision = await self._read(owner, work.decide, (suite, evidence, has_ended), ())
        return decision

    async def find_trends(self, options: TrendOptions, series: Sequence[Series], owner: str) -> list[MetricTrend]:
        """Say how each series goes."""
        trends: list[MetricTrend] = await self._read(owner, work.find_trends, (options, series), [])
        return trends

    async def list_flips(self, call: ListFlipsRequest, jobs: Sequence[JobInfo], page_size: int, owner: str) -> bytes:
        """List a page of flips, as a serialised ListFlipsResponse. Raises what `evalrpc.analysis.flips.find_flips` does,
        InvalidRequestError for a bad token, and SamplesNotFoundError for samples that have gone meanwhile."""
        listing = without(call, "page_size", "page_token")
        begin = page_tokens.decode(call.page_token, listing) or 0
        flips = await self._flips(without(listing, "direction"), jobs, owner)
        indices = flips.range_of(call.direction)
        part = flips.part(indices[begin : begin + page_size])
        page: ListFlipsResponse = await self._read(owner, work.read_flips, (part, page_size), jobs)
        end = begin + len(page.flips)
        if end < len(indices):
            page.next_page_token = page_tokens.encode(end, listing)
        return page.SerializeToString()

    async def _flips(self, listing: ListFlipsRequest, jobs: Sequence[JobInfo], owner: str) -> Flips:
        key = hashlib.sha256(listing.SerializeToString(deterministic=True)).digest()  # a request may be large
        flips = self._known_flips.get(key)
        if flips is None:
            flips = await self._read(owner, work.find_flips, listing, jobs)
            self._known_flips.put(key, flips)
        return flips

    def forget_unused(self) -> None:
        """Forget the flips whose next page nobody reads any more."""
        self._known_flips.forget_unused()

    async def _read(self, owner: str, do: work.Work, order: object, jobs: Sequence[JobInfo]) -> Any:
        """Do work in a process."""
        names = {job.request.harness for job in jobs} & self._harness_settings.keys()
        settings = [self._harness_settings[name] for name in names]
        assignment = work.Assignment(do, order, list(map(_needed_of, jobs)), settings, self._data_dir)
        answer = await self._try(owner, assignment)
        if answer is not work.Outcome.TAKES_LONG:
            return answer
        async with self._long_turns.turn(owner):
            return await self._processes.call(PROCESS_USE, work.carry_out, assignment, READ_LIMITS, owner=owner)

    async def _try(self, owner: str, assignment: work.Assignment) -> Any:
        """Do work in a process, unless it takes long."""
        limits = READ_LIMITS._replace(max_bytes=QUICK_BYTES, max_seconds=QUICK_SECONDS)
        try:
            return await self._processes.call(QUICK_USE, work.try_out, assignment, limits, owner=owner)
        except ReadLimitError as error:
            if not isinstance(error.__cause__, ProcessLimitError):
                raise
            return work.Outcome.TAKES_LONG


def _needed_of(job: JobInfo) -> JobInfo:
    """Return a job without what is large in its request and of which a comparison needs nothing."""
    needed = without(job, "request")
    needed.request.harness = job.request.harness
    needed.request.task_args.CopyFrom(job.request.task_args)
    needed.request.gen_kwargs.CopyFrom(job.request.gen_kwargs)
    for name in ("limit", "num_fewshot"):
        if job.request.HasField(name):
            setattr(needed.request, name, getattr(job.request, name))
    return needed
