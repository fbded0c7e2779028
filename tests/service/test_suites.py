"""Suites on a real server: one run of several jobs, with one state, one stream and one cancel."""

from typing import Any

import pytest
from serving import (
    COMPLETED,
    QUEUED,
    Api,
    Site,
)

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest

RELEASE = """
[suites.release]
description = "What a release has to pass."

[[suites.release.entries]]
harness = "toy"
tasks = ["t"]

[[suites.release.entries]]
name = "second"
harness = "toy"
tasks = ["u", "v"]
num_fewshot = 2
limit = 8
gen_kwargs = { temperature = 0 }
tier = 2
required = false
threshold = 0.5
"""


@pytest.fixture
def site(site: Site) -> Site:
    site.config.write_text(site.config.read_text() + RELEASE)
    return site


def suite_submission(model: str = "good", **fields: Any) -> SubmitSuiteRequest:
    return SubmitSuiteRequest(suite="release", request=pb.EvaluateRequest(model=model, num_gpus=0), **fields)


def test_a_suite_is_submitted_as_one_run(api: Api) -> None:
    run = api.SubmitSuite(suite_submission(labels={"step": "500"}, priority=3))
    assert run.status == QUEUED
    assert [job.entry for job in run.jobs] == ["t", "second"]
    first, second = (api.wait_for(job.job_id, COMPLETED) for job in run.jobs)
    assert {first.suite_run_id, second.suite_run_id} == {run.suite_run_id}
    assert dict(first.labels) == {"step": "500", "evalrpc.suite": "release"}
    assert first.priority == 3
    assert list(second.request.tasks) == ["u", "v"]
    assert (second.request.num_fewshot, second.request.limit) == (2, 8)
    ended = api.GetSuiteRun(suite_run_id=run.suite_run_id)
    assert ended.status == COMPLETED
    assert ended.completed_at.ToNanoseconds() == max(job.completed_at.ToNanoseconds() for job in (first, second))
    assert not ended.HasField("decision")
