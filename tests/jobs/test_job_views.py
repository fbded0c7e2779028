"""How much of a job a client gets."""

import pytest

from evalrpc.jobs.views import reduce_to_view
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import Metric, ModelResult


def whole_job() -> pb.JobInfo:
    result = ModelResult(results="/r.json", metrics=[Metric(task="t", metric="acc", value=0.5)])
    error = pb.JobError(reason="R", message="why", log_tail=["a line"])
    return pb.JobInfo(job_id="j", results={"m": result, "empty": ModelResult()}, error=error, labels={"a": "1"})


def test_the_basic_view_is_all_but_metrics_and_log_tails() -> None:
    job, expected = whole_job(), whole_job()
    expected.results["m"].ClearField("metrics")
    expected.error.ClearField("log_tail")
    reduce_to_view(job, pb.JOB_VIEW_BASIC)
    assert job == expected
    assert job.results["m"].results == "/r.json"


def test_the_basic_view_adds_no_error() -> None:
    job = pb.JobInfo(job_id="j")
    reduce_to_view(job, pb.JOB_VIEW_BASIC)
    assert job == pb.JobInfo(job_id="j")


@pytest.mark.parametrize("view", [pb.JOB_VIEW_UNSPECIFIED, pb.JOB_VIEW_FULL])
def test_the_full_view_is_everything(view: pb.JobView.ValueType) -> None:
    job = whole_job()
    reduce_to_view(job, view)
    assert job == whole_job()
