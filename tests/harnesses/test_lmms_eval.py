"""The lmms-eval harness: its command line, its arguments, its progress, and its verdict on real runs."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from example_count import example_count
from google.protobuf.json_format import ParseDict
from harness_cases import run_of
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError, FieldViolation, RunFailedError
from evalrpc.harnesses.base import Command, Exit
from evalrpc.harnesses.lmms_eval.arguments import argument_string
from evalrpc.harnesses.lmms_eval.harness import MAIN_SCRIPT, LmmsEvalHarness
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress

DATA = Path(__file__).parent.parent / "data" / "lmms_eval"
REAL_PYTHON = "EVALRPC_TEST_LMMS_PYTHON"
OK = sorted(case.name for case in DATA.iterdir() if case.name.startswith("ok_"))


def harness(**more: Any) -> LmmsEvalHarness:
    return LmmsEvalHarness(
        HarnessSettings("lmms-eval", "lmms-eval", **{"python": Path("/env/bin/python"), "working_dir": Path("/srv"), **more})
    )


def request_of(**fields: Any) -> EvaluateRequest:
    return ParseDict({"model": "dummy", "tasks": ["tiny_gen"], **fields}, EvaluateRequest())


def command(request: EvaluateRequest, num_gpus: int = 0, **more: Any) -> Command:
    return harness(**more).command(run_of(request, num_gpus=num_gpus))


def bad_fields(**fields: Any) -> list[str]:
    return [violation.field for violation in harness().violations(request_of(**fields))]


def config(request: EvaluateRequest, **more: Any) -> str:
    ((path, content),) = command(request, **more).files.items()
    assert path == Path("/d/lmms-eval.config")
    return content.decode("ascii")


def test_the_smallest_request_has_the_smallest_command() -> None:
    assert command(request_of()) == Command(
        (
            *("/env/bin/python", str(MAIN_SCRIPT), "--model=dummy", "--tasks=tiny_gen", "--output_path=/d/out"),
            *("--timezone=UTC", "--verbosity=INFO", "--log_samples"),
        ),
        cwd=Path("/srv"),
    )


def test_every_field_of_the_request_has_its_option() -> None:
    request = request_of(
        tasks=["a", "b"],
        num_fewshot=2,
        batch_size="auto:4",
        device="cuda:0",
        limit=0.5,
        predict_only=True,
        model_args={"pretrained": "x"},
        gen_kwargs={"temperature": 0.0},
    )
    assert command(request).argv[2:] == (
        *("--model=dummy", "--tasks=a,b", "--output_path=/d/out", "--timezone=UTC"),
        *("--verbosity=INFO", "--num_fewshot=2", "--limit=0.5", "--batch_size=auto:4", "--device=cuda:0"),
        *("--log_samples", "--predict_only", "--config=/d/lmms-eval.config"),
    )
    assert config(request) == 'model_args: "pretrained=x"\ngen_kwargs: "temperature=0"\n'


def test_zero_differs_from_absent() -> None:
    assert "--num_fewshot=0" in command(request_of(num_fewshot=0)).argv
    assert not any(argument.startswith("--num_fewshot") for argument in command(request_of()).argv)


def test_samples_are_not_logged_where_the_client_says_so() -> None:
    assert "--log_samples" not in command(request_of(log_samples=False)).argv


@pytest.mark.parametrize(
    ("limit", "text"), [(1, "1"), (20.0, "20"), (0.25, "0.25"), (1e-5, "1e-05"), (2.0**60, "1.152921504606847e+18")]
)
def test_a_whole_limit_is_written_as_an_integer(limit: float, text: str) -> None:
    assert f"--limit={text}" in command(request_of(limit=limit)).argv


def test_the_operators_arguments_come_last_and_the_environment_along() -> None:
    built = command(request_of(), args=("--seed=1", "--trust_remote_code"), env={"HF_HOME": "/hf"})
    assert built.argv[-2:] == ("--seed=1", "--trust_remote_code")
    assert built.env == {"HF_HOME": "/hf"}


def test_every_include_path_is_passed_on() -> None:
    assert config(request_of(), include_path=(Path("/tasks"), Path('/my "tasks"'))) == (
        'include_path: ["/tasks", "/my \\U00000022tasks\\U00000022"]\n'
    )


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_one_gpu_or_none_needs_no_launcher(num_gpus: int) -> None:
    assert command(request_of(), num_gpus).argv[:2] == ("/env/bin/python", str(MAIN_SCRIPT))


def test_several_gpus_get_a_process_each_and_a_port_of_their_own() -> None:
    argv = command(request_of(), 2).argv
    assert argv[:5] == ("/env/bin/python", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
    assert "--main_process_port=0" in argv
    assert argv.index("-m", 3) < argv.index("lmms_eval") < argv.index("--model=dummy")


@pytest.mark.parametrize(
    ("num_gpus", "warm", "can_be"), [(0, "auto", True), (1, "auto", True), (2, "auto", False), (0, "off", False)]
)
def test_a_run_of_one_process_can_be_warm(tmp_path: Path, num_gpus: int, warm: str, can_be: bool) -> None:
    python = interpreter_with(tmp_path, "lmms_eval/models/chat/llava_hf.py")
    preload = command(request_of(model="llava_hf"), num_gpus, warm=warm, python=python).preload
    assert (preload is not None) == can_be
    if preload is not None:
        assert preload.program == (str(python), str(MAIN_SCRIPT))
        assert preload.modules[-1] == "lmms_eval.models.chat.llava_hf"


def test_all_models_that_it_does_not_have_share_a_parent(tmp_path: Path) -> None:
    """So a client can't have one made for each name that it makes up."""
    python = interpreter_with(tmp_path, "lmms_eval/models/chat/llava_hf.py")
    preloads = {command(request_of(model=name), python=python).preload for name in ("a", "b", "llava_hf")}
    assert len(preloads) == 2


