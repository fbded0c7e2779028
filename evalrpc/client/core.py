"""What both clients share: channel options, requests, conversions of responses."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Final, TypedDict, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.client import values
from evalrpc.client.addresses import Address, parse_address
from evalrpc.client.request_ids import new_request_id
from evalrpc.errors import JobCancelledError, JobFailedError, ReadLimitError
from evalrpc.jobs.metric_selectors import parse_metric
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, TrendOptions
from evalrpc.v1.jobs_pb2 import (
    CACHE_MODE_ALLOW,
    CACHE_MODE_UNSPECIFIED,
    EvaluateRequest,
    GpuMode,
    JobFilter,
    JobInfo,
    JobStatus,
    ServedModel,
    SubmitJobRequest,
    UpdateJobRequest,
)
from evalrpc.v1.results_pb2 import ListMetricsRequest
from evalrpc.v1.samples_pb2 import ListSamplesResponse, ReadSampleMediaResponse
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
ADDRESS_VARIABLE: Final = "EVALRPC_ADDRESS"
MAX_MEDIUM_BYTES: Final = 64 * 1024 * 1024
"""The largest image, sound or video of a sample that is kept in memory, unless the caller says another size."""
NAMES_PAGE_SIZE: Final = 1000
"""How many task or model names are fetched per page; a harness may have many thousands."""
METRICS_PAGE_SIZE: Final = 10_000
"""The same for the metrics of a job."""

MAX_EMPTY_PAGES: Final = 16
"""How many pages of samples in a row may have none. Each stands for up to 1 GiB of a file, or for seconds of reading it."""

HEALTH_CHECK_METHOD: Final = "/grpc.health.v1.Health/Check"
HEALTH_CHECK_REQUEST: Final = b""
"""A grpc.health.v1.HealthCheckRequest that asks for the server as a whole."""
HEALTH_SERVING: Final = b"\x08\x01"
"""The grpc.health.v1.HealthCheckResponse whose status is SERVING."""


class SuiteOptions(TypedDict, total=False):
    """The options of a suite's submission, of all its jobs. See SubmitSuiteRequest in the schema."""

    request_id: str | None
    """Makes the call safe to repeat. Default: a fresh UUID."""
    priority: int
    """Higher starts first. Default: 0."""
    labels: Mapping[str, object] | None
    """Free-form labels to filter by: text, numbers, booleans, and what `evalrpc.client.values` lists."""
    timeout: timedelta | float | None
    """Bound on the run time of one attempt; a number is in seconds. Default: none."""
    max_attempts: int
    """The maximum number of attempts. Default: 1."""
    validate_only: bool
    """Only validate; the response has no id. Default: False."""
    cache: bool
    """Whether the job may share the run of an identical evaluation instead of running itself; it is a new job all the same. See
    CACHE_MODE_ALLOW and `JobInfo.cached_from`. Default: False."""
    preemptible: bool
    """Whether the running job gives way to one that comes first. Default: False."""


class SubmitOptions(SuiteOptions, total=False):
    """The options of a job's submission, besides the evaluation itself. See SubmitJobRequest in the schema."""

    supersede_key: str
    """Cancels the queued jobs with the same key. Default: none."""


def server_address(address: str | None) -> Address:
    """Parse the given address, else that in EVALRPC_ADDRESS, else the default. Raises ValueError that says what is wrong."""
    if address:
        return parse_address(address)
    variable = os.environ.get(ADDRESS_VARIABLE)
    if not variable:
        return parse_address(DEFAULT_ADDRESS)
    try:
        return parse_address(variable)
    except ValueError as error:
        raise ValueError(f"{ADDRESS_VARIABLE}: {error}") from None


