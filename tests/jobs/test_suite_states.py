"""What the jobs of a suite run add up to, for every combination of statuses."""

from itertools import combinations

import pytest

from evalrpc.jobs import lifecycle
from evalrpc.jobs.suite_states import status_of
from evalrpc.v1 import jobs_pb2 as pb

DELETED, QUEUED, RUNNING = pb.JOB_STATUS_UNSPECIFIED, pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED
ALL = pb.JobStatus.values()


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([QUEUED, QUEUED], QUEUED),
        ([QUEUED, RUNNING], RUNNING),
        ([QUEUED, COMPLETED], RUNNING),
        ([COMPLETED, COMPLETED], COMPLETED),
        ([COMPLETED, FAILED], FAILED),
        ([COMPLETED, FAILED, CANCELLED], CANCELLED),
        ([FAILED, RUNNING], RUNNING),
        ([DELETED, COMPLETED], COMPLETED),
        ([DELETED, FAILED], FAILED),
        ([DELETED, QUEUED], RUNNING),
        ([DELETED], COMPLETED),
    ],
)
def test_a_run_is_what_its_jobs_add_up_to(statuses: list[pb.JobStatus.ValueType], expected: int) -> None:
    assert status_of(statuses) == expected
    assert status_of(statuses[::-1]) == expected


@pytest.mark.parametrize("statuses", [some for count in range(1, len(ALL) + 1) for some in combinations(ALL, count)], ids=str)
def test_a_run_is_terminal_just_when_all_its_jobs_are(statuses: tuple[pb.JobStatus.ValueType, ...]) -> None:
    assert (status_of(statuses) in lifecycle.TERMINAL) == (set(statuses) <= lifecycle.TERMINAL | {DELETED})