def interpreter_with(folder: Path, module: str) -> Path:
    python = folder / "bin" / "python"
    for path in (python, folder / "lib" / "python3.11" / "site-packages" / module):
        path.parent.mkdir(parents=True)
        path.touch(0o755)
    return python


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_value_reaches_the_config_file_as_one_ascii_line(text: str) -> None:
    request = EvaluateRequest(model="dummy")
    request.model_args.update({"key": text})
    (line,) = config(request).splitlines()
    quoted = re.fullmatch(r'model_args: "((?:[^"\\]|\\U[0-9A-F]{8})*)"', line)
    assert quoted
    assert re.sub(r"\\U([0-9A-F]{8})", lambda match: chr(int(match[1], 16)), quoted[1]) == f"key={text}"


@pytest.mark.parametrize("task", ["tiny_gen", "refcoco+_bbox_rec", "mmmu_val", "a b", "ünï", "mme.v2", "x-y", "listing"])
def test_a_task_name_is_taken(task: str) -> None:
    assert bad_fields(tasks=[task]) == []


@pytest.mark.parametrize(
    "task",
    [
        *(
            "",
            " ",
            "a,b",
            "../a",
            "a/b",
            "a\\b",
            "-x",
            "--include_path=/x",
            ".",
            "..",
            ".hidden",
            "task.yaml",
            "task.yml",
            "t.json",
        ),
        *("list", "list_groups", "list_tags", "list_subtasks", "*", "mm*", "a?", "[a]", "a\n", "a\0b", "a "),
    ],
)
def test_what_is_no_task_name_is_refused(task: str) -> None:
    assert bad_fields(tasks=["good", task]) == ["tasks[1]"]


@pytest.mark.parametrize("model", ["", "-m", "--tasks=x", "a,b", "a b", "a/b", "a=b", "a\n", "../a"])
def test_what_is_no_model_type_is_refused(model: str) -> None:
    assert bad_fields(model=model) == ["model"]


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:15", "mps", "auto", "xpu:1"])
def test_a_device_is_taken(device: str) -> None:
    assert bad_fields(device=device) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:0,1", "cuda:-1", "--x", " cpu", "cpu:0"])
