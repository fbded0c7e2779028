"""Which status may follow which: one table, and the questions that are asked of it."""

from collections.abc import Mapping
from typing import Final, TypeAlias

from evalrpc.errors import IllegalTransitionError
from evalrpc.v1 import jobs_pb2 as pb

Status: TypeAlias = pb.JobStatus.ValueType
"""A JobStatus, as the generated messages type it."""

TRANSITIONS: Final[Mapping[tuple[Status, Status], str]] = {
    (pb.JOB_STATUS_UNSPECIFIED, pb.JOB_STATUS_QUEUED): "submitted",
    (pb.JOB_STATUS_UNSPECIFIED, pb.JOB_STATUS_COMPLETED): "submitted, and answered from the cache",
    (pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING): "an attempt begins",
    (pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_CANCELLED): "cancelled or superseded before it ran",
    (pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_FAILED): "can't be started on this server any more",
    (pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_COMPLETED): "the job that it followed has completed",
    (
        pb.JOB_STATUS_RUNNING,
        pb.JOB_STATUS_QUEUED,
    ): "the attempt failed in a way that another one may fix, or gave way to another job",
    (pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED): "the harness succeeded",
    (pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_FAILED): "the harness failed, ran out of time, or was lost",
    (pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_CANCELLED): "ended on request, with no process left",
}
"""What may follow what, and when. A pair that is absent is an error."""

TERMINAL: Final = frozenset({pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED})
"""The statuses that nothing follows."""

LIVE: Final = frozenset({pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING})
"""The statuses that something still follows."""


def status_name(status: Status) -> str:
    """Return the name without its prefix, such as `RUNNING`; a number for a status that is not known."""
    if status not in pb.JobStatus.values():
        return str(status)
    return pb.JobStatus.Name(status).removeprefix("JOB_STATUS_")


def require_transition(before: Status, after: Status) -> None:
    """Raise IllegalTransitionError unless `after` may follow `before`."""
    if (before, after) not in TRANSITIONS:
        raise IllegalTransitionError(f"a job that is {status_name(before)} can't become {status_name(after)}")
