"""Reading what a run left, in a process of its own: the same as here, within limits, and broken off at will."""

import errno
import shutil
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness_cases import DATA
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.config import HarnessSettings
from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Run
from evalrpc.harnesses.registry import build_harness
from evalrpc.scheduling.limited_process import Limits
from evalrpc.scheduling.results_reader import IN_PLACE_BYTES, ResultsReader
from evalrpc.testing.recorded_runs import GOOD_EXIT, request_of

LIMITS = Limits()
RUNS = [
    (HarnessSettings("x", "lmms-eval"), DATA / "lmms_eval" / "ok_two_tasks", "dummy", ("tiny_b", "tiny_gen")),
    (HarnessSettings("x", "lm-eval"), DATA / "lm_eval" / "ok_dummy_random_name", "dummy", ("tiny_mc", "tiny_gen")),
    (HarnessSettings("x", "inspect-ai"), DATA / "inspect" / "ok_json", "mockllm/model", ("tiny",)),
]


def reader_of(settings: HarnessSettings, limits: Limits = LIMITS) -> ResultsReader:
    return ResultsReader(build_harness(settings), settings, limits)


def run_in(folder: Path, model: str = "m", tasks: tuple[str, ...] = ("t",)) -> Run:
    output_dir = folder / "output"
    output_dir.mkdir(exist_ok=True)
    return Run("job", 1, request_of(model=model, tasks=list(tasks)), folder, output_dir, 0)


def make_large(folder: Path) -> None:
    """Put something into the folder that no harness looks at, and that is too large to be read in the server."""
    (folder / "weights").write_bytes(bytes(IN_PLACE_BYTES + 1))


@pytest.fixture
def large_run(tmp_path: Path) -> Run:
    run = run_in(tmp_path)
    make_large(run.output_dir)
    return run


@pytest.fixture
def reader_that(plugin: Callable[[str, str], None]) -> Callable[..., ResultsReader]:
    """Return a reader of a harness that reads results with this code."""

    def build(code: str, limits: Limits = LIMITS) -> ResultsReader:
        head = """
            import json, os, sys, time
            from evalrpc.errors import RunFailedError
            from evalrpc.harnesses.command import CommandHarness
            from evalrpc.v1.results_pb2 import ModelResult
            class Harness(CommandHarness):
                def read_results(self, run, exit_status, log_tail):
        """
        plugin("acme_evalrpc:Harness", textwrap.dedent(head) + textwrap.indent(textwrap.dedent(code), " " * 8))
        return reader_of(HarnessSettings("x", "acme-eval", command=("program",)), limits)

    return build


def failure_of(reader: ResultsReader, run: Run) -> RunFailedError:
    with pytest.raises(RunFailedError) as caught:
        reader.read_results(run, GOOD_EXIT, [])
    return caught.value