def test_what_is_no_device_is_refused(device: str) -> None:
    assert bad_fields(device=device) == ["device"]


@pytest.mark.parametrize("batch_size", ["0", "-1", "1.5", "auto:", "auto:0", "many", " 1"])
def test_what_is_no_batch_size_is_refused(batch_size: str) -> None:
    assert bad_fields(batch_size=batch_size) == ["batch_size"]


def test_an_output_folder_that_lmms_eval_cannot_write_to_is_refused() -> None:
    assert bad_fields(output_dir="a,output_path=b") == ["output_dir"]
    assert bad_fields(output_dir="nightly/run 1") == []


HARD_VALUES: Mapping[str, Any] = {
    "text": "acme/model",
    "empty": "",
    "equals": "a=b==c",
    "blank": " before, not after"[:7] + "x",
    "unicode": "ünï😀\u2028x",
    "quoted": '{"x":"1,2"}',
    "quotes": "'a,b' \"c,d\"",
    "backslash": "C:\\dir\\",
    "escaped": "\\'",
    "dashes": "--include_path=/x",
    "newline": "a\nb",
    "not_a_number": "1.2.3",
    "brackets": "]a,b[",
    "yes": True,
    "no": False,
    "zero": 0,
    "one": 1,
    "negative": -3,
    "half": 0.5,
    "small": 1e-7,
    "large": 2.0**53,
    "larger": 1e300,
    "list": ["a,b", "it's", '"', "\\", '\\"', 1, 0.5, None, True, [], {}],
    "struct": {"a": {"b": [1, {"c": "},{"}]}, "d": "ünï😀", "e": None, "f": "\n\0"},
}


def test_hard_values_are_taken() -> None:
    assert bad_fields(model_args=HARD_VALUES) == []


@pytest.mark.parametrize(
    "value",
    [
        *(None, "a,b", "a,tasks=b", "it's", 'a"b', "[1", "1]", "{", "x ", "x\n", " ", "'a"),
        *("1", "0", "-1", "1.5", "1e5", "1_000", " 7", "nan", "inf", "-Infinity", "true", "False", "²", "½", "\uff11"),
    ],
)
def test_a_value_that_lmms_eval_would_read_as_something_else_is_refused(value: object) -> None:
    assert bad_fields(model_args={"good": 1, "key": value}) == ["model_args.key"]


@pytest.mark.parametrize("key", ["", "a b", "a=b", "a,b", "--tasks", "1a", "a.b", "ü", "a\n"])
@pytest.mark.parametrize("field", ["model_args", "gen_kwargs"])
def test_a_key_that_is_no_argument_name_is_refused(field: str, key: str) -> None:
    assert bad_fields(**{field: {key: "x"}}) == [field]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, [], {}])
def test_generation_arguments_hold_no_lists_or_structs(value: object) -> None:
    assert bad_fields(gen_kwargs={"until": value}) == ["gen_kwargs.until"]


def test_what_the_request_says_itself_is_no_model_argument() -> None:
    assert bad_fields(model_args={"batch_size": 2}) == ["model_args.batch_size"]
    assert bad_fields(model_args={"device": "cpu"}, device="cuda") == ["model_args.device"]
    assert bad_fields(model_args={"device": "cpu"}) == []


@pytest.mark.parametrize("arguments", [{"pretrained": ".."}, {"x": {"a": "path=..,"}}])
def test_a_model_name_that_leaves_the_output_folder_is_refused(arguments: Mapping[str, object]) -> None:
    assert bad_fields(model_args=arguments) == ["model_args"]


def test_every_bad_field_is_reported_at_once() -> None:
    assert bad_fields(model="a,b", tasks=["*", "ok", "-"], device="x", gen_kwargs={"a": None}) == [
        *("model", "tasks[0]", "tasks[2]", "device", "gen_kwargs.a"),
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=10)
    # Texts dense with the parser's special characters.
    | st.text(alphabet="\"'\\,{}[]= a1", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet="\"'\\,ab", max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)


PARSE = """
import json, sys
from lmms_eval.utils import simple_parse_args_string
json.dump([simple_parse_args_string(text) for text in json.load(open(sys.argv[1]))], open(sys.argv[2], "w"))
"""


