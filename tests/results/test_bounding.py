"""Results are held to what a job can carry: the first of each in their order, whatever there is."""

from pathlib import Path

import pytest
from example_count import example_count
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.jobs.size_limits import (
    KIB,
    MAX_ARGS_BYTES,
    MAX_JOB_BYTES,
    MAX_METRICS_BYTES,
    MAX_PATHS_BYTES,
    MAX_SERVED_ARGS_BYTES,
    MAX_TASK_NAMES_BYTES,
    MAX_TASK_RESULTS_BYTES,
    MAX_WARNING_BYTES,
    MAX_WARNINGS,
    MIB,
    RESERVED_BYTES,
    RESERVED_TASK_RESULTS_BYTES,
    results_room,
)
from evalrpc.results.bounding import add_artifact_names, bounded, lacks_some
from evalrpc.results.merging import Results
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

OUTPUT = Path("/data/jobs/j/attempt-1/output")
LARGEST_REQUEST_BYTES = 3 * MAX_ARGS_BYTES + 2 * MAX_SERVED_ARGS_BYTES + MAX_TASK_NAMES_BYTES + 24 * KIB
LIST_FIELDS = ("metrics", "tasks", "samples")


def kept_of(results: Results, request_bytes: int = 500) -> Results:
    add_artifact_names(results, OUTPUT)
    return bounded(results, results_room(request_bytes))


def metrics(count: int, prefix: str = "t") -> list[Metric]:
    """Metrics of 32 bytes each, with what wraps them."""
    made = [Metric(task=f"{prefix}{number:06}", metric="acc", filter="nop", value=1, sample_count=1) for number in range(count)]
    assert {metric.ByteSize() + 2 for metric in made} == {32}
    return made


FITTING = MAX_METRICS_BYTES // 32


@pytest.mark.parametrize(("count", "kept"), [(FITTING - 1, FITTING - 1), (FITTING, FITTING), (FITTING + 1, FITTING)])
def test_a_job_has_1_mib_of_metrics_and_says_how_many_there_are(count: int, kept: int) -> None:
    result = kept_of({"m": ModelResult(metrics=metrics(count))})["m"]
    assert (len(result.metrics), result.metric_count, result.metrics_truncated) == (kept, count, count > kept)
    assert result.metrics[-1].task == f"t{kept - 1:06}"


def test_models_share_the_room_and_the_first_in_their_order_get_it() -> None:
    half = FITTING // 2
    results = {name: ModelResult(metrics=metrics(half + 1)) for name in ("c", "a", "b")}
    kept = kept_of(results)
    assert {name: len(result.metrics) for name, result in kept.items()} == {"a": half + 1, "b": half - 1, "c": 0}
    assert {name: result.metrics_truncated for name, result in kept.items()} == {"a": False, "b": True, "c": True}
    assert {result.metric_count for result in kept.values()} == {half + 1}


def test_once_one_does_not_fit_none_after_it_is_taken() -> None:
    large = Metric(task="b" * 200_000, metric="acc", value=1)
    first = [Metric(task="a" * 100_000, metric=str(number), value=1) for number in range(10)]
    result = kept_of({"m": ModelResult(metrics=[*first, large, Metric(task="c", metric="acc", value=1)])})["m"]
    assert [metric.task[0] for metric in result.metrics] == ["a"] * 10


