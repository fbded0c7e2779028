"""Callers that read everything of hostile jobs, and note every answer that no caller may get."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from campaigns.fuzz import REFUSED, has_reason
from waiting import DEADLINE_SECONDS

from evalrpc.v1.comparison_pb2 import CompareJobsRequest, ListFlipsRequest, PlanComparisonRequest
from evalrpc.v1.engines_pb2 import ListEnginesRequest
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.files_pb2 import ListArtifactsRequest, ReadArtifactRequest, ReadLogRequest
from evalrpc.v1.history_pb2 import GetHistoryRequest
from evalrpc.v1.jobs_pb2 import GetJobRequest, JobFilter, JobInfo, ListJobsRequest
from evalrpc.v1.queue_pb2 import GetQueueRequest
from evalrpc.v1.results_pb2 import ListMetricsRequest, MetricSelector
from evalrpc.v1.samples_pb2 import ListSamplesRequest
from evalrpc.v1.suites_pb2 import SUITE_RUN_VIEW_DECISION, GetSuiteRunRequest, ListSuitesRequest, WatchSuiteRunRequest

IMPATIENT_SECONDS: Final = 20.0
"""How long a caller waits where a call may take minutes: then it leaves, and the server must not go on for it."""

_MAY_TAKE_MINUTES: Final = ("CompareJobs", "PlanComparison", "ListFlips", "GetSuiteRun")

_UNTIL_THE_END: Final = ("WatchSuiteRun",)
"""What lasts for as long as a job does, which for a million files is minutes, as does a log that is followed."""

_ACC: Final = MetricSelector(metric="acc")
_MAX_PAGES: Final = 3
_MAX_FILES: Final = 3
_MAX_CHUNKS: Final = 40
"""How much of a stream is read before it is left."""


@dataclass
class Callers:
    """Makes the calls, all over one channel."""

    stub: EvaluationServiceStub
    impatient_seconds: float = IMPATIENT_SECONDS
    problems: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """By call and status."""

    async def read_everything(self, name: str, job: JobInfo, other_id: str) -> None:
        """Make every call that reads, for a job of the kind `name`, and compare it with another one."""
        job_id = job.job_id
        await asyncio.gather(
            self.ask(name, "GetJob", GetJobRequest(job_id=job_id)),
            self.ask(name, "GetQueue", GetQueueRequest()),
            self.ask(name, "ListJobs", ListJobsRequest(page_size=20)),
            self.ask(name, "ReadLog", ReadLogRequest(job_id=job_id)),
            self.ask(name, "GetHistory", GetHistoryRequest(filter=JobFilter(job_id_prefix=job_id))),
            self._comparisons(name, job_id, other_id),
            self.ask(name, "ListEngines", ListEnginesRequest()),
            self.ask(name, "ListSuites", ListSuitesRequest()),
            self._pages(name, "ListMetrics", ListMetricsRequest(job_id=job_id)),
            self._pages(name, "ListSamples", ListSamplesRequest(job_id=job_id, page_size=1000)),
            self._files(name, job_id),
        )

    async def _comparisons(self, name: str, job_id: str, other_id: str) -> None:
        """Compare with another job, in the three ways; one after the other, since the server computes few at once."""
        compare = CompareJobsRequest(baseline_job_id=other_id, candidate_job_ids=[job_id])
        plan = PlanComparisonRequest(difference=0.1, baseline_job_id=other_id, candidate_job_id=job_id)
        flips = ListFlipsRequest(baseline_job_id=other_id, candidate_job_id=job_id, metric=_ACC)
        await self.ask(name, "CompareJobs", compare)
        if name != "good":
            await self.ask(name, "PlanComparison", plan)
            await self.ask(name, "ListFlips", flips)

    async def follow_log(self, name: str, job_id: str) -> None:
        """Follow the log of a job, from its submission to its end, or until there was much of it."""
        await self.ask(name, "ReadLog", ReadLogRequest(job_id=job_id, follow=True))

    async def watch_suite(self, name: str, run_id: str) -> None:
        """Watch a suite run, from its submission to its end."""
        await self.ask(name, "WatchSuiteRun", WatchSuiteRunRequest(suite_run_id=run_id))

    async def decide(self, name: str, run_id: str, other_id: str) -> None:
        """Have it decided over a suite run that has ended, with another one as the baseline."""
        view = SUITE_RUN_VIEW_DECISION
        request = GetSuiteRunRequest(suite_run_id=run_id, view=view, baseline_suite_run_id=other_id)
        await self.ask(name, "GetSuiteRun", request)

    async def ask(self, name: str, call: str, request: Any) -> Any:
        """Make a call. Return its answer; None for an error, and for a stream, of which no more than its begin is read."""
        timeout: float | None = self.impatient_seconds if call in _MAY_TAKE_MINUTES else DEADLINE_SECONDS
        if call in _UNTIL_THE_END or (call == "ReadLog" and request.follow):
            timeout = None
        try:
            answer = await self._answer(getattr(self.stub, call)(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            self.answers[f"{call} {error.code().name}"] += 1
            has_left = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and call in _MAY_TAKE_MINUTES
            if error.code() in REFUSED or not (has_left or has_reason(error)):
                self.problems.append(f"{name}: {call} got {error.code().name}: {error.details()}")
            return None
        self.answers[f"{call} OK"] += 1
        return answer

    async def _answer(self, call: Any) -> Any:
        if not isinstance(call, grpc.aio.UnaryStreamCall):
            return await call
        read = 0
        async for _ in call:
            read += 1
            if read == _MAX_CHUNKS:
                call.cancel()
                break
        return None

    async def _pages(self, name: str, call: str, request: Any) -> None:
        for _ in range(_MAX_PAGES):
            page = await self.ask(name, call, request)
            if page is None or not page.next_page_token:
                break
            request.page_token = page.next_page_token

    async def _files(self, name: str, job_id: str) -> None:
        page = await self.ask(name, "ListArtifacts", ListArtifactsRequest(job_id=job_id, checksums=True))
        files = list(page.artifacts) if page is not None else []
        names = [file.name for file in files[:_MAX_FILES] + files[-_MAX_FILES:]]
        for each in names:
            await self.ask(name, "ReadArtifact", ReadArtifactRequest(job_id=job_id, name=each))


async def gather_bounded(limit: int, works: list[Callable[[], Awaitable[object]]]) -> None:
    """Do all of it, so many at a time."""
    waiting = iter(works)

    async def work_on() -> None:
        for work in waiting:
            await work()

    await asyncio.gather(*(work_on() for _ in range(limit)))
