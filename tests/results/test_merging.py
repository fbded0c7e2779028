"""Merging the results of several runs."""

from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import RunFailedError
from evalrpc.protobuf.bounds import MAX_DURATION_NS, MAX_SECONDS
from evalrpc.results import layout, merging
from evalrpc.results.merging import MergedResults, Results
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult


def merged(parts: Iterable[Results]) -> Results:
    together = MergedResults()
    for part in parts:
        together.add(part)
    return together.results()


def result_of(task: str, value: float = 0.5, **fields: Any) -> ModelResult:
    return ModelResult(
        results=f"/{task}/results.json",
        samples=[f"/{task}/samples.jsonl"],
        metrics=[Metric(task=task, metric="acc", value=value)],
        tasks=[TaskResult(task=task)],
        **fields,
    )


def test_of_one_run_nothing_changes() -> None:
    part = {"m": result_of("a", harness_versions={"x": "1"})}
    assert merged([part]) == part
    assert merged([]) == {}


def test_metrics_tasks_and_samples_come_together_sorted_each_with_its_file() -> None:
    result = merged([{"m": result_of("b")}, {"m": result_of("a")}, {"m": result_of("c")}])["m"]
    assert [metric.task for metric in result.metrics] == ["a", "b", "c"]
    assert [(task.task, task.results) for task in result.tasks] == [
        ("a", "/a/results.json"),
        ("b", ""),
        ("c", "/c/results.json"),
    ]
    assert result.results == "/b/results.json"
    assert list(result.samples) == ["/a/samples.jsonl", "/b/samples.jsonl", "/c/samples.jsonl"]


def test_times_add_up_and_versions_come_together() -> None:
    parts = [result_of(task, total_evaluation_time={"seconds": 2}, harness_versions={task: "1"}) for task in ("a", "b")]
    result = merged([{"m": part} for part in (*parts, result_of("c"))])["m"]
    assert result.total_evaluation_time.seconds == 4
    assert dict(result.harness_versions) == {"a": "1", "b": "1"}
    assert not merged([{"m": result_of("a")}, {"m": result_of("b")}])["m"].HasField("total_evaluation_time")


def test_of_what_nobody_knows_only_that_stays_which_all_say() -> None:
    first, second = Struct(), Struct()
    first.update({"seed": 1, "date": "monday"})
    second.update({"seed": 1, "date": "tuesday"})
    assert dict(merged([{"m": result_of("a", extra=first)}, {"m": result_of("b", extra=second)}])["m"].extra) == {"seed": 1}
    assert not merged([{"m": result_of("a", extra=first)}, {"m": result_of("b")}])["m"].HasField("extra")


def test_a_task_that_was_run_twice_is_there_once_as_of_last() -> None:
    result = merged([{"m": result_of("a", 1)}, {"m": result_of("a", 2)}])["m"]
    assert [metric.value for metric in result.metrics] == [2]
    assert len(result.tasks) == 1


def test_a_model_is_one_whatever_name_each_run_gave_it() -> None:
    assert merged([{"i82qcls7": result_of("a")}, {"qdpv68r5": result_of("b")}]).keys() == {"i82qcls7"}


def test_several_models_of_a_run_stay_apart() -> None:
    both = {"x": result_of("a", 1), "y": result_of("a", 2)}
    more = {"x": result_of("b", 3), "y": result_of("b", 4)}
    assert {name: [m.value for m in result.metrics] for name, result in merged([both, more]).items()} == {
        "x": [1, 3],
        "y": [2, 4],
    }


def test_what_is_too_much_is_refused_and_leaves_the_rest_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_KEPT_BYTES", 2 * 1024 * 1024)
    together = MergedResults()
    together.add({"m": result_of("a")})
    before = together.results()
    large = [Metric(task=f"task {number}", metric="acc", value=1) for number in range(40_000)]
    together.add({"m": ModelResult(metrics=large[:30_000])})
    both = together.results()
    assert both is not before
    with pytest.raises(RunFailedError, match="the results of all tasks so far take"):
        together.add({"m": ModelResult(metrics=[Metric(task=f"more {number}", metric="acc") for number in range(90_000)])})
    assert together.results() is both
    together.add({"m": ModelResult(metrics=large)})
    assert len(together.results()["m"].metrics) == 1 + len(large), "what replaces something takes no more room"


