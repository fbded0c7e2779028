"""The inspect-ai harness: its command line, its tasks, its progress, and its verdict on real runs."""

import json
import math
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness_cases import DATA, run_of

from evalrpc.config import HarnessSettings
from evalrpc.errors import RunFailedError, SamplesNotFoundError
from evalrpc.harnesses.base import Command, Exit
from evalrpc.harnesses.inspect_ai import harness as harness_module
from evalrpc.harnesses.inspect_ai.harness import InspectHarness
from evalrpc.harnesses.inspect_ai.tasks import task_files
from evalrpc.harnesses.steps import command_of, steps_of
from evalrpc.results.layout import samples_by_task
from evalrpc.results.merging import MergedResults
from evalrpc.testing.recorded_runs import exit_of, follow, judge, log_of, request_of, rows_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress
from evalrpc.v1.results_pb2 import Metric, ModelResult

CASES = DATA / "inspect"
TASKS = """
from inspect_ai import Task, task

@task
def tiny():
    return Task()

@task(name="another name", version=2)
def other(): ...
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "some.py").write_text(TASKS)
    return folder


def harness(*folders: Path, **more: Any) -> InspectHarness:
    fields = {"python": Path("/env/bin/python"), "working_dir": Path("/srv"), "include_path": folders, **more}
    return InspectHarness(HarnessSettings("inspect-ai", "inspect-ai", **fields))


def inspect_request(**fields: Any) -> EvaluateRequest:
    return request_of(**{"model": "mockllm/model", "tasks": ["tiny"], **fields})


def bad_fields(**fields: Any) -> list[str]:
    return [violation.field for violation in harness().violations(inspect_request(**fields))]


def test_the_smallest_request_has_the_smallest_command(tasks: Path) -> None:
    assert harness(tasks).command(run_of(inspect_request())) == Command(
        (
            *("/env/bin/python", "-m", "inspect_ai", "eval", f"{tasks}/some.py@tiny", "--model=mockllm/model"),
            *("--log-dir=/d/out", "--log-format=json", "--display=plain"),
        ),
        env={"INSPECT_EVAL_CTL_SERVER": "false"},
        cwd=Path("/srv"),
        watched_dirs=(tasks,),
    )


def test_every_field_of_the_request_has_its_option(tasks: Path) -> None:
    request = inspect_request(
        tasks=["another name", "tiny"],
        model_args={"base_url": "http://127.0.0.1:1/v1", "api_key": "x", "deep": [None, {"a": 0.5}]},
        gen_kwargs={"max_tokens": 16, "stop_seqs": ["\n"]},
        device="cuda:0",
        batch_size="8",
        limit=20,
        log_samples=False,
        predict_only=True,
    )
    command = harness(tasks, args=("--max-tasks=2",)).command(run_of(request))
    assert command.argv[4:] == (
        *(f"{tasks}/some.py@another name", f"{tasks}/some.py@tiny"),
        *("--model-config=/d/model.json", "--generate-config=/d/generate.json", "--model=mockllm/model", "--log-dir=/d/out"),
        *("--log-format=json", "--display=plain", "--model-base-url=http://127.0.0.1:1/v1"),
        *("--limit=20", "--max-connections=8", "--no-log-samples", "--no-score", "--max-tasks=2"),
    )
    assert {path.name: json.loads(content) for path, content in command.files.items()} == {
        "model.json": {"api_key": "x", "deep": [None, {"a": 0.5}], "device": "cuda:0"},
        "generate.json": {"max_tokens": 16, "stop_seqs": ["\n"]},
    }


def test_a_task_that_no_folder_has_is_named_with_those_there_are(tasks: Path) -> None:
    with pytest.raises(RunFailedError) as caught:
        harness(tasks).command(run_of(inspect_request(tasks=["tiny", "nosuchtask"])))
    assert caught.value.job_error.reason == "TASKS_MISSING"
    assert caught.value.message == "harnesses.inspect-ai.include_path has no task nosuchtask; it has: another name, tiny"


def test_tasks_are_found_as_inspect_finds_them(tasks: Path) -> None:
    below = tasks / "below"
    below.mkdir()
    (below / "deep.py").write_text(TASKS.replace("tiny", "deep"))
    (tasks / "broken.py").write_text("@task\ndef broken(:")
    (tasks / "bytes.py").write_bytes(b"\xff\x00")
    (tasks / "none.py").write_text("class A:\n    @task\n    def method(self): ...\n\n@x.task\n@tasks\ndef other(): ...\n")
    for skipped in (tasks / "_hidden.py", tasks / ".hidden.py", tasks / "tests" / "t.py", tasks / "venv" / "v.py"):
        skipped.parent.mkdir(exist_ok=True)
        skipped.write_text(TASKS.replace("tiny", "skipped"))
    assert task_files([tasks, tasks / "missing"]) == {
        "deep": below / "deep.py",
        "another name": below / "deep.py",
        "tiny": tasks / "some.py",
    }


def test_the_first_folder_wins(tasks: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "z"
    earlier.mkdir()
    (earlier / "z.py").write_text(TASKS)
    assert task_files([earlier, tasks])["tiny"] == earlier / "z.py"


@pytest.mark.parametrize(
    "model", ["openai/gpt-4o", "hf/meta-llama/Llama-3.1-8B", "bedrock/anthropic.claude-v2:1", "vertex/m@2026"]
)
def test_a_model_is_taken(model: str) -> None:
    assert bad_fields(model=model) == []


@pytest.mark.parametrize("model", ["", "gpt", "a/b,c/d", "/etc/passwd", "-m/x", "a/../b", "../a/b", "a//b", "a/b ", "a/b\n"])
def test_what_is_no_model_is_refused(model: str) -> None:
    assert bad_fields(model=model) == ["model"]


def test_what_inspect_has_no_option_for_is_refused() -> None:
    assert bad_fields(num_fewshot=0, limit=0.5, batch_size="auto:4", device="x", tasks=["a@b", "t" * 201]) == [
        *("tasks[0]", "tasks[1]", "num_fewshot", "limit", "batch_size", "device"),
    ]


def test_arguments_that_inspect_passes_on_itself_are_refused() -> None:
    assert bad_fields(model_args={"model": "x", "device": "cpu", "base_url": 1}, device="cpu") == [
        *("model_args.model", "model_args.device", "model_args.base_url"),
    ]


def copy_of(case: str, tmp_path: Path) -> Path:
    output = tmp_path / "output"
    shutil.copytree(CASES / case / "output", output) if (CASES / case / "output").exists() else output.mkdir()
    return output


def read(case: str, output_dir: Path, **fields: Any) -> Mapping[str, ModelResult]:
    run = run_of(inspect_request(**fields), output_dir)
    return harness().read_results(run, exit_of(CASES / case), log_of(CASES / case))


def failure(case: str, tmp_path: Path, **fields: Any) -> tuple[str, str]:
    with pytest.raises(RunFailedError) as caught:
        read(case, copy_of(case, tmp_path), **fields)
    return caught.value.job_error.reason, caught.value.job_error.message


def test_metrics_of_a_real_run_are_those_of_its_log(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    (log,) = output.iterdir()
    scores = json.loads(log.read_text())["results"]["scores"]
    result = read("ok_json", output)["mockllm/model"]
    assert list(result.metrics) == [
        Metric(
            task="tiny",
            metric="accuracy",
            filter=score["name"],
            value=score["metrics"]["accuracy"]["value"],
            standard_error=score["metrics"]["stderr"]["value"],
            sample_count=3,
        )
        for score in sorted(scores, key=lambda score: score["name"])
    ]


def sample_rows(output: Path, result: ModelResult) -> list[Mapping[str, Any]]:
    return [row.values for row in rows_of(harness(), output, samples_by_task(result)["tiny"])]


def test_samples_of_a_real_run_are_read_where_they_lie_without_their_events(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    rows = sample_rows(output, read("ok_json", output)["mockllm/model"])
    assert [(row["doc_id"], row["target"], row["filtered_resps"]) for row in rows] == [
        (number, letter, "Default output from mockllm/model") for number, letter in enumerate("ABC")
    ]
    assert rows[1]["scores"]["includes"]["value"] == "I"
    assert "events" not in rows[0]


def test_a_sample_has_its_part_in_every_mean_also_of_a_scorer_of_several_values(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    (log_path,) = output.glob("*.json")
    log = json.loads(log_path.read_text())
    for sample, value in zip(log["samples"], ({"depth": 0.5}, {"depth": "P"}, {"depth": ["?"]}), strict=True):
        sample["scores"]["match"]["value"] = value
    log["results"]["scores"][0] |= {"name": "depth", "reducer": "mean"}
    log_path.write_text(json.dumps(log))
    assert [row["metrics"] for row in sample_rows(output, read("ok_json", output)["mockllm/model"])] == [
        {"accuracy,depth/mean": 0.5, "accuracy,includes": 1.0},
        {"accuracy,depth/mean": 0.5, "accuracy,includes": 0.0},
        {"accuracy,includes": 1.0},
    ]


def test_reading_writes_nothing_and_twice_gives_the_same(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    before = list(output.iterdir())
    result = read("ok_json", output)
    assert sample_rows(output, result["mockllm/model"])
    assert read("ok_json", output) == result
    assert list(output.iterdir()) == before


def with_samples(folder: Path, count: int, **document: Any) -> Path:
    """Write a log as inspect-ai does: the outcome precedes the samples, and their ids precede the outcome."""
    spec = {"task": "tiny", "dataset": {"samples": count, "sample_ids": list(range(count))}}
    results = {"completed_samples": count, "scores": [scored(accuracy=1)]}
    samples = [{"id": number, "scores": {"s": {"value": "C"}}} for number in range(count)]
    log_file(folder, "2026-02-14T10-30-45", {"eval": spec, "results": results, "samples": samples, **document})
    (path,) = folder.iterdir()
    return path


def test_the_verdict_is_read_without_the_samples_and_without_their_ids(tmp_path: Path) -> None:
    path = with_samples(tmp_path, 100_000)
    tracemalloc.start()
    (result,) = read("ok_json", tmp_path).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (result.results, list(result.samples)) == (str(path), [str(path)])
    assert peak < 2_000_000, "of 9 MB of log, 0.6 of them ids"


@pytest.mark.parametrize("order", [("samples",), ("eval", "samples"), ("eval", "status", "samples")])
def test_samples_that_stand_before_what_came_of_it_change_nothing(order: tuple[str, ...], tmp_path: Path) -> None:
    path = with_samples(tmp_path, 3)
    ((_, usual),) = read("ok_json", tmp_path).items()
    rows = sample_rows(tmp_path, usual)
    log = json.loads(path.read_text())
    path.write_text(json.dumps({key: log[key] for key in (*order, *(log.keys() - order))}))
    ((_, result),) = read("ok_json", tmp_path).items()
    assert result == usual
    assert sample_rows(tmp_path, result) == rows


@pytest.mark.parametrize("samples", [{}, {"samples": []}, {"samples": None}])
def test_a_log_without_samples_has_no_file_of_them(samples: Mapping[str, Any], tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": [scored(accuracy=1)]}, **samples})
    (result,) = read("ok_json", tmp_path).values()
    assert (len(result.metrics), list(result.samples)) == (1, [])


def test_a_log_that_is_cut_off_in_its_samples_is_no_result(tmp_path: Path) -> None:
    path = with_samples(tmp_path, 3)
    content = path.read_text()
    for end in (end for end in range(content.index('"samples"'), len(content)) if content[end - 1] != "}"):
        path.write_text(content[:end])
        with pytest.raises(RunFailedError, match=r"tiny_x\.json is not valid JSON: ") as caught:
            read("ok_json", tmp_path)
        assert caught.value.job_error.reason == "RESULTS_INVALID"


def test_one_that_is_cut_off_where_nothing_shows_it_says_so_when_the_samples_are_read(tmp_path: Path) -> None:
    path = with_samples(tmp_path, 3)
    content = path.read_text()
    path.write_text(content[: content.index(', {"id": 2')])
    (result,) = read("ok_json", tmp_path).values()
    assert result.metrics
    with pytest.raises(SamplesNotFoundError, match=r"tiny_x\.json can't be read to their end: expected .*; ReadArtifact gives"):
        sample_rows(tmp_path, result)


def test_two_names_of_one_task_share_its_log(tmp_path: Path) -> None:
    path = with_samples(tmp_path, 3, eval={"task": "tiny", "task_registry_name": "other"})
    (result,) = read("ok_json", tmp_path, tasks=["tiny", "other"]).values()
    assert samples_by_task(result) == {"tiny": str(path), "other": str(path)}
    assert list(result.samples) == [str(path)]


@pytest.mark.parametrize(
    ("case", "task", "reason", "message"),
    [
        ("fail_bad_model_rc1", "tiny", "HARNESS_FAILED", "ValueError: Model API nosuch of model 'nosuch/m' not recognized."),
        ("fail_status_error_rc0", "bad", "HARNESS_FAILED", "RuntimeError: boom in solver"),
        ("killed_sigkill_status_started", "slow", "PROCESS_SIGNALLED", "the harness was ended by SIGKILL (signal 9)"),
        ("killed_sigterm_status_started", "slow", "PROCESS_SIGNALLED", "the harness was ended by SIGTERM (signal 15)"),
        ("ok_json", "nope", "TASKS_MISSING", "there are logs, but none of: nope"),
    ],
)
def test_a_failed_run_says_why(case: str, task: str, reason: str, message: str, tmp_path: Path) -> None:
    assert failure(case, tmp_path, tasks=[task]) == (reason, message)


def test_one_failed_task_of_two_fails_the_run(tmp_path: Path) -> None:
    assert failure("two_tasks_json_flag", tmp_path, tasks=["tiny", "bad"]) == ("HARNESS_FAILED", "RuntimeError: boom in solver")


def test_a_log_that_was_never_finished_fails_the_run(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    (log,) = output.iterdir()
    log.write_text(log.read_text().replace('"status": "success"', '"status": "started"', 1))
    with pytest.raises(RunFailedError, match="inspect-ai left task tiny with the status started"):
        read("ok_json", output)


def test_a_status_that_nobody_can_read_is_cut(tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    (log,) = output.iterdir()
    log.write_text(log.read_text().replace('"status": "success"', f'"status": "{"x" * 5000}"', 1))
    assert not judge(harness(), run_of(inspect_request(), output))


def test_no_logs_at_all_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="inspect-ai left no log"):
        harness().read_results(run_of(inspect_request(), tmp_path), Exit(code=0), [])


def test_a_log_that_is_not_in_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "2026-02-14T10-30-45-00-00_tiny_x.eval").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(RunFailedError, match=r"tiny_x\.eval is not valid JSON: "):
        harness().read_results(run_of(inspect_request(), tmp_path), Exit(code=0), [])


def finished(output: Path, *tasks: str) -> Mapping[str, ModelResult]:
    together = MergedResults()
    for path in sorted(output.iterdir()):
        together.add(harness().read_finished(run_of(inspect_request(tasks=tasks), output), path.name))
    return together.results()


def test_a_task_that_has_finished_is_reported_while_the_others_run(tmp_path: Path) -> None:
    output = copy_of("two_tasks_json_flag", tmp_path)
    result = finished(output, "bad", "tiny")["mockllm/model"]
    assert {metric.task for metric in result.metrics} == {"tiny"}
    assert Path(result.results).name.endswith("_tiny_gBwHp9msUPDQFVRWVjTZQV.json")
    assert len(sample_rows(output, result)) == 5


def test_of_several_that_have_finished_each_has_its_own_log(tmp_path: Path) -> None:
    for name in ("tiny", "other"):
        log_file(tmp_path, f"2026-02-14T10-30-4{len(name)}", {"eval": {"task": name}, "results": {"scores": []}})
    result = finished(tmp_path, "tiny", "other")["mockllm/model"]
    assert {task.task: Path(task.results or result.results).name for task in result.tasks} == {
        "tiny": "2026-02-14T10-30-44-00-00_tiny_x.json",
        "other": "2026-02-14T10-30-45-00-00_tiny_x.json",
    }


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:500], lambda text: "", lambda text: text.replace("success", "started", 1)]
)
def test_a_log_that_is_just_being_written_has_not_finished(spoil: Callable[[str], str], tmp_path: Path) -> None:
    output = copy_of("ok_json", tmp_path)
    (log,) = output.iterdir()
    log.write_text(spoil(log.read_text()))
    assert finished(output, "tiny") == {}


def test_samples_are_not_read_to_tell_what_has_finished(tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": [scored(accuracy=1)]}})
    (log,) = tmp_path.iterdir()
    log.write_text(log.read_text()[:-1] + ', "samples": [{}, {]}')
    assert [metric.value for metric in finished(tmp_path, "tiny")["mockllm/model"].metrics] == [1]


def test_what_has_finished_is_kept_with_its_samples_if_another_task_fails(tmp_path: Path) -> None:
    output = copy_of("two_tasks_json_flag", tmp_path)
    with pytest.raises(RunFailedError, match="boom in solver"):
        read("two_tasks_json_flag", output, tasks=["tiny", "bad"])
    result = finished(output, "tiny", "bad")["mockllm/model"]
    assert {metric.task for metric in result.metrics} == {"tiny"}
    assert samples_by_task(result).keys() == {"tiny"}


def log_file(folder: Path, stamp: str, document: Mapping[str, Any]) -> None:
    results = {"total_samples": 1, "completed_samples": 1}
    content = {"status": "success", "eval": {"task": "tiny"}, "results": results, **document}
    (folder / f"{stamp}-00-00_tiny_x.json").write_text(json.dumps(content))


def scored(**metrics: float) -> Mapping[str, Any]:
    return {"name": "s", "metrics": {name: {"value": value} for name, value in metrics.items()}}


def metrics_of(folder: Path, *scores: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float | None]]:
    log_file(folder, "2026-02-14T10-30-45", {"results": {"scores": scores}})
    ((_, result),) = read("ok_json", folder).items()
    return {(m.metric, m.filter): (m.value, m.standard_error if m.HasField("standard_error") else None) for m in result.metrics}


def test_the_standard_error_belongs_to_the_mean(tmp_path: Path) -> None:
    assert metrics_of(tmp_path, scored(mean=1, std=2, stderr=3)) == {("mean", "s"): (1, 3), ("std", "s"): (2, None)}
    assert metrics_of(tmp_path, scored(accuracy=1, bootstrap_stderr=3)) == {("accuracy", "s"): (1, 3)}
    assert metrics_of(tmp_path, scored(accuracy=1, bootstrap_stderr=4, stderr=3)) == {("accuracy", "s"): (1, 3)}


def test_a_standard_error_of_nothing_is_a_metric_itself(tmp_path: Path) -> None:
    assert metrics_of(tmp_path, scored(stderr=3)) == {("stderr", "s"): (3, None)}


def test_a_reducer_tells_scores_of_one_name_apart(tmp_path: Path) -> None:
    scores = [{**scored(accuracy=number), "reducer": reducer} for number, reducer in ((1, "mean"), (2, "max"))]
    assert metrics_of(tmp_path, *scores) == {("accuracy", "s/mean"): (1, None), ("accuracy", "s/max"): (2, None)}


def test_a_comma_in_a_metrics_name_does_not_end_it(tmp_path: Path) -> None:
    assert metrics_of(tmp_path, scored(**{"a,b": 1})) == {("a;b", "s"): (1, None)}


def test_samples_are_not_held_in_memory_all_at_once(tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"samples": [{"id": number, "input": "x" * 10_000} for number in range(2000)]})
    tracemalloc.start()
    (result,) = read("ok_json", tmp_path).values()
    with Path(result.samples[0]).open("rb") as file:
        assert sum(1 for _ in harness().read_samples(file, 0)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_versions_counts_and_time_of_a_real_log_come_along(tmp_path: Path) -> None:
    result = read("ok_json", copy_of("ok_json", tmp_path))["mockllm/model"]
    (task,) = result.tasks
    assert (task.task, task.version, task.original_sample_count, task.effective_sample_count) == ("tiny", "0", 20, 3)
    assert dict(result.harness_versions) == {"inspect_ai": "0.3.285"}
    assert result.HasField("total_evaluation_time")
    assert result.extra["usage"]["tiny"]["mockllm/model"]["output_tokens"] == 99


def config_hash(folder: Path, **header: Any) -> str:
    log_file(folder, "2026-02-14T10-30-45", header)
    return read("ok_json", folder)["mockllm/model"].tasks[0].config_hash


SPEC = {"task": "tiny", "task_args": {"level": 1}, "dataset": {"name": "d", "samples": 9}, "config": {"epochs": 2}}
PLAN = {"steps": [{"solver": "generate", "params": {}}], "config": {"max_tokens": 16}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"eval": {**SPEC, "model": "other/model", "config": {"epochs": 2, "limit": 3}, "created": "now"}}, True),
        ({"eval": {**SPEC, "dataset": {"name": "d", "samples": 9, "sample_ids": [1, 2]}}}, True),
        ({"plan": {**PLAN, "config": {"max_tokens": 16, "max_connections": 8}}}, True),
        ({"plan": {**PLAN, "config": {"max_tokens": 17}}}, False),
        ({"eval": {**SPEC, "task_args": {"level": 2}}}, False),
        ({"eval": {**SPEC, "config": {"epochs": 3}}}, False),
    ],
)
def test_the_hash_is_that_of_the_task_and_not_of_the_run(change: Mapping[str, Any], same: bool, tmp_path: Path) -> None:
    header = {"eval": SPEC, "plan": PLAN}
    before = config_hash(tmp_path, **header)
    assert (config_hash(tmp_path, **{**header, **change}) == before) is same


@pytest.mark.parametrize(
    ("stats", "seconds"),
    [
        (
            [("2026-02-14T10:30:45+00:00", "2026-02-14T10:30:50+00:00"), ("2026-02-14T11:30:46+01:00", "2026-02-14T10:31:45Z")],
            60,
        ),
        ([("soon", None), (1, "9999-12-31T23:59:59-23:59")], None),
    ],
)
def test_the_time_is_from_the_first_start_to_the_last_end(
    stats: list[tuple[object, object]], seconds: float | None, tmp_path: Path
) -> None:
    for name, (start, end) in zip(("tiny", "other"), stats, strict=True):
        content = {"eval": {"task": name}, "stats": {"started_at": start, "completed_at": end}}
        log_file(tmp_path, f"2026-02-14T10-30-4{len(name)}", content)
    request = inspect_request(tasks=["tiny", "other"])
    result = harness().read_results(run_of(request, tmp_path), Exit(code=0), [])["mockllm/model"]
    assert (result.total_evaluation_time.seconds if result.HasField("total_evaluation_time") else None) == seconds


def test_the_latest_log_of_a_task_counts(tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": [scored(accuracy=2)]}})
    log_file(tmp_path, "2026-02-14T10-30-44", {"status": "error", "results": {"scores": [scored(accuracy=1)]}})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert Path(result.results).name == "2026-02-14T10-30-45-00-00_tiny_x.json"
    assert [metric.value for metric in result.metrics] == [2]


def test_results_of_another_model_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    for stamp, model in (("2026-02-14T10-30-44", "acme/a"), ("2026-02-14T10-30-45", "acme/b")):
        log_file(tmp_path, stamp, {"eval": {"task": "tiny", "model": model}, "results": {"scores": [scored(accuracy=1)]}})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert list(result.warnings) == ["a job has the results of one model, here acme/b, and not of acme/a"]


def test_progress_of_a_real_run_rises_to_all_of_its_samples() -> None:
    changes = follow(harness(), log_of(CASES / "ok_json"))
    assert [(change.phase, change.done, change.total) for change in changes] == [
        (Progress.PHASE_LOADING, 0, 3),
        (Progress.PHASE_EVALUATING, 3, 3),
        (Progress.PHASE_SCORING, 3, 3),
    ]
    assert (changes[1].current_task, changes[1].unit) == ("tiny", "samples")


def status_line(task: str, steps: int, all_steps: int, samples: int, all_samples: int) -> str:
    return f"{task} | generate | Steps: {steps:3d}/{all_steps} 50% | Samples: {samples:3d}/{all_samples:3d} | accuracy: 1.00"


def test_tasks_that_follow_each_other_add_up() -> None:
    lines = [
        *("one task (3 samples): mockllm/model", status_line("one task", 4, 6, 2, 3), status_line("one task", 6, 6, 2, 3)),
        *("b (1,000 x 2 samples): mockllm/model", status_line("b", 2000, 2000, 1990, 2000)),
        *("one task (3 samples): mockllm/model", "total time:    0:00:01", "b (1,000 x 2 samples): mockllm/model"),
    ]
    counted = [(change.current_task, change.done, change.total) for change in follow(harness(), lines)]
    assert counted == [
        *(("one task", 0, 3), ("one task", 2, 3), ("one task", 3, 3)),
        *(("b", 3, 2003), ("b", 2003, 2003), ("one task", 2003, 2006), ("", 2003, 2003)),
    ]


def test_the_commands_of_many_tasks_take_one_look_at_the_operator_s_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / f"f{number}.py").write_text(f"@task\ndef t{number}():\n    pass\n")
    subject = InspectHarness(HarnessSettings("x", "inspect-ai", python="/none/bin/python", include_path=(tmp_path,)))
    request = inspect_request(tasks=[f"t{number}" for number in range(5)], tasks_separately=True)
    looks: list[object] = []
    monkeypatch.setattr(harness_module, "task_files", lambda folders: looks.append(folders) or task_files(folders))
    steps = steps_of(run_of(request))
    command = command_of(subject, steps)
    assert len(looks) == 1
    assert [command.argv, *command.further_steps] == [subject.command(step).argv for step in steps]
    lines = [" ".join(argv) for argv in (command.argv, *command.further_steps)]
    assert all(f"{tmp_path}/f{number}.py@t{number}" in line for number, line in enumerate(lines))


# Samples that failed, were not scored, or were repeated.


def samples_of(*samples: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [{"id": number, "epoch": 1, **sample} for number, sample in enumerate(samples, start=1)]


def broken(why: str) -> Mapping[str, Any]:
    return {
        "error": {
            "message": f"RuntimeError('{why}')",
            "traceback": f"Traceback (most recent call last):\nRuntimeError: {why}\n",
        }
    }


@pytest.mark.parametrize(
    "results", [{"results": None}, {"results": {"total_samples": 0, "completed_samples": 0, "scores": []}}]
)
def test_a_run_whose_samples_all_failed_has_failed(results: Mapping[str, Any], tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {**results, "samples": samples_of(broken("no sandbox"), broken("other"))})
    with pytest.raises(RunFailedError) as caught:
        read("ok_json", tmp_path)
    assert caught.value.job_error.reason == "ALL_REQUESTS_FAILED"
    assert caught.value.job_error.message == "2 of 2 samples of task tiny failed: RuntimeError: no sandbox"


def half_failed(folder: Path, status: str = "success", **counts: Any) -> None:
    results = {"total_samples": 4, "completed_samples": 2, "scores": [scored(mean=1)], **counts}
    samples = samples_of({}, broken("a"), broken("b"), {})
    log_file(folder, "2026-02-14T10-30-45", {"status": status, "results": results, "samples": samples})


def test_of_samples_that_failed_there_is_a_warning(tmp_path: Path) -> None:
    half_failed(tmp_path)
    ((_, result),) = read("ok_json", tmp_path).items()
    assert list(result.warnings) == ["2 of 4 samples of task tiny failed: RuntimeError: a"]


def test_too_many_failed_samples_fail_the_run(tmp_path: Path) -> None:
    half_failed(tmp_path)
    assert read("ok_json", tmp_path, max_bad_answer_ratio=0.5)
    with pytest.raises(RunFailedError) as caught:
        read("ok_json", tmp_path, max_bad_answer_ratio=0.49)
    assert caught.value.job_error.reason == "TOO_MANY_BAD_ANSWERS"


def test_a_run_that_ended_since_too_many_samples_failed_says_why_they_did(tmp_path: Path) -> None:
    half_failed(tmp_path, status="error")
    with pytest.raises(RunFailedError) as caught:
        read("ok_json", tmp_path)
    status = "inspect-ai left task tiny with the status error"
    assert caught.value.job_error.message == f"{status}: 2 of 4 samples failed: RuntimeError: a"


def answered(*texts: str, **message: Any) -> list[Mapping[str, Any]]:
    choices = [{"message": message, "stop_reason": "stop"}]
    return samples_of(*({"output": {"completion": text, "choices": choices}} for text in texts))


def test_of_empty_answers_there_is_a_warning(tmp_path: Path) -> None:
    results = {"total_samples": 3, "completed_samples": 3, "scores": [scored(mean=1)]}
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results, "samples": answered("", "a", " \n")})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert list(result.warnings) == ["2 of 3 samples of task tiny are empty"]
    with pytest.raises(RunFailedError, match="2 of 3 samples of task tiny are empty"):
        read("ok_json", tmp_path, max_bad_answer_ratio=0.5)


def test_an_answer_without_a_text_that_calls_a_tool_is_not_empty(tmp_path: Path) -> None:
    results = {"total_samples": 2, "completed_samples": 2, "scores": [scored(mean=1)]}
    samples = answered("", "", tool_calls=[{"function": "submit"}])
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results, "samples": samples})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert not result.warnings


@pytest.mark.parametrize("results", [None, {}, {"total_samples": 0, "completed_samples": 0, "scores": []}])
@pytest.mark.parametrize("samples", [{}, {"samples": None}, {"samples": []}])
def test_a_run_of_which_nothing_shows_that_a_sample_was_answered_has_failed(
    results: Mapping[str, Any] | None, samples: Mapping[str, Any], tmp_path: Path
) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results, **samples})
    with pytest.raises(RunFailedError, match="nothing was evaluated, by the logs of: tiny") as caught:
        read("ok_json", tmp_path, log_samples=False)
    assert caught.value.job_error.reason == "RESULTS_MISSING"


def test_samples_that_failed_and_were_scored_all_the_same_have_failed(tmp_path: Path) -> None:
    half_failed(tmp_path, completed_samples=4)
    ((_, result),) = read("ok_json", tmp_path).items()
    assert list(result.warnings) == ["2 of 4 samples of task tiny failed: RuntimeError: a"]


def test_more_samples_than_the_limit_are_said(tmp_path: Path) -> None:
    results = {"total_samples": 1234569, "completed_samples": 1234569, "scores": [scored(mean=1)]}
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results})
    ((_, result),) = read("ok_json", tmp_path, limit=1234567).items()
    assert list(result.warnings) == ["limit: 1234567 asked for and 1234569 documents evaluated: tiny"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *(("C", 1.0), ("P", 0.5), ("I", 0.0), ("N", 0.0), ("yes", 1.0), ("No", 0.0), ("TRUE", 1.0), ("false", 0.0)),
        *(("0.25", 0.25), ("-1e-1", -0.1), (True, True), (0, 0), (math.nan, None), ("nan", None), (None, None)),
        *(("none of them", None), ([1.0], None), ({"a": 1}, None)),
    ],
)
def test_a_sample_counts_as_what_inspect_takes_it_for(value: object, number: float | None, tmp_path: Path) -> None:
    score = {**scored(accuracy=0.5), "scorer": "s"}
    samples = samples_of({"scores": {"s": {"value": value}}})
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": [score]}, "samples": samples})
    ((_, result),) = read("ok_json", tmp_path).items()
    (row,) = rows_of(harness(), tmp_path, result.samples[0])
    assert row.values["metrics"] == ({} if number is None else {"accuracy,s": number})


def test_a_document_is_told_by_what_is_asked_and_expected_in_any_run(tmp_path: Path) -> None:
    asked = [
        *({"input": [{"id": number, "role": "user", "content": "1+1"}], "target": "2"} for number in "ab"),
        *({"input": "1+1", "target": "2"}, {"input": "1+1", "target": "3"}, {"input": "1+2", "target": "3"}),
    ]
    log_file(tmp_path, "2026-02-14T10-30-45", {"samples": samples_of(*asked)})
    ((_, result),) = read("ok_json", tmp_path).items()
    first, second, *others = (row.values["doc_hash"] for row in rows_of(harness(), tmp_path, result.samples[0]))
    assert first == second
    assert len({first, *others}) == 4


def test_samples_that_were_not_needed_have_not_failed(tmp_path: Path) -> None:
    results = {"total_samples": 4, "completed_samples": 2, "scores": [scored(mean=1)], "early_stopping": {"manager": "m"}}
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results, "samples": samples_of({}, {})})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert not result.warnings


def test_a_run_that_is_not_scored_is_good(tmp_path: Path) -> None:
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"total_samples": 0, "scores": []}, "samples": samples_of({}, {})})
    ((_, result),) = read("ok_json", tmp_path, predict_only=True).items()
    assert not result.metrics
    assert not result.warnings


def test_a_sample_that_was_not_scored_is_not_counted(tmp_path: Path) -> None:
    score = {**scored(accuracy=0.25, stderr=0.25), "scorer": "s", "scored_samples": 4, "unscored_samples": 2}
    samples = samples_of(*({"scores": {"s": {"value": value}}} for value in (math.nan, math.nan, 1.0, 0, 0, 0)))
    log_file(
        tmp_path,
        "2026-02-14T10-30-45",
        {"results": {"total_samples": 6, "completed_samples": 6, "scores": [score]}, "samples": samples},
    )
    ((_, result),) = read("ok_json", tmp_path).items()
    assert [(metric.metric, metric.sample_count) for metric in result.metrics] == [("accuracy", 4)]
    assert result.tasks[0].effective_sample_count == 6
    assert [sample.values["metrics"] for sample in rows_of(harness(), tmp_path, result.samples[0])] == [
        *[{}, {}, {"accuracy,s": 1.0}],
        *[{"accuracy,s": 0}] * 3,
    ]


def test_that_no_sample_was_scored_is_a_warning(tmp_path: Path) -> None:
    scores = [
        {
            **scored(mean=number, stderr=number),
            "name": name,
            "scorer": name,
            "scored_samples": count,
            "unscored_samples": 3 - count,
        }
        for name, number, count in (("a", math.nan, 0), ("b", 0.5, 3), ("c", 0.0, 0))
    ]
    results = {"total_samples": 3, "completed_samples": 3, "scores": scores}
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": results, "samples": samples_of({}, {}, {})})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert list(result.warnings) == ["values of no sample, which say nothing: tiny/mean,a, tiny/mean,c"]


def test_a_sample_that_is_repeated_counts_once(tmp_path: Path) -> None:
    score = {**scored(accuracy=1), "scored_samples": 5}
    log = {"eval": {"task": "tiny", "config": {"epochs": 4}, "dataset": {"samples": 5}}}
    log_file(
        tmp_path, "2026-02-14T10-30-45", {**log, "results": {"total_samples": 20, "completed_samples": 20, "scores": [score]}}
    )
    ((_, result),) = read("ok_json", tmp_path).items()
    assert result.metrics[0].sample_count == 5
    assert (result.tasks[0].original_sample_count, result.tasks[0].effective_sample_count) == (5, 5)


def test_with_epochs_no_metric_is_of_more_samples_than_were_evaluated(tmp_path: Path) -> None:
    """Of 10 samples and 2 epochs, two samples failed once each; one metric takes every epoch by itself."""
    scores = [
        {**scored(accuracy=1), "name": "s", "scorer": "s", "reducer": "mean", "scored_samples": 9, "unscored_samples": 1},
        {**scored(mean=1), "name": "s", "scorer": "s", "scored_samples": 17, "unscored_samples": 1},
        {**scored(mean=1), "name": "old", "scorer": "old", "scored_samples": None},
    ]
    log = {"eval": {"task": "tiny", "config": {"epochs": 2}, "dataset": {"samples": 12}}}
    failed = [{"error": {"message": "no"}}] * 2
    results = {"total_samples": 20, "completed_samples": 18, "scores": scores}
    log_file(tmp_path, "2026-02-14T10-30-45", {**log, "results": results, "samples": samples_of(*failed, *[{}] * 18)})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert {metric.filter: metric.sample_count for metric in result.metrics} == {"s/mean": 9, "s": 10, "old": 10}
    assert (result.tasks[0].original_sample_count, result.tasks[0].effective_sample_count) == (12, 10)
    assert list(result.warnings) == ["2 of 20 samples of task tiny failed: no"]


def test_scores_that_nothing_tells_apart_are_numbered(tmp_path: Path) -> None:
    scores = [{**scored(mean=value), "name": "judge", "scorer": "judge"} for value in (1.0, 0.5, 0.25)]
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": scores}})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert {metric.filter: metric.value for metric in result.metrics} == {"judge": 1.0, "judge/2": 0.5, "judge/3": 0.25}


def test_values_of_one_name_of_several_scorers_are_told_apart(tmp_path: Path) -> None:
    scores = [
        {**scored(mean=number), "name": name, "scorer": scorer}
        for name, scorer, number in (("quality", "a", 1.0), ("style", "a", 0.25), ("quality", "b", 0.0), ("b", "b", 0.5))
    ]
    sample = {"a": {"value": {"quality": 1.0, "style": 0.1}}, "b": {"value": {"quality": 0.0, "b": 0.7}}}
    samples = samples_of({"scores": sample})
    log_file(tmp_path, "2026-02-14T10-30-45", {"results": {"scores": scores}, "samples": samples})
    ((_, result),) = read("ok_json", tmp_path).items()
    assert {metric.filter: metric.value for metric in result.metrics} == {
        "a/quality": 1,
        "style": 0.25,
        "b/quality": 0,
        "b": 0.5,
    }
    (row,) = rows_of(harness(), tmp_path, result.samples[0])
    assert row.values["metrics"] == {"mean,a/quality": 1.0, "mean,style": 0.1, "mean,b/quality": 0.0, "mean,b": 0.7}