def channel_options(*, use_proxy: bool = True) -> list[tuple[str, Any]]:
    """Build the channel options: keepalive at a rate that the server permits. Every answer fits into 4 MiB, gRPC's own limit.

    `use_proxy`: whether the variables http_proxy, https_proxy and no_proxy count, as gRPC reads them.
    """
    return [
        ("grpc.enable_http_proxy", int(use_proxy)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # By default gRPC waits up to two minutes before it reconnects to a restarted server.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


def require_channel(channel: object, kind: type, *others: object) -> None:
    """Raise ValueError for a channel beside an address or credentials, and TypeError for one that is not of this kind."""
    if any(other is not None for other in others):
        raise ValueError("give either an address or a channel, not both; a channel has credentials of its own")
    if not isinstance(channel, kind):
        takes, given = (cls.__module__.partition("._")[0] for cls in (kind, type(channel)))
        raise TypeError(f"this client takes a channel of {takes}, not of {given}")


def evaluate_request(
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
) -> EvaluateRequest:
    """Build the request from plain values. None leaves a field absent; a single task or secret may be a plain string.

    Raises TypeError or ValueError that names the argument, or the key in it, which can't be sent.
    """
    return values.build(
        EvaluateRequest,
        harness=harness,
        model=model,
        tasks=values.texts("tasks", tasks),
        model_args=values.arguments("model_args", model_args),
        num_fewshot=num_fewshot,
        batch_size=_batch_size(batch_size),
        device=device,
        limit=limit,
        gen_kwargs=values.arguments("gen_kwargs", gen_kwargs),
        log_samples=log_samples,
        predict_only=predict_only,
        num_gpus=num_gpus,
        output_dir=output_dir,
        tasks_separately=tasks_separately,
        gpu_mode=gpu_mode,
        max_bad_answer_ratio=max_bad_answer_ratio,
        secrets=values.texts("secrets", secrets),
        preparation=preparation,
        executor=executor,
        served_model=values.served_model("served_model", served_model),
        judge_model=values.served_model("judge_model", judge_model),
        task_args=values.arguments("task_args", task_args),
    )


def submit_request(request: EvaluateRequest, *, supersede_key: str = "", **options: Unpack[SuiteOptions]) -> SubmitJobRequest:
    """Build the submission. It always has a `request_id`, so that a retry never submits a second job.

    Raises TypeError or ValueError that names the argument, or the key in it, which can't be sent.
    """
    return values.build(SubmitJobRequest, request=request, supersede_key=supersede_key, **_submission_fields(**options))


def suite_request(model: str = "", **fields: Any) -> EvaluateRequest:
    """Build from plain values what the jobs of a suite have in common. What the suite says stays absent.

    Raises TypeError or ValueError that names the argument, or the key in it, which can't be sent.
    """
    return evaluate_request(model, (), **fields)


def submit_suite_request(
    suite: str,
    request: EvaluateRequest,
    harness_requests: Mapping[str, EvaluateRequest] | None,
    baseline_suite_run_id: str,
    **options: Unpack[SuiteOptions],
) -> SubmitSuiteRequest:
    """Build the submission of a suite. It always has a `request_id`.

    Raises TypeError or ValueError that names the argument, or the key in it, which can't be sent.
    """
    return values.build(
        SubmitSuiteRequest,
        suite=suite,
        request=request,
        harness_requests=harness_requests,
        baseline_suite_run_id=baseline_suite_run_id,
        **_submission_fields(**options),
    )


def _submission_fields(
    *,
    request_id: str | None = None,
    priority: int = 0,
    labels: Mapping[str, object] | None = None,
    timeout: timedelta | float | None = None,
    max_attempts: int = 1,
    validate_only: bool = False,
    cache: bool = False,
    preemptible: bool = False,
    **unknown: object,
) -> dict[str, Any]:
    """Return the fields that the submissions of a job and of a suite have in common."""
    for name in unknown:
        raise TypeError(f"there is no argument {name!r}{_nearest_argument(name)}")
    return {
        "request_id": request_id or new_request_id(),
        "priority": priority,
        "labels": values.labels(labels),
        "timeout": None if timeout is None else duration("timeout", timeout),
        "max_attempts": max_attempts,
        "validate_only": validate_only,
        "cache": CACHE_MODE_ALLOW if cache else CACHE_MODE_UNSPECIFIED,
        "preemptible": preemptible,
    }


def _nearest_argument(name: str) -> str:
    """Return the end of a sentence about an argument that there is not: a question with the nearest one, if one is near."""
    names = (*EvaluateRequest.DESCRIPTOR.fields_by_name, *SubmitOptions.__annotations__)
    nearest = get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def update_request(
    job_id: str, labels: Mapping[str, object] | None, priority: int | None, expected_revision: int | None
) -> UpdateJobRequest:
    """Build the request for a change of a job. What is None is not in its mask, so it stays.

    Raises TypeError or ValueError that names the argument which can't be sent.
    """
    changed = {"labels": labels is not None, "priority": priority is not None}
    return values.build(
        UpdateJobRequest,
        job_id=job_id,
        labels=values.labels(labels),
        priority=priority or 0,
        update_mask=FieldMask(paths=[name for name, is_given in changed.items() if is_given]),
        expected_revision=expected_revision,
    )


def history_request(
    job_filter: JobFilter | None, metrics: Sequence[str] | str, step_label: str, trends: TrendOptions | None
) -> GetHistoryRequest:
    """Build the request for metrics across jobs."""
    selectors = map(parse_metric, values.texts("metrics", metrics))
    return values.build(GetHistoryRequest, filter=job_filter, metrics=selectors, step_label=step_label, trends=trends)


def metrics_request(job_id: str, metrics: Sequence[str] | str, model: str) -> ListMetricsRequest:
    """Build the request for all metrics of a job, in large pages."""
    selectors = map(parse_metric, values.texts("metrics", metrics))
    return values.build(ListMetricsRequest, job_id=job_id, metrics=selectors, model=model, page_size=METRICS_PAGE_SIZE)


def add_page(history: GetHistoryResponse, page: GetHistoryResponse) -> None:
    """Add the points and trends of a page. A point that goes on from the page before is joined with its beginning."""
    history.trends.extend(page.trends)
    for point in page.points:
        last = history.points[-1] if history.points else None
        if last is not None and (last.job_id, last.model) == (point.job_id, point.model):
            last.metrics.extend(point.metrics)
        else:
            history.points.append(point)


def duration(name: str, value: timedelta | float) -> Duration:
    """Build the Duration of the argument `name`; a number is in seconds. Raises TypeError or ValueError that names it."""
    message = Duration()
    try:
        message.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=values.number(name, value)))
    except (OverflowError, ValueError):
        raise ValueError(f"{name} must be a finite number of seconds, not {value}") from None
    return message


