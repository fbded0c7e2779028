"""A minimal evalrpc server for the tests of the client and the command line; the test controls what it does."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2
from lasting_ports import lasting_port
from waiting import DEADLINE_SECONDS

from evalrpc.errors import (
    DOMAIN,
    ConflictError,
    EvalrpcError,
    FieldsError,
    JobNotFoundError,
    SuiteRunNotFoundError,
    UnauthenticatedError,
)
from evalrpc.jobs.filters import JobMatcher, SuiteRunMatcher
from evalrpc.v1.callers_pb2 import CALLER_ROLE_SUBMITTER, SIGN_IN_METHOD_TOKEN, GetCallerRequest, GetCallerResponse
from evalrpc.v1.catalog_pb2 import (
    GetServerInfoRequest,
    GetServerInfoResponse,
    HarnessInfo,
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
    Flip,
    ListFlipsRequest,
    ListFlipsResponse,
    PlanComparisonRequest,
    PlanComparisonResponse,
)
from evalrpc.v1.engines_pb2 import ListEnginesRequest, ListEnginesResponse, StopEngineRequest, StopEngineResponse
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer, add_EvaluationServiceServicer_to_server
from evalrpc.v1.files_pb2 import (
    Artifact,
    ListArtifactsRequest,
    ListArtifactsResponse,
    ReadArtifactRequest,
    ReadArtifactResponse,
    ReadLogRequest,
    ReadLogResponse,
)
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse
from evalrpc.v1.jobs_pb2 import (
    CancelJobRequest,
    DeleteJobRequest,
    DeleteJobResponse,
    GetJobRequest,
    JobError,
    JobEvent,
    JobEventType,
    JobInfo,
    JobStatus,
    ListJobsRequest,
    ListJobsResponse,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse, Gpu
from evalrpc.v1.results_pb2 import ListMetricsRequest, ListMetricsResponse, ModelMetric
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ListSamplesResponse
from evalrpc.v1.suites_pb2 import (
    CancelSuiteRunRequest,
    GetSuiteRunRequest,
    ListSuiteRunsRequest,
    ListSuiteRunsResponse,
    ListSuitesRequest,
    ListSuitesResponse,
    SubmitSuiteRequest,
    Suite,
    SuiteDecision,
    SuiteRun,
    SuiteRunEvent,
    WatchSuiteRunRequest,
)

JOB_ID = "7b0b8d5e-6f1e-4f0e-9d51-0d5fb3a1c001"
TERMINAL = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)


def details_of(error: EvalrpcError) -> bytes:
    """Serialise the google.rpc.Status of the error, as a server sends it."""
    status = status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.retry_delay_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        status.details.add().Pack(retry)
    if isinstance(error, FieldsError):
        bad = error_details_pb2.BadRequest()
        for field, description in error.violations:
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    return status.SerializeToString()


def job_at(status: JobStatus, revision: int = 1, **fields: Any) -> JobInfo:
    """Build a job in this status."""
    return JobInfo(**{"job_id": JOB_ID, "status": status, "revision": revision, **fields})


class FakeService(EvaluationServiceServicer):
    """Keeps jobs and a journal as a real server does, even while no server is up."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobInfo] = {}
        self.journal: list[JobEvent] = []
        self.files: dict[str, bytes] = {}
        self.log = b""
        self.log_is_whole = True
        self.page_size = 2
        self.chunk_size = 4
        self.samples: list[dict[str, Any]] = []
        self.empty_pages = 0
        """How many pages of samples have none, before those that have."""
        self.truncated_fields: list[str] = []
        self.metrics: list[ModelMetric] = []
        self.history = GetHistoryResponse()
        gpus = [Gpu(id="0", name="H200", job_id=JOB_ID), Gpu(id="1", name="H200")]
        self.queue = GetQueueResponse(queued_count=3, running_count=1, running_job_ids=[JOB_ID], gpus=gpus, max_running=2)
        self.queue.free_gpu_count = 1
        self.comparison = CompareJobsResponse()
        self.plan = PlanComparisonResponse()
        self.flips: list[Flip] = []
        self.engines = ListEnginesResponse()
        self.suites: list[Suite] = []
        self.suite_runs: dict[str, SuiteRun] = {}
        self.suite_run_events: list[SuiteRunEvent] = []
        """What a watch sends before the terminal event."""
        self.decisions: dict[str, SuiteDecision] = {}
        """What a new run of a suite is decided to be, by the name of the suite."""
        missing = HarnessInfo(name="nightly", kind="command", unavailable_reason="no such program")
        self.harnesses = [HarnessInfo(name="lmms-eval", version="0.5", available=True), missing]
        self.info = GetServerInfoResponse(version="9.9.9", gpu_count=2, capabilities=["GetJob"])
        self.caller = GetCallerResponse(owner="alice", role=CALLER_ROLE_SUBMITTER, sign_in_method=SIGN_IN_METHOD_TOKEN)
        self.caller.expires_at.FromSeconds(1_900_000_000)
        self.warnings: list[str] = []
        self.names = ["mme", "mmmu_val", "mmstar"]
        self.received: defaultdict[str, list[Message]] = defaultdict(list)
        self.authorizations: list[str] = []
        self.token = ""
        """If set, calls without it are refused."""
        self.errors: defaultdict[str, list[EvalrpcError]] = defaultdict(list)
        self.on_submit: Callable[[], None] = lambda: None
        self.on_chunk: Callable[[int], None] = lambda offset: None
        self.changed = threading.Condition()
        self.watchers = 0

    def change(self, job: JobInfo, kind: JobEventType = JobEventType.JOB_EVENT_TYPE_STATUS) -> None:
        """Store a change and notify the watchers."""
        with self.changed:
            job.revision = len(self.journal) + 1
            self.jobs[job.job_id] = job
            self.journal.append(_event(kind, job))
            self.changed.notify_all()

    def delete(self, job_id: str) -> None:
        """Forget a job and notify the watchers."""
        with self.changed:
            del self.jobs[job_id]
            gone = JobInfo(job_id=job_id, revision=len(self.journal) + 1)
            kind = JobEventType.JOB_EVENT_TYPE_DELETED
            self.journal.append(JobEvent(type=kind, revision=gone.revision, job=gone, terminal=True))
            self.changed.notify_all()

    def finish_log(self, data: bytes) -> None:
        """Append the last part of the log."""
        with self.changed:
            self.log += data
            self.log_is_whole = True
            self.changed.notify_all()

    def wait_for_watchers(self, count: int) -> None:
        """Wait until this many streams are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.watchers == count, timeout=DEADLINE_SECONDS)

    def _take(self, request: Message, context: grpc.ServicerContext) -> None:
        name = type(request).__name__.removesuffix("Request")
        self.received[name].append(type(request).FromString(request.SerializeToString()))
        sent = [str(value) for key, value in context.invocation_metadata() if key == "authorization"]
        self.authorizations += sent
        if self.token and sent != [f"Bearer {self.token}"]:
            _abort(context, UnauthenticatedError("sign in"))
        if self.errors[name]:
            _abort(context, self.errors[name].pop(0))

    def _job(self, job_id: str, context: grpc.ServicerContext) -> JobInfo:
        if job_id not in self.jobs:
            _abort(context, _job_not_found(job_id))
        return self.jobs[job_id]

    def SubmitJob(self, request: SubmitJobRequest, context: grpc.ServicerContext) -> JobInfo:  # noqa: N802
        self._take(request, context)
        job = JobInfo(
            job_id=JOB_ID,
            status=JobStatus.JOB_STATUS_QUEUED,
            position_in_queue=0,
            request=request.request,
            warnings=self.warnings,
        )
        if request.validate_only:
            job.job_id = ""
        else:
            self.change(job)
            self.on_submit()
        return job

    def GetJob(self, request: GetJobRequest, context: grpc.ServicerContext) -> JobInfo:  # noqa: N802
        self._take(request, context)
        return self._job(request.job_id, context)

    def CancelJob(self, request: CancelJobRequest, context: grpc.ServicerContext) -> JobInfo:  # noqa: N802
        self._take(request, context)
        job = self._job(request.job_id, context)
        error = JobError(reason="CANCELLED", message=request.reason)
        self.change(job_at(JobStatus.JOB_STATUS_CANCELLED, job_id=job.job_id, error=error))
        return self.jobs[job.job_id]

    def DeleteJob(self, request: DeleteJobRequest, context: grpc.ServicerContext) -> DeleteJobResponse:  # noqa: N802
        self._take(request, context)
        self.delete(self._job(request.job_id, context).job_id)
        return DeleteJobResponse()

    def UpdateJob(self, request: UpdateJobRequest, context: grpc.ServicerContext) -> JobInfo:  # noqa: N802
        self._take(request, context)
        job = JobInfo()
        job.CopyFrom(self._job(request.job_id, context))
        if request.HasField("expected_revision") and request.expected_revision != job.revision:
            _abort(context, ConflictError("changed meanwhile", metadata={"revision": str(job.revision)}))
        for path in request.update_mask.paths:
            job.ClearField(path)
        job.MergeFrom(JobInfo(**{path: getattr(request, path) for path in request.update_mask.paths}))
        self.change(job, JobEventType.JOB_EVENT_TYPE_UPDATED)
        return job

    def GetQueue(self, request: GetQueueRequest, context: grpc.ServicerContext) -> GetQueueResponse:  # noqa: N802
        self._take(request, context)
        return self.queue

    def GetCaller(self, request: GetCallerRequest, context: grpc.ServicerContext) -> GetCallerResponse:  # noqa: N802
        self._take(request, context)
        return self.caller

    def GetServerInfo(  # noqa: N802
        self, request: GetServerInfoRequest, context: grpc.ServicerContext
    ) -> GetServerInfoResponse:
        self._take(request, context)
        return self.info

    def ListHarnesses(  # noqa: N802
        self, request: ListHarnessesRequest, context: grpc.ServicerContext
    ) -> ListHarnessesResponse:
        self._take(request, context)
        return ListHarnessesResponse(harnesses=self.harnesses)

    def ListJobs(self, request: ListJobsRequest, context: grpc.ServicerContext) -> ListJobsResponse:  # noqa: N802
        self._take(request, context)
        matcher = JobMatcher(request.filter)
        matching = [job for job in self.jobs.values() if matcher.matches(job)]
        page, token = self._page(matching, request.page_token)
        return ListJobsResponse(jobs=page, next_page_token=token)

    def ListTasks(self, request: ListTasksRequest, context: grpc.ServicerContext) -> ListTasksResponse:  # noqa: N802
        self._take(request, context)
        page, token = self._page([name for name in self.names if request.query in name], request.page_token)
        return ListTasksResponse(tasks=page, next_page_token=token)

    def ListModels(self, request: ListModelsRequest, context: grpc.ServicerContext) -> ListModelsResponse:  # noqa: N802
        self._take(request, context)
        page, token = self._page([name for name in self.names if request.query in name], request.page_token)
        return ListModelsResponse(models=page, next_page_token=token)

    def ListSamples(  # noqa: N802
        self, request: ListSamplesRequest, context: grpc.ServicerContext
    ) -> ListSamplesResponse:
        self._take(request, context)
        if self.empty_pages > 0:
            self.empty_pages -= 1
            return ListSamplesResponse(next_page_token=request.page_token or "0")
        page, token = self._page([_struct(row) for row in self.samples], request.page_token)
        return ListSamplesResponse(samples=page, next_page_token=token, truncated_fields=self.truncated_fields)

    def ListMetrics(  # noqa: N802
        self, request: ListMetricsRequest, context: grpc.ServicerContext
    ) -> ListMetricsResponse:
        self._take(request, context)
        page, token = self._page(self.metrics, request.page_token)
        return ListMetricsResponse(metrics=page, next_page_token=token)

    def GetHistory(  # noqa: N802
        self, request: GetHistoryRequest, context: grpc.ServicerContext
    ) -> GetHistoryResponse:
        self._take(request, context)
        page, token = self._page(list(self.history.points), request.page_token)
        trends = self.history.trends if request.HasField("trends") and not token else ()
        return GetHistoryResponse(points=page, trends=trends, next_page_token=token)

    def CompareJobs(self, request: CompareJobsRequest, context: grpc.ServicerContext) -> CompareJobsResponse:  # noqa: N802
        self._take(request, context)
        return self.comparison

    def PlanComparison(  # noqa: N802
        self, request: PlanComparisonRequest, context: grpc.ServicerContext
    ) -> PlanComparisonResponse:
        self._take(request, context)
        return self.plan

    def ListFlips(self, request: ListFlipsRequest, context: grpc.ServicerContext) -> ListFlipsResponse:  # noqa: N802
        self._take(request, context)
        page, token = self._page(self.flips, request.page_token)
        return ListFlipsResponse(flips=page, next_page_token=token, truncated_fields=self.truncated_fields)

    def ListEngines(self, request: ListEnginesRequest, context: grpc.ServicerContext) -> ListEnginesResponse:  # noqa: N802
        self._take(request, context)
        return self.engines

    def StopEngine(self, request: StopEngineRequest, context: grpc.ServicerContext) -> StopEngineResponse:  # noqa: N802
        self._take(request, context)
        return StopEngineResponse()

    def ListSuites(self, request: ListSuitesRequest, context: grpc.ServicerContext) -> ListSuitesResponse:  # noqa: N802
        self._take(request, context)
        page, token = self._page(self.suites, request.page_token)
        return ListSuitesResponse(suites=page, next_page_token=token)

    def ListSuiteRuns(self, request: ListSuiteRunsRequest, context: grpc.ServicerContext) -> ListSuiteRunsResponse:  # noqa: N802
        self._take(request, context)
        matcher, prefix = SuiteRunMatcher(request), request.suite_run_id_prefix.lower()
        newest = [run for run in reversed(self.suite_runs.values()) if run.suite_run_id.startswith(prefix)]
        page, token = self._page(list(filter(matcher.matches, newest)), request.page_token)
        return ListSuiteRunsResponse(suite_runs=page, next_page_token=token)

    def SubmitSuite(self, request: SubmitSuiteRequest, context: grpc.ServicerContext) -> SuiteRun:  # noqa: N802
        self._take(request, context)
        suite_run_id = "" if request.validate_only else f"{len(self.suite_runs):08d}-3d1b-4c8e-9f6a-2b7d9e0f4a10"
        run = SuiteRun(suite_run_id=suite_run_id, suite=Suite(name=request.suite), submission=request)
        run.jobs.add(entry="e")
        run.status = JobStatus.JOB_STATUS_COMPLETED
        run.decision.CopyFrom(self.decisions.get(request.suite, SuiteDecision()))
        self.suite_runs[suite_run_id] = run
        return run

    def GetSuiteRun(self, request: GetSuiteRunRequest, context: grpc.ServicerContext) -> SuiteRun:  # noqa: N802
        self._take(request, context)
        return self._suite_run(request.suite_run_id, context)

    def WatchSuiteRun(  # noqa: N802
        self, request: WatchSuiteRunRequest, context: grpc.ServicerContext
    ) -> Iterator[SuiteRunEvent]:
        self._take(request, context)
        run = self._suite_run(request.suite_run_id, context)
        yield from self.suite_run_events
        yield SuiteRunEvent(type=JobEventType.JOB_EVENT_TYPE_STATUS, revision=99, run=run, terminal=True)

    def CancelSuiteRun(self, request: CancelSuiteRunRequest, context: grpc.ServicerContext) -> SuiteRun:  # noqa: N802
        self._take(request, context)
        return self._suite_run(request.suite_run_id, context)

    def _suite_run(self, suite_run_id: str, context: grpc.ServicerContext) -> SuiteRun:
        if suite_run_id not in self.suite_runs:
            _abort(context, SuiteRunNotFoundError(f"there is no suite run {suite_run_id}"))
        return self.suite_runs[suite_run_id]

    def ListArtifacts(  # noqa: N802
        self, request: ListArtifactsRequest, context: grpc.ServicerContext
    ) -> ListArtifactsResponse:
        self._take(request, context)
        artifacts = [
            Artifact(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest() if request.checksums else "")
            for name, data in sorted(self.files.items())
        ]
        page, token = self._page(artifacts, request.page_token)
        return ListArtifactsResponse(artifacts=page, next_page_token=token)

    def ReadArtifact(  # noqa: N802
        self, request: ReadArtifactRequest, context: grpc.ServicerContext
    ) -> Iterator[ReadArtifactResponse]:
        self._take(request, context)
        data = self.files[request.name]
        for offset in range(request.offset, len(data), self.chunk_size):
            self.on_chunk(offset)
            if self.errors["ReadArtifact"]:
                _abort(context, self.errors["ReadArtifact"].pop(0))
            chunk = self.files[request.name][offset : offset + self.chunk_size]
            yield ReadArtifactResponse(data=chunk, offset=offset, size_bytes=len(data))

    def ReadLog(self, request: ReadLogRequest, context: grpc.ServicerContext) -> Iterator[ReadLogResponse]:  # noqa: N802
        self._take(request, context)
        offset = request.offset
        with self._watching(context):
            while chunk := self._next_log_chunk(offset, follow=request.follow, context=context):
                yield ReadLogResponse(data=chunk, offset=offset)
                offset += len(chunk)

    def _next_log_chunk(self, offset: int, *, follow: bool, context: grpc.ServicerContext) -> bytes:
        with self.changed:
            waits = follow and not self.log_is_whole
            self.changed.wait_for(lambda: len(self.log) > offset or self.log_is_whole or not (waits and context.is_active()))
            return self.log[offset : offset + self.chunk_size]

    def WatchJob(self, request: WatchJobRequest, context: grpc.ServicerContext) -> Iterator[JobEvent]:  # noqa: N802
        self._take(request, context)
        job = self._job(request.job_id, context)
        if request.after_revision == 0 or (job.status in TERMINAL and job.revision <= request.after_revision):
            yield _event(JobEventType.JOB_EVENT_TYPE_SNAPSHOT, job)
            if job.status in TERMINAL:
                return
        for event in self._live(request.after_revision or job.revision, context):
            if event.job.job_id == request.job_id:
                yield event
                if event.terminal:
                    return

    def WatchJobs(self, request: WatchJobsRequest, context: grpc.ServicerContext) -> Iterator[JobEvent]:  # noqa: N802
        self._take(request, context)
        head = len(self.journal)
        if request.after_revision == 0:
            for job in [] if request.skip_snapshots else list(self.jobs.values()):
                yield JobEvent(type=JobEventType.JOB_EVENT_TYPE_SNAPSHOT, revision=head, job=job)
        else:
            yield from self.journal[request.after_revision : head]
        yield JobEvent(type=JobEventType.JOB_EVENT_TYPE_BOOKMARK, revision=head)
        yield from self._live(head, context)

    def _live(self, after_revision: int, context: grpc.ServicerContext) -> Iterator[JobEvent]:
        sent = after_revision
        with self._watching(context):
            while fresh := self._next_events(sent, context):
                yield from fresh
                sent += len(fresh)

    def _next_events(self, sent: int, context: grpc.ServicerContext) -> list[JobEvent]:
        with self.changed:
            self.changed.wait_for(lambda: len(self.journal) > sent or not context.is_active())
            return self.journal[sent:]

    def _watching(self, context: grpc.ServicerContext) -> "_Watching":
        context.add_callback(self._wake)
        return _Watching(self)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _page(self, items: list[Any], token: str) -> tuple[list[Any], str]:
        start = int(token or 0)
        end = start + self.page_size
        return items[start:end], str(end) if end < len(items) else ""


class _Watching:
    def __init__(self, service: FakeService) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *exception: object) -> None:
        self._count(-1)

    def _count(self, difference: int) -> None:
        with self._service.changed:
            self._service.watchers += difference
            self._service.changed.notify_all()


class FakeServer:
    """Serves a FakeService on a free loopback port; may be killed and restarted on the same port."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.service = FakeService()
        self._credentials = credentials
        self.port = lasting_port()
        self.serving = True
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        add_EvaluationServiceServicer_to_server(self.service, self._server)
        self._server.add_generic_rpc_handlers((self._health_handler(),))
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        self._server.start()

    def kill(self) -> None:
        if self._server:
            self._server.stop(None).wait()
            self._server = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def _health_handler(self) -> grpc.GenericRpcHandler:
        check = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01" if self.serving else b"\x08\x02")
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})


def _event(kind: JobEventType, job: JobInfo) -> JobEvent:
    return JobEvent(type=kind, revision=job.revision, job=job, terminal=job.status in TERMINAL)


def _abort(context: grpc.ServicerContext, error: EvalrpcError) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", details_of(error)),))
    context.abort(grpc.StatusCode[error.code], error.message)


def _job_not_found(job_id: str) -> EvalrpcError:
    return JobNotFoundError(f"there is no job {job_id}", metadata={"resource_type": "job", "resource_name": job_id})


def _struct(row: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(row)
    return struct
