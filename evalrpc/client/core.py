"""What both clients share: channel options, requests, conversions of responses."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.client.arguments import parse_arguments, parse_metric
from evalrpc.client.request_ids import new_request_id
from evalrpc.errors import JobCancelledError, JobFailedError
from evalrpc.v1.evaluation_service_pb2 import DESCRIPTOR
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import (
    CACHE_MODE_ALLOW,
    CACHE_MODE_UNSPECIFIED,
    EvaluateRequest,
    JobFilter,
    JobInfo,
    JobStatus,
    SubmitJobRequest,
)
from evalrpc.v1.results_pb2 import ListMetricsRequest

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
ADDRESS_VARIABLE: Final = "EVALRPC_ADDRESS"
NAMES_PAGE_SIZE: Final = 1000
"""How many task or model names are fetched per page; a harness may have many thousands."""
METRICS_PAGE_SIZE: Final = 10_000
"""The same for the metrics of a job."""

HEALTH_CHECK_METHOD: Final = "/grpc.health.v1.Health/Check"
HEALTH_CHECK_REQUEST: Final = b""
"""A grpc.health.v1.HealthCheckRequest that asks for the server as a whole."""
HEALTH_SERVING: Final = b"\x08\x01"
"""The grpc.health.v1.HealthCheckResponse whose status is SERVING."""

RETRIED_METHODS: Final = (
    "SubmitJob",
    "GetJob",
    "ListJobs",
    "CancelJob",
    "GetQueue",
    "ListArtifacts",
    "ListMetrics",
    "ListSamples",
    "GetHistory",
    "CompareJobs",
    "ListTasks",
    "ListModels",
    "ListHarnesses",
    "GetServerInfo",
)
"""The calls that may be retried blindly; SubmitJob because ours always carries a `request_id`."""


class SubmitOptions(TypedDict, total=False):
    """The options of a submission, besides the evaluation itself. See SubmitJobRequest in the schema."""

    request_id: str | None
    """Makes the call safe to repeat. Default: a fresh UUID."""
    priority: int
    """Higher starts first. Default: 0."""
    labels: Mapping[str, str] | None
    """Free-form labels to filter by."""
    timeout: timedelta | float | None
    """Bound on the run time of one attempt; a number is in seconds. Default: none."""
    max_attempts: int
    """The maximum number of attempts. Default: 1."""
    supersede_key: str
    """Cancels the queued jobs with the same key. Default: none."""
    validate_only: bool
    """Only validate; the response has no `job_id`. Default: False."""
    cache: bool
    """Whether the job of an identical evaluation may be returned: see CACHE_MODE_ALLOW. Default: False."""


def server_address(address: str | None) -> str:
    """Return the given address, else that in EVALRPC_ADDRESS, else the default."""
    return address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS


def channel_options() -> list[tuple[str, Any]]:
    """Build the channel options: retries, and keepalive at a rate that the server permits. Every answer fits into 4 MiB, gRPC's
    own limit."""
    return [
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # By default gRPC waits up to two minutes before it reconnects to a restarted server.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


def service_config() -> str:
    """Build gRPC's service config as JSON: which calls gRPC retries, on UNAVAILABLE only."""
    service = DESCRIPTOR.services_by_name["EvaluationService"].full_name
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for method in RETRIED_METHODS]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def evaluate_request(
    model: str,
    tasks: Sequence[str],
    model_args: Mapping[str, Any] | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str | None = None,
    device: str | None = None,
    limit: float | None = None,
    gen_kwargs: Mapping[str, Any] | str | None = None,
    log_samples: bool = True,
    predict_only: bool = False,
    num_gpus: int = 1,
    output_dir: str | None = None,
    *,
    harness: str = "",
    tasks_separately: bool = False,
) -> EvaluateRequest:
    """Build the request from plain values. None leaves a field absent; a single task may be a plain string.

    Raises ValueError for arguments that have no JSON form.
    """
    return EvaluateRequest(
        harness=harness,
        model=model,
        tasks=[tasks] if isinstance(tasks, str) else tasks,
        model_args=_struct(model_args),
        num_fewshot=num_fewshot,
        batch_size="" if batch_size is None else str(batch_size),
        device=device or "",
        limit=limit,
        gen_kwargs=_struct(parse_arguments(gen_kwargs) if isinstance(gen_kwargs, str) else gen_kwargs),
        log_samples=log_samples,
        predict_only=predict_only,
        num_gpus=num_gpus,
        output_dir=output_dir or "",
        tasks_separately=tasks_separately,
    )


def submit_request(
    request: EvaluateRequest,
    *,
    request_id: str | None = None,
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
    timeout: timedelta | float | None = None,
    max_attempts: int = 1,
    supersede_key: str = "",
    validate_only: bool = False,
    cache: bool = False,
) -> SubmitJobRequest:
    """Build the submission. It always has a `request_id`, so that a retry never submits a second job."""
    return SubmitJobRequest(
        request=request,
        request_id=request_id or new_request_id(),
        priority=priority,
        labels=labels,
        timeout=None if timeout is None else duration(timeout),
        max_attempts=max_attempts,
        supersede_key=supersede_key,
        validate_only=validate_only,
        cache=CACHE_MODE_ALLOW if cache else CACHE_MODE_UNSPECIFIED,
    )


def history_request(job_filter: JobFilter | None, metrics: Sequence[str], step_label: str) -> GetHistoryRequest:
    """Build the request for metrics across jobs."""
    return GetHistoryRequest(filter=job_filter, metrics=map(parse_metric, metrics), step_label=step_label)


def metrics_request(job_id: str, metrics: Sequence[str], model: str) -> ListMetricsRequest:
    """Build the request for all metrics of a job, in large pages."""
    return ListMetricsRequest(job_id=job_id, metrics=map(parse_metric, metrics), model=model, page_size=METRICS_PAGE_SIZE)


def add_points(history: GetHistoryResponse, points: Iterable[HistoryPoint]) -> None:
    """Add the points of a page. One that goes on from the page before is joined with its beginning."""
    for point in points:
        last = history.points[-1] if history.points else None
        if last is not None and (last.job_id, last.model) == (point.job_id, point.model):
            last.metrics.extend(point.metrics)
        else:
            history.points.append(point)


def duration(value: timedelta | float) -> Duration:
    """Build a Duration; a number is in seconds."""
    message = Duration()
    message.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return message


def completed(job: JobInfo, *, raise_on_failure: bool = True) -> JobInfo:
    """Return the terminal job. Unless disabled, raises JobFailedError or JobCancelledError if it did not complete."""
    if raise_on_failure and job.status == JobStatus.JOB_STATUS_FAILED:
        raise JobFailedError(job)
    if raise_on_failure and job.status == JobStatus.JOB_STATUS_CANCELLED:
        raise JobCancelledError(job)
    return job


def plain_row(struct: Struct) -> dict[str, Any]:
    """Convert a Struct to a dict. A Struct has no integers, so numbers without a fraction become ints."""
    return {key: _plain(value) for key, value in struct.fields.items()}


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


def _struct(values: Mapping[str, Any] | None) -> Struct | None:
    if values is None:
        return None
    struct = Struct()
    struct.update(dict(values))
    return struct