def test_more_models_than_are_kept_are_refused() -> None:
    together = MergedResults()
    together.add({f"m{number}": result_of("a") for number in range(64)})
    with pytest.raises(RunFailedError, match="results of 65 models; at most 64 are kept"):
        together.add({"more": result_of("a"), "m1": result_of("b")})
    assert len(together.results()) == 64


def test_results_are_the_same_object_until_there_is_more_and_never_change() -> None:
    together = MergedResults()
    together.add({"m": result_of("a")})
    first = together.results()
    kept = ModelResult()
    kept.CopyFrom(first["m"])
    assert together.results() is first
    together.add({"m": result_of("b")})
    assert together.results() is not first
    assert first["m"] == kept


@pytest.mark.parametrize("count", [1, 2, 50])
def test_each_part_is_looked_into_once_however_many_come_before(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    entry = merging._entry
    monkeypatch.setattr(merging, "_entry", lambda **fields: sizes.append(len(fields)) or entry(**fields))
    together = MergedResults()
    for number in range(count):
        sizes.clear()
        together.add({"m": result_of(f"t{number}")})
        before = 3 if number == 1 else 0  # the first one is kept as it is until there is another
        assert sum(sizes) == (3 + before if number else 0), "its metric, its task and its file of samples"


def test_a_first_part_out_of_order_comes_in_order_and_each_name_once() -> None:
    metrics = [Metric(task=task, metric="acc", value=value) for task, value in (("b", 1.0), ("a", 2.0), ("b", 3.0))]
    part = ModelResult(metrics=metrics, samples=["/b", "/a"], metric_count=9, results_artifact="x")
    result = merged([{"m": part}])["m"]
    assert [(metric.task, metric.value) for metric in result.metrics] == [("a", 2.0), ("b", 3.0)]
    assert list(result.samples) == ["/a", "/b"]
    assert not result.HasField("metric_count")
    assert not result.results_artifact
    assert merged([{"m": result}]) == {"m": result}


def test_merged_results_are_the_same_whether_a_part_was_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = [Metric(task=f"t{number}", metric=name, value=number) for number in range(3) for name in ("acc", "f1")]
    parts = [ModelResult(metrics=metrics[:4], harness_versions={"x": "1", "y": "2"}), ModelResult(metrics=metrics[2:])]
    kept = [merged([{"m": part}]) for part in parts] + [merged({"m": part} for part in parts)]
    monkeypatch.setattr(merging, "_is_in_order", lambda _: False)
    assert [merged([{"m": part}]) for part in parts] + [merged({"m": part} for part in parts)] == kept


def test_long_names_are_shortened_alike_everywhere_and_stay_apart() -> None:
    task, other = "t" * 300 + "a", "t" * 300 + "b"
    metrics = [Metric(task=name, metric="m" * 256, filter="f" * 255) for name in (task, other)]
    tasks = [TaskResult(task=task), TaskResult(task=other), TaskResult(task="g", subtasks=[task, other])]
    part = ModelResult(metrics=metrics, tasks=tasks)
    result = merged([{"m": part}])["m"]
    assert len({metric.task for metric in result.metrics}) == 2
    assert (
        {metric.task for metric in result.metrics} == set(result.tasks[0].subtasks) == {each.task for each in result.tasks[1:]}
    )
    assert {(len(m.task), len(m.metric), m.filter) for m in result.metrics} == {(255, 255, "f" * 255)}
    assert part.metrics[0].task == task, "what was read is not changed"


def test_times_add_up_to_no_more_than_a_field_holds() -> None:
    years = {"seconds": MAX_SECONDS}
    result = merged({"m": result_of(f"t{number}", total_evaluation_time=years)} for number in range(1000))["m"]
    assert result.total_evaluation_time.ToNanoseconds() == MAX_DURATION_NS
    assert json_format.MessageToJson(result)