def test_tasks_have_1_mib_of_their_own_and_less_beside_a_large_request() -> None:
    tasks = [TaskResult(task=f"t{number:06}", config_hash="0" * 64) for number in range(20_000)]
    result = ModelResult(metrics=metrics(FITTING), tasks=tasks)
    small, large = (kept_of({"m": result}, size)["m"] for size in (500, LARGEST_REQUEST_BYTES))
    for kept, count in ((small, FITTING), (large, FITTING * 3 // 8)):
        assert len(kept.metrics) == count
        assert kept.metrics_truncated
        assert [task.task for task in kept.tasks] == [task.task for task in tasks[: len(kept.tasks)]]
    assert MAX_TASK_RESULTS_BYTES - 100 < ModelResult(tasks=small.tasks).ByteSize() <= MAX_TASK_RESULTS_BYTES
    assert 0 < len(large.tasks) < len(small.tasks)


def test_paths_have_their_own_room_and_come_with_their_names() -> None:
    paths = [str(OUTPUT / f"m/{number:06}.jsonl") for number in range(20_000)]
    result = kept_of({"m": ModelResult(results=str(OUTPUT / "r.json"), samples=paths)})["m"]
    assert result.metrics_truncated
    assert list(result.samples) == paths[: len(result.samples)]
    assert list(result.sample_artifacts) == [f"m/{number:06}.jsonl" for number in range(len(result.samples))]
    assert MAX_PATHS_BYTES - 200 < result.ByteSize() <= MAX_PATHS_BYTES


def test_warnings_of_all_models_have_the_room_of_a_jobs_and_take_none_from_paths() -> None:
    results = {
        name: ModelResult(results=str(OUTPUT / name), warnings=[f"{number:02}" + "é" * 5000 for number in range(50)])
        for name in (f"m{number}" for number in range(64))
    }
    kept = kept_of(results)
    assert not lacks_some(kept)
    warnings = [warning for name in sorted(kept) for warning in kept[name].warnings]
    assert (len(warnings), warnings[0][:2], warnings[0][-1]) == (MAX_WARNINGS - 1, "00", "…")
    assert max(len(warning.encode()) for warning in warnings) <= MAX_WARNING_BYTES


def test_what_fits_is_as_it_was_but_for_names_and_numbers() -> None:
    extra = Struct()
    extra.update({"seed": 1})
    given_ = ModelResult(
        results=str(OUTPUT / "m" / "r.json"),
        samples=["/elsewhere/s.jsonl", str(OUTPUT / "s.jsonl"), str(OUTPUT / "../s.jsonl")],
        metrics=[Metric(task="t", metric="acc")],
        tasks=[TaskResult(task="t"), TaskResult(task="u", results=str(OUTPUT / "task-2" / "r.json"))],
        harness_versions={"x": "1"},
        total_evaluation_time={"seconds": 3},
        extra=extra,
    )
    kept = kept_of({"m": given_})
    assert not lacks_some(kept)
    result = kept["m"]
    assert (result.results_artifact, list(result.sample_artifacts)) == ("m/r.json", ["", "s.jsonl", ""])
    assert [task.results_artifact for task in result.tasks] == ["", "task-2/r.json"]
    assert (result.metric_count, result.metrics[0].HasField("value")) == (1, True)
    for field in ("results", "samples", "harness_versions", "total_evaluation_time", "extra"):
        assert getattr(result, field) == getattr(given_, field)
    assert kept_of({"m": given_})["m"] == result, "it may be done again"


def test_no_metrics_are_counted_too() -> None:
    result = kept_of({"m": ModelResult()})["m"]
    assert result.HasField("metric_count")
    assert result.metric_count == 0


_LENGTHS = st.integers(0, 300_000)


@settings(deadline=None, max_examples=example_count(60))
@given(st.data())
def test_whatever_there_is_it_fits_and_is_the_beginning_of_it(data: st.DataObject) -> None:
    def texts(count: int) -> list[str]:
        return ["x" * data.draw(_LENGTHS) for _ in range(count)]

    results = {}
    for number in range(data.draw(st.integers(1, 64))):
        count = data.draw(st.integers(0, 4))
        results[f"{number}" * 500] = ModelResult(
            results="".join(texts(1)),
            samples=texts(count),
            metrics=[Metric(task=text, metric="acc", value=1) for text in texts(count)],
            tasks=[TaskResult(task=text, subtasks=[text]) for text in texts(count)],
            harness_versions={text: text for text in texts(count)},
        )
    request_bytes = data.draw(st.integers(0, LARGEST_REQUEST_BYTES))
    kept = kept_of(results, request_bytes)
    assert kept.keys() == results.keys()
    assert JobInfo(results=kept).ByteSize() + request_bytes + RESERVED_BYTES <= MAX_JOB_BYTES
    for field in LIST_FIELDS:
        whole = [entry for name in sorted(results) for entry in getattr(results[name], field)]
        found = [entry for name in sorted(kept) for entry in getattr(kept[name], field)]
        names = [getattr(entry, "task", entry) for entry in whole]
        assert [getattr(entry, "task", entry) for entry in found] == names[: len(found)]


def test_the_parts_of_a_job_add_up_to_3_mib() -> None:
    assert MAX_JOB_BYTES == 3 * MIB
    room = results_room(LARGEST_REQUEST_BYTES)
    needed = MAX_METRICS_BYTES * 3 // 8 + RESERVED_TASK_RESULTS_BYTES + MAX_PATHS_BYTES
    assert room >= needed, "the largest request leaves room for some metrics and tasks, and all paths"
