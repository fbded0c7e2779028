"""Metrics over many jobs, from a real store."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.analysis import history as history_module
from evalrpc.analysis import run_series
from evalrpc.analysis.history import History, HistoryPlaces
from evalrpc.analysis.run_trends import find_trends
from evalrpc.clock import SystemClock
from evalrpc.errors import InvalidRequestError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.jobs import transitions
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.reading import page_tokens
from evalrpc.reading.job_results import JobResults
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, MetricTrend, TrendOptions
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED, EvaluateRequest, JobFilter, JobInfo
from evalrpc.v1.results_pb2 import Metric, MetricSelector, ModelResult

CLOCK = SystemClock()
RESULTS = JobResults(Path("/none"))
ACC = Metric(task="t", metric="acc", filter="none", value=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, CLOCK, 10_000)
    yield store
    store.close()


def complete(store: SqliteStore, results: Mapping[str, list[Metric]], owner: str = "", **labels: str) -> str:
    """Put a completed job into the store."""
    request = EvaluateRequest(harness="h", model="m", tasks=["t"])
    job = JobInfo(job_id=str(uuid.uuid4()), request=request, max_attempts=1, labels=labels, owner=owner)
    store.submit(Submission(job))
    store.update(job.job_id, lambda job: transitions.begin_attempt(job, (), "/out", CLOCK.now()))
    reached = {model: ModelResult(metrics=metrics) for model, metrics in results.items()}
    store.update(job.job_id, lambda job: transitions.complete(job, reached, CLOCK.now())).result(SECONDS)
    return job.job_id


def read_page(
    store: SqliteStore,
    page_size: int = 1000,
    places: HistoryPlaces | None = None,
    owner: str | None = None,
    **fields: Any,
) -> GetHistoryResponse:
    history = History(store, RESULTS, places or HistoryPlaces(), GetHistoryRequest(**fields), page_size, owner=owner)
    while history.scan():
        pass
    return history.page()


def pages(store: SqliteStore, page_size: int = 1000, **fields: Any) -> Iterator[GetHistoryResponse]:
    token, places = "", HistoryPlaces()
    while True:
        page = read_page(store, page_size, places, page_token=token, **fields)
        assert page.ByteSize() <= MAX_PAGE_BYTES + 1000, "the token comes on top"
        yield page
        token = page.next_page_token
        if not token:
            return


def read(store: SqliteStore, page_size: int = 1000, **fields: Any) -> GetHistoryResponse:
    return GetHistoryResponse(points=[point for page in pages(store, page_size, **fields) for point in page.points])


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


def test_the_jobs_of_one_owner_are_all_that_there_is_for_whoever_is_shown_these_even_with_anothers_token(
    store: SqliteStore,
) -> None:
    owners = ["alice", "bob", ""] * 3
    jobs = [complete(store, {"m": [ACC]}, owner, step=str(number)) for number, owner in enumerate(owners)]
    places = HistoryPlaces()
    for owner in ("alice", "bob", ""):
        mine = [job for job, of_owner in zip(jobs, owners, strict=True) if of_owner == owner]
        first = read_page(store, 1, places, owner)
        assert ids(first) == mine[:1]
        assert ids(read_page(store, 5, places, owner, page_token=first.next_page_token)) == mine[1:]
        assert ids(read_page(store, owner=owner, filter=JobFilter(owners=[owner]))) == mine
        assert ids(read_page(store, owner=owner, filter=JobFilter(owners=["carol"]))) == []
        assert ids(read_page(store, filter=JobFilter(owners=[owner, "carol"]))) == mine
        token = read_page(store, 1, places).next_page_token
        assert set(ids(read_page(store, 9, places, owner, page_token=token))) <= set(mine)


@pytest.mark.parametrize("page_size", [1, 7, 200, 201, 1000])
@pytest.mark.parametrize("has_steps", [True, False])
def test_pages_have_all_jobs_once_and_in_order(store: SqliteStore, page_size: int, has_steps: bool) -> None:
    number_of = {}
    for number in (5, 3, 3, 9, *range(10, 207)):
        number_of[complete(store, {"m": [ACC], "n": [ACC]}, **({"step": str(number)} if has_steps else {}))] = number
    expected = sorted(number_of, key=lambda job_id: number_of[job_id]) if has_steps else list(number_of)
    answers = list(pages(store, page_size))
    assert [point.job_id for answer in answers for point in answer.points] == [job_id for job_id in expected for _ in "mn"]
    assert all(len(answer.points) == page_size for answer in answers[:-1])


@pytest.mark.parametrize("step", ["1", "", "3"])
def test_a_job_that_comes_while_a_client_pages_is_only_in_a_new_listing(store: SqliteStore, step: str) -> None:
    made = [complete(store, {"m": [ACC]}, step=str(number)) for number in (2, 4, 6)]
    first = read_page(store, 1)
    later = complete(store, {"m": [ACC]}, **({"step": step} if step else {}))
    rest = [*pages_after(store, first.next_page_token)]
    assert [*ids(first), *rest] == made, "and the order stays the one that the first page has decided"
    assert later in ids(read(store))


def pages_after(store: SqliteStore, token: str) -> Iterator[str]:
    while token:
        page = read_page(store, 1, page_token=token)
        yield from ids(page)
        token = page.next_page_token


def test_a_job_that_is_deleted_while_a_client_pages_hides_no_other(store: SqliteStore) -> None:
    made = [complete(store, {"m": [ACC]}, step=str(number)) for number in range(6)]
    first = read_page(store, 2)
    store.delete(made[2]).result(SECONDS)
    store.delete(made[1]).result(SECONDS)
    assert [*ids(first), *pages_after(store, first.next_page_token)] == [made[0], made[1], *made[3:]]


def test_jobs_deleted_between_the_scan_and_the_page_end_no_listing(store: SqliteStore) -> None:
    made = [complete(store, {"m": [ACC]}) for _ in range(6)]
    history = History(store, RESULTS, HistoryPlaces(), GetHistoryRequest(), 2)
    while history.scan():
        pass
    for job_id in made[:3]:
        store.delete(job_id).result(SECONDS)
    page = history.page()
    assert [*ids(page), *pages_after(store, page.next_page_token)] == made[3:]


@pytest.mark.parametrize("step", ["{}", ""])
def test_places_that_were_forgotten_are_found_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    made = [complete(store, {"m": [ACC]}, **({"step": step.format(number)} if step else {})) for number in range(5)]
    token, found = "", []
    while True:
        page = read_page(store, 2, HistoryPlaces(), page_token=token)
        found += ids(page)
        token = page.next_page_token
        if not token:
            break
        complete(store, {"m": [ACC]}, step="1")
    assert found == made


def test_the_next_pages_read_no_more_than_their_own_jobs(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(210):
        complete(store, {"m": [ACC]}, step=str(number))
    places = HistoryPlaces()
    token = read_page(store, 3, places).next_page_token
    read: list[int] = []
    list_jobs = store.list_jobs
    monkeypatch.setattr(store, "list_jobs", lambda *args, **options: read.append(args[2]) or list_jobs(*args, **options))
    assert len(read_page(store, 3, places, page_token=token).points) == 3
    assert sum(read) <= 4


def test_places_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch, store: SqliteStore) -> None:
    monkeypatch.setattr(history_module, "_MAX_REMEMBERED", 7)
    monkeypatch.setattr(history_module, "_PLACES_OF_A_LISTING", 0)
    for number in range(3):
        complete(store, {"m": [ACC]}, step=str(number))
    places = HistoryPlaces()
    for label in ("step", "a", "b", "c"):
        assert read_page(store, 1, places, step_label=label).next_page_token
    assert len(places._known) == 2


def test_listings_in_different_orders_do_not_disturb_each_other(store: SqliteStore) -> None:
    made = [complete(store, {"m": [ACC]}, step=str(9 - number)) for number in range(4)]
    places = HistoryPlaces()
    first = read_page(store, 1, places)
    store.delete(made[0]).result(SECONDS)
    store.update(made[3], lambda job: job.labels.clear()).result(SECONDS)  # what a listing takes may change
    assert ids(read_page(store, 1, places)) == [made[1]], "by creation now"
    second = read_page(store, 1, places, page_token=first.next_page_token)
    assert (ids(first), ids(second)) == ([made[3]], [made[2]])


def many_metrics(count: int) -> list[Metric]:
    return [
        Metric(task=f"task_{number:06}", metric="acc", filter="none", value=0.5, standard_error=0.1) for number in range(count)
    ]


def test_pages_are_bounded_in_bytes_and_leave_nothing_out(store: SqliteStore) -> None:
    made = [complete(store, {"m": many_metrics(20_000)}, step=str(number)) for number in range(5)]
    answers = list(pages(store))
    assert len(answers) > 1
    assert [point.job_id for answer in answers for point in answer.points] == made
    assert len(read_page(store, metrics=[MetricSelector(task="task_000007")]).points) == 5


@pytest.mark.slow
def test_a_point_larger_than_a_page_comes_in_several(store: SqliteStore) -> None:
    before, large, after = (complete(store, {"a": [ACC], "m": many_metrics(count)}) for count in (1, 90_000, 1))
    found = [point for answer in pages(store) for point in answer.points]
    assert [(point.job_id, point.model) for point in found] == [
        (before, "a"),
        (before, "m"),
        (large, "a"),
        (large, "m"),
        (large, "m"),
        (after, "a"),
        (after, "m"),
    ]
    metrics = [metric.task for point in found if (point.job_id, point.model) == (large, "m") for metric in point.metrics]
    assert metrics == [metric.task for metric in many_metrics(90_000)]


@pytest.mark.parametrize("token", ["nonsense", "WzFd", "x" * 10_000])
def test_a_token_that_is_none_is_refused(store: SqliteStore, token: str) -> None:
    complete(store, {"m": [ACC]})
    with pytest.raises(InvalidRequestError):
        read_page(store, page_token=token)


@pytest.mark.parametrize(
    "position",
    ["", "[]", "{}", "[1,2,3,4,5,6,7]", '[1,"a",3,4,"m",6]', "[1,-2,3,4,5,6]", "[1,1e999,3,4,5,6]", "[[],[],[],[],[],[]]"],
)
def test_a_token_that_somebody_made_up_is_refused(store: SqliteStore, position: str) -> None:
    listing = GetHistoryRequest(step_label="step")
    with pytest.raises(InvalidRequestError):
        read_page(store, page_token=page_tokens.encode_text(position, listing))


def test_a_token_of_another_listing_is_refused(store: SqliteStore) -> None:
    for _ in range(2):
        complete(store, {"m": [ACC]}, run="x")
    token = read_page(store, 1).next_page_token
    for other in (
        {"filter": JobFilter(labels={"run": "x"})},
        {"metrics": [MetricSelector(task="t")]},
        {"step_label": "tokens"},
    ):
        with pytest.raises(InvalidRequestError):
            read_page(store, page_token=token, **other)


# Trends


def complete_run(store: SqliteStore, values: Sequence[float], *, model: str = "m", lower: bool = False, **labels: str) -> None:
    for number, value in enumerate(values):
        metric = Metric(task="t", metric="acc", value=value, sample_count=1000, higher_is_better=not lower)
        complete(store, {model.format(step=number): [metric]}, step=str(100 * number), **labels)


def trends(store: SqliteStore, run_label: str = "", **fields: Any) -> Sequence[MetricTrend]:
    """Return the trends, as the service has them computed for the page after the last points."""
    options, places = TrendOptions(run_label=run_label, **fields), HistoryPlaces()
    request = GetHistoryRequest(trends=options)
    while True:
        history = History(store, RESULTS, places, request, 3)
        while history.scan():
            pass
        page = history.page()
        if not page.next_page_token:
            assert not page.points
            return find_trends(options, history.series, ReadBudget(history_module.LIMITS))
        assert not history.series
        request.page_token = page.next_page_token


STEADY = [0.60, 0.61, 0.59, 0.60, 0.62, 0.61, 0.60, 0.59, 0.61, 0.60]


def test_a_trend_has_the_slope_and_the_noise_of_a_run(store: SqliteStore) -> None:
    complete_run(store, STEADY)
    (found,) = trends(store)
    assert (found.task, found.metric, found.model, found.run) == ("t", "acc", "m", "")
    assert (found.point_count, found.first_step, found.last_step) == (10, 0, 900)
    assert found.slope_lower <= found.slope <= found.slope_upper
    assert 0.005 < found.noise < 0.02
    assert found.alarm_p_value > 0.05
    assert not found.HasField("alarm")


def test_a_fall_raises_an_alarm_that_names_the_job_and_its_step(store: SqliteStore) -> None:
    complete_run(store, [*STEADY, 0.45, 0.44, 0.46])
    (found,) = trends(store)
    assert found.alarm.step == 1100
    assert [point.job_id for point in read(store).points][11] == found.alarm.job_id
    assert (found.alarm.before, found.alarm.after) == pytest.approx((0.604, 0.445), abs=0.01)
    assert found.alarm.after_count == 2
    assert found.alarm_p_value < 0.05
    (tolerant,) = trends(store, tolerance=0.5)
    assert not tolerant.HasField("alarm")


def test_where_less_is_better_a_rise_is_the_alarm(store: SqliteStore) -> None:
    complete_run(store, [*STEADY, 0.75, 0.74], lower=True)
    (found,) = trends(store)
    assert (found.alarm.before, found.alarm.after) == pytest.approx((0.604, 0.745), abs=0.01)


def test_without_a_direction_there_is_a_slope_but_no_alarm_unless_the_call_gives_one(store: SqliteStore) -> None:
    for number, value in enumerate([*STEADY, 0.45, 0.44]):
        complete(store, {"m": [Metric(task="t", metric="acc", value=value)]}, step=str(number))
    (found,) = trends(store)
    assert found.HasField("slope")
    assert not found.HasField("alarm_p_value")
    (told,) = trends(store, higher_is_better=True)
    assert told.HasField("alarm")


def test_runs_are_told_apart_by_a_label(store: SqliteStore) -> None:
    complete_run(store, STEADY, run="b")
    complete_run(store, STEADY[:5], run="a")
    assert [(found.run, found.point_count) for found in trends(store, run_label="run")] == [("a", 5), ("b", 10)]
    assert [found.point_count for found in trends(store)] == [15]


def test_checkpoints_with_a_model_of_their_own_are_one_run_and_two_models_at_each_step_are_two(store: SqliteStore) -> None:
    complete_run(store, STEADY, model="ckpt-{step}")
    assert [(found.model, found.point_count) for found in trends(store)] == [("", 10)]
    complete_run(store, STEADY, model="other")
    assert {found.model for found in trends(store)} == {"other", *(f"ckpt-{number}" for number in range(10))}


def test_points_without_a_step_or_a_number_do_not_count(store: SqliteStore) -> None:
    complete_run(store, [*STEADY, float("nan"), float("inf")])
    complete(store, {"m": [ACC]}, baseline="yes")
    assert [found.point_count for found in trends(store)] == [10]


def test_too_many_trends_and_too_long_runs_are_refused_by_the_field_that_would_help(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete_run(store, STEADY)
    monkeypatch.setattr(run_series, "MAX_POINTS", 9)
    with pytest.raises(InvalidRequestError) as caught:
        trends(store)
    assert [each.field for each in caught.value.violations] == ["filter"]
    many = [Metric(task="t", metric=f"m{number}", value=0.5) for number in range(run_series.MAX_SERIES + 1)]
    complete(store, {"m": many}, step="1")
    with pytest.raises(InvalidRequestError) as caught:
        trends(store, run_label="step")
    assert [each.field for each in caught.value.violations] == ["metrics"]


def test_nothing_has_no_trends(store: SqliteStore) -> None:
    assert list(trends(store)) == []
