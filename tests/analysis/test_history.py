"""Metrics over many jobs, from a real store."""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.analysis.history import MAX_HISTORY_BYTES, History
from evalrpc.clock import SystemClock
from evalrpc.jobs import transitions
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED, EvaluateRequest, JobFilter, JobInfo
from evalrpc.v1.results_pb2 import Metric, MetricSelector, ModelResult

CLOCK = SystemClock()
ACC = Metric(task="t", metric="acc", filter="none", value=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, CLOCK, 10_000)
    yield store
    store.close()


def complete(store: SqliteStore, results: Mapping[str, list[Metric]], **labels: str) -> str:
    """Put a completed job into the store."""
    request = EvaluateRequest(harness="h", model="m", tasks=["t"])
    job = JobInfo(job_id=str(uuid.uuid4()), request=request, max_attempts=1, labels=labels)
    store.submit(Submission(job))
    store.update(job.job_id, lambda job: transitions.begin_attempt(job, (), "/out", CLOCK.now()))
    reached = {model: ModelResult(metrics=metrics) for model, metrics in results.items()}
    store.update(job.job_id, lambda job: transitions.complete(job, reached, CLOCK.now())).result(SECONDS)
    return job.job_id


def read(store: SqliteStore, **fields: Any) -> GetHistoryResponse:
    history = History(store, GetHistoryRequest(**fields))
    while history.read_page():
        pass
    return history.answer()


def ids(answer: GetHistoryResponse) -> list[str]:
    return [point.job_id for point in answer.points]


def steps(store: SqliteStore, *texts: str) -> list[str]:
    """Complete a job per step in this order, and return the steps in the order of the answer."""
    for text in texts:
        complete(store, {"m": [ACC]}, **({"step": text} if text else {}))
    return [point.labels.get("step", "") for point in read(store).points]


def test_steps_are_in_the_order_of_their_numbers_and_equals_in_that_of_creation(store: SqliteStore) -> None:
    first, second = complete(store, {"m": [ACC]}, step="20"), complete(store, {"m": [ACC]}, step="2e1")
    smaller = complete(store, {"m": [ACC]}, step="3.5")
    answer = read(store)
    assert ids(answer) == [smaller, first, second]
    assert [point.step for point in answer.points] == [3.5, 20, 20]


@pytest.mark.parametrize("odd", ["", "last", "nan", "inf", "1e999", "1_000", " 1", "٣"])
def test_a_step_that_is_no_number_leaves_all_in_the_order_of_creation(store: SqliteStore, odd: str) -> None:
    assert steps(store, "30", odd, "20") == ["30", odd, "20"]
    assert [point.HasField("step") for point in read(store).points] == [True, False, True]


def test_another_label_may_give_the_step(store: SqliteStore) -> None:
    later, earlier = (complete(store, {"m": [ACC]}, step="1", tokens=tokens) for tokens in ("10", "9"))
    assert ids(read(store, step_label="tokens")) == [earlier, later]


@pytest.mark.parametrize(
    ("selectors", "taken"),
    [
        ([], ["a/x,f", "a/x,g", "a/y,f", "b/x,f"]),
        ([{"task": "a", "metric": "x"}], ["a/x,f", "a/x,g"]),
        ([{"task": "a", "metric": "x", "filter": "g"}], ["a/x,g"]),
        ([{"task": "b"}, {"metric": "y"}], ["a/y,f", "b/x,f"]),
        ([{"task": "c"}], []),
    ],
)
def test_a_metric_is_taken_that_any_selector_takes(
    store: SqliteStore, selectors: list[dict[str, str]], taken: list[str]
) -> None:
    names = [("a", "x", "f"), ("a", "x", "g"), ("a", "y", "f"), ("b", "x", "f")]
    complete(store, {"m": [Metric(task=task, metric=metric, filter=filter_) for task, metric, filter_ in names]})
    answer = read(store, metrics=[MetricSelector(**selector) for selector in selectors])
    assert [f"{m.task}/{m.metric},{m.filter}" for point in answer.points for m in point.metrics] == taken


def test_every_model_of_a_job_has_a_point_and_a_metric_comes_as_it_is(store: SqliteStore) -> None:
    full = Metric(task="t", metric="acc", value=float("nan"), standard_error=0.1, higher_is_better=False, sample_count=7)
    complete(store, {"b": [full], "a": [ACC], "none": []}, run="x")
    points = read(store).points
    assert [point.model for point in points] == ["a", "b"]
    assert points[1].metrics[0].SerializeToString() == full.SerializeToString()
    assert dict(points[0].labels) == {"run": "x"}
    assert points[0].created_at.ToNanoseconds() <= points[0].completed_at.ToNanoseconds()


def test_only_jobs_that_the_filter_takes_and_that_have_results(store: SqliteStore) -> None:
    mine = complete(store, {"m": [ACC]}, run="x")
    complete(store, {"m": [ACC]}, run="y")
    waiting = JobInfo(job_id=str(uuid.uuid4()), request=EvaluateRequest(model="m", tasks=["t"]), labels={"run": "x"})
    store.submit(Submission(waiting)).result(SECONDS)
    assert ids(read(store, filter=JobFilter(labels={"run": "x"}))) == [mine]
    assert ids(read(store, filter=JobFilter(statuses=[JOB_STATUS_QUEUED]))) == []


def test_more_jobs_than_a_page_has_are_all_there(store: SqliteStore) -> None:
    made = [complete(store, {"m": [ACC]}, step=str(number)) for number in range(201)]
    answer = read(store)
    assert ids(answer) == made
    assert not answer.truncated


def test_an_answer_that_would_be_too_large_leaves_out_the_oldest_jobs(store: SqliteStore) -> None:
    many = [
        Metric(task=f"task_{number}", metric="acc", filter="none", value=0.5, standard_error=0.1) for number in range(20_000)
    ]
    made = [complete(store, {"m": many}) for _ in range(5)]
    answer = read(store)
    assert answer.truncated
    assert 0 < len(answer.points) < 5
    assert ids(answer) == made[-len(answer.points) :]
    assert answer.ByteSize() <= MAX_HISTORY_BYTES + 1000
    assert not read(store, metrics=[MetricSelector(task="task_7")]).truncated
