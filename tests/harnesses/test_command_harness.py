"""The command harness: any program of the operator's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse

from evalrpc.config import HarnessSettings
from evalrpc.errors import ConfigurationError, RunFailedError
from evalrpc.harnesses.base import Exit, Run
from evalrpc.harnesses.command import CommandHarness
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress

REQUEST = EvaluateRequest(harness="nightly", model="acme/m", tasks=["a", "b"], num_fewshot=0, limit=0.5)


def harness(*command: str, **more: Any) -> CommandHarness:
    return CommandHarness(HarnessSettings("nightly", "command", command=command or ("true",), **more))


def run_of(request: EvaluateRequest = REQUEST, output_dir: Path = Path("/d/out")) -> Run:
    return Run("job-1", 2, request, Path("/d"), output_dir, 0)


def test_every_placeholder_is_filled_in() -> None:
    built = harness(
        "python3", "eval.py", "--request={request_json}", "{output_dir}", "{model}:{tasks}", "{job_id}/{attempt}"
    ).command(run_of())
    assert built.argv == ("python3", "eval.py", "--request=/d/request.json", "/d/out", "acme/m:a,b", "job-1/2")


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    request = EvaluateRequest(model="{tasks}{job_id}", tasks=["{model}"])
    assert harness("eval", "{model}", "{tasks}").command(run_of(request)).argv == ("eval", "{tasks}{job_id}", "{model}")


def test_a_value_stays_within_its_argument() -> None:
    request = EvaluateRequest(model="a b; $(c) 'd", tasks=["t"])
    assert harness("p", "{model}").command(run_of(request)).argv == ("p", "a b; $(c) 'd")


def test_other_braces_are_left_alone() -> None:
    assert harness("p", '{"a": 1}', "${HOME }", "{}").command(run_of()).argv == ("p", '{"a": 1}', "${HOME }", "{}")


def test_the_request_file_holds_the_request_as_protobuf_json() -> None:
    ((path, content),) = harness().command(run_of()).files.items()
    assert path == Path("/d/request.json")
    assert Parse(content, EvaluateRequest()) == REQUEST
    assert json.loads(content)["num_fewshot"] == 0


def test_what_a_program_that_reads_no_request_can_not_know_is_warned_of() -> None:
    warning = "num_fewshot, limit: the command of harness nightly has no {request_json} to read that in"
    assert list(harness("p", "{model}", "{tasks}").warnings(REQUEST)) == [warning]
    assert not list(harness("p", "{request_json}").warnings(REQUEST))
    assert not list(harness("p", "{model}").warnings(EvaluateRequest(model="m", tasks=["t"], log_samples=True, num_gpus=1)))


def test_the_operators_environment_is_passed_on() -> None:
    assert harness(env={"A": "b"}).command(run_of()).env == {"A": "b"}


def test_an_unknown_placeholder_is_refused_when_the_server_starts() -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape("setting harnesses.nightly.command: {modle} is unknown; there are: {request_json}")
    ):
        harness("p", "{modle}")


def test_an_empty_command_is_refused_when_the_server_starts() -> None:
    with pytest.raises(ConfigurationError, match=re.escape("setting harnesses.nightly.command: is needed")):
        CommandHarness(HarnessSettings("nightly", "command"))


@pytest.mark.parametrize(("tasks", "fields"), [(REQUEST.tasks, []), (["a", "c,d"], ["tasks[1]"])])
def test_a_task_that_the_program_would_take_for_several_is_refused(tasks: list[str], fields: list[str]) -> None:
    request = EvaluateRequest(model="m", tasks=tasks)
    assert [violation.field for violation in harness().violations(request)] == fields


def write_result(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "20260214_103045_results.json").write_text('{"results": {"a": {"acc": 0.5}}}')


def test_exit_code_zero_and_one_result_is_success(tmp_path: Path) -> None:
    write_result(tmp_path / "m")
    results = harness().read_results(run_of(output_dir=tmp_path), Exit(code=0), [])
    assert [(name, result.metrics[0].metric, result.metrics[0].value) for name, result in results.items()] == [
        ("m", "acc", 0.5)
    ]


@pytest.mark.parametrize(
    ("exit_status", "log_tail", "reason", "message"),
    [
        (Exit(code=1), ["KeyError: 'x'"], "HARNESS_FAILED", "KeyError: 'x'"),
        (Exit(code=2), ["usage: p", "p: error: no such flag"], "HARNESS_FAILED", "no such flag"),
        (Exit(code=7), ["giving up"], "HARNESS_FAILED", "the harness exited with code 7; its last line was: giving up"),
        (Exit(signal=15), [], "PROCESS_SIGNALLED", "the harness was ended by SIGTERM (signal 15)"),
    ],
)
def test_a_bad_exit_fails_even_with_results(
    tmp_path: Path, exit_status: Exit, log_tail: list[str], reason: str, message: str
) -> None:
    write_result(tmp_path / "m")
    with pytest.raises(RunFailedError) as caught:
        harness().read_results(run_of(output_dir=tmp_path), exit_status, log_tail)
    assert (caught.value.job_error.reason, caught.value.job_error.message) == (reason, message)


BROKEN = {"error": {"message": "RuntimeError: gone"}}


@pytest.mark.parametrize(
    ("rows", "ratio", "reason", "said"),
    [
        ([BROKEN, BROKEN], None, "ALL_REQUESTS_FAILED", "2 of 2 answers to task a failed: RuntimeError: gone"),
        (
            [{"answer": None, "error": "gone"}, {"answer": "x"}],
            0.4,
            "TOO_MANY_BAD_ANSWERS",
            "1 of 2 answers to task a failed: gone",
        ),
        ([{"answer": ""}, {"answer": "x"}], 0.4, "TOO_MANY_BAD_ANSWERS", "1 of 2 answers to task a are empty"),
        ([BROKEN, {"answer": "x"}], 0.5, "", "1 of 2 answers to task a failed: RuntimeError: gone"),
        ([{"answer": ""}, {"answer": "\n"}], None, "", "2 of 2 answers to task a are empty"),
        ([{"answer": "x", "error": 0.5}, {"answer": "the error"}, {"answer": None, "acc": 1}], 0, "", ""),
    ],
)
def test_bad_answers_count_whoever_wrote_them(
    rows: list[object], ratio: float | None, reason: str, said: str, tmp_path: Path
) -> None:
    write_result(tmp_path / "m")
    samples = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "m" / "20260214_103045_samples_a.jsonl").write_text(samples)
    request = EvaluateRequest(model="m", tasks=["a"], max_bad_answer_ratio=ratio)
    if reason:
        with pytest.raises(RunFailedError) as caught:
            harness().read_results(run_of(request, tmp_path), Exit(code=0), [])
        assert (caught.value.job_error.reason, caught.value.job_error.message) == (reason, said)
        return
    (result,) = harness().read_results(run_of(request, tmp_path), Exit(code=0), []).values()
    assert list(result.warnings) == [said] * bool(said)


def test_no_results_is_a_failure_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError) as caught:
        harness().read_results(run_of(output_dir=tmp_path), Exit(code=0), [])
    assert caught.value.job_error.reason == "RESULTS_MISSING"
    assert caught.value.message == "the program left no file named like MODEL/20260214_103045_results.json"
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunFailedError, match=r"named like MODEL/20260214_103045_results\.json, but results\.json$"):
        harness().read_results(run_of(output_dir=tmp_path), Exit(code=0), [])


@pytest.mark.parametrize(
    ("line", "done", "total"),
    [
        (" 20%|██ | 4/20 [00:00<00:01, 20.73it/s]", 4, 20),
        ("questions:  20%|██ | 4/20 [00:00<00:01, 20.73it/s]", 4, 20),
        ("4/20", 4, 20),
        ("done: 4/20", 4, 20),
        ("done 4/20 (20%)", 4, 20),
    ],
)
def test_a_bar_is_progress(line: str, done: int, total: int) -> None:
    progress = Progress()
    assert harness().read_progress(line, progress)
    assert (progress.phase, progress.done, progress.total, progress.unit) == (Progress.PHASE_EVALUATING, done, total, "items")


@pytest.mark.parametrize("line", ["", "2026/11/23 hello", "attempt 1/3 failed", "a/b", "4/0", "/1/2", "ratio 1/2x"])
def test_a_line_without_a_bar_is_no_progress(line: str) -> None:
    assert not harness().read_progress(line, Progress())


def test_a_short_bar_within_a_long_one_does_not_count() -> None:
    progress = Progress()
    for line in ("5/100", "1/3", "3/3", "6/100"):
        harness().read_progress(line, progress)
    assert (progress.done, progress.total) == (6, 100)


def test_info_says_whether_there_is_a_program() -> None:
    assert harness("true").info().available
    info = harness("no-such-program").info()
    assert not info.available
    assert info.unavailable_reason == "there is no program no-such-program: install it or set harnesses.nightly.command"
