"""The RPC handlers, each in a few lines: validate the message, read or write the store, answer.

Runs on the event loop. Blocking work goes to the pool of its kind (`evalrpc.server.threads`). Writes are futures of the store.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile
from typing import Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

import evalrpc
from evalrpc.analysis.comparer import Comparer
from evalrpc.analysis.history import LIMITS as HISTORY_LIMITS
from evalrpc.analysis.history import MAX_POINTS, History, HistoryPlaces
from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.errors import (
    InvalidRequestError,
    JobFinishedError,
    JobNotFoundError,
    PermissionDeniedError,
    ServerStoppingError,
    SuiteRunNotFoundError,
)
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.defaults import RequestDefaults
from evalrpc.jobs.filters import SuiteRunMatcher
from evalrpc.jobs.views import reduce_to_view
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
from evalrpc.server import engine_listing, validation
from evalrpc.server.admission import gpu_counts
from evalrpc.server.auth.rights import visible_owner
from evalrpc.server.call import Call
from evalrpc.server.catalog import Catalog, Names
from evalrpc.server.operations import Operations
from evalrpc.server.queue_listing import QueueListing
from evalrpc.server.submissions import Submissions, fingerprint_of, require_may_give
from evalrpc.server.suite_decisions import SuiteDecider
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
    JOB_STATUS_COMPLETED,
    JOB_STATUS_FAILED,
    CancelJobRequest,
    DeleteJobRequest,
    DeleteJobResponse,
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
from evalrpc.v1.queue_pb2 import GetQueueRequest
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
MAX_INLINE_MEDIA_BYTES: Final = 4 * MAX_ALL_INLINE_BYTES
"""The memory for media without files that clients have not read yet, all together."""

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
    queue: QueueListing
    engines: engine_listing.Engines
    harnesses: Mapping[str, Harness]
    settings: Settings
    defaults: RequestDefaults
    submissions: Submissions
    clock: Clock
    pools: Pools
    catalog: Catalog
    operations: Operations
    remove_files_of: Callable[[str], None]
    started_at: Timestamp
    default_interval: Intervals = default_interval
    history_places: HistoryPlaces = field(default_factory=HistoryPlaces)
    stopping: bool = False
    trace_submission: TraceSubmission = untraced
    media_turns: Turns = field(default_factory=lambda: Turns(1))

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
        fingerprint = fingerprint_of(request)  # before the operator's defaults, which may change
        try:
            job = await self.submissions.job(request, call.principal)
        except (InvalidRequestError, PermissionDeniedError):  # by rules that may be newer than the job
            repeated = Submission(JobInfo(owner=call.principal.owner), request.request_id, fingerprint)
            found = await self._read(lambda: self.store.find_submitted(repeated)) if request.request_id else None
            if found is None:
                raise
            return self._answer(found, call)
        if request.validate_only:
            return self.submissions.as_if_submitted(job)
        job.traceparent = traceparent
        key = await self.submissions.cache_key(request.cache, job)
        submission = Submission(job, request.request_id, fingerprint, key)
        return self._answer(await asyncio.wrap_future(self.store.submit(submission)), call)

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
        require_may_give(priority or 0, call.principal)
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

    async def ListArtifacts(self, request: ListArtifactsRequest, call: Call) -> ListArtifactsResponse:
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
        later = [suite for name, suite in self.submissions.suites.items() if name > after]
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
        fingerprint = fingerprint_of(request)
        try:
            submission = await self.submissions.suite_run(request, call.principal, fingerprint)
            if request.baseline_suite_run_id:
                await self._suite_run(request.baseline_suite_run_id)
        except (InvalidRequestError, PermissionDeniedError):  # by rules that may be newer than the run
            owner = call.principal.owner
            repeated = SuiteSubmission(SuiteRun(owner=owner), (), request.request_id, fingerprint)
            found = await self._read(lambda: self.store.find_submitted_suite(repeated)) if request.request_id else None
            if found is None:
                raise
            return found
        if request.validate_only:
            return self.submissions.run_as_if_submitted(submission.run)
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
        """Return what is queued and running, and which job holds which GPU."""
        return self.queue.listing(self._visible_owner(call))

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
        return engine_listing.listing(self.engines.listed(), self.settings, problems, self._visible_owner(call))

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

    async def ListHarnesses(self, request: ListHarnessesRequest, call: Call) -> ListHarnessesResponse:
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

    async def GetServerInfo(self, request: GetServerInfoRequest, call: Call) -> GetServerInfoResponse:
        """Return the server's version, limits and capabilities."""
        methods = calls.DESCRIPTOR.services_by_name["EvaluationService"].methods
        return GetServerInfoResponse(
            version=evalrpc.__version__,
            started_at=self.started_at,
            head_revision=self.store.head_revision,
            oldest_revision=self.store.oldest_revision,
            gpu_count=sum(gpu_counts(self.queue_state.nodes()).get("", ())),
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

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.pools.readers, read)

    async def _look_up(self, read: Callable[[], _T]) -> _T:
        """Read what may be many files, or large ones."""
        return await asyncio.get_running_loop().run_in_executor(self.pools.listers, read)


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