def model_args(arguments: Mapping[str, Any]) -> EvaluateRequest:
    request = EvaluateRequest(model="dummy", tasks=["t"])
    request.model_args.update(arguments)
    return request


def accepted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if not list(harness().violations(model_args({key: value})))}


def accepted_examples() -> list[dict[str, Any]]:
    examples = [dict(HARD_VALUES)]

    @settings(max_examples=example_count(1000), deadline=None, database=None)
    @given(st.dictionaries(KEYS, VALUES, max_size=4))
    def collect(arguments: dict[str, Any]) -> None:
        examples.append(accepted(arguments))

    collect()
    return examples


def parse_for_real(texts: list[str], folder: Path) -> list[dict[str, Any]]:
    texts_path, values_path = folder / "texts.json", folder / "values.json"
    texts_path.write_text(json.dumps(texts))
    subprocess.run([os.environ[REAL_PYTHON], "-W", "ignore", "-c", PARSE, texts_path, values_path], check=True)
    return json.loads(values_path.read_text())


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get(REAL_PYTHON), reason=f"{REAL_PYTHON} names no interpreter with lmms-eval: `make test-all` has one"
)
def test_lmms_evals_own_parser_reads_every_accepted_argument_back(tmp_path: Path) -> None:
    examples = accepted_examples()
    texts = [argument_string(model_args(example).model_args) for example in examples]
    for example, read in zip(examples, parse_for_real(texts, tmp_path), strict=True):
        for key, value in example.items():
            assert (json.loads(read[key]) if isinstance(value, list | dict) else read[key]) == value
            assert isinstance(read[key], bool) == isinstance(value, bool)
        assert read.keys() == example.keys()


def log(case: str) -> list[str]:
    names = [name for name in ("stdout.log", "stderr.log", "combined.log") if (DATA / case / name).exists()]
    return [line for name in names for line in re.split(r"[\r\n]", (DATA / case / name).read_text())]


def tasks_of(case: str) -> list[str]:
    named = {"ok_two_tasks": ["tiny_b", "tiny_gen"], "ok_llava_hf_local_path": ["tiny_vqa"], "ok_group": ["sums"]}
    return named.get(case, ["tiny_gen"])


def read(case: str, output_dir: Path | None = None, **fields: Any) -> Mapping[str, Any]:
    code = int((DATA / case / "exit_code").read_text())
    exit_status = Exit(code=code) if code >= 0 else Exit(signal=-code)
    run = run_of(request_of(**{"tasks": tasks_of(case), **fields}), output_dir=output_dir or DATA / case / "output")
    return harness().read_results(run, exit_status, log(case))


def failure(case: str, output_dir: Path | None = None, **fields: Any) -> tuple[str, str]:
    with pytest.raises(RunFailedError) as caught:
        read(case, output_dir, **fields)
    return caught.value.job_error.reason, caught.value.job_error.message


@pytest.mark.parametrize("case", OK)
def test_a_good_run_is_good(case: str) -> None:
    ((_, result),) = read(case).items()
    assert set(tasks_of(case)) <= {task.task for task in result.tasks}


@pytest.mark.parametrize(
    ("case", "reason", "message"),
    [
        (
            "fail_dataset_missing_rc0",
            "HARNESS_FAILED",
            "FileNotFoundError: Unable to find '/srv/eval/data/does_not_exist.jsonl'",
        ),
        ("fail_limit_nan_rc0", "HARNESS_FAILED", "ValueError: cannot convert float NaN to integer"),
        ("fail_usage_rc2", "HARNESS_FAILED", "unrecognized arguments: --nosuchflag 3"),
        (
            "fail_unwritable_output_rc0",
            "RESULTS_MISSING",
            "no results: lmms-eval could not save them: NotADirectoryError(20, 'Not a directory')",
        ),
        (
            "silent_api_500_results_written",
            "ALL_REQUESTS_FAILED",
            "5 of 5 answers to task tiny_gen failed: Error code: 500 - stub failure",
        ),
        ("killed_sigkill", "PROCESS_SIGNALLED", "the harness was ended by SIGKILL (signal 9)"),
        ("killed_sigterm", "PROCESS_SIGNALLED", "the harness was ended by SIGTERM (signal 15)"),
    ],
)
def test_a_failed_run_says_why(case: str, reason: str, message: str) -> None:
    assert failure(case) == (reason, message)


