"""Which attempt a caller means, and where its files lie."""

from pathlib import Path

import pytest

from evalrpc.errors import AttemptNotFoundError
from evalrpc.reading.attempts import attempt_number, output_dir, run_dir
from evalrpc.v1 import jobs_pb2 as pb

DATA = Path("/data")
NEW = pb.JobInfo(job_id="j", status=pb.JOB_STATUS_QUEUED)
FOLLOWER = pb.JobInfo(job_id="j", status=pb.JOB_STATUS_QUEUED, cached_from="source")
HIT = pb.JobInfo(job_id="j", status=pb.JOB_STATUS_COMPLETED, cached_from="source", cached_from_attempt=3)
RAN = pb.JobInfo(
    job_id="j", attempt=2, attempts=[pb.JobAttempt(number=1, output_dir="/one"), pb.JobAttempt(number=2, output_dir="/two")]
)


def test_an_attempt_has_the_folders_that_it_was_given() -> None:
    assert [attempt_number(RAN, wanted) for wanted in (0, 1, 2)] == [2, 1, 2]
    assert [output_dir(DATA, RAN, wanted) for wanted in (0, 1, 2)] == [Path("/two"), Path("/one"), Path("/two")]
    assert run_dir(DATA, RAN, 1) == DATA / "jobs" / "j" / "attempt-1"


def test_a_job_that_shares_a_run_has_the_folders_of_that_run() -> None:
    assert attempt_number(HIT, 0) == 0
    assert run_dir(DATA, HIT, 0) == DATA / "jobs" / "source" / "attempt-3"
    assert output_dir(DATA, HIT) == DATA / "jobs" / "source" / "attempt-3" / "output"


@pytest.mark.parametrize("job", [NEW, FOLLOWER])
def test_a_job_that_has_not_begun_has_no_output_yet(job: pb.JobInfo) -> None:
    assert output_dir(DATA, job) is None
    with pytest.raises(AttemptNotFoundError, match="none has begun"):
        attempt_number(job, 0)


@pytest.mark.parametrize(
    ("job", "wanted", "reason"),
    [
        (NEW, 1, "none has begun"),
        (FOLLOWER, 1, "none has begun"),
        (RAN, 3, "it has 2"),
        (HIT, 1, "it shares the run of job source; leave the attempt out"),
        (HIT, 3, "it shares the run of job source; leave the attempt out"),
    ],
)
def test_an_attempt_that_there_is_not_is_refused(job: pb.JobInfo, wanted: int, reason: str) -> None:
    for ask in (lambda: attempt_number(job, wanted), lambda: output_dir(DATA, job, wanted)):
        with pytest.raises(AttemptNotFoundError, match=reason):
            ask()


def test_an_attempt_that_a_job_does_not_list_any_more_has_its_folder_beside_the_others() -> None:
    job = pb.JobInfo(job_id="j", attempt=90, attempts=[pb.JobAttempt(number=90, output_dir="/data/jobs/j/attempt-90/output")])
    assert output_dir(DATA, job, 45) == DATA / "jobs" / "j" / "attempt-45" / "output"
    job.request.output_dir = "mine"
    job.attempts[0].output_dir = "/srv/mine/j/attempt-90"
    assert output_dir(DATA, job, 45) == Path("/srv/mine/j/attempt-45")
    with pytest.raises(AttemptNotFoundError, match="it has 90"):
        output_dir(DATA, job, 91)
