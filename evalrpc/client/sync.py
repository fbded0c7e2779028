# Generated from aio.py by scripts/generate-sync-client: do not edit.
"""The blocking client."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from evalrpc.client import comparing, core
from evalrpc.client.download import Download, OnProgress, PartialFile, is_complete, select, target_path
from evalrpc.client.reconnect import OnDisconnect, ReconnectPolicy
from evalrpc.client.resumable import AllJobsWatch, ArtifactBytes, JobWatch, LogBytes, SampleMediaChunks, SuiteRunWatch
from evalrpc.client.sync_transport import Transport
from evalrpc.client.values import build, texts
from evalrpc.client.views import to_pandas
from evalrpc.errors import EvalrpcError
from evalrpc.v1.callers_pb2 import GetCallerRequest, GetCallerResponse
from evalrpc.v1.catalog_pb2 import (
    GetServerInfoRequest,
    GetServerInfoResponse,
    HarnessInfo,
    ListHarnessesRequest,
    ListModelsRequest,
    ListTasksRequest,
)
from evalrpc.v1.comparison_pb2 import CompareJobsResponse, Flip, FlipDirection, PlanComparisonResponse
from evalrpc.v1.engines_pb2 import ListEnginesRequest, ListEnginesResponse, StopEngineRequest
from evalrpc.v1.files_pb2 import Artifact, ListArtifactsRequest
from evalrpc.v1.history_pb2 import GetHistoryResponse, TrendOptions
from evalrpc.v1.jobs_pb2 import (
    CancelJobRequest,
    DeleteJobRequest,
    EvaluateRequest,
    GetJobRequest,
    GpuMode,
    JobEvent,
    JobFilter,
    JobInfo,
    JobStatus,
    JobView,
    ListJobsRequest,
    ServedModel,
)
from evalrpc.v1.operations_pb2 import CordonGpuRequest, PauseQueueRequest, ResumeQueueRequest, UncordonGpuRequest
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse
from evalrpc.v1.results_pb2 import ModelMetric
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ReadSampleMediaRequest, ReadSampleMediaResponse, SampleFilter
from evalrpc.v1.suites_pb2 import (
    CancelSuiteRunRequest,
    GetSuiteRunRequest,
    ListSuiteRunsRequest,
    ListSuitesRequest,
    Suite,
    SuiteRun,
    SuiteRunEvent,
    SuiteRunView,
)

if TYPE_CHECKING:
    import pandas as pd


class EvalClient(Transport):
    """Submits evaluations to an evalrpc server, follows them, and fetches their logs and results.

    Every method that calls the server raises a subclass of `evalrpc.errors.EvalrpcError` if the server refuses the call,
    UnavailableError if it can't be reached, and TimeoutError if it does not answer in time. Calls that are safe to repeat are
    retried for about two seconds while the server is unavailable; streams resume where they broke off.

    An iteration that is left early ends its stream when it is closed:
    `with contextlib.closing(client.watch(job_id)) as events`.

    Thread-safe.

        with EvalClient("127.0.0.1:50051") as client:
            job = client.evaluate("llava_hf", ["mme"], {"pretrained": "acme/model"})
            job = client.wait_for_job(job.job_id)
            print(job.results)
    """

    # Submitting

    def evaluate(
        self,
        model: str,
        tasks: Sequence[str] | str,
        model_args: Mapping[str, Any] | str | None = None,
        num_fewshot: int | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        limit: float | None = None,
        gen_kwargs: Mapping[str, Any] | str | None = None,
        log_samples: bool = True,
        predict_only: bool = False,
        num_gpus: int | None = None,
        output_dir: str | None = None,
        *,
        harness: str = "",
        tasks_separately: bool = False,
        gpu_mode: GpuMode.ValueType = GpuMode.GPU_MODE_UNSPECIFIED,
        max_bad_answer_ratio: float | None = None,
        secrets: Sequence[str] | str = (),
        preparation: str = "",
        executor: str = "",
        served_model: ServedModel | Mapping[str, Any] | None = None,
        judge_model: ServedModel | Mapping[str, Any] | None = None,
        task_args: Mapping[str, Any] | str | None = None,
        **options: Unpack[core.SubmitOptions],
    ) -> JobInfo:
        """Submit an evaluation from plain values and return the job. See `submit` for options and errors.

        None leaves a field at its default; see EvaluateRequest in the schema. A single task may be a plain string.
        `model_args`, `gen_kwargs` and `task_args` are dicts of JSON values, or text as lmms-eval reads it (see
        `evalrpc.client.arguments`); paths, dates, enums and NumPy's numbers and small arrays become JSON values.
        `served_model` is one, or a dict such as `{"engine": "vllm", "model": "acme/model"}`; then `model` is "". `judge_model`
        is alike, and may come with either.

        Raises TypeError or ValueError that names the argument, or the key in it, which can't be sent.
        """
        request = core.evaluate_request(
            model,
            tasks,
            model_args,
            num_fewshot,
            batch_size,
            device,
            limit,
            gen_kwargs,
            log_samples,
            predict_only,
            num_gpus,
            output_dir,
            harness=harness,
            tasks_separately=tasks_separately,
            gpu_mode=gpu_mode,
            max_bad_answer_ratio=max_bad_answer_ratio,
            secrets=secrets,
            preparation=preparation,
            executor=executor,
            served_model=served_model,
            judge_model=judge_model,
            task_args=task_args,
        )
        return self.submit(request, **options)

    def submit(self, request: EvaluateRequest, **options: Unpack[core.SubmitOptions]) -> JobInfo:
        """Submit an evaluation and return the job, which is on the server's disk by then: QUEUED, or with `cache=True` perhaps
        COMPLETED already.

        Raises InvalidRequestError with every bad field, RequestIdReusedError, QueueFullError, QuotaExceededError, and
        PermissionDeniedError for a priority that only operators may give.
        """
        return self._call(self._stub.SubmitJob, core.submit_request(request, **options))

    # Following

    def get_job(self, job_id: str) -> JobInfo:
        """Return the job's current state. Raises JobNotFoundError."""
        return self._call(self._stub.GetJob, build(GetJobRequest, job_id=job_id))

    def watch(
        self,
        job_id: str,
        *,
        after_revision: int = 0,
        heartbeat_interval_seconds: float | None = None,
        reconnect_timeout_seconds: float | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> Generator[JobEvent, None, None]:
        """Yield the job's state, then every change once and in order, and end after the terminal event.

        Reconnects automatically, forever or until it has failed for `reconnect_timeout_seconds`, then raises UnavailableError.
        `on_disconnect` is called on every disconnect. With `heartbeat_interval_seconds`, a BOOKMARK is yielded whenever the
        server has sent nothing else for this long. None: the server sends one after 20 s at most, which only keeps the stream
        open and is not yielded. 0: it sends none, and a proxy may cut a quiet stream. Raises JobNotFoundError,
        RevisionCompactedError and RevisionInFutureError.
        """
        policy = ReconnectPolicy(reconnect_timeout_seconds, on_disconnect=on_disconnect)
        return self._read(self._stub.WatchJob, JobWatch(job_id, after_revision, heartbeat_interval_seconds, policy))

    def watch_all(
        self,
        filter: JobFilter | None = None,  # noqa: A002 (the schema's name)
        after_revision: int = 0,
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_UNSPECIFIED,
        skip_snapshots: bool = False,
        heartbeat_interval_seconds: float | None = None,
        reconnect_timeout_seconds: float | None = None,
        timeout_seconds: float | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> Generator[JobEvent, None, None]:
        """Yield the state of every job that matches, a BOOKMARK, then every change, without end.

        A job that was deleted, or that the filter does not match any more, comes as DELETED, with its id alone.

        With `after_revision`, starts with the changes since then; with `skip_snapshots`, with the BOOKMARK. JOB_VIEW_BASIC
        leaves out metrics and log tails. Jobs and events are fetched as the caller takes them, so a slow one needs no memory
        either. Reconnects and has heartbeats as `watch` does. Raises RevisionCompactedError, RevisionInFutureError, and
        TimeoutError after `timeout_seconds` in all.
        """
        policy = ReconnectPolicy(reconnect_timeout_seconds, timeout_seconds, on_disconnect=on_disconnect)
        reader = AllJobsWatch(
            filter, after_revision, heartbeat_interval_seconds, policy, view=view, skip_snapshots=skip_snapshots
        )
        return self._list_and_watch(reader, policy)

    def _list_and_watch(self, reader: AllJobsWatch, policy: ReconnectPolicy) -> Generator[JobEvent, None, None]:
        if listing := reader.listing():
            for page in self._pages(self._stub.ListJobs, listing, policy):
                for event in reader.take_page(page):
                    yield event
        with closing(self._read(self._stub.WatchJobs, reader)) as events:
            for event in events:
                yield event

    def wait_for_job(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        *,
        on_event: Callable[[JobEvent], None] | None = None,
        raise_on_failure: bool = True,
    ) -> JobInfo:
        """Wait until the job is terminal and return it. `on_event` is called for every event.

        Raises JobFailedError or JobCancelledError, which carry the job, and TimeoutError. None of them affects the job.
        """
        job = JobInfo()
        reader = JobWatch(job_id, policy=ReconnectPolicy(None, timeout_seconds))
        with closing(self._read(self._stub.WatchJob, reader)) as events:
            for event in events:
                job = event.job
                if on_event:
                    on_event(event)
        return core.completed(job, raise_on_failure=raise_on_failure)

    def cancel_job(self, job_id: str, reason: str = "", *, queued_only: bool = False) -> JobInfo:
        """Cancel the job and return its current state: a running job ends a little later.

        Raises JobNotFoundError, JobFinishedError for one that is COMPLETED or FAILED, and JobNotQueuedError for one that runs
        if `queued_only`.
        """
        request = build(CancelJobRequest, job_id=job_id, reason=reason, queued_only=queued_only)
        return self._call(self._stub.CancelJob, request)

    def update_job(
        self,
        job_id: str,
        *,
        labels: Mapping[str, object] | None = None,
        priority: int | None = None,
        expected_revision: int | None = None,
    ) -> JobInfo:
        """Replace all labels of the job, or its priority, and return its current state. None leaves what it is.

        With `expected_revision`, only if that is the job's revision. Raises JobNotFoundError, ConflictError (which then may
        also mean that a repeated call has changed the job itself), and JobFinishedError for the priority of a terminal job.
        """
        request = core.update_request(job_id, labels, priority, expected_revision)
        return self._call(self._stub.UpdateJob, request)

    def delete_job(self, job_id: str) -> None:
        """Delete a terminal job and everything that the server created for it. Raises JobNotFoundError, JobNotFinishedError."""
        self._call(self._stub.DeleteJob, build(DeleteJobRequest, job_id=job_id))

    def list_jobs(
        self,
        filter: JobFilter | None = None,  # noqa: A002 (the schema's name)
        page_size: int = 0,
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_UNSPECIFIED,
    ) -> Iterator[JobInfo]:
        """Yield jobs, newest first. `page_size` is how many are fetched at a time; 0 lets the server choose.

        JOB_VIEW_BASIC leaves out metrics and log tails.
        """
        request = build(ListJobsRequest, filter=filter, page_size=page_size, view=view)
        for page in self._pages(self._stub.ListJobs, request):
            yield from page.jobs

    # Reading logs and results

    def logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        offset: int = 0,
        attempt: int = 0,
        preparation: bool = False,
        engine: bool = False,
        heartbeat_interval_seconds: float | None = None,
    ) -> Generator[bytes, None, None]:
        """Yield the log's bytes from an offset, each once. `attempt` 0 is the latest. `preparation`: of the run that prepared
        the model, in place of the harness's; `engine`: of the engine that answered for the model, as it is now.

        With `follow`, waits for a queued job to start and continues until the job ends. Heartbeats are sent as for `watch`, and
        never yielded. Raises JobNotFoundError, AttemptNotFoundError, OffsetOutOfRangeError.
        """
        attempt = attempt or self._latest_attempt(job_id, wait=follow)
        reader = LogBytes(
            job_id,
            attempt,
            follow=follow,
            offset=offset,
            preparation=preparation,
            engine=engine,
            heartbeat_interval_seconds=heartbeat_interval_seconds,
        )
        with closing(self._read(self._stub.ReadLog, reader)) as chunks:
            yield from chunks

    def _latest_attempt(self, job_id: str, *, wait: bool) -> int:
        """Resolve the attempt once, so that a log read over several connections is that of one attempt."""
        job = self.get_job(job_id)
        if job.attempt or not wait:
            return job.attempt
        with closing(self._read(self._stub.WatchJob, JobWatch(job_id))) as events:
            return next((event.job.attempt for event in events if event.job.attempt), 0)

    def list_artifacts(self, job_id: str, attempt: int = 0, *, checksums: bool = False) -> list[Artifact]:
        """List the files that an attempt left, sorted by name; attempt 0 is the latest.

        With `checksums` the server reads each file of a job that has ended, for its `sha256`. Raises JobNotFoundError,
        AttemptNotFoundError.
        """
        request = build(ListArtifactsRequest, job_id=job_id, attempt=attempt, checksums=checksums)
        artifacts: list[Artifact] = []
        for page in self._pages(self._stub.ListArtifacts, request):
            artifacts.extend(page.artifacts)
        return artifacts

    def download(
        self,
        job_id: str,
        directory: str | Path,
        names: Sequence[str] | str | None = None,
        on_progress: OnProgress | None = None,
        attempt: int = 0,
    ) -> list[Path]:
        """Download files of an attempt (default: all of the latest) into a folder and return their paths, sorted by name.

        Files already present are skipped, and interrupted downloads are resumed. A file appears under its name only when it is
        complete and its checksum matches. A file that can't be downloaded does not stop the others: at the end, DownloadError
        says which are missing and why. Raises JobNotFoundError, AttemptNotFoundError, ArtifactNotFoundError.
        """
        listed = self.list_artifacts(job_id, attempt, checksums=True)
        chosen = select(listed, None if names is None else texts("names", names))
        download = Download(Path(directory))
        for artifact in chosen:
            try:
                download.require_own_place(artifact)
                path = self._download_file(job_id, attempt, artifact, Path(directory), on_progress)
                download.add(artifact, path)
            except (EvalrpcError, OSError) as error:
                download.add_failure(artifact, error)
        return download.finish()

    def _download_file(
        self, job_id: str, attempt: int, artifact: Artifact, directory: Path, on_progress: OnProgress | None
    ) -> Path:
        if is_complete(directory, artifact):
            return target_path(directory, artifact.name)
        with PartialFile(directory, artifact) as part:
            reader = ArtifactBytes(job_id, artifact.name, part.offset, attempt=attempt)
            with closing(self._read(self._stub.ReadArtifact, reader)) as chunks:
                for data in chunks:
                    part.write(data)
                    if on_progress:
                        on_progress(artifact, part.offset)
            return part.finish()

    def samples(
        self,
        job_id: str,
        model: str = "",
        task: str = "",
        page_size: int = 0,
        *,
        filter: SampleFilter | None = None,  # noqa: A002 (the schema's name)
        on_truncated: Callable[[Sequence[str]], None] | None = None,
    ) -> "SampleRows":
        """Yield the predictions of one model and task, in the harness's order. Empty names select the job's only one. With a
        filter, the server looks at all and sends those that it takes.

        `client.samples(job_id).to_pandas()` has all of them in one table. The server cuts rows larger than 2 MiB;
        `on_truncated` is called with what was cut, as paths such as `samples[3].resps`, where 3 is the place on a page.
        Raises JobNotFoundError, SamplesNotFoundError, InvalidRequestError for an empty name where there are several, and
        ReadLimitError for a file that goes on and on without a sample.
        """
        request = build(ListSamplesRequest, job_id=job_id, model=model, task=task, page_size=page_size, filter=filter)
        return SampleRows(self._samples(request, on_truncated))

    def _samples(
        self, request: ListSamplesRequest, on_truncated: Callable[[Sequence[str]], None] | None
    ) -> Generator[dict[str, Any], None, None]:
        empty_count = 0
        for page in self._pages(self._stub.ListSamples, request):
            if not request.HasField("filter"):  # which may take none of very many
                empty_count = core.count_empty_pages(empty_count, page)
            if on_truncated and page.truncated_fields:
                on_truncated(page.truncated_fields)
            for sample in page.samples:
                yield core.plain_row(sample)

    def sample_media(
        self, job_id: str, sample_id: str | int, model: str = "", task: str = "", *, max_bytes: int = core.MAX_MEDIUM_BYTES
    ) -> Iterator[ReadSampleMediaResponse]:
        """Yield the images, sounds and videos that a sample refers to, each whole, with its `media_type`; or with a `problem`
        why it can't be had, as for one that is larger than `max_bytes`. None for a sample without.

        `sample_id` is the sample's `doc_id`, or else its `id`. Raises JobNotFoundError, SamplesNotFoundError,
        InvalidRequestError for an empty name where there are several, and ReadLimitError.
        """
        parts = core.MediumParts(max_bytes)
        with closing(self.read_sample_media(job_id, sample_id, model, task)) as pieces:
            for piece in pieces:
                if (medium := parts.take(piece)) is not None:
                    yield medium

    def read_sample_media(
        self, job_id: str, sample_id: str | int, model: str = "", task: str = ""
    ) -> Generator[ReadSampleMediaResponse, None, None]:
        """Yield the same in pieces of 1 MiB, for what is too large for the memory: each byte once, in order."""
        request = build(ReadSampleMediaRequest, job_id=job_id, model=model, task=task, sample_id=str(sample_id))
        with closing(self._read(self._stub.ReadSampleMedia, SampleMediaChunks(request))) as pieces:
            yield from pieces

    def list_metrics(self, job_id: str, metrics: Sequence[str] | str = (), model: str = "") -> Iterator[ModelMetric]:
        """Yield the metrics of a job, sorted by model, task, metric and filter; also those that its `results` lack because of
        their number. An empty `model` selects all.

        `metrics` are TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix;
        none selects all. Raises JobNotFoundError, and MetricNotFoundError for a model that the job does not have.
        """
        request = core.metrics_request(job_id, metrics, model)
        for page in self._pages(self._stub.ListMetrics, request):
            yield from page.metrics

    def get_history(
        self,
        filter: JobFilter | None = None,  # noqa: A002 (the schema's name)
        metrics: Sequence[str] | str = (),
        step_label: str = "",
        *,
        trends: TrendOptions | None = None,
    ) -> GetHistoryResponse:
        """Return metrics across jobs, ordered by the step in the label `step_label` (default: `step`). With `trends`, also how
        each metric goes, and the alarm if it has fallen.

        `metrics` are TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix;
        none selects all. A filter without a status selects COMPLETED jobs. All pages are joined into one answer, and a point
        that came in several parts is one.
        """
        history = GetHistoryResponse()
        request = core.history_request(filter, metrics, step_label, trends)
        for page in self._pages(self._stub.GetHistory, request):
            core.add_page(history, page)
        return history

    def compare(
        self, baseline_job_id: str, candidate_job_ids: Sequence[str] | str, **options: Unpack[comparing.CompareOptions]
    ) -> CompareJobsResponse:
        """Compare jobs with a baseline: for every metric the difference, its confidence interval and a verdict.

        A large comparison may need a longer `timeout_seconds` than other calls. Raises JobNotFoundError, NoResultsError,
        MetricNotFoundError.
        """
        request = comparing.compare_request(baseline_job_id, candidate_job_ids, **options)
        return self._call(self._stub.CompareJobs, request)

    def plan_comparison(self, difference: float, **options: Unpack[comparing.PlanOptions]) -> PlanComparisonResponse:
        """Say what it takes to see a difference: how many samples, repeats or tasks, by metric.

        A plan from large jobs may need a longer `timeout_seconds` than other calls. Raises JobNotFoundError, NoResultsError,
        MetricNotFoundError, and InvalidRequestError unless either `differing_ratio` or `baseline_job_id` is given.
        """
        return self._call(self._stub.PlanComparison, comparing.plan_request(difference, **options))

    def flips(
        self,
        baseline_job_id: str,
        candidate_job_id: str,
        metric: str = "",
        model: str = "",
        *,
        direction: FlipDirection.ValueType = FlipDirection.FLIP_DIRECTION_UNSPECIFIED,
        higher_is_better: bool | None = None,
        page_size: int = 0,
        on_truncated: Callable[[Sequence[str]], None] | None = None,
    ) -> Iterator[Flip]:
        """Yield the samples whose value changed between two jobs, with both rows: those for the worse first, and of these the
        largest changes. An empty metric or model selects the only one.

        `on_truncated` is called with what was cut of rows larger than 1 MiB, as in `samples`. The first page of large jobs may
        need a longer `timeout_seconds`. Raises JobNotFoundError, NoResultsError, MetricNotFoundError, SamplesNotFoundError, and
        InvalidRequestError for an empty name where there are several.
        """
        request = comparing.flips_request(
            baseline_job_id, candidate_job_id, metric, model, direction, higher_is_better, page_size
        )
        for page in self._pages(self._stub.ListFlips, request):
            if on_truncated and page.truncated_fields:
                on_truncated(page.truncated_fields)
            yield from page.flips

    # Suites

    def list_suites(self) -> Iterator[Suite]:
        """Yield the suites that the operator has defined, sorted by name."""
        for page in self._pages(self._stub.ListSuites, ListSuitesRequest()):
            yield from page.suites

    def list_suite_runs(
        self,
        suites: Sequence[str] | str = (),
        statuses: Sequence[JobStatus.ValueType] = (),
        label_selector: str = "",
        suite_run_id_prefix: str = "",
        page_size: int = 0,
    ) -> Iterator[SuiteRun]:
        """Yield suite runs, newest first, that meet all conditions: of these suites, in one of these statuses, submitted with
        labels that the selector takes, with an id that begins so."""
        request = build(
            ListSuiteRunsRequest,
            suites=texts("suites", suites),
            statuses=statuses,
            label_selector=label_selector,
            suite_run_id_prefix=suite_run_id_prefix,
            page_size=page_size,
        )
        for page in self._pages(self._stub.ListSuiteRuns, request):
            yield from page.suite_runs

    def evaluate_suite(
        self,
        suite: str,
        model: str = "",
        model_args: Mapping[str, Any] | str | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        num_gpus: int | None = None,
        output_dir: str | None = None,
        *,
        harness_requests: Mapping[str, Mapping[str, Any]] | None = None,
        gpu_mode: GpuMode.ValueType = GpuMode.GPU_MODE_UNSPECIFIED,
        max_bad_answer_ratio: float | None = None,
        secrets: Sequence[str] | str = (),
        preparation: str = "",
        executor: str = "",
        baseline_suite_run_id: str = "",
        **options: Unpack[core.SuiteOptions],
    ) -> SuiteRun:
        """Submit a suite from plain values and return its run. See `submit_suite` for options and errors.

        The arguments are those of `evaluate` that a suite does not say itself, for all of its jobs. `harness_requests` has by
        harness what its jobs have besides or instead, such as `{"lm-eval": {"model": "hf"}, "lmms-eval": {"model": "llava"}}`.
        """
        request = core.suite_request(
            model,
            model_args=model_args,
            batch_size=batch_size,
            device=device,
            num_gpus=num_gpus,
            output_dir=output_dir,
            gpu_mode=gpu_mode,
            max_bad_answer_ratio=max_bad_answer_ratio,
            secrets=secrets,
            preparation=preparation,
            executor=executor,
        )
        of_harnesses = {name: core.suite_request(**plain) for name, plain in (harness_requests or {}).items()}
        return self.submit_suite(suite, request, of_harnesses, baseline_suite_run_id=baseline_suite_run_id, **options)

    def submit_suite(
        self,
        suite: str,
        request: EvaluateRequest,
        harness_requests: Mapping[str, EvaluateRequest] | None = None,
        *,
        baseline_suite_run_id: str = "",
        **options: Unpack[core.SuiteOptions],
    ) -> SuiteRun:
        """Submit a suite: one job for each of its entries, all of them or none. Return the run, which is on the server's disk.

        `request` is what all jobs have in common, such as the model and `num_gpus`; `harness_requests` what the jobs of a
        harness, by its name, have besides or instead. What the suite says, such as the tasks, must be absent in both.

        Raises what `submit` does, and SuiteRunNotFoundError.
        """
        message = core.submit_suite_request(suite, request, harness_requests, baseline_suite_run_id, **options)
        return self._call(self._stub.SubmitSuite, message)

    def get_suite_run(self, suite_run_id: str) -> SuiteRun:
        """Return a suite run as it stands now. Raises SuiteRunNotFoundError."""
        return self._call(self._stub.GetSuiteRun, build(GetSuiteRunRequest, suite_run_id=suite_run_id))

    def decide_suite_run(self, suite_run_id: str, baseline_suite_run_id: str = "") -> SuiteRun:
        """Return a suite run with the decision over it: GO, NO_GO or INCONCLUSIVE, and every number that it rests on.

        Compared with the given run, else with the one that was named when it was submitted. A large run may need a longer
        `timeout_seconds` than other calls. Raises SuiteRunNotFoundError.
        """
        request = build(
            GetSuiteRunRequest,
            suite_run_id=suite_run_id,
            view=SuiteRunView.SUITE_RUN_VIEW_DECISION,
            baseline_suite_run_id=baseline_suite_run_id,
        )
        return self._call(self._stub.GetSuiteRun, request)

    def watch_suite_run(
        self,
        suite_run_id: str,
        *,
        after_revision: int = 0,
        heartbeat_interval_seconds: float | None = None,
        reconnect_timeout_seconds: float | None = None,
        timeout_seconds: float | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> Generator[SuiteRunEvent, None, None]:
        """Yield the state of a suite run, then every change of its jobs once and in order, and end after the last end.

        Reconnects and has heartbeats as `watch` does. Raises SuiteRunNotFoundError, RevisionCompactedError,
        RevisionInFutureError, and TimeoutError after `timeout_seconds` in all.
        """
        policy = ReconnectPolicy(reconnect_timeout_seconds, timeout_seconds, on_disconnect=on_disconnect)
        reader = SuiteRunWatch(suite_run_id, after_revision, heartbeat_interval_seconds, policy)
        return self._read(self._stub.WatchSuiteRun, reader)

    def wait_for_suite_run(
        self,
        suite_run_id: str,
        timeout_seconds: float | None = None,
        *,
        on_event: Callable[[SuiteRunEvent], None] | None = None,
    ) -> SuiteRun:
        """Wait until all jobs of a suite run have ended, however they did, and return the run. `on_event` is called for every
        event. Raises SuiteRunNotFoundError, TimeoutError."""
        with closing(self.watch_suite_run(suite_run_id, timeout_seconds=timeout_seconds)) as events:
            for event in events:
                if on_event:
                    on_event(event)
        return self.get_suite_run(suite_run_id)

    def cancel_suite_run(self, suite_run_id: str, reason: str = "") -> SuiteRun:
        """Cancel all jobs of a suite run that have not ended, and return its current state: running jobs end a little later.

        Raises SuiteRunNotFoundError, and JobFinishedError for a run that is COMPLETED or FAILED.
        """
        request = build(CancelSuiteRunRequest, suite_run_id=suite_run_id, reason=reason)
        return self._call(self._stub.CancelSuiteRun, request)

    # What the server has

    def list_tasks(self, query: str = "", harness: str = "") -> Iterator[str]:
        """Yield the harness's task names that contain the query, sorted. Raises CatalogUnavailableError."""
        request = build(ListTasksRequest, query=query, harness=harness, page_size=core.NAMES_PAGE_SIZE)
        for page in self._pages(self._stub.ListTasks, request):
            yield from page.tasks

    def list_models(self, query: str = "", harness: str = "") -> Iterator[str]:
        """Yield the harness's model type names that contain the query, sorted. Raises CatalogUnavailableError."""
        request = build(ListModelsRequest, query=query, harness=harness, page_size=core.NAMES_PAGE_SIZE)
        for page in self._pages(self._stub.ListModels, request):
            yield from page.models

    def list_harnesses(self) -> list[HarnessInfo]:
        """List the harnesses that the operator configured, sorted by name."""
        answer = self._call(self._stub.ListHarnesses, ListHarnessesRequest())
        return list(answer.harnesses)

    def get_queue_status(self) -> GetQueueResponse:
        """Return what is queued and running, and who holds which GPU."""
        return self._call(self._stub.GetQueue, GetQueueRequest())

    def pause_queue(self) -> None:
        """Start no queued job until `resume_queue`; running ones go on. For operators. Raises PermissionDeniedError."""
        self._call(self._stub.PauseQueue, PauseQueueRequest())

    def resume_queue(self) -> None:
        """Start queued jobs again. For operators. Raises PermissionDeniedError."""
        self._call(self._stub.ResumeQueue, ResumeQueueRequest())

    def cordon_gpu(self, gpu_id: str) -> None:
        """Assign a GPU to no further job until `uncordon_gpu`; the one that holds it goes on. For operators.

        Raises PermissionDeniedError, and InvalidRequestError if there is no such GPU.
        """
        self._call(self._stub.CordonGpu, build(CordonGpuRequest, gpu_id=gpu_id))

    def uncordon_gpu(self, gpu_id: str) -> None:
        """Assign a GPU to jobs again. For operators. Raises PermissionDeniedError, InvalidRequestError."""
        self._call(self._stub.UncordonGpu, build(UncordonGpuRequest, gpu_id=gpu_id))

    def list_engines(self) -> ListEnginesResponse:
        """Return the engines that have a model loaded, and those that requests may name."""
        return self._call(self._stub.ListEngines, ListEnginesRequest())

    def stop_engine(self, engine_id: str) -> None:
        """End an engine; its jobs get another one. For operators. Raises PermissionDeniedError, EngineNotFoundError."""
        self._call(self._stub.StopEngine, build(StopEngineRequest, engine_id=engine_id))

    def get_caller(self) -> GetCallerResponse:
        """Return who this client is, as the server sees it. Raises UnauthenticatedError."""
        return self._call(self._stub.GetCaller, GetCallerRequest())

    def get_server_info(self) -> GetServerInfoResponse:
        """Return the server's version, limits and capabilities."""
        return self._call(self._stub.GetServerInfo, GetServerInfoRequest())


class SampleRows(Iterator[dict[str, Any]]):
    """The rows of samples, each a dict, fetched a page at a time as they are iterated over."""

    def __init__(self, rows: Generator[dict[str, Any], None, None]) -> None:
        self._rows = rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def close(self) -> None:
        """Fetch no more."""
        self._rows.close()

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows that are left as a DataFrame. Raises ModuleNotFoundError that says what to install without pandas."""
        return to_pandas(list(self))