@pytest.mark.parametrize("case", ["fail_unknown_model_rc0", "fail_unknown_model_debug_rc1"])
def test_an_unknown_model_is_named(case: str) -> None:
    reason, message = failure(case)
    assert reason == "HARNESS_FAILED"
    assert message == "ValueError: there is no model 'nosuchmodel'; did you mean async_hf_model?"


def test_an_unknown_task_is_named() -> None:
    reason, message = failure("fail_unknown_task_rc0")
    assert reason == "HARNESS_FAILED"
    assert message.startswith("ValueError: Tasks not found: nosuchtask. ")


def test_a_task_without_results_is_named() -> None:
    assert failure("ok_two_tasks", tasks=["tiny_b", "tiny_gen", "other"]) == (
        "TASKS_MISSING",
        "there are results, but none of: other",
    )


def test_results_after_a_bad_exit_are_not_trusted() -> None:
    run = run_of(request_of(), output_dir=DATA / "ok_predict_only" / "output")
    with pytest.raises(RunFailedError, match="the harness exited with code 1 and wrote nothing"):
        harness().read_results(run, Exit(code=1), [])


def test_results_of_a_run_whose_end_nobody_saw_are_judged_by_themselves() -> None:
    run = run_of(request_of(), output_dir=DATA / "ok_predict_only" / "output")
    assert harness().read_results(run, Exit(), [])


def test_no_results_and_no_reason_is_said_so(tmp_path: Path) -> None:
    assert failure("ok_predict_only", output_dir=tmp_path) == (
        "RESULTS_MISSING",
        "no results: lmms-eval left none, and its log does not say why",
    )


def test_the_model_of_flat_results_is_the_one_asked_for() -> None:
    assert list(read("ok_no_model_name_flat")) == ["dummy"]


def follow(lines: list[str]) -> list[Progress]:
    progress, changes = Progress(), []
    for line in lines:
        if harness().read_progress(line, progress):
            changes.append(Progress())
            changes[-1].CopyFrom(progress)
    return changes


def test_progress_of_a_real_run_rises_to_all_of_its_requests() -> None:
    stdout, stderr = (DATA / "ok_two_tasks" / name for name in ("stdout.log", "stderr.log"))
    start = stdout.read_text().partition("Running generate_until")[0]
    changes = follow(re.split(r"[\r\n]", start) + re.split(r"[\r\n]", stderr.read_text()))
    assert [change.done for change in changes] == sorted(change.done for change in changes)
    assert [change.phase for change in changes] == sorted(change.phase for change in changes)
    assert {change.current_task for change in changes} == {"", "tiny_gen", "tiny_b"}
    last = changes[-1]
    assert (last.phase, last.done, last.total, last.unit) == (Progress.PHASE_SCORING, 40, 40, "requests")
    assert not last.HasField("rate_per_second")


def test_progress_of_a_run_that_was_killed_stays_where_it_was() -> None:
    last = follow(log("killed_sigterm"))[-1]
    assert last.phase == Progress.PHASE_EVALUATING
    assert 0 < last.done < last.total == 2000
    assert last.rate_per_second > 0
    assert last.time_left.seconds > 0


