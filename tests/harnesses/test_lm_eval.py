"""The lm-eval harness: its command line, its arguments, its progress, and its verdict on real runs."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from example_count import example_count
from harness_cases import DATA, run_of
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings
from evalrpc.errors import ConfigurationError, RunFailedError
from evalrpc.harnesses.base import Command, Exit
from evalrpc.harnesses.lm_eval import LmEvalHarness
from evalrpc.results.layout import samples_task
from evalrpc.testing.recorded_runs import exit_of, follow, log_of, request_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress
from evalrpc.v1.results_pb2 import Metric, ModelResult

CASES = DATA / "lm_eval"
REAL_PYTHON = "EVALRPC_TEST_LM_EVAL_PYTHON"
TASKS = {
    "ok_dummy_random_name": ["tiny_mc", "tiny_gen"],
    "ok_hf_local_path": ["tiny_group"],
    "ok_limit1_na_stderr": ["tiny_mc"],
}
MODELS = {
    "ok_dummy_random_name": "i82qcls7",
    "ok_hf_local_path": "__srv__eval__models__tiny-gpt2",
    "ok_limit1_na_stderr": "qdpv68r5",
    "ok_local_completions": "stub",
}


def harness(**more: Any) -> LmEvalHarness:
    fields = {"python": Path("/env/bin/python"), "working_dir": Path("/srv"), **more}
    return LmEvalHarness(HarnessSettings("lm-eval", "lm-eval", **fields))


@pytest.mark.parametrize(
    "args", [("--use_cache=/d/answers.db",), ("--seed=1", "--use_cache", "/d/answers.db"), ("-c", "/d/a.db")]
)
def test_no_model_gets_the_answers_of_another(args: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"setting harnesses\.lm-eval\.args: with --use_cache, .*: leave it out"):
        harness(args=args)


def lm_request(**fields: Any) -> EvaluateRequest:
    return request_of(**{"model": "dummy", "tasks": ["tiny_mc", "tiny_gen"], **fields})


def command(request: EvaluateRequest, num_gpus: int = 0, **more: Any) -> Command:
    return harness(**more).command(run_of(request, num_gpus=num_gpus))


def config(request: EvaluateRequest, **more: Any) -> str:
    ((path, content),) = command(request, **more).files.items()
    assert path == Path("/d/lm-eval.yaml")
    return content.decode("ascii")


def bad_fields(**fields: Any) -> list[str]:
    return [violation.field for violation in harness().violations(lm_request(**fields))]


def test_the_smallest_request_has_the_smallest_command() -> None:
    assert command(lm_request()) == Command(
        (
            *("/env/bin/python", "-m", "lm_eval", "run", "--model=dummy", "--tasks=tiny_mc,tiny_gen"),
            *("--output_path=/d/out", "--log_samples"),
        ),
        cwd=Path("/srv"),
    )


def test_every_field_of_the_request_has_its_option() -> None:
    request = lm_request(
        num_fewshot=0,
        batch_size="auto:4",
        device="cuda:0",
        limit=0.5,
        log_samples=False,
        predict_only=True,
        model_args={"pretrained": "x"},
        gen_kwargs={"until": ["\n", "."]},
    )
    assert command(request, args=("--apply_chat_template",)).argv[3:] == (
        *("run", "--model=dummy", "--tasks=tiny_mc,tiny_gen", "--output_path=/d/out"),
        *(
            "--num_fewshot=0",
            "--limit=0.5",
            "--batch_size=auto:4",
            "--device=cuda:0",
            "--predict_only",
            "--config=/d/lm-eval.yaml",
            "--apply_chat_template",
        ),
    )
    assert config(request) == 'model_args: {? "pretrained" : "x"}\ngen_kwargs: {? "until" : ["\\U0000000A", "."]}\n'


def test_a_single_task_can_not_be_taken_for_a_folder() -> None:
    assert "--tasks=tasks,tasks" in command(lm_request(tasks=["tasks"])).argv


def test_every_include_path_is_passed_on() -> None:
    assert config(lm_request(), include_path=(Path("/a"), Path("/b c"))) == 'include_path: ["/a", "/b c"]\n'


def test_several_gpus_get_a_process_each() -> None:
    argv = command(lm_request(), 2).argv
    assert argv[1:5] == ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
    assert argv.index("-m", 3) < argv.index("lm_eval") < argv.index("run")


def test_what_lm_eval_passes_on_itself_is_no_model_argument() -> None:
    assert bad_fields(model_args={"batch_size": 2, "device": "cpu"}) == ["model_args.batch_size", "model_args.device"]


def test_a_model_name_that_leaves_the_output_folder_is_refused() -> None:
    assert bad_fields(model_args={"pretrained": ".."}) == ["model_args.pretrained"]


def test_what_can_not_be_carried_is_refused() -> None:
    request = lm_request()
    request.model_args.update({"a": {"b": [1]}, "1": 2})
    request.gen_kwargs.update({"c d": 1})
    assert [violation.field for violation in harness().violations(request)] == ["model_args", "gen_kwargs"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**53), 2**53)
    | st.sampled_from(("1", "yes", "~", "null", "1e5", "<<", "!!int 1", "2026-01-01", "a: b", "\x85", "\ufeff", "'", '"', "\\"))
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
READ = """
import argparse, json, sys
from lm_eval.config.evaluate_config import EvaluatorConfig
configs = [EvaluatorConfig.from_config(path) for path in json.load(open(sys.argv[1]))]
json.dump([[config.model_args, config.gen_kwargs] for config in configs], open(sys.argv[2], "w"))
"""


def arguments_of_all_kinds() -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = [{"key": {"k" * 2000: ["x" * 5000]}}]

    @settings(max_examples=example_count(300), deadline=None, database=None)
    @given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
    def collect(arguments: dict[str, Any]) -> None:
        examples.append(arguments)

    collect()
    return examples


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get(REAL_PYTHON), reason=f"{REAL_PYTHON} names no interpreter with lm-eval: `make test-all` has one"
)
def test_lm_evals_own_parser_reads_every_argument_back(tmp_path: Path) -> None:
    examples = arguments_of_all_kinds()
    paths = [tmp_path / f"{number}.yaml" for number in range(len(examples))]
    for path, example in zip(paths, examples, strict=True):
        path.write_text(config(lm_request(model_args=example, gen_kwargs=example)))
    (tmp_path / "paths").write_text(json.dumps([str(path) for path in paths]))
    subprocess.run([os.environ[REAL_PYTHON], "-c", READ, tmp_path / "paths", tmp_path / "read"], check=True)
    for example, (model_args, gen_kwargs) in zip(examples, json.loads((tmp_path / "read").read_text()), strict=True):
        assert model_args == gen_kwargs == example


def read(case: str, output_dir: Path | None = None, **fields: Any) -> Mapping[str, ModelResult]:
    run = run_of(lm_request(**{"tasks": TASKS.get(case, ["tiny_mc"]), **fields}), output_dir or CASES / case / "output")
    return harness().read_results(run, exit_of(CASES / case), log_of(CASES / case))


@pytest.mark.parametrize(("case", "model"), MODELS.items())
def test_metrics_and_samples_of_a_real_run_are_those_of_its_files(case: str, model: str) -> None:
    ((name, result),) = read(case).items()
    rows = json.loads(Path(result.results).read_text())["results"]
    written = {
        (task, *key.split(",")): value
        for task, row in rows.items()
        for key, value in row.items()
        if "," in key and "_stderr" not in key
    }
    assert name == model
    assert {(m.task, m.metric, m.filter): m.value for m in result.metrics} == written
    assert [samples_task(path) for path in result.samples] == sorted({metric.task for metric in result.metrics})


def test_a_metric_has_its_error_direction_and_count() -> None:
    metric = read("ok_hf_local_path")["__srv__eval__models__tiny-gpt2"].metrics[1]
    assert metric == Metric(
        task="tiny_mc",
        metric="acc",
        filter="none",
        value=0.25,
        standard_error=0.09933992677987828,
        higher_is_better=True,
        sample_count=20,
    )


def test_a_stderr_that_is_not_available_is_absent() -> None:
    assert not any(metric.HasField("standard_error") for metric in read("ok_limit1_na_stderr")["qdpv68r5"].metrics)


@pytest.mark.parametrize(
    ("case", "reason", "message"),
    [
        (
            "fail_api_500_rc1",
            "HARNESS_FAILED",
            "requests.exceptions.HTTPError: 500 Server Error: Internal Server Error for url: http://127.0.0.1:18999/v1/completions",
        ),
        (
            "fail_dataset_missing_rc1",
            "HARNESS_FAILED",
            "FileNotFoundError: Unable to find '/srv/eval/data/does_not_exist.jsonl'",
        ),
        ("fail_unknown_task_rc1", "HARNESS_FAILED", "ValueError: Tasks not found: nosuchtask"),
        (
            "fail_unwritable_output_rc0",
            "RESULTS_MISSING",
            "no results: lm-eval could not save them: NotADirectoryError(20, 'Not a directory')",
        ),
        ("fail_usage_rc2", "HARNESS_FAILED", "unrecognized arguments: --nosuchflag 3"),
        ("killed_sigterm", "PROCESS_SIGNALLED", "the harness was ended by SIGTERM (signal 15)"),
    ],
)
def test_a_failed_run_says_why(case: str, reason: str, message: str) -> None:
    with pytest.raises(RunFailedError) as caught:
        read(case)
    assert (caught.value.job_error.reason, caught.value.job_error.message) == (reason, message)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(RunFailedError, match=r"^ValueError: there is no model 'nosuchmodel'; ListModels has the names of all$"):
        read("fail_unknown_model_rc1")


def test_a_task_without_results_is_named() -> None:
    with pytest.raises(RunFailedError, match="there are results, but none of: other"):
        read("ok_dummy_random_name", tasks=["tiny_mc", "tiny_gen", "other"])


def test_gen_kwargs_that_no_task_takes_notice_of_are_warned_of() -> None:
    warning = "gen_kwargs: none of the tasks takes notice, since their output_type is multiple_choice"
    for case, warnings in (("ok_limit1_na_stderr", [warning]), ("ok_dummy_random_name", [])):
        (result,) = read(case, gen_kwargs={"temperature": 0.5}).values()
        assert list(result.warnings) == warnings


def test_a_metric_that_some_documents_do_not_have_counts_the_others(tmp_path: Path) -> None:
    document = {
        "results": {"a": {"some,none": 1.0, "other,strict,x": 0.5, "new,none": 0.1}, "b": {"some,none": 0.5}},
        "n-samples": {task: {"original": 12, "effective": 8} for task in "ab"},
    }
    (tmp_path / "results_2026-02-14T10-30-45.json").write_text(json.dumps(document))
    line = (
        "2026-02-14:10:30:44 WARNING  [evaluator_utils:236] [a] Metrics were not scored on the same number of documents "
        "(other,strict,x=4, some,none=8). Each metric was aggregated over only the documents that produced it; reporting 8 as"
    )
    (result,) = harness().read_results(run_of(request_of(tasks=["a", "b"]), tmp_path), Exit(code=0), [line]).values()
    counts = {(metric.task, metric.metric): metric.sample_count for metric in result.metrics}
    assert counts == {("a", "other"): 4, ("a", "some"): 8, ("a", "new"): 8, ("b", "some"): 8}
    assert list(result.warnings) == [
        "metrics of task a are of other documents each, which groups take for all of them: other,strict,x of 4, some,none of 8"
    ]


def test_values_of_no_document_are_warned_of(tmp_path: Path) -> None:
    document = {
        "results": {"a": {"acc,none": float("nan")}, "b": {"acc,none": 0.0}, "c": {"acc,none": 0.0}, "d": {"acc,none": 0.0}},
        "n-samples": {"a": {"original": 5, "effective": 0}, "b": {"original": 5, "effective": "0"}, "c": {"effective": 5}},
    }
    (tmp_path / "results_2026-02-14T10-30-45.json").write_text(json.dumps(document))
    (result,) = harness().read_results(run_of(request_of(tasks=["a", "b", "c"]), tmp_path), Exit(code=0), []).values()
    assert list(result.warnings) == ["values of no sample, which say nothing: a/acc,none, b/acc,none"]


@pytest.mark.parametrize("case", ["ok_dummy_random_name", "ok_hf_local_path", "ok_local_completions"])
def test_the_bars_of_all_kinds_of_requests_add_up(case: str) -> None:
    changes = follow(harness(), log_of(CASES / case))
    last = changes[-1]
    assert (last.phase, last.done, last.total, last.unit) == (Progress.PHASE_SCORING, 100, 100, "requests")
    assert [change.done for change in changes] == sorted(change.done for change in changes)
    assert {change.current_task for change in changes} == {"", "tiny_mc", "tiny_gen"}


@pytest.mark.parametrize(
    "line", ["  0%|   | 0/20 [00:00<?, ?it/s]", "Tokenizing inputs:  50%|█ | 1/2 [00:01<00:01,  1.00it/s]"]
)
def test_a_bar_of_something_else_is_not_counted(line: str) -> None:
    assert follow(harness(), [line]) == []


def test_a_bar_of_the_tokenizer_is_not_counted_between_requests() -> None:
    lines = ["Running loglikelihood requests", "Tokenizing inputs: 100%|██| 80/80 [00:00<00:00, 12531.53it/s]"]
    assert [change.total for change in follow(harness(), lines)] == [0]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("results.json", "is not named as known versions name"),
        ("a/b/results_2026-02-14T10-30-45.json", "lies deeper than known versions put"),
    ],
)
def test_results_of_an_unknown_name_or_place_are_named(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"results": {"piqa": {"acc": 0.78}}}')
    with pytest.raises(RunFailedError, match=f"lm-eval left {name}, which {problem} their results") as caught:
        harness().read_results(run_of(request_of(tasks=["piqa"]), tmp_path), Exit(code=0), [])
    assert caught.value.job_error.reason == "RESULTS_MISSING"
