"""The requests of the benchmarks, and the answers of the yardstick, which are as large as the server's."""

import uuid
from typing import Final

from benchmarks.http2 import Request
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.files_pb2 import ReadArtifactRequest
from evalrpc.v1.jobs_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    JobFilter,
    ListJobsRequest,
    SubmitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)

HARNESS: Final = "hold"
"""The harness of the measured servers. Its runs hold their GPU until the benchmark is over."""

LABEL: Final = "team"

_SERVICE: Final = "/evalrpc.v1.EvaluationService/"


def evaluate_request(harness: str = HARNESS, model: str = "llava_hf", task: str = "mme") -> pb.EvaluateRequest:
    """Return a typical request."""
    request = pb.EvaluateRequest(harness=harness, model=model, tasks=[task, "mmmu_val"], batch_size="1", num_gpus=1, limit=100)
    request.model_args.update({"pretrained": "llava-hf/llava-interleave-qwen-0.5b-hf", "dtype": "bfloat16"})
    return request


def new_job(model: str = "llava_hf", task: str = "mme", team: str = "blue", **labels: str) -> pb.JobInfo:
    """Return a job as the service hands it to the store."""
    request = evaluate_request(model=model, task=task)
    return pb.JobInfo(job_id=str(uuid.uuid4()), request=request, labels={LABEL: team, **labels}, max_attempts=1)


def constant_job(status: pb.JobStatus.ValueType = pb.JOB_STATUS_QUEUED) -> pb.JobInfo:
    """Return a job as the server sends it."""
    job = new_job()
    job.status = status
    job.created_at.GetCurrentTime()
    job.revision = 10_000
    if status == pb.JOB_STATUS_QUEUED:
        job.position_in_queue = 5_000
        job.wait_reason = "needs 1 GPU, 0 free; 5000 jobs before this one"
    else:
        job.completed_at.GetCurrentTime()
        job.error.CopyFrom(pb.JobError(reason="CANCELLED", message="cancelled on request"))
    return job


def constant_event(status: pb.JobStatus.ValueType) -> pb.JobEvent:
    """Return an event as the server sends it to watchers."""
    queued = status == pb.JOB_STATUS_QUEUED
    event_type = pb.JOB_EVENT_TYPE_SNAPSHOT if queued else pb.JOB_EVENT_TYPE_STATUS
    event = pb.JobEvent(type=event_type, revision=10_000, job=constant_job(status), terminal=not queued)
    event.time.GetCurrentTime()
    return event


def submit(harness: str = HARNESS) -> Request:
    """Submit a job."""
    message = SubmitJobRequest(request=evaluate_request(harness), labels={LABEL: "blue"})
    return Request(f"{_SERVICE}SubmitJob", message.SerializeToString())


def get_job(job_id: str, token: str = "") -> Request:
    """Ask for a job."""
    return Request(f"{_SERVICE}GetJob", GetJobRequest(job_id=job_id).SerializeToString(), token)


def cancel(job_id: str) -> Request:
    """Cancel a job."""
    return Request(f"{_SERVICE}CancelJob", CancelJobRequest(job_id=job_id).SerializeToString())


def watch_job(job_id: str) -> Request:
    """Watch a job."""
    return Request(f"{_SERVICE}WatchJob", WatchJobRequest(job_id=job_id).SerializeToString())


def watch_jobs() -> Request:
    """Watch all jobs."""
    message = WatchJobsRequest()
    return Request(f"{_SERVICE}WatchJobs", message.SerializeToString())


def get_queue() -> Request:
    """Ask for the queue."""
    return Request(f"{_SERVICE}GetQueue", b"")


def list_jobs(job_filter: JobFilter) -> Request:
    """Ask for a page of 50."""
    message = ListJobsRequest(filter=job_filter, page_size=50)
    return Request(f"{_SERVICE}ListJobs", message.SerializeToString())


def read_artifact(job_id: str, name: str, limit: int) -> Request:
    """Read a file."""
    message = ReadArtifactRequest(job_id=job_id, name=name, limit=limit)
    return Request(f"{_SERVICE}ReadArtifact", message.SerializeToString())