@pytest.mark.parametrize(("settings", "case", "model", "tasks"), RUNS, ids=lambda value: getattr(value, "kind", None))
def test_what_is_large_is_read_as_what_is_small(
    settings: HarnessSettings, case: Path, model: str, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(case / "output", tmp_path / "output")
    run = run_in(tmp_path, model, tasks)
    reader = reader_of(settings)
    small = reader.read_results(run, GOOD_EXIT, [])
    make_large(run.output_dir)
    assert small
    assert reader.read_results(run, GOOD_EXIT, []) == small


def test_a_task_that_has_finished_is_read_in_place_or_in_a_process_of_its_own_alike(tmp_path: Path) -> None:
    shutil.copytree(DATA / "inspect" / "ok_json" / "output", tmp_path / "output")
    run = run_in(tmp_path, "mockllm/model", ("tiny",))
    (log,) = run.output_dir.glob("*.json")
    reader = reader_of(HarnessSettings("x", "inspect-ai"))
    assert reader.reports_tasks
    small = reader.read_finished(run, log.name)
    log.write_bytes(b" " * IN_PLACE_BYTES + log.read_bytes())
    assert small
    assert reader.read_finished(run, log.name) == small


def test_many_small_files_count_as_large_and_links_out_of_the_folder_do_not(
    reader_that: Callable[..., ResultsReader], tmp_path: Path
) -> None:
    reader = reader_that("return {str(os.getpid()): ModelResult()}")
    run = run_in(tmp_path)
    (run.output_dir / "link").symlink_to("/usr")
    (here,) = reader.read_results(run, GOOD_EXIT, [])
    assert (here,) == tuple(reader.read_results(run, GOOD_EXIT, []))
    for number in range(1000):
        (run.output_dir / str(number)).touch()
    assert (here,) != tuple(reader.read_results(run, GOOD_EXIT, []))


def test_what_a_harness_says_of_a_failed_run_arrives_whole(reader_that: Callable[..., ResultsReader], large_run: Run) -> None:
    code = """
        error = RunFailedError("TASKS_MISSING", "none of: t")
        error.job_error.log_tail.append("last line")
        raise error
    """
    error = failure_of(reader_that(code), large_run)
    assert error.message == error.job_error.message == "none of: t"
    assert (error.job_error.reason, list(error.job_error.log_tail)) == ("TASKS_MISSING", ["last line"])


def test_what_the_server_lacks_is_no_fault_of_the_run(reader_that: Callable[..., ResultsReader], large_run: Run) -> None:
    reader = reader_that("raise OSError(24, 'Too many open files')")
    with pytest.raises(OSError, match="Too many open files") as caught:
        reader.read_results(large_run, GOOD_EXIT, [])
    assert caught.value.errno == errno.EMFILE


def test_a_bug_arrives_with_its_traceback(reader_that: Callable[..., ResultsReader], large_run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)acme_evalrpc\.py.*ZeroDivisionError"):
        reader_that("1 / 0").read_results(large_run, GOOD_EXIT, [])


def test_a_process_that_ends_without_an_answer_says_nothing_about_the_run(
    reader_that: Callable[..., ResultsReader], large_run: Run
) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        reader_that("os._exit(3)").read_results(large_run, GOOD_EXIT, [])


@pytest.mark.parametrize(
    ("code", "limits", "problem"),
    [
        ("json.loads('[' + '[],' * 10**7 + '1]')", LIMITS._replace(memory_bytes=2**28), "256 MiB of memory"),
        ("while True: pass", LIMITS._replace(processor_seconds=1), "1 seconds of a processor"),
        ("os.abort()", LIMITS, "ended by signal 6"),
        ("return {'m': ModelResult(results='x' * 33 * 2**20)}", LIMITS, "bytes"),
    ],
)
def test_what_can_not_be_read_within_the_limits_is_invalid(
    code: str, limits: Limits, problem: str, reader_that: Callable[..., ResultsReader], large_run: Run
) -> None:
    error = failure_of(reader_that(code, limits), large_run)
    assert error.job_error.reason == "RESULTS_INVALID"
    assert problem in error.message


def test_what_a_harness_prints_does_not_garble_the_answer(
    reader_that: Callable[..., ResultsReader], large_run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    reader = reader_that("print('reading'); return {'m': ModelResult(results='/r.json')}")
    assert reader.read_results(large_run, GOOD_EXIT, [])["m"].results == "/r.json"
    assert capfd.readouterr() == ("", "reading\n")


@pytest.fixture
def endless(reader_that: Callable[..., ResultsReader], large_run: Run) -> Iterator[tuple[ResultsReader, list[Exception]]]:
    """A reader whose thread waits for a process that does not end, and what comes of it."""
    reader = reader_that("(run.output_dir / 'begun').touch(); time.sleep(1000)")
    outcome: list[Exception] = []

    def read() -> None:
        try:
            reader.read_results(large_run, GOOD_EXIT, [])
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    yield reader, outcome
    reader.close()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_reading_is_broken_off_and_none_begins_any_more(
    endless: tuple[ResultsReader, list[Exception]], large_run: Run
) -> None:
    reader, outcome = endless
    eventually((large_run.output_dir / "begun").exists)
    reader.close()
    eventually(lambda: outcome)
    with pytest.raises(OSError, match="nothing is read any more"):
        reader.read_results(large_run, GOOD_EXIT, [])
