"""Jobs in a QueueState, which changes as a store would have it change."""

from collections.abc import Iterable

from clocks import ManualClock

from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change
from evalrpc.v1 import jobs_pb2 as pb


class QueueJobs:
    """The jobs of a queue, by id; `commit` tells the queue of a change."""

    state: QueueState

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.jobs: dict[str, pb.JobInfo] = {}

    def add(self, job: pb.JobInfo) -> str:
        job.job_id, job.status = f"job-{len(self.jobs)}", pb.JOB_STATUS_QUEUED
        job.created_at.CopyFrom(self.clock.now())
        self.commit(job)
        return job.job_id

    def start(self, job_id: str, gpus: Iterable[str], started_seconds: float) -> str:
        job = self.copy(job_id)
        job.status, job.attempt, job.gpus[:] = pb.JOB_STATUS_RUNNING, 1, gpus
        job.started_at.FromNanoseconds(int(started_seconds * 1e9))
        self.commit(job)
        return job_id

    def end(self, job_id: str) -> None:
        job = self.copy(job_id)
        job.status = pb.JOB_STATUS_COMPLETED
        job.ClearField("gpus")
        self.commit(job)

    def copy(self, job_id: str) -> pb.JobInfo:
        copy = pb.JobInfo()
        copy.CopyFrom(self.jobs[job_id])
        return copy

    def commit(self, job: pb.JobInfo) -> None:
        previous = self.jobs[job.job_id].status if job.job_id in self.jobs else pb.JOB_STATUS_UNSPECIFIED
        self.jobs[job.job_id] = job
        self.state.apply([Change(1, job, int(job.job_id.removeprefix("job-")), previous, None)])