@pytest.mark.parametrize(
    ("line", "done", "total", "rate", "seconds_left"),
    [
        ("Model Responding:  20%|██ | 4/20 [00:00<00:01, 20.73it/s, tokens=44]", 4, 20, 20.73, 1),
        ("Model Responding:   5%|▌  | 1/20 [00:04<01:16,  4.00s/it, tokens=0]", 1, 20, 0.25, 76),
        ("Model Responding:   0%|   | 0/20 [00:00<?, ?it/s]", 0, 20, None, None),
        ("Model Responding: 100%|███| 20/20 [1:00:00<2:03:04, 0.00s/it]", 20, 20, None, 7384),
        ("[rank 0] Model Responding: 104/2837 (3.7%) | 1.52 it/s | elapsed 1m08s | ETA 30m02s", 104, 2837, 1.52, 1802),
        (
            "\x1b[32m2026\x1b[0m | \x1b[1m[rank 0] Model Responding: 9/10 (90.0%) | 2.00 it/s | elapsed 4s | ETA 1h02m\x1b[0m",
            9,
            10,
            2,
            3720,
        ),
        ("Multi-round Responding:  50%|█ | 1/2 [00:01<00:01,  1.00it/s]", 1, 2, 1, 1),
    ],
)
def test_a_bar_is_read(line: str, done: int, total: int, rate: float | None, seconds_left: int | None) -> None:
    (progress,) = follow([line])
    assert (progress.phase, progress.done, progress.total, progress.unit) == (
        Progress.PHASE_EVALUATING,
        done,
        total,
        "requests",
    )
    assert (progress.rate_per_second if progress.HasField("rate_per_second") else None) == rate
    assert (progress.time_left.seconds if progress.HasField("time_left") else None) == seconds_left


@pytest.mark.parametrize(
    "line",
    [
        "",
        "  0%|          | 0/20 [00:00<?, ?it/s]",
        "Loading checkpoint shards:  50%|██ | 1/2 [00:00<00:00, 1.00it/s]",
        "[rank 1] Model Responding: 4/20 (20.0%) | 1.00 it/s | elapsed 4s | ETA 16s",
        "Model Responding:   0%|   | 0/0 [00:00<?, ?it/s]",
        "Responding 1/2" * 100_000,
        "1" * 200_000,
        "Responding " * 20_000,
    ],
)
def test_a_line_of_no_meaning_changes_nothing(line: str) -> None:
    assert follow([line]) == []


def test_the_same_line_twice_changes_nothing() -> None:
    assert len(follow(["Model Responding:  20%|██ | 4/20 [00:00<00:01, 20.73it/s]"] * 2)) == 1


def test_bars_that_follow_each_other_add_up() -> None:
    drawn = [(0, 3), (3, 3), (0, 5), (2, 5), (5, 5), (5, 5), (0, 5), (1, 5)]
    changes = follow([f"Model Responding: {done}/{total}" for done, total in drawn])
    assert [(change.done, change.total) for change in changes] == [(0, 3), (3, 3), (3, 8), (5, 8), (8, 8), (8, 13), (9, 13)]


def test_an_answer_in_the_log_cannot_turn_progress_back() -> None:
    lines = ["Running generate_until requests", "Model Responding: 4/8", "Selected Tasks: ['x']", "Model Responding: 2/8"]
    last = follow(lines)[-1]
    assert (last.phase, last.done) == (Progress.PHASE_EVALUATING, 4)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_done_never_falls_nor_passes_the_total(drawn: list[tuple[int, int]]) -> None:
    changes = follow([f"Model Responding: {done}/{total}" for done, total in drawn])
    assert [change.done for change in changes] == sorted(change.done for change in changes)
    assert all(change.done <= change.total for change in changes)


def environment(tmp_path: Path, version: str | None = "0.7.3") -> Path:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    if version:
        (packages / f"lmms_eval-{version}.dist-info").mkdir()
    return python


def test_info_tells_the_version_installed(tmp_path: Path) -> None:
    info = harness(python=environment(tmp_path)).info()
    assert (info.name, info.kind, info.version, info.available) == ("lmms-eval", "lmms-eval", "0.7.3", True)


def test_the_version_of_the_results_is_the_one_installed(tmp_path: Path) -> None:
    run = run_of(request_of(), output_dir=DATA / "ok_openai_stub" / "output")
    for python, version in ((environment(tmp_path), "0.7.3"), (Path("/none/bin/python"), "unknown@unknown")):
        (result,) = harness(python=python).read_results(run, Exit(code=0), []).values()
        assert dict(result.harness_versions) == {"lmms_eval": version}


