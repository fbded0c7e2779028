"""Events in memory keep no more of a job than filters look at, apart from its bytes."""

from evalrpc.store.base import Change, JournalEvent
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import Metric, ModelResult
from evalrpc.watching.events import CommittedEvent


def event_of(job: pb.JobInfo) -> CommittedEvent:
    event = pb.JobEvent(type=pb.JOB_EVENT_TYPE_STATUS, revision=7, job=job).SerializeToString()
    committed = JournalEvent(7, event, previous=pb.JOB_STATUS_RUNNING)
    return CommittedEvent.from_change(committed, Change(1, job, 1, pb.JOB_STATUS_RUNNING, committed))


def test_of_a_large_job_only_what_filters_look_at_is_kept_as_a_message() -> None:
    request = pb.EvaluateRequest(harness="h", model="m", tasks=["t"])
    metrics = [Metric(task="t", metric=f"m{number}", value=1) for number in range(10_000)]
    results = {"m": ModelResult(metrics=metrics)}
    job = pb.JobInfo(job_id="j", status=pb.JOB_STATUS_COMPLETED, request=request, labels={"a": "b"}, owner="o", results=results)
    event = event_of(job)
    assert event.job.ByteSize() < 100
    assert (event.job.request, dict(event.job.labels), event.job.owner, event.terminal) == (request, {"a": "b"}, "o", True)
    assert pb.JobEvent.FromString(event.full).job == job


def test_a_small_job_is_kept_as_it_is() -> None:
    job = pb.JobInfo(job_id="j", status=pb.JOB_STATUS_QUEUED)
    assert event_of(job).job is job
