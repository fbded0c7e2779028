"""The results of several runs, put together."""

from typing import Any

from google.protobuf.struct_pb2 import Struct

from evalrpc.merging import merged
from evalrpc.v1.job_pb2 import Metric, ModelResult, TaskResult


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
    assert merged([part])["m"] is not part["m"]
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