@pytest.mark.parametrize(
    ("version", "fields", "args", "unshown"),
    [
        ("0.7.3", {"model": "openai"}, (), ["a", "b"]),
        ("0.7.3", {"model": "openai_compatible_chat"}, (), ["a", "b"]),
        ("0.7.2", {"model": "openai"}, (), ["a", "b", "text"]),
        ("0.7.3", {"model": "dummy"}, (), []),
        ("0.7.3", {"model": "openai", "task_args": {"force_simple": True}}, (), []),
        ("0.7.3", {"model": "openai"}, ("--force_simple",), []),
    ],
)
def test_examples_that_a_chat_does_not_have_are_not_counted(
    version: str, fields: Mapping[str, Any], args: tuple[str, ...], unshown: list[str], tmp_path: Path
) -> None:
    python = environment(tmp_path, version)
    for name in ("chat/openai", "simple/openai", "simple/dummy"):
        module = tmp_path / f"lib/python3.11/site-packages/lmms_eval/models/{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.touch()
    configs = {"a": {"doc_to_visual": "<function f>"}, "b": {"doc_to_messages": "<function g>"}, "text": {}}
    document = {
        "results": {task: {"acc,none": 0.5} for task in configs},
        "configs": configs,
        "n-shot": dict.fromkeys(configs, 3),
    }
    (tmp_path / "20260214_103045_results.json").write_text(json.dumps(document))
    run = run_of(request_of(**{"tasks": list(configs), "num_fewshot": 3, **fields}), output_dir=tmp_path)
    (result,) = harness(python=python, args=args).read_results(run, Exit(code=0), []).values()
    assert [task.task for task in result.tasks if task.num_fewshot == 0] == unshown
    assert {task.num_fewshot for task in result.tasks} <= {0, 3}
    said = [warning for warning in result.warnings if warning.startswith("num_fewshot: 0 shown and not 3, since lmms-eval")]
    assert [warning.rpartition(": ")[2] for warning in said] == ([", ".join(unshown)] if unshown else [])


JUDGE_FAILED = "Error code: 401 - bad key"


@pytest.mark.parametrize(
    ("lines", "warnings"),
    [
        (
            [
                f"Post: 0%|\x1b[31m\x1b[1mERROR   \x1b[0m | \x1b[36mutils\x1b[0m:f:20 - \x1b[31m{JUDGE_FAILED}\x1b[0m",
                "02:20:04 | ERROR    | lmms_eval.llm_judge.providers.openai:evaluate:121 - All 3 attempts failed",
            ],
            [f"errors at the end of the log: 2, the first: {JUDGE_FAILED}"],
        ),
        (
            [
                "02:20:04 | WARNING  | lmms_eval.loggers.evaluation_tracker:save:332 - Could not save sample results",
                "02:20:04 | INFO     | lmms_eval.loggers.evaluation_tracker:save:333 - OSError(28, 'No space')",
            ],
            ["samples are missing, since they could not be saved: OSError(28, 'No space')"],
        ),
        (
            ["02:20:04 WARNING  [loggers.evaluation_tracker:419] Could not save sample results"],
            ["samples are missing, since they "],
        ),
        (
            ["02:20:04 WARNING  [models.huggingface:1431] Too long. Truncating 9 tokens from the left."],
            ["some of what the model was asked was cut off: Too long. Truncating 9 tokens from the left."],
        ),
        (["02:20:04 INFO     [models.huggingface:1431] Truncating nothing"], []),
        (["02:20:04 | ERROR    | lmms_eval.models.simple.llava_hf:generate_until:376 - retrying"], []),
        (["02:20:04 | WARNING  | utils:judge:98 - Attempt 1 failed", "an answer with ERROR | in it"], []),
    ],
)
def test_what_the_log_says_against_the_results_is_a_warning(lines: list[str], warnings: list[str], tmp_path: Path) -> None:
    (tmp_path / "20260214_103045_results.json").write_text(json.dumps({"results": {"tiny_gen": {"score,none": 0.0}}}))
    run = run_of(request_of(tasks=["tiny_gen"]), output_dir=tmp_path)
    (result,) = harness().read_results(run, Exit(code=0), ["before", *lines, "after"]).values()
    assert len(result.warnings) == len(warnings)
    assert all(said.startswith(expected) for said, expected in zip(result.warnings, warnings, strict=True))


