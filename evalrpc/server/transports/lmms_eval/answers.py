"""Our jobs and queue in the words of lmms-eval's server. Pure, but for the time zone of the machine."""

from datetime import datetime
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs.model_arguments import MODEL_ARGUMENTS
from evalrpc.server.transports.lmms_eval.requests import PREPARED
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JOB_STATUS_FAILED, JOB_STATUS_QUEUED, EvaluateRequest, JobInfo, JobStatus
from evalrpc.v1.queue_pb2 import GetQueueResponse

_PREFIX: Final = "JOB_STATUS_"


def status_of(job: JobInfo) -> str:
    """Return a job's status, in small letters."""
    return JobStatus.Name(job.status).removeprefix(_PREFIX).lower()


def submitted(job: JobInfo) -> dict[str, Any]:
    """Return the answer to a submission."""
    position = job.position_in_queue
    return {
        "job_id": job.job_id,
        "status": status_of(job),
        "position_in_queue": position,
        "message": f"Job queued successfully. Position in queue: {position}",
    }


def job_answer(job: JobInfo) -> dict[str, Any]:
    """Return a job."""
    has_failed = job.status == JOB_STATUS_FAILED
    return {
        "job_id": job.job_id,
        "status": status_of(job),
        "created_at": _local(job.created_at),
        "started_at": _local(job.started_at) if job.HasField("started_at") else None,
        "completed_at": _local(job.completed_at) if job.HasField("completed_at") else None,
        "request": _request(job.request),
        "result": _results(job) if job.status == JOB_STATUS_COMPLETED else None,
        "error": (job.error.message or job.error.reason) if has_failed else None,
        "position_in_queue": job.position_in_queue if job.status == JOB_STATUS_QUEUED else None,
    }


def queue_answer(queue: GetQueueResponse) -> dict[str, Any]:
    """Return the queue. `running_job` is the longest running one."""
    counts = {each.status: each.count for each in queue.status_counts}
    return {
        "queue_size": queue.queued_count,
        "running_job": queue.running_job_ids[0] if queue.running_job_ids else None,
        "queued_jobs": list(queue.queued_job_ids),
        "completed_jobs": counts.get(JOB_STATUS_COMPLETED, 0),
        "failed_jobs": counts.get(JOB_STATUS_FAILED, 0),
    }


def now() -> str:
    """Return the time, as that server writes it."""
    return datetime.now().isoformat()  # noqa: DTZ005 - its times have no zone


def _local(time: Timestamp) -> str:
    return datetime.fromtimestamp(time.ToMicroseconds() / 1e6).isoformat()  # noqa: DTZ006 - as above


def _results(job: JobInfo) -> dict[str, Any]:
    return {model: {"results": result.results, "samples": list(result.samples)} for model, result in job.results.items()}


def _request(request: EvaluateRequest) -> dict[str, Any]:
    """Return the twelve fields of a request, as their client has sent them."""
    model_args: dict[str, Any] = {name: _whole(value) for name, value in MessageToDict(request.model_args).items()}
    if request.preparation:
        name = next((each for each in MODEL_ARGUMENTS if each in model_args), "")
        model_args |= {name: f"{model_args[name]}{PREPARED}{request.preparation}"} if name else {}
    return {
        "model": request.model,
        "tasks": list(request.tasks),
        "model_args": model_args or None,
        "num_fewshot": request.num_fewshot if request.HasField("num_fewshot") else None,
        "batch_size": _batch_size(request.batch_size),
        "device": request.device or None,
        "limit": _whole(request.limit) if request.HasField("limit") else None,
        "gen_kwargs": _generation(request.gen_kwargs),
        "log_samples": request.log_samples if request.HasField("log_samples") else True,
        "predict_only": request.predict_only,
        "num_gpus": request.num_gpus,
        "output_dir": request.output_dir or None,
    }


def _batch_size(text: str) -> int | str | None:
    return int(text) if text.isdecimal() else text or None


def _generation(values: Struct) -> str | None:
    pairs = sorted(MessageToDict(values).items())  # a Struct has no order
    return ",".join(f"{name}={_whole(value)}" for name, value in pairs) or None


def _whole(value: Any) -> Any:
    """Return a whole number as an integer: a Struct has floating-point numbers only."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