def completed(job: JobInfo, *, raise_on_failure: bool = True) -> JobInfo:
    """Return the terminal job. Unless disabled, raises JobFailedError or JobCancelledError if it did not complete."""
    if raise_on_failure and job.status == JobStatus.JOB_STATUS_FAILED:
        raise JobFailedError(job)
    if raise_on_failure and job.status == JobStatus.JOB_STATUS_CANCELLED:
        raise JobCancelledError(job)
    return job


def count_empty_pages(count: int, page: ListSamplesResponse) -> int:
    """Return how many pages in a row have no sample, with this one. Raises ReadLimitError if they are too many to go on."""
    count = 0 if page.samples else count + 1
    if count < MAX_EMPTY_PAGES or not page.next_page_token:
        return count
    raise ReadLimitError(
        f"{count} pages in a row have no sample, and the file goes on: no harness writes that; download it to look at it"
    )


class MediumParts:
    """Joins the pieces of media, which come one after the other."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._first = ReadSampleMediaResponse()
        self._parts: list[bytes] = []

    def take(self, piece: ReadSampleMediaResponse) -> ReadSampleMediaResponse | None:
        """Take a piece, and return the medium once it is whole; one that can't be had, or is too large, with a `problem`."""
        if not piece.offset:
            self._first, self._parts = piece, []
        fits = piece.size_bytes <= self._max_bytes
        if fits:
            self._parts.append(piece.data)
        if not piece.problem and piece.offset + len(piece.data) < piece.size_bytes:
            return None
        medium = ReadSampleMediaResponse()
        medium.CopyFrom(self._first)
        medium.problem = piece.problem if fits or piece.problem else f"it has more than max_bytes, {self._max_bytes} bytes"
        medium.data = b"" if medium.problem else b"".join(self._parts)
        self._parts = []
        return medium


def plain_row(struct: Struct) -> dict[str, Any]:
    """Convert a Struct to a dict, sorted by key. A Struct has no integers, so numbers without a fraction become ints."""
    return {key: _plain(value) for key, value in sorted(struct.fields.items())}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain_row(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            return int(value.number_value) if value.number_value.is_integer() else value.number_value
        case "bool_value":
            return value.bool_value
        case "string_value":
            return value.string_value
    return None


def _batch_size(value: int | str | None) -> str | None:
    return value if value is None or isinstance(value, str) else str(values.whole_number("batch_size", value))
