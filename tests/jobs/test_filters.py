"""What a filter takes, as the schema says it; and a filter of jobs as they were."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs.filters import JobMatcher, canonical_prefix
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

RUNNING, COMPLETED = pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
JOB = pb.JobInfo(
    job_id="0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c",
    status=RUNNING,
    created_at=Timestamp(seconds=100),
    request=pb.EvaluateRequest(model="m", harness="h", tasks=["t1", "t2"]),
    labels={"run": "x", "step": "5"},
    owner="alice",
)


def taken(**conditions: Any) -> bool:
    return JobMatcher(JobFilter(**conditions)).matches(JOB)


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"statuses": [COMPLETED, RUNNING]},
        {"labels": {"run": "x", "step": "5"}},
        {"models": ["n", "m"]},
        {"tasks": ["t2", "t3"]},
        {"harnesses": ["h"]},
        {"owners": ["bob", "alice"]},
        {"created_after": Timestamp(seconds=100)},
        {"created_before": Timestamp(seconds=100, nanos=1)},
        {"label_selector": "run=x,step!=6,!draft"},
        {"job_id_prefix": "0b54"},
        {"job_id_prefix": "0B54E7A6-3A"},
        {"job_id_prefix": "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"},
        {"statuses": [RUNNING], "models": ["m"], "label_selector": "run", "job_id_prefix": "0b54e"},
    ],
)
def test_a_job_that_meets_all_conditions_is_taken(conditions: dict[str, Any]) -> None:
    assert taken(**conditions)


@pytest.mark.parametrize(
    "conditions",
    [
        {"statuses": [COMPLETED]},
        {"labels": {"run": "x", "step": "6"}},
        {"labels": {"draft": ""}},
        {"models": ["n"]},
        {"tasks": ["t3"]},
        {"harnesses": ["i"]},
        {"owners": ["bob", ""]},
        {"created_after": Timestamp(seconds=100, nanos=1)},
        {"created_before": Timestamp(seconds=100)},
        {"label_selector": "run=x,step!=5"},
        {"label_selector": "run=x,draft="},
        {"job_id_prefix": "0b55"},
        {"statuses": [RUNNING], "models": ["m"], "label_selector": "run", "job_id_prefix": "0b54f"},
    ],
)
def test_a_job_that_misses_a_condition_is_not_taken(conditions: dict[str, Any]) -> None:
    assert not taken(**conditions)


def test_a_job_can_be_held_against_a_filter_as_it_was_before() -> None:
    matcher = JobMatcher(JobFilter(statuses=[RUNNING], labels={"run": "x"}, label_selector="!draft", models=["m"]))
    assert matcher.matched_before(JOB, RUNNING, {"run": "x"})
    assert not matcher.matched_before(JOB, COMPLETED, {"run": "x"})
    assert not matcher.matched_before(JOB, RUNNING, {"run": "y"})
    assert not matcher.matched_before(JOB, RUNNING, {"run": "x", "draft": ""})
    assert not JobMatcher(JobFilter(models=["n"])).matched_before(JOB, RUNNING, {"run": "x"})


def test_looking_for_a_label_does_not_add_it() -> None:
    taken(labels={"draft": ""}, label_selector="draft=")
    assert "draft" not in JOB.labels


def test_the_beginning_of_an_id_may_be_in_upper_case() -> None:
    assert canonical_prefix("0B54E7A6-3a") == "0b54e7a6-3a"
    assert canonical_prefix("") == ""


@pytest.mark.parametrize(
    "prefix",
    ["0", "0b5", "0b5g", "0b54-", "0b54e7a63", "0b54e7a6_3", "-0b54", " 0b54", "0b54\n", "%b54", "٠١٢٣", f"{JOB.job_id}0"],
)
def test_what_no_id_begins_with_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="must be the first 4 to 36 characters of a UUID"):
        canonical_prefix(prefix)


def test_a_filter_may_be_held_to_one_owner_whatever_it_says() -> None:
    assert JobMatcher(JobFilter(), "alice").matches(JOB)
    assert JobMatcher(JobFilter(owners=["alice", "bob"]), "alice").matches(JOB)
    assert not JobMatcher(JobFilter(), "bob").matches(JOB)
    assert not JobMatcher(JobFilter(), "").matches(JOB)
    assert not JobMatcher(JobFilter(owners=["bob"]), "alice").matches(JOB)
    assert JobMatcher(JobFilter(owners=[""])).takes_owner("")
    assert not JobMatcher(JobFilter(owners=[""]), "alice").takes_owner("")


def test_a_filter_for_models_takes_those_that_an_engine_serves() -> None:
    job = pb.JobInfo(request=pb.EvaluateRequest(served_model=pb.ServedModel(engine="vllm", model="acme/tiny")))
    assert JobMatcher(JobFilter(models=["acme/tiny"])).matches(job)
    assert not JobMatcher(JobFilter(models=["vllm"])).matches(job)
