"""The one line that says why a run failed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit
from evalrpc.harnesses.failures import (
    MAX_MESSAGE_CHARACTERS,
    check_exit,
    failed,
    failure_or_last_line,
    find_failure,
    shorten,
    without_listing,
)

DATA = Path(__file__).parent.parent / "data" / "lmms_eval"

UNKNOWN_MODEL = "ValueError: there is no model 'nosuchmodel'; did you mean async_hf_model?"
UNKNOWN_TASK = (
    "ValueError: Tasks not found: nosuchtask. Try `lmms-eval --tasks {list_groups,list_subtasks,list_tags,list}` "
    "to list out all available names for task groupings; only (sub)tasks; tags; or all of the above, or pass "
    "'--verbosity DEBUG' to troubleshoot task registration issues."
)


def log(case: str) -> list[str]:
    return [line for name in ("stdout.log", "stderr.log") for line in (DATA / case / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("fail_dataset_missing_rc0", "FileNotFoundError: Unable to find '/srv/eval/data/does_not_exist.jsonl'"),
        ("fail_limit_nan_rc0", "ValueError: cannot convert float NaN to integer"),
        ("fail_unknown_model_rc0", UNKNOWN_MODEL),
        ("fail_unknown_task_rc0", UNKNOWN_TASK),
        ("fail_usage_rc2", "unrecognized arguments: --nosuchflag 3"),
    ],
)
def test_a_real_failure_is_reported_in_its_own_words(case: str, message: str) -> None:
    assert find_failure(log(case)) == message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "ValueError: Model 'llava-hf' not found in available models: aero, llava, llava_hf, whisper",
            "ValueError: there is no model 'llava-hf'; did you mean llava_hf, llava?",
        ),
        (
            "ValueError: Attempted to load model 'hff', but no model for this name found! Supported model names: hf, vllm",
            "ValueError: there is no model 'hff'; did you mean hf?",
        ),
        (
            r"""KeyError: "Unknown model 'xyz'.\nAvailable: dummy, hf, vllm... (37 total)\"""",
            "KeyError: there is no model 'xyz'; ListModels has the names of all",
        ),
        (
            "ValueError: Unknown model 'hff'. Available models: dummy, hf, vllm",
            "ValueError: there is no model 'hff'; did you mean hf?",
        ),
        (
            "KeyError: \"Model 'hff' not found. Available models: dummy, hf, vllm\"",
            "KeyError: there is no model 'hff'; did you mean hf?",
        ),
        ("ValueError: Model 'x' was not found", "ValueError: Model 'x' was not found"),
    ],
)
def test_an_unknown_model_is_told_with_the_nearest_names_and_not_with_all(line: str, said: str) -> None:
    assert without_listing(line) == said
    assert find_failure([line]) == said


@pytest.mark.parametrize("line", ["Model 'x' not found in available models: " + "a, " * 100_000, "Unknown model '" * 10_000])
def test_a_listing_without_end_is_read_at_once(line: str) -> None:
    without_listing(line)


@pytest.mark.parametrize("case", ["ok_two_tasks", "ok_openai_stub", "ok_llava_hf_local_path", "ok_predict_only"])
def test_a_good_run_has_no_failure(case: str) -> None:
    assert find_failure(log(case)) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["ValueError: first", "torch.cuda.OutOfMemoryError: CUDA out of memory"],
            "torch.cuda.OutOfMemoryError: CUDA out of memory",
        ),
        (["RuntimeError: first line", "  second line", "  third line"], "RuntimeError: first line"),
        (["\x1b[31mValueError\x1b[0m: \x1b[1mred\x1b[0m"], "ValueError: red"),
        (["Traceback (most recent call last):", "AssertionError"], "AssertionError"),
        (["[rank1]: ValueError: one rank's"], "ValueError: one rank's"),
        (["KeyError: 'cause'", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "], "KeyError: 'cause'"),
        (["ChildFailedError: "], "ChildFailedError:"),
        (
            ["x | ERROR | a:b:1 - Error during evaluation: out of luck. Please set `--verbosity=DEBUG` to get more"],
            "out of luck",
        ),
        (["x | ERROR | a:b:1 - Error during evaluation: out of luck"], "out of luck"),
        (["__main__.py: error: argument --limit: invalid float value: 'x'"], "argument --limit: invalid float value: 'x'"),
        (["  0%| | 0/2\r 50%| | 1/2\rKeyError: 'after a bar'"], "KeyError: 'after a bar'"),
        (["Error: cannot open"], "Error: cannot open"),
    ],
)
def test_the_line_that_says_why_is_found(lines: list[str], message: str) -> None:
    assert find_failure(lines) == message


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["all is well"],
        ["  raise ValueError('quoted code')"],
        ["the ValueError: within a line"],
        ["a.py:3: UserWarning: x"],
    ],
)
def test_a_log_that_does_not_say_why_has_no_failure(lines: list[str]) -> None:
    assert find_failure(lines) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["", "  "], ""),
        (["KeyError: 'a'", "bye"], "KeyError: 'a'"),
        (["one", " \x1b[31mtwo\x1b[0m ", " "], "two"),
    ],
)
def test_where_no_line_says_why_the_last_one_stands_for_it(lines: list[str], said: str) -> None:
    assert failure_or_last_line(lines) == said


@settings(deadline=None)
@given(st.lists(st.text(max_size=40) | st.just("ValueError: " + "x" * 5000)))
def test_whatever_the_log_the_message_is_one_short_line(lines: list[str]) -> None:
    message = find_failure(lines)
    assert message is None or (0 < len(message) <= MAX_MESSAGE_CHARACTERS and len(message.splitlines()) == 1)


