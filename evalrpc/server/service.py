"""The RPC handlers, each in a few lines: validate the message, read or write the store, answer.

Runs on the event loop. Blocking work goes to the pool of its kind (`evalrpc.server.threads`). Writes are futures of the store.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

import evalrpc
from evalrpc.analysis.comparer import Comparer
from evalrpc.analysis.history import LIMITS as HISTORY_LIMITS
from evalrpc.analysis.history import MAX_POINTS, History, HistoryPlaces
from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.engines.holdings import EngineHolding
from evalrpc.errors import (
    FieldViolation,
    InvalidRequestError,
    JobFinishedError,
    JobNotFoundError,
    PermissionDeniedError,
    ServerStoppingError,
    SuiteRunNotFoundError,
)
from evalrpc.executors.base import Device, Node
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness, TaskArgsHarness
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.defaults import RequestDefaults
from evalrpc.jobs.filters import SuiteRunMatcher
from evalrpc.jobs.ids import job_ids
from evalrpc.jobs.served_models import served_models
from evalrpc.jobs.share_policy import URGENT_PRIORITY, Entitlements, is_urgent
from evalrpc.jobs.views import reduce_to_view
from evalrpc.preparations.preparation import Preparation
from evalrpc.protobuf.copies import without
from evalrpc.protobuf.times import seconds_of
from evalrpc.reading import page_tokens
from evalrpc.reading.artifacts import ArtifactReader
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.logs import LogReader
from evalrpc.reading.metrics import MetricLister
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.sample_media import SampleMediaReader
from evalrpc.reading.sample_references import MAX_ALL_INLINE_BYTES
from evalrpc.reading.samples import SampleLister
from evalrpc.reading.turns import Turns
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server import preparation_use, suite_submissions, validation
from evalrpc.server.admission import Admission, GpuCounts
from evalrpc.server.auth.rights import visible_owner
from evalrpc.server.cache_key import cache_key
from evalrpc.server.call import Call, Principal, Role
from evalrpc.server.catalog import Catalog, Names
from evalrpc.server.engine_listing import Engines, listing
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.operations import Operations
from evalrpc.server.suite_decisions import SuiteDecider
from evalrpc.server.suite_submissions import SuiteJobs
from evalrpc.server.threads import Pools
from evalrpc.server.tracing import TraceSubmission, untraced
from evalrpc.server.unread import UnreadBytes
from evalrpc.store.base import Expected, Store, Submission, SuiteSubmission
from evalrpc.v1 import evaluation_service_pb2 as calls
from evalrpc.v1.callers_pb2 import CallerRole, GetCallerRequest, GetCallerResponse, SignInMethod
from evalrpc.v1.catalog_pb2 import (
    GetServerInfoRequest,
    GetServerInfoResponse,
    ListHarnessesRequest,
    ListHarnessesResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListTasksRequest,
    ListTasksResponse,
)
from evalrpc.v1.comparison_pb2 import (
    CompareJobsRequest,
    CompareJobsResponse,
    ListFlipsRequest,
    PlanComparisonRequest,
    PlanComparisonResponse,
)
from evalrpc.v1.engines_pb2 import ListEnginesRequest, ListEnginesResponse, StopEngineRequest, StopEngineResponse
from evalrpc.v1.files_pb2 import ListArtifactsRequest, ListArtifactsResponse, ReadArtifactRequest, ReadLogRequest
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse
from evalrpc.v1.jobs_pb2 import (
    CACHE_MODE_ALLOW,
    JOB_STATUS_COMPLETED,
    JOB_STATUS_FAILED,
    JOB_STATUS_QUEUED,
    CacheMode,
    CancelJobRequest,
    DeleteJobRequest,
    DeleteJobResponse,
    EvaluateRequest,
    GetJobRequest,
    JobInfo,
    JobView,
    ListJobsRequest,
    ListJobsResponse,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from evalrpc.v1.operations_pb2 import (
    CordonGpuRequest,
    CordonGpuResponse,
    PauseQueueRequest,
    PauseQueueResponse,
    ResumeQueueRequest,
    ResumeQueueResponse,
    UncordonGpuRequest,
    UncordonGpuResponse,
)
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse, Gpu, StatusCount
from evalrpc.v1.results_pb2 import ListMetricsRequest, ListMetricsResponse
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ReadSampleMediaRequest
from evalrpc.v1.suites_pb2 import (
    SUITE_RUN_VIEW_DECISION,
    CancelSuiteRunRequest,
    GetSuiteRunRequest,
    ListSuiteRunsRequest,
    ListSuiteRunsResponse,
    ListSuitesRequest,
    ListSuitesResponse,
    SubmitSuiteRequest,
    Suite,
    SuiteRun,
    WatchSuiteRunRequest,
)
from evalrpc.watching import suite_runs
from evalrpc.watching.feed import Feed
from evalrpc.watching.wakeups import Intervals, default_interval

DEFAULT_PAGE_SIZE: Final = 50
DEFAULT_NAMES_SIZE: Final = 100
DEFAULT_METRICS_SIZE: Final = 1000
MAX_PAGE_SIZE: Final = 1000
MAX_RUNS_LOOKED_AT: Final = 1000
"""How many suite runs a page of them is chosen from."""
MAX_METRICS_SIZE: Final = 10_000
MAX_QUEUED_IDS: Final = 1000
MAX_OWNERS: Final = 1000
MAX_RUNNING_IDS: Final = 10_000
MAX_INLINE_MEDIA_BYTES: Final = 4 * MAX_ALL_INLINE_BYTES
"""The memory for media without files that clients have not read yet, all together."""
MAX_TASK_WARNINGS: Final = 16
"""How many tasks that the harness does not list a job names in its warnings, which so have room for others."""

_NAMED_JOB: Final = re.compile(r"\bjob [0-9a-f-]{36}")
_RETRY_DELAY_SECONDS: Final = 1.0
_BASELINE_GONE: Final = "the baseline's run was deleted, or is another's: name another one to compare with"

_T = TypeVar("_T")


@dataclass
class EvaluationService:
    """The implementation of evalrpc.v1.EvaluationService. Raises EvalrpcError for every answer that is not OK."""

    store: Store
    feed: Feed
    logs: LogReader
    artifacts: ArtifactReader
    metrics: MetricLister
    samples: SampleLister
    media: SampleMediaReader
    inline_media: UnreadBytes
    comparer: Comparer
    results: JobResults
    queue_state: QueueState
    engines: Engines
    entitlements: Entitlements
    harnesses: Mapping[str, Harness]
    preparations: Mapping[str, Preparation]
    suites: Mapping[str, Suite]
    settings: Settings
    defaults: RequestDefaults
    admission: Admission
    data_dir: Path
    clock: Clock
    pools: Pools
    catalog: Catalog
    operations: Operations
    remove_files_of: Callable[[str], None]
    started_at: Timestamp
    job_ids: Iterator[str] = field(default_factory=job_ids)
    default_interval: Intervals = default_interval
    history_places: HistoryPlaces = field(default_factory=HistoryPlaces)
    stopping: bool = False
    trace_submission: TraceSubmission = untraced
    media_turns: Turns = field(default_factory=lambda: Turns(1))
    large_submissions: Turns = field(default_factory=lambda: Turns(1))
    _queue: tuple[object, dict[str | None, bytes]] = field(default_factory=lambda: (None, {}))  # answers, as of a state

    def forget_unused(self) -> None:
        """Forget what is kept for next pages that nobody has read for a while. Called by any thread."""
        for keeper in (self.artifacts, self.comparer, self.history_places, self.media):
            keeper.forget_unused()

    async def SubmitJob(self, request: SubmitJobRequest, call: Call) -> JobInfo | bytes:
        """Accept an evaluation."""
        with self.trace_submission("SubmitJob", call) as traceparent:
            return await self._submit(request, call, traceparent)

    async def _submit(self, request: SubmitJobRequest, call: Call, traceparent: str) -> JobInfo | bytes:
        self._require_accepting()
        request.DiscardUnknownFields()  # they would be in every message of the job
        fingerprint = _fingerprint(request) if request.request_id else b""  # before the operator's defaults, which may change
        try:
            job = await self._admitted(request, call.principal)
        except (InvalidRequestError, PermissionDeniedError):  # by rules that may be newer than the job
            repeated = Submission(JobInfo(owner=call.principal.owner), request.request_id, fingerprint)
            found = await self._read(lambda: self.store.find_submitted(repeated)) if request.request_id else None
            if found is None:
                raise
            return self._answer(found, call)
        if request.validate_only:
            return self._as_if_submitted(job)
        job.traceparent = traceparent
        key = await self._cache_key(request.cache, job)
        submission = Submission(job, request.request_id, fingerprint, key)
        return self._answer(await asyncio.wrap_future(self.store.submit(submission)), call)

    async def _admitted(self, request: SubmitJobRequest, principal: Principal) -> JobInfo:
        """Return the job that a submission asks for. Raises InvalidRequestError, PermissionDeniedError."""
        gpu_counts, max_gpus = self._gpu_counts(), self.entitlements.policy.quota(principal.owner).max_gpus
        await self._judge_submission(
            request, principal.owner, lambda: self.admission.admit(request, principal.owner, gpu_counts, max_gpus)
        )
        _require_may_give(request.priority, principal)
        job = _new_job(next(self.job_ids), request, principal.owner)
        await self._check_on_disk(job)
        return job

    async def _judge_submission(
        self, request: SubmitJobRequest | SubmitSuiteRequest, owner: str, judge: Callable[[], _T]
    ) -> _T:
        """Have a submission judged. A large one takes seconds: on a thread, and one at a time, of the owners in turn."""
        if request.ByteSize() <= SMALL_BYTES:
            return judge()
        async with self.large_submissions.turn(owner):
            judging = asyncio.ensure_future(self._look_up(judge))
            try:
                return await asyncio.shield(judging)
            finally:
                await asyncio.wait([judging])  # whoever leaves keeps the turn for as long as the thread is at work

    def _require_accepting(self) -> None:
        if self.stopping:
            raise ServerStoppingError(
                "the server is stopping: submit again when it is back", retry_delay_seconds=_RETRY_DELAY_SECONDS
            )

    async def GetJob(self, request: GetJobRequest, call: Call) -> bytes:
        """Return a job as it stands now."""
        job_id = validation.require_job_id(request.job_id)
        stored = await self.feed.stored_job(job_id)
        names_others = self._visible_owner(call) is None
        return self.queue_state.describe(job_id, stored.status, stored.serialized, names_others=names_others)

    def WatchJob(self, request: WatchJobRequest, call: Call) -> Awaitable[None]:
        """Stream one job until it ends."""
        job_id = validation.require_job_id(request.job_id, validation.watch(request))
        names_others = self._visible_owner(call) is None
        heartbeats = self._heartbeats(request)
        return self.feed.watch_job(job_id, request.after_revision, heartbeats, call.send, names_others=names_others)

    def WatchJobs(self, request: WatchJobsRequest, call: Call) -> Awaitable[None]:
        """Stream all jobs that match the filter."""
        bad_filter, bad_view = validation.job_filter(request.filter), validation.view(request.view)
        validation.require(chain(bad_filter, bad_view, validation.watch(request)))
        return self.feed.watch_jobs(
            request.filter,
            request.after_revision,
            self._heartbeats(request),
            call.send,
            view=request.view,
            skip_snapshots=request.skip_snapshots,
            owner=self._visible_owner(call),
        )

    async def ListJobs(self, request: ListJobsRequest, call: Call) -> bytes:
        """List jobs, newest first."""
        bad_filter, bad_view = validation.job_filter(request.filter), validation.view(request.view)
        validation.require(chain(bad_filter, bad_view, validation.offsets(page_size=request.page_size)))
        page_size = validation.page_size_of(request.page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        listing = ListJobsRequest(filter=request.filter, view=request.view)
        place = page_tokens.decode_place(request.page_token, listing)
        before, revision = place or (None, self.store.head_revision)  # before the page is read, which so has all up to it
        owner = self._visible_owner(call)
        return await self._read(lambda: self._jobs_page(listing, before, revision, page_size, owner).SerializeToString())

    async def CancelJob(self, request: CancelJobRequest, call: Call) -> bytes:
        """Cancel a queued job at once, or request the end of a running one."""
        job_id = validation.require_job_id(request.job_id, validation.cancel_reason(request.reason))

        def change(job: JobInfo) -> None:
            transitions.request_cancel(job, request.reason, self.clock.now(), queued_only=request.queued_only)

        return self._answer(await asyncio.wrap_future(self.store.update(job_id, change)), call)

    async def UpdateJob(self, request: UpdateJobRequest, call: Call) -> bytes:
        """Change the labels or the priority of a job."""
        validation.require(validation.update(request))
        fields = validation.updated_fields(request)
        labels = dict(request.labels) if "labels" in fields else None
        priority = request.priority if "priority" in fields else None
        _require_may_give(priority or 0, call.principal)
        expect = Expected(revision=request.expected_revision if request.HasField("expected_revision") else None)
        change = lambda job: transitions.update(job, labels, priority)  # noqa: E731
        return self._answer(await asyncio.wrap_future(self.store.update(request.job_id.lower(), change, expect)), call)

    async def DeleteJob(self, request: DeleteJobRequest, call: Call) -> DeleteJobResponse:
        """Delete a terminal job, and have its files removed if no other job refers to them."""
        job_id = validation.require_job_id(request.job_id)
        deleted = await asyncio.wrap_future(self.store.delete(job_id))
        if deleted.files_of:
            self.remove_files_of(deleted.files_of)
        return DeleteJobResponse()

    def ReadLog(self, request: ReadLogRequest, call: Call) -> Awaitable[None]:
        """Stream the bytes of a job's log."""
        job_id = validation.require_job_id(request.job_id, validation.log(request))
        if request.engine:
            return self.logs.read_engine_log(job_id, request, self.engines.log_path, self.engines.log_mask, call.send)
        return self.logs.read_log(job_id, request, self._heartbeats(request), call.send)

    async def ListArtifacts(
        self,
        request: ListArtifactsRequest,
        call: Call,
    ) -> ListArtifactsResponse:
        """List the files that a job left."""
        bad_numbers = validation.offsets(attempt=request.attempt, page_size=request.page_size)
        job_id = validation.require_job_id(request.job_id, bad_numbers)
        page_size = validation.page_size_of(request.page_size, MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        return await self.artifacts.list_artifacts(job_id, request, page_size)

    def ReadArtifact(self, request: ReadArtifactRequest, call: Call) -> Awaitable[None]:
        """Stream the bytes of one file."""
        bad_numbers = validation.offsets(offset=request.offset, limit=request.limit, attempt=request.attempt)
        job_id = validation.require_job_id(request.job_id, bad_numbers)
        return self.artifacts.read_artifact(job_id, request, call.send, call.reserve)

    async def ListSamples(self, request: ListSamplesRequest, call: Call) -> bytes:
        """List per-sample predictions."""
        job_id = validation.require_job_id(request.job_id, validation.sample_listing(request))
        page_size = validation.page_size_of(request.page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        return await self.samples.list_samples(job_id, request, page_size, call.principal.owner)

    async def ReadSampleMedia(self, request: ReadSampleMediaRequest, call: Call) -> None:
        """Stream what a sample refers to. What of it has no file is in memory until its client has taken it, so there has to be
        room for it."""
        job_id = validation.require_job_id(request.job_id, validation.sample_media(request))
        async with self.media_turns.turn(call.principal.owner):
            hold = await self.inline_media.reserve(MAX_ALL_INLINE_BYTES, call.peer, for_stream=True)

        async def send(message: bytes) -> None:
            self.inline_media.begin(hold)
            await call.send(message)
            self.inline_media.pause(hold)

        try:
            keep = partial(self.inline_media.shrink, hold)
            await self.media.read_sample_media(job_id, request, call.principal.owner, send, call.reserve, keep)
        finally:
            self.inline_media.give_back(hold)

    async def ListMetrics(self, request: ListMetricsRequest, call: Call) -> ListMetricsResponse:
        """List the metrics of a job."""
        bad_metrics = validation.metric_selectors("metrics", request.metrics)
        job_id = validation.require_job_id(request.job_id, bad_metrics, validation.offsets(page_size=request.page_size))
        page_size = validation.page_size_of(request.page_size, DEFAULT_METRICS_SIZE, MAX_METRICS_SIZE)
        return await self.metrics.list_metrics(job_id, request, page_size)

    async def GetHistory(self, request: GetHistoryRequest, call: Call) -> GetHistoryResponse:
        """Return metrics over many jobs."""
        validation.require(validation.history(request))
        page_size = validation.page_size_of(request.page_size, MAX_POINTS, MAX_POINTS)
        budget = ReadBudget(HISTORY_LIMITS)
        owner = self._visible_owner(call)
        history = History(self.store, self.results, self.history_places, request, page_size, budget, owner)
        try:
            while await self._look_up(history.scan):
                pass  # some jobs at a time, so that other reads get their turn
            page = await self._look_up(history.page)
            if history.series:
                page.trends.extend(await self.comparer.find_trends(request.trends, history.series, call.principal.owner))
            return page
        finally:
            budget.stop()  # the caller has the answer, or has gone

    async def CompareJobs(self, request: CompareJobsRequest, call: Call) -> CompareJobsResponse:
        """Compare jobs with a baseline, metric by metric."""
        validation.require(validation.comparison(request))
        baseline = await self.feed.read_job(request.baseline_job_id.lower())
        candidates = [await self.feed.read_job(job_id.lower()) for job_id in request.candidate_job_ids]
        return await self.comparer.compare(request, baseline, candidates, call.principal.owner)

    async def PlanComparison(self, request: PlanComparisonRequest, call: Call) -> PlanComparisonResponse:
        """Say what it takes to see a difference."""
        validation.require(validation.plan(request))
        named = filter(None, (request.baseline_job_id, request.candidate_job_id))
        jobs = [await self.feed.read_job(job_id.lower()) for job_id in named]
        return await self.comparer.plan(request, jobs, call.principal.owner)

    async def ListFlips(self, request: ListFlipsRequest, call: Call) -> bytes:
        """List the samples that changed between two jobs."""
        validation.require(validation.flips(request))
        page_size = validation.page_size_of(request.page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        jobs = [await self.feed.read_job(job_id.lower()) for job_id in (request.baseline_job_id, request.candidate_job_id)]
        return await self.comparer.list_flips(request, jobs, page_size, call.principal.owner)

    async def ListSuites(self, request: ListSuitesRequest, call: Call) -> ListSuitesResponse:
        """List the suites that the operator has defined."""
        validation.require(validation.offsets(page_size=request.page_size))
        page_size = validation.page_size_of(request.page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = page_tokens.decode_text(request.page_token, ListSuitesRequest()) or ""
        bound = PageBound(page_size)
        later = [suite for name, suite in self.suites.items() if name > after]
        page = list(takewhile(bound.takes, later))
        token = page_tokens.encode_text(page[-1].name, ListSuitesRequest()) if len(page) < len(later) else ""
        return ListSuitesResponse(suites=page, next_page_token=token)

    async def ListSuiteRuns(self, request: ListSuiteRunsRequest, call: Call) -> bytes:
        """List suite runs, newest first."""
        validation.require(validation.suite_runs(request))
        page_size = validation.page_size_of(request.page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        listing = without(request, "page_size", "page_token")
        before, owner = page_tokens.decode(request.page_token, listing), self._visible_owner(call)
        return await self._read(lambda: self._suite_runs_page(listing, before, page_size, owner).SerializeToString())

    async def SubmitSuite(self, request: SubmitSuiteRequest, call: Call) -> SuiteRun:
        """Accept a suite: a job for each of its entries."""
        with self.trace_submission("SubmitSuite", call) as traceparent:
            return await self._submit_suite(request, call, traceparent)

    async def _submit_suite(self, request: SubmitSuiteRequest, call: Call, traceparent: str) -> SuiteRun:
        self._require_accepting()
        request.DiscardUnknownFields()
        fingerprint = _fingerprint(request) if request.request_id else b""
        try:
            submission = await self._admitted_suite(request, call.principal, fingerprint)
        except (InvalidRequestError, PermissionDeniedError):  # by rules that may be newer than the run
            owner = call.principal.owner
            repeated = SuiteSubmission(SuiteRun(owner=owner), (), request.request_id, fingerprint)
            found = await self._read(lambda: self.store.find_submitted_suite(repeated)) if request.request_id else None
            if found is None:
                raise
            return found
        if request.validate_only:
            return self._suite_as_if_submitted(submission.run)
        for each in submission.jobs:
            each.job.traceparent = traceparent
        return await asyncio.wrap_future(self.store.submit_suite(submission))

    async def GetSuiteRun(self, request: GetSuiteRunRequest, call: Call) -> SuiteRun:
        """Return a suite run as it stands now, and the decision over it."""
        validation.require(validation.suite_run(request))
        run = await self._suite_run(request.suite_run_id)
        if request.view == SUITE_RUN_VIEW_DECISION:
            baseline = await self._baseline(request, run, call)
            problem = _BASELINE_GONE if run.submission.baseline_suite_run_id and baseline is None else ""
            decider = SuiteDecider(self.feed, self.comparer, call.principal.owner)
            run.decision.CopyFrom(await decider.decide(run, baseline, problem))
        return run

    async def WatchSuiteRun(self, request: WatchSuiteRunRequest, call: Call) -> None:
        """Stream one suite run until all its jobs have ended."""
        validation.require(validation.suite_run_watch(request))
        after, owner, heartbeats = request.after_revision, self._visible_owner(call), self._heartbeats(request)
        run = await self._suite_run(request.suite_run_id)
        statuses = await self._read(lambda: suite_runs.statuses_at(self.store, run, after)) if after else {}
        await suite_runs.watch_suite_run(self.feed, run, statuses, after, heartbeats, call.send, owner)

    async def CancelSuiteRun(self, request: CancelSuiteRunRequest, call: Call) -> SuiteRun:
        """Cancel all jobs of a suite run that have not ended."""
        validation.require(validation.suite_run_cancel(request))
        run = await self._suite_run(request.suite_run_id)
        if run.status in (JOB_STATUS_COMPLETED, JOB_STATUS_FAILED):
            raise JobFinishedError(
                f"suite run {run.suite_run_id} is {lifecycle.status_name(run.status)}: there is nothing left to cancel"
            )
        change = lambda job: transitions.request_cancel(job, request.reason, self.clock.now())  # noqa: E731
        live = [job.job_id for job in run.jobs if job.status in lifecycle.LIVE]
        writes = [asyncio.wrap_future(self.store.update(job_id, change)) for job_id in live]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, JobFinishedError | JobNotFoundError):
                raise outcome  # the others have ended by themselves meanwhile
        return await self._suite_run(request.suite_run_id)

    async def GetQueue(self, request: GetQueueRequest, call: Call) -> bytes:
        """Return what is queued and running, and which job holds which GPU. Rebuilt only after a change, for each owner whose
        jobs alone it names."""
        state, owner = self.queue_state.state, self._visible_owner(call)
        if self._queue[0] != state:
            self._queue = state, {}
        if owner not in self._queue[1]:
            self._queue[1][owner] = self._describe_queue(self.queue_state.nodes(), owner).SerializeToString()
        return self._queue[1][owner]

    async def PauseQueue(self, request: PauseQueueRequest, call: Call) -> PauseQueueResponse:
        """Start no queued job until ResumeQueue."""
        await self.operations.set_paused(is_paused=True)
        return PauseQueueResponse()

    async def ResumeQueue(self, request: ResumeQueueRequest, call: Call) -> ResumeQueueResponse:
        """Start queued jobs again."""
        await self.operations.set_paused(is_paused=False)
        return ResumeQueueResponse()

    async def CordonGpu(self, request: CordonGpuRequest, call: Call) -> CordonGpuResponse:
        """Assign a GPU to no further job until UncordonGpu."""
        await self.operations.cordon(request.gpu_id)
        return CordonGpuResponse()

    async def UncordonGpu(self, request: UncordonGpuRequest, call: Call) -> UncordonGpuResponse:
        """Assign a GPU to jobs again."""
        await self.operations.uncordon(request.gpu_id)
        return UncordonGpuResponse()

    async def ListEngines(self, request: ListEnginesRequest, call: Call) -> ListEnginesResponse:
        """List the engines that are there, and those that requests may name."""
        problems = await self._look_up(self.engines.problems)
        return listing(self.engines.listed(), self.settings, problems, self._visible_owner(call))

    async def StopEngine(self, request: StopEngineRequest, call: Call) -> StopEngineResponse:
        """End an engine."""
        validation.require(validation.engine_id(request.engine_id))
        self.engines.stop(request.engine_id)
        return StopEngineResponse()

    async def ListTasks(self, request: ListTasksRequest, call: Call) -> ListTasksResponse:
        """List the tasks that a harness knows."""
        names, token = await self._list_names(request, lambda names: names.tasks)
        return ListTasksResponse(tasks=names, next_page_token=token)

    async def ListModels(self, request: ListModelsRequest, call: Call) -> ListModelsResponse:
        """List the model types that a harness knows."""
        names, token = await self._list_names(request, lambda names: names.models)
        return ListModelsResponse(models=names, next_page_token=token)

    async def ListHarnesses(
        self,
        request: ListHarnessesRequest,
        call: Call,
    ) -> ListHarnessesResponse:
        """List the harnesses that the operator configured."""
        infos = await self._look_up(lambda: [self.catalog.describe(name) for name in sorted(self.harnesses)])
        return ListHarnessesResponse(harnesses=infos)

    async def GetCaller(self, request: GetCallerRequest, call: Call) -> GetCallerResponse:
        """Return who the caller is."""
        owner, role, sign_in = call.principal
        caller = GetCallerResponse(
            owner=owner,
            role=CallerRole.Value(f"CALLER_ROLE_{role.name}"),
            sign_in_method=SignInMethod.Value(f"SIGN_IN_METHOD_{sign_in.method.name}"),
        )
        if sign_in.expires_at_ns is not None:
            caller.expires_at.FromNanoseconds(sign_in.expires_at_ns)
        return caller

    async def GetServerInfo(
        self,
        request: GetServerInfoRequest,
        call: Call,
    ) -> GetServerInfoResponse:
        """Return the server's version, limits and capabilities."""
        methods = calls.DESCRIPTOR.services_by_name["EvaluationService"].methods
        return GetServerInfoResponse(
            version=evalrpc.__version__,
            started_at=self.started_at,
            head_revision=self.store.head_revision,
            oldest_revision=self.store.oldest_revision,
            gpu_count=sum(self._gpu_counts().get("", ())),
            max_request_bytes=self.settings.max_request_bytes,
            max_queued=self.settings.max_queued,
            max_running=self.queue_state.slots.total,
            capabilities=[method.name for method in methods if hasattr(self, method.name)],
            default_harness=self.defaults.harness,
            default_num_gpus=self.defaults.num_gpus,
        )

    async def _list_names(
        self, request: ListTasksRequest | ListModelsRequest, choose: Callable[[Names], Sequence[str]]
    ) -> tuple[Sequence[str], str]:
        """Return a page of names that contain the query, and the token of the next page."""
        harness = request.harness or self.defaults.harness
        bad_name = validation.harness_name(harness, self.harnesses)
        validation.require(chain(bad_name, validation.offsets(page_size=request.page_size)))
        page_size = validation.page_size_of(request.page_size, DEFAULT_NAMES_SIZE, MAX_PAGE_SIZE)
        listing = type(request)(harness=harness, query=request.query)
        start = page_tokens.decode(request.page_token, listing) or 0
        query = request.query.lower()
        page, following = await asyncio.get_running_loop().run_in_executor(
            self.pools.catalogers, lambda: _names_page(choose(self.catalog.names(harness)), query, start, page_size)
        )
        return page, "" if following is None else page_tokens.encode(following, listing)

    async def _check_on_disk(self, job: JobInfo) -> None:
        """Raise InvalidRequestError with all that only a look at the disk tells is wrong, and say which commits are meant."""
        found: list[FieldViolation] = []
        of_request = (
            partial(check, job.request) for check in (self._check_task_args, self._check_preparation, self._pin_models)
        )
        for check in (partial(self._check_names, job), *of_request):
            try:
                await check()
            except InvalidRequestError as error:
                found += error.violations
        validation.require(found)

    async def _check_names(self, job: JobInfo) -> None:
        """Warn about a harness that is not available, and about a model and tasks that it does not list, or refuse the tasks,
        depending on the settings. A model is never refused: harnesses load some that they don't list."""
        harness, tasks = job.request.harness, list(job.request.tasks)
        if self.catalog.may_be_unavailable(harness):
            info = await self._look_up(lambda: self.catalog.describe(harness))
            if not info.available:
                transitions.add_warnings(job, [f"harness {harness} is not available: {info.unavailable_reason}"])
        if job.request.model and not self.catalog.lists_model(harness, job.request.model):
            warning = await self._look_up(lambda: self.catalog.unknown_model(harness, job.request.model))
            transitions.add_warnings(job, [warning] if warning else [])
        if self.catalog.lists_all(harness, tasks):
            return
        unknown = await self._look_up(lambda: self.catalog.unknown_tasks(harness, tasks))
        if self.settings.unknown_tasks == "refuse":
            validation.require(FieldViolation(f"request.tasks[{index}]", text) for index, text in unknown.items())
        transitions.add_warnings(job, _unlisted_warnings(unknown.values()))

    async def _check_task_args(self, request: EvaluateRequest) -> None:
        """Refuse arguments that none of the tasks takes, as far as the operator's folders tell."""
        harness = self.harnesses[request.harness]
        if request.task_args.fields and isinstance(harness, TaskArgsHarness):
            unknown = await self._look_up(lambda: list(harness.unknown_task_args(request)))
            validation.require(FieldViolation(f"request.{field}", problem) for field, problem in unknown)

    async def _admitted_suite(self, request: SubmitSuiteRequest, principal: Principal, fingerprint: bytes) -> SuiteSubmission:
        """Return the run and the jobs that a submission asks for. Raises InvalidRequestError, PermissionDeniedError,
        SuiteRunNotFoundError."""
        gpu_counts, max_gpus = self._gpu_counts(), self.entitlements.policy.quota(principal.owner).max_gpus
        jobs = await self._judge_submission(
            request, principal.owner, lambda: self._admitted_jobs(request, principal.owner, gpu_counts, max_gpus)
        )
        suite = self.suites[request.suite]
        _require_may_give(request.priority, principal)
        if request.baseline_suite_run_id:
            await self._suite_run(request.baseline_suite_run_id)
        run = SuiteRun(suite_run_id=next(self.job_ids), suite=suite, submission=request, owner=principal.owner)
        submissions = [await self._suite_job(run, jobs, index) for index in range(len(suite.entries))]
        return SuiteSubmission(run, submissions, request.request_id, fingerprint)

    def _admitted_jobs(self, request: SubmitSuiteRequest, owner: str, gpu_counts: GpuCounts, max_gpus: int | None) -> SuiteJobs:
        """Return what the jobs of a suite run are to be. Raises what `SuiteJobs.admit` does."""
        bad = [*suite_submissions.violations(request, self.suites), *validation.suite_submission(request)]
        if request.suite not in self.suites:
            validation.require(bad)
        jobs = SuiteJobs(self.suites[request.suite], request)
        jobs.admit(self.admission, owner, gpu_counts, max_gpus, bad)
        return jobs

    async def _suite_job(self, run: SuiteRun, jobs: SuiteJobs, index: int) -> Submission:
        """Add the job of an entry to a new run, and return its submission. Raises InvalidRequestError."""
        call = jobs.submissions[index]
        job = _new_job(next(self.job_ids), call, run.owner)
        job.suite_run_id = run.suite_run_id
        try:
            await self._check_on_disk(job)
        except InvalidRequestError as error:
            raise InvalidRequestError(violations=jobs.located(index, error.violations)) from error
        run.jobs.add(entry=run.suite.entries[index].name, job_id=job.job_id)
        return Submission(job, cache_key=await self._cache_key(call.cache, job))

    async def _suite_run(self, suite_run_id: str) -> SuiteRun:
        return await self._read(lambda: self.store.suite_run(suite_run_id.lower()))

    async def _baseline(self, request: GetSuiteRunRequest, run: SuiteRun, call: Call) -> SuiteRun | None:
        """Return the run to compare with: the one that the request names, else that of the submission, if it is still there and
        the caller may know of it."""
        if request.baseline_suite_run_id:
            return await self._suite_run(request.baseline_suite_run_id)
        try:
            baseline = await self._suite_run(run.submission.baseline_suite_run_id)
        except SuiteRunNotFoundError:
            return None
        return baseline if self._visible_owner(call) in (None, baseline.owner) else None

    def _suite_as_if_submitted(self, run: SuiteRun) -> SuiteRun:
        """Return what SubmitSuite would answer."""
        run.ClearField("suite_run_id")
        run.created_at.CopyFrom(self.clock.now())
        run.status = JOB_STATUS_QUEUED
        for job in run.jobs:
            job.ClearField("job_id")
            job.status = JOB_STATUS_QUEUED
        return run

    def _heartbeats(self, call: WatchJobRequest | WatchJobsRequest | WatchSuiteRunRequest | ReadLogRequest) -> Intervals | None:
        """Return the intervals between the heartbeats of a stream; None for none."""
        if not call.HasField("heartbeat_interval"):
            return self.default_interval
        seconds = seconds_of(call.heartbeat_interval)
        return (lambda: seconds) if seconds else None

    def _visible_owner(self, call: Call) -> str | None:
        """Return the owner whose jobs alone the caller may know of; None where it may know of all."""
        return visible_owner(call.principal, self.settings.visibility)

    def _jobs_page(
        self, listing: ListJobsRequest, before: int | None, revision: int, page_size: int, owner: str | None
    ) -> ListJobsResponse:
        """Return a page of jobs. Reads from the store until the page is full, not many more bytes than it has."""
        page = ListJobsResponse(revision=revision)
        bound = PageBound(page_size)
        while listed := self.store.list_jobs(listing.filter, before, page_size + 1 - len(page.jobs), owner=owner):
            for sequence, job in listed:
                viewed = self._viewed(job, listing.view, names_others=owner is None)
                if not bound.takes(viewed):
                    page.next_page_token = page_tokens.encode(before or 0, listing, revision)
                    return page
                page.jobs.append(viewed)
                before = sequence
        return page

    def _suite_runs_page(
        self, listing: ListSuiteRunsRequest, before: int | None, page_size: int, owner: str | None
    ) -> ListSuiteRunsResponse:
        """Return a page of suite runs. Looks at a bounded number of them."""
        page, bound, matcher = ListSuiteRunsResponse(), PageBound(page_size), SuiteRunMatcher(listing)
        with closing(self.store.list_suite_runs(listing.suite_run_id_prefix.lower(), before, owner=owner)) as runs:
            for looked_at, (sequence, run) in enumerate(runs):
                is_wanted = matcher.matches(run)
                if looked_at == MAX_RUNS_LOOKED_AT or (is_wanted and not bound.takes(run)):
                    page.next_page_token = page_tokens.encode(before or 0, listing)
                    break
                if is_wanted:
                    page.suite_runs.append(run)
                before = sequence
        return page

    def _viewed(self, job: JobInfo, view: JobView.ValueType, *, names_others: bool) -> JobInfo:
        """Return a job as it is listed."""
        reduce_to_view(job, view)
        return self.queue_state.described(job, names_others=names_others)

    def _answer(self, job: JobInfo, call: Call) -> bytes:
        """Return a job that was just committed, serialised as clients get it."""
        names_others = self._visible_owner(call) is None
        return self.queue_state.describe(job.job_id, job.status, job.SerializeToString(), names_others=names_others)

    async def _check_preparation(self, request: EvaluateRequest) -> None:
        """Raise InvalidRequestError if the folder that is to be prepared is not there."""
        if request.preparation:
            harness = self.settings.harnesses[request.harness]
            await self._look_up(lambda: preparation_use.require_folder(request, harness))

    async def _pin_models(self, request: EvaluateRequest) -> None:
        """Say which commits of its served models a request is about. Raises InvalidRequestError."""
        if served_models(request):
            await self._look_up(lambda: self.engines.pin(request))

    async def _cache_key(self, mode: CacheMode.ValueType, job: JobInfo) -> bytes:
        """Return the key that identical evaluations share; empty if the cache can't be used."""
        if mode != CACHE_MODE_ALLOW:
            return b""
        harness, preparation = self.harnesses[job.request.harness], self.preparations.get(job.request.preparation)
        return await self._look_up(lambda: cache_key(harness, job, preparation, self._judge(job.request), self.engines))

    def _judge(self, request: EvaluateRequest) -> str:
        """Return what the answers of the judge of a request depend on, if it has one and that can be told. Blocks."""
        return self.engines.key(request.judge_model) if request.HasField("judge_model") else ""

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.pools.readers, read)

    async def _look_up(self, read: Callable[[], _T]) -> _T:
        """Read what may be many files, or large ones."""
        return await asyncio.get_running_loop().run_in_executor(self.pools.listers, read)

    def _as_if_submitted(self, job: JobInfo) -> JobInfo:
        """Return what SubmitJob would answer. Without a look into the cache: what that depends on are files, of which whoever
        only asks must not learn whether they are there."""
        job.ClearField("job_id")
        job.attempt = 0
        job.created_at.CopyFrom(self.clock.now())
        job.status = JOB_STATUS_QUEUED
        job.position_in_queue = self.queue_state.position_for(job.priority, job.owner)
        return job

    def _gpu_counts(self) -> GpuCounts:
        """Return how many GPUs each node has."""
        counts: dict[str, list[int]] = {}
        for node in self.queue_state.nodes():
            counts.setdefault(node.executor, []).append(len(node.devices))
        return counts

    def _describe_queue(self, nodes: Sequence[Node], owner: str | None) -> GetQueueResponse:
        """Describe the queue. With `owner`, only jobs of that owner are named, and all count."""
        running = self.queue_state.running_jobs()
        named = [job.job_id for job in running if owner in (None, job.owner)]
        holders = {gpu: job for job in self.queue_state.own_running_jobs() for gpu in job.gpus}
        devices = [device for node in nodes for device in node.devices]
        engines = {device: each for each in self.engines.holdings() for device in each.devices}
        return GetQueueResponse(
            queued_count=self.queue_state.queued_count,
            running_count=len(running),
            following_count=self.queue_state.following_count,
            queued_job_ids=self.queue_state.queued_job_ids(MAX_QUEUED_IDS, owner),
            running_job_ids=named[:MAX_RUNNING_IDS],
            status_counts=self._status_counts(),
            gpus=[
                _gpu(node, device, holders.get(device.id), engines.get(device.id), owner)
                for node in nodes
                for device in node.devices
            ],
            free_gpu_count=sum(
                1
                for device in devices
                if device.id not in holders
                and device.id not in engines
                and not device.quarantine_reason
                and not device.is_cordoned
            ),
            max_running=self.queue_state.slots.total,
            max_running_served=self.queue_state.slots.served,
            max_queued=self.settings.max_queued,
            owners=self.queue_state.owner_shares(MAX_OWNERS, owner),
            paused=self.queue_state.is_paused,
            nodes=self.queue_state.node_states(),
        )

    def _status_counts(self) -> list[StatusCount]:
        counts = self.store.status_counts()
        return [StatusCount(status=status, count=counts[status]) for status in sorted(counts) if counts[status]]


def _gpu(node: Node, device: Device, holder: JobInfo | None, engine: EngineHolding | None, owner: str | None) -> Gpu:
    """Return a GPU with the job or the engine that holds it. With `owner`, only jobs of that owner are named, and only engines
    that ListEngines has for them."""
    job_id = holder.job_id if holder is not None and owner in (None, holder.owner) else ""
    reason = device.quarantine_reason if owner is None else _NAMED_JOB.sub("a job", device.quarantine_reason)
    is_engine_named = engine is not None and (owner is None or engine.owner in ("", owner))
    return Gpu(
        id=device.id,
        name=device.name,
        job_id=job_id,
        quarantine_reason=reason,
        node=node.name,
        cordoned=device.is_cordoned,
        held=holder is not None or engine is not None,
        engine_id=engine.engine_id if engine is not None and is_engine_named else "",
    )


def _names_page(names: Sequence[str], query: str, start: int, page_size: int) -> tuple[list[str], int | None]:
    """Return the names from `start` on that contain the query, and the index of the next match; None at the end."""
    page: list[str] = []
    bound = PageBound(page_size)
    for place in range(start, len(names)):
        if query in names[place].lower():
            if not bound.takes(names[place]):
                return page, place
            page.append(names[place])
    return page, None


def _new_job(job_id: str, call: SubmitJobRequest, owner: str) -> JobInfo:
    job = JobInfo(
        job_id=job_id,
        request=call.request,
        labels=call.labels,
        priority=call.priority,
        max_attempts=call.max_attempts or 1,
        supersede_key=call.supersede_key,
        owner=owner,
        preemptible=call.preemptible,
        cache=call.cache,
    )
    if call.HasField("timeout"):
        job.timeout.CopyFrom(call.timeout)
    return job


def _unlisted_warnings(warnings: Collection[str]) -> Iterator[str]:
    """Yield the first warnings, and how many more there are: a job takes them along in every message."""
    shown = list(islice(warnings, MAX_TASK_WARNINGS))
    yield from shown
    if len(warnings) > len(shown):
        yield f"and {len(warnings) - len(shown)} more tasks that the harness does not list"


def _require_may_give(priority: int, principal: Principal) -> None:
    """Raise PermissionDeniedError for a priority that puts a job before those of all other owners, but for operators."""
    if is_urgent(principal.owner, priority) and principal.role is not Role.OPERATOR:
        raise PermissionDeniedError(
            f"priority: {priority} is more than {URGENT_PRIORITY}, which only operators may give",
            metadata={"field": "priority"},
        )


def _fingerprint(call: SubmitJobRequest | SubmitSuiteRequest) -> bytes:
    """Return a digest that is equal for submissions with equal contents, regardless of request_id."""
    contents = without(call, "request_id")
    return hashlib.sha256(contents.SerializeToString(deterministic=True)).digest()
