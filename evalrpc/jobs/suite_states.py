"""What the jobs of a suite run add up to. Pure."""

from collections.abc import Iterable
from typing import Final

from evalrpc.jobs.lifecycle import Status
from evalrpc.v1 import jobs_pb2 as pb

SUITE_LABEL: Final = "evalrpc.suite"
"""The label that each job of a suite run has, with the name of the suite."""

_DELETED: Final = pb.JOB_STATUS_UNSPECIFIED

_RULES: Final[tuple[tuple[frozenset[Status], Status], ...]] = (
    (frozenset({pb.JOB_STATUS_QUEUED}), pb.JOB_STATUS_QUEUED),
    (frozenset({_DELETED, pb.JOB_STATUS_COMPLETED}), pb.JOB_STATUS_COMPLETED),
    (frozenset({_DELETED, pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED}), pb.JOB_STATUS_FAILED),
    (
        frozenset({_DELETED, pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED}),
        pb.JOB_STATUS_CANCELLED,
    ),
)
"""The status of a run whose jobs have only these; the first rule counts. Any other run is RUNNING."""


def status_of(statuses: Iterable[Status]) -> Status:
    """Return the status of a suite run whose jobs have these; UNSPECIFIED stands for one that was deleted."""
    found = set(statuses)
    return next((status for only, status in _RULES if found <= only), pb.JOB_STATUS_RUNNING)