@pytest.mark.parametrize("line", ["a." * 100_000, "A" * 200_000, "ValueError: " + "y" * 200_000, "1" * 200_000, "a " * 100_000])
def test_a_line_without_end_is_read_at_once(line: str) -> None:
    find_failure([line])


def test_a_long_line_is_cut_at_the_end_of_a_word() -> None:
    assert shorten("word " * 100) == "word " * 59 + "…"
    assert shorten("x" * 400) == "x" * 298 + " …"


TORCHRUN_KILLED = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=======================================================
eval.py FAILED
-------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-25_16:57:17
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 19559)  (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 19559
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_16:57:17
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 19560)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 19560
=======================================================""".splitlines()


@pytest.mark.parametrize("exit_status", [Exit(code=0), Exit()])
def test_an_exit_that_was_good_or_that_nobody_saw_raises_nothing(exit_status: Exit) -> None:
    check_exit(exit_status, ["ValueError: handled"])


@pytest.mark.parametrize(
    ("exit_status", "lines", "reason", "message"),
    [
        (Exit(signal=9), [], "PROCESS_SIGNALLED", "the harness was ended by SIGKILL (signal 9)"),
        (
            Exit(signal=6),
            ["RuntimeError: x"],
            "PROCESS_SIGNALLED",
            "the harness was ended by SIGABRT (signal 6), after RuntimeError: x",
        ),
        (Exit(signal=99), [], "PROCESS_SIGNALLED", "the harness was ended by signal 99"),
        (Exit(code=1), ["KeyError: 'x'", "bye"], "HARNESS_FAILED", "KeyError: 'x'"),
        (Exit(code=3), ["", "no luck", ""], "HARNESS_FAILED", "the harness exited with code 3; its last line was: no luck"),
        (Exit(code=3), [], "HARNESS_FAILED", "the harness exited with code 3 and wrote nothing"),
        (Exit(code=137), [], "PROCESS_SIGNALLED", "a process of the harness was ended by SIGKILL (signal 9)"),
        (Exit(code=1), TORCHRUN_KILLED, "PROCESS_SIGNALLED", "a process of the harness was ended by SIGKILL (signal 9)"),
        (
            Exit(code=1),
            ["subprocess.CalledProcessError: Command '['python', '-m', 'x']' died with <Signals.SIGKILL: 9>."],
            "PROCESS_SIGNALLED",
            "a process of the harness was ended by SIGKILL (signal 9)",
        ),
        (
            Exit(code=1),
            ["RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. ", "KeyError: 'x'"],
            "PROCESS_SIGNALLED",
            "a process of the harness was ended by SIGKILL (signal 9), after KeyError: 'x'",
        ),
        (
            Exit(code=1),
            ["KeyError: 'x'", *TORCHRUN_KILLED[:-2], "  traceback : To enable traceback see: https://pytorch.org"],
            "HARNESS_FAILED",
            "KeyError: 'x'",
        ),
    ],
)
def test_a_bad_exit_is_a_failure(exit_status: Exit, lines: list[str], reason: str, message: str) -> None:
    with pytest.raises(RunFailedError) as caught:
        check_exit(exit_status, lines)
    assert (caught.value.job_error.reason, caught.value.job_error.message) == (reason, message)


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        "RuntimeError: CUDA error: out of memory",
        "MemoryError",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape (1000000000,)",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
@pytest.mark.parametrize("exit_status", [Exit(code=1), Exit(signal=6)])
def test_a_lack_of_memory_is_told_apart_however_the_harness_ended(exit_status: Exit, line: str) -> None:
    with pytest.raises(RunFailedError) as caught:
        check_exit(exit_status, [line])
    assert caught.value.job_error.reason == "OUT_OF_MEMORY"
    assert line in caught.value.job_error.message
    assert failed(line, "RESULTS_MISSING").job_error.reason == "OUT_OF_MEMORY", "after an exit with 0 as well"


@pytest.mark.parametrize("line", ["ValueError: nothing to remember", "KeyError: 'MemoryError'", "RuntimeError: out of luck"])
def test_other_failures_keep_their_reason(line: str) -> None:
    assert failed(line).job_error.reason == "HARNESS_FAILED"
    assert failed(line, "RESULTS_MISSING").job_error.reason == "RESULTS_MISSING"


OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [
                f"(EngineCore_DP0 pid=4321) ERROR 11-02 10:11:12 [core.py:708] {OUT_OF_MEMORY}",
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            ],
            OUT_OF_MEMORY,
        ),
        (
            [
                f"(VllmWorker rank=1 pid=33) {OUT_OF_MEMORY}",
                "vllm.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
            ],
            OUT_OF_MEMORY,
        ),
        (
            [
                "ERROR 06-01 10:00:00 engine.py:389] ValueError: No available memory for the cache blocks.",
                "RuntimeError: Engine process failed to start. See stack trace for the root cause.",
            ],
            "ValueError: No available memory for the cache blocks.",
        ),
        (
            ["ValueError: really", "concurrent.futures.process.BrokenProcessPool: A process was terminated abruptly"],
            "ValueError: really",
        ),
        (["vllm.EngineDeadError: EngineCore died"], "vllm.EngineDeadError: EngineCore died"),
    ],
)
def test_what_an_engine_died_of_counts_more_than_that_it_died(lines: list[str], message: str) -> None:
    assert find_failure(lines) == message


@pytest.mark.parametrize(("name", "number"), [("SIGKILL", 9), ("SIGSEGV", 11), ("SIGNOTHING", None)])
def test_a_process_that_torch_has_spawned_and_lost_is_told(name: str, number: int | None) -> None:
    line = f"torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated with signal {name}"
    with pytest.raises(RunFailedError) as caught:
        check_exit(Exit(code=1), [line])
    ended = f"a process of the harness was ended by {name} (signal {number})"
    assert caught.value.job_error.message == (line if number is None else ended)