def test_info_says_what_to_do_where_lmms_eval_is_not_installed(tmp_path: Path) -> None:
    python = environment(tmp_path, version=None)
    info = harness(python=python).info()
    assert not info.available
    assert info.unavailable_reason == f"lmms-eval is not installed for {python}: run `{python} -m pip install lmms_eval`"


@pytest.mark.parametrize(
    ("version", "available"),
    [
        *(("0.6.0", False), ("0.5.0.post1", False), ("0.6.1rc1", True), ("0.6.1.dev0+g12ab34", True), ("0.7+local.1", True)),
        *(
            ("0.6.0+cu121", False),
            ("10.0", True),
            ("0.1.dev12+g12ab34c", True),
            ("0+unknown", True),
            ("0.0.0+untagged.g1", True),
        ),
    ],
)
def test_a_version_is_old_by_its_numbers_unless_it_is_made_up(version: str, available: bool, tmp_path: Path) -> None:
    info = harness(python=environment(tmp_path, version)).info()
    assert (info.version, info.available) == (version, available)
    assert ("is too old: run " in info.unavailable_reason) is not available


def test_what_the_interpreter_finds_elsewhere_is_installed(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", version=None)
    base = tmp_path / "base/lib/python3.11/site-packages"
    (base / "lmms_eval-0.7.2-py3.11.egg-info").mkdir(parents=True)
    settings = tmp_path / "venv/pyvenv.cfg"
    for shares in ("false", "true"):
        settings.write_text(f"home = {tmp_path / 'base/bin'}\ninclude-system-site-packages = {shares}\n")
        info = harness(python=python).info()
        assert (info.version, info.available) == (("0.7.2", True) if shares == "true" else ("", False))
    settings.unlink()
    (tmp_path / "source/lmms_eval").mkdir(parents=True)
    (tmp_path / "source/lmms_eval/__init__.py").touch()
    info = harness(python=python, env={"PYTHONPATH": f"/none:{tmp_path / 'source'}"}).info()
    assert (info.version, info.available, info.unavailable_reason) == ("", True, "")


def test_info_says_what_to_do_where_there_is_no_interpreter() -> None:
    info = harness(python=Path("/none/bin/python")).info()
    assert not info.available
    assert info.unavailable_reason == (
        "there is no program /none/bin/python: set harnesses.lmms-eval.python to lmms-eval's interpreter"
    )


def test_info_names_an_include_path_that_is_missing(tmp_path: Path) -> None:
    info = harness(python=environment(tmp_path), include_path=(tmp_path, tmp_path / "none")).info()
    assert info.unavailable_reason == f"harnesses.lmms-eval.include_path: there is no folder {tmp_path / 'none'}"


def test_harnesses_are_built_by_kind() -> None:
    configured = {
        "lmms-eval": HarnessSettings("lmms-eval", "lmms-eval"),
        "nightly": HarnessSettings("nightly", "command", command=("true",)),
    }
    built = build_harnesses(Settings(harnesses=configured))
    assert {name: (harness.name, harness.kind) for name, harness in built.items()} == {
        "lmms-eval": ("lmms-eval", "lmms-eval"),
        "nightly": ("nightly", "command"),
    }


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(
        ConfigurationError,
        match=re.escape("setting harnesses.x.kind: y is unknown; there are: command, inspect-ai, lm-eval, lmms-eval"),
    ):
        build_harnesses(Settings(harnesses={"x": HarnessSettings("x", "y")}))


def test_a_violation_says_what_to_do() -> None:
    assert list(harness().violations(request_of(model_args={"a": None, "b": "1"}))) == [
        FieldViolation("model_args.a", "lmms-eval has no null: leave the argument out"),
        FieldViolation("model_args.b", "lmms-eval would read this text as a number or boolean: give it as one"),
    ]
