"""Following a training run: one call gives the metrics of all its checkpoints."""

from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from serving import Api, fields_of

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.v1.history_pb2 import TrendOptions
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.results_pb2 import MetricSelector


@pytest.fixture
def run_x(api: Api) -> list[str]:
    """The checkpoints of a run, by step: submitted in another order, along with a failed one and one of another run."""
    models = {"1000": "good", "20": "better", "300": "good"}
    made = {step: api.run(model, labels={"run": "x", "step": step}).job_id for step, model in models.items()}
    api.run("fails", labels={"run": "x", "step": "400"})
    api.run("good", labels={"run": "y", "step": "1"})
    return [made[step] for step in ("20", "300", "1000")]


def test_the_metrics_of_a_run_come_in_the_order_of_its_steps(api: Api, run_x: list[str]) -> None:
    points = api.GetHistory(filter=JobFilter(labels={"run": "x"})).points
    assert [point.job_id for point in points] == run_x
    assert [point.step for point in points] == [20, 300, 1000]
    for point in points:
        job = api.get(point.job_id)
        assert list(point.metrics) == list(job.results["toy"].metrics)
        assert (point.created_at, point.completed_at, point.labels) == (job.created_at, job.completed_at, job.labels)


def test_the_client_and_the_command_line_say_the_same(api: Api, run_x: list[str]) -> None:
    with EvalClient(api.address) as client:
        values = [point.metrics[0].value for point in client.get_history(JobFilter(labels={"run": "x"}), ["t/acc"]).points]
    assert values == [0.75, 0.5, 0.5]
    command = ["--address", api.address, "history", "--label", "run=x", "--metric", "t/acc"]
    result = CliRunner().invoke(main, command)
    columns, *rows = (line.split("\t") for line in result.stdout.splitlines())
    rows = [[row[columns.index(name)] for name in ("task", "metric", "step", "value", "job")] for row in rows]
    assert rows == [
        ["t", "acc", step, f"{value:.4f}", job_id]
        for step, value, job_id in zip(("20", "300", "1000"), values, run_x, strict=True)
    ]


def test_a_run_that_nobody_knows_has_no_points(api: Api) -> None:
    assert not api.GetHistory(filter=JobFilter(labels={"run": "z"})).points


def test_a_run_is_selected_by_its_labels(api: Api, run_x: list[str]) -> None:
    points = api.GetHistory(filter=JobFilter(label_selector="run=x,step notin (20,400)")).points
    assert [point.job_id for point in points] == run_x[1:]
    points = api.GetHistory(filter=JobFilter(label_selector="run=x", job_id_prefix=run_x[0])).points
    assert [point.job_id for point in points] == run_x[:1]


def test_trends_come_after_the_last_points_and_the_client_joins_them(api: Api) -> None:
    for step in range(1, 6):
        api.run("better" if step > 3 else "good", labels={"run": "x", "step": str(step)})
    options = TrendOptions(run_label="run", higher_is_better=True)
    first = api.GetHistory(trends=options)
    assert len(first.points) == 5
    assert not first.trends
    last = api.GetHistory(trends=options, page_token=first.next_page_token)
    assert (len(last.points), last.next_page_token) == (0, "")
    (trend,) = last.trends
    assert (trend.run, trend.task, trend.metric, trend.point_count) == ("x", "t", "acc", 5)
    assert 0 <= trend.slope_lower <= trend.slope == pytest.approx((0.25 / 4 + 0.25 / 3) / 2)
    assert not trend.HasField("alarm_p_value"), "five points are too few"
    with EvalClient(api.address) as client:
        joined = client.get_history(trends=options)
        assert not client.get_history(JobFilter(labels={"run": "z"}), trends=options).trends
    assert (len(joined.points), list(joined.trends)) == (5, [trend])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"filter": JobFilter(labels={"a b": "x"})}, ["filter.labels"]),
        ({"step_label": "a b"}, ["step_label"]),
        ({"metrics": [MetricSelector(), MetricSelector(task="x\n")]}, ["metrics[0]", "metrics[1].task"]),
        ({"metrics": [MetricSelector(task="t", filter="x" * 1025)]}, ["metrics[0].filter"]),
        ({"metrics": [MetricSelector()] * 101}, ["metrics"]),
        (
            {"trends": TrendOptions(run_label="a b", alpha=0.0, tolerance=-1)},
            ["trends.run_label", "trends.alpha", "trends.tolerance"],
        ),
    ],
)
def test_what_is_wrong_with_the_call_is_named(api: Api, fields: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.GetHistory(**fields)
    assert fields_of(caught.value) == named
