"""The forms of output: tables in a pipe, CSV, JSON and JSON lines; and the exit codes."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import terminal_jobs as jobs
from click.testing import Result
from fake_server import JOB_ID, FakeService, job_at
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc import errors
from evalrpc.cli import job_table, wording
from evalrpc.cli.exit_codes import ExitCode
from evalrpc.v1.catalog_pb2 import HarnessInfo, ListTasksResponse
from evalrpc.v1.comparison_pb2 import JobComparison
from evalrpc.v1.history_pb2 import HistoryPoint
from evalrpc.v1.jobs_pb2 import JobAttempt, JobError, JobEvent, JobInfo, JobStatus, Progress
from evalrpc.v1.queue_pb2 import GetQueueResponse
from evalrpc.v1.results_pb2 import ModelMetric

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def filled(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    class FixedClock:
        def now(self) -> Timestamp:
            return jobs.at(0)

        def monotonic(self) -> float:
            return 0.0

    jobs.fill(service)
    monkeypatch.setattr(job_table, "clock", FixedClock())


def table(result: Result) -> list[dict[str, str]]:
    header, *rows = (line.split("\t") for line in result.stdout.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def csv_table(result: Result) -> list[dict[str, str]]:
    assert result.stdout_bytes.count(b"\r\n") == result.stdout_bytes.count(b"\n")
    return list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline="")))


def test_a_pipe_gets_a_header_and_tabs_with_a_line_for_every_job(run: Run) -> None:
    rows = table(run("list"))

    assert [row["job"] for row in rows] == [
        jobs.RUNNING,
        jobs.COMPLETED,
        jobs.FAILED,
        jobs.QUEUED,
        jobs.CANCELLED,
        jobs.FOREIGN,
    ]
    assert [row["duration"] for row in rows] == ["1h05m", "2m05s", "59s", "", "", "50s"]
    assert rows[2]["detail"].startswith("HARNESS_FAILED: FileNotFoundError")
    assert rows[4]["detail"] == "cancelled on request"
    assert "labels" not in rows[0]


@pytest.mark.parametrize("command", ["list", "watch-all"])
@pytest.mark.parametrize("flags", [["-L", "run,step"], ["-L", "run", "--label-columns", "step"]])
def test_labels_are_columns_of_their_own_if_they_are_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, flags: list[str]
) -> None:
    stop_after_bookmark(monkeypatch)
    rows = table(run(command, *flags))

    assert [(row["run"], row["step"]) for row in rows[:2]] == [("sft-large", "500"), ("sft-large", "1000")]
    assert (rows[4]["run"], rows[4]["step"]) == ("", "")


@pytest.mark.parametrize("command", ["list", "watch-all"])
def test_the_wide_form_has_all_labels(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    stop_after_bookmark(monkeypatch)
    rows = table(run(command, "-o", "wide"))

    assert rows[0]["labels"] == "run=sft-large, step=500"
    assert rows[0]["harness"] == "lmms-eval"


def test_watch_all_prints_a_row_for_each_change_that_shows_but_none_for_the_passing_of_time(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_at(JobStatus.JOB_STATUS_RUNNING, progress=Progress(done=1, total=2, elapsed=Duration(seconds=1)))
    same, later = JobInfo(), JobInfo()
    same.CopyFrom(first)
    same.progress.elapsed.FromSeconds(5)
    later.CopyFrom(first)
    later.progress.done = 2
    monkeypatch.setattr("evalrpc.client.EvalClient.watch_all", lambda *_, **__: iter(map(event, (first, same, later))))

    rows = table(run("watch-all"))

    assert [row["detail"] for row in rows] == ["1/2", "2/2"]


def event(job: JobInfo) -> JobEvent:
    return JobEvent(job=job)


def stop_after_bookmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from terminal_program import _watch_until_bookmark

    monkeypatch.setattr("evalrpc.client.EvalClient.watch_all", _watch_until_bookmark)


def test_csv_has_a_header_all_columns_and_every_digit(run: Run) -> None:
    rows = csv_table(run("results", jobs.COMPLETED, "-o", "csv"))

    assert [(row["task"], row["value"]) for row in rows] == [
        ("demo_colour_naming", "0.75"),
        ("demo_colour_naming", "12345678901.5"),
        ("mme", "nan"),
        ("all", "0.5"),
    ]
    assert {row["model"] for row in rows} == {"acme__lm-7b-instruct"}


@pytest.mark.parametrize(
    ("command", "column", "count"),
    [
        (["list"], "labels", 6),
        (["get", jobs.RUNNING], "field", 11),
        (["history"], "value", 16),
        (["compare", jobs.RUNNING, jobs.COMPLETED], "verdict", 3),
        (["harnesses"], "available", 2),
        (["tasks"], "task", 3),
        (["models"], "model", 3),
        (["info"], "field", 7),
        (["queue"], "value", 32),
        (["doctor", "--listen", "127.0.0.1:0"], "detail", 4),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_every_command_that_prints_a_table_prints_csv(run: Run, command: list[str], column: str, count: int) -> None:
    rows = csv_table(run(*command, "-o", "csv"))

    assert len(rows) >= count
    assert all(column in row for row in rows)


def test_a_watch_as_csv_has_nothing_but_the_table_on_stdout(run: Run) -> None:
    result = run("watch", jobs.COMPLETED, "-o", "csv")

    assert len(csv_table(result)) == 4
    assert "COMPLETED" in result.stderr


@pytest.mark.parametrize(
    ("command", "item", "count"),
    [
        (["list"], JobInfo, 6),
        (["get", jobs.RUNNING], JobInfo, 1),
        (["watch", jobs.COMPLETED], JobEvent, 1),
        (["results", jobs.COMPLETED], ModelMetric, 4),
        (["history"], HistoryPoint, 8),
        (["compare", jobs.RUNNING, jobs.COMPLETED], JobComparison, 3),
        (["harnesses"], HarnessInfo, 2),
        (["tasks"], ListTasksResponse, 3),
        (["queue"], GetQueueResponse, 1),
        (["submit", "--model", "m", "--tasks", "t"], JobInfo, 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_jsonl_is_a_message_per_line(run: Run, command: list[str], item: type[Message], count: int) -> None:
    lines = run(*command, "-o", "jsonl").stdout.splitlines()

    assert len(lines) == count
    for line in lines:
        assert json_format.Parse(line, item()) != item()


@pytest.mark.parametrize(
    "command", [["list"], ["get", jobs.RUNNING], ["history"], ["compare", jobs.RUNNING, jobs.COMPLETED], ["queue"], ["tasks"]]
)
def test_json_is_short_for_the_form_json(run: Run, command: list[str]) -> None:
    assert run(*command, "--json").stdout == run(*command, "-o", "json").stdout


def test_contradicting_forms_are_a_wrong_call(run: Run) -> None:
    result = run("list", "--json", "-o", "csv")

    assert result.exit_code == 2
    assert "--json means -o json" in result.stderr
    assert run("list", "--json", "-o", "json").exit_code == 0


def test_samples_have_the_same_order_of_keys_in_every_row(run: Run) -> None:
    lines = run("samples", jobs.COMPLETED).stdout.splitlines()

    assert [list(json.loads(line)) for line in lines] == [["answer", "doc_id"]] * 3


# Exit codes


def test_the_exit_codes_are_those_that_scripts_depend_on() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "NOT_PASSED": 1,
        "WRONG_CALL": 2,
        "UNREACHABLE": 3,
        "NOT_ALLOWED": 4,
        "TIMED_OUT": 124,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("error", "exit_code", "text"),
    [
        (errors.JobNotFoundError("there is no such job"), 2, "evalrpc: there is no such job\n"),
        (errors.QueueFullError("the queue is full"), 2, "evalrpc: the queue is full\n"),
        (errors.StoreUnavailableError("its disk is full"), 3, "can't do this now: its disk is full\n"),
        (errors.UnauthenticatedError("no token"), 4, "not signed in to the server"),
        (errors.PermissionDeniedError("not yours"), 4, "not allowed by the server"),
        (errors.InternalError("a bug"), 2, "evalrpc: a bug\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_has_its_exit_code_and_one_line(run: Run, service: FakeService, error: Any, exit_code: int, text: str) -> None:
    service.errors["GetQueue"] = [error] * 9  # a client retries what may succeed later

    result = run("queue")

    assert result.exit_code == exit_code
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


# Words


def test_how_a_job_ended_is_said_once() -> None:
    cancelled = job_at(JobStatus.JOB_STATUS_CANCELLED, error=JobError(reason="CANCELLED", message="cancelled on request"))
    superseded = job_at(JobStatus.JOB_STATUS_CANCELLED, error=JobError(reason="SUPERSEDED", message="by another"))
    failed = job_at(JobStatus.JOB_STATUS_FAILED, error=JobError(reason="OUT_OF_MEMORY", message="no memory"))

    assert wording.describe(cancelled) == "CANCELLED: cancelled on request"
    assert wording.describe(superseded) == "CANCELLED, SUPERSEDED: by another"
    assert wording.describe(failed) == "FAILED, OUT_OF_MEMORY: no memory"
    assert [wording.detail(job) for job in (cancelled, failed)] == ["cancelled on request", "OUT_OF_MEMORY: no memory"]


def test_a_job_that_is_tried_again_says_why() -> None:
    lost = JobAttempt(number=1, error=JobError(reason="RUN_LOST", message="its machine restarted"))
    waiting = job_at(JobStatus.JOB_STATUS_QUEUED, attempts=[lost], wait_reason="for 1 GPU")

    assert wording.describe(waiting) == "QUEUED, for 1 GPU, after attempt 1: RUN_LOST: its machine restarted"


def test_the_end_of_a_log_does_not_repeat_the_message() -> None:
    message = "ValueError: there is no model 'x'; did you mean y?"
    tail = ["Traceback:", "ERROR x: there is no model 'x'; did you mean y?", f"  {message}", "bye"]

    assert wording.new_lines(tail, message) == ["Traceback:", "bye"]
    assert wording.new_lines(["'x' is short", "KeyError: 'x'"], "KeyError: 'x'") == ["'x' is short"]
    assert wording.new_lines(["", "a"], "") == ["", "a"]


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (JobInfo(status=JobStatus.JOB_STATUS_QUEUED), ""),
        (JobInfo(status=JobStatus.JOB_STATUS_RUNNING, started_at=Timestamp(seconds=100)), "1m05s"),
        (JobInfo(status=JobStatus.JOB_STATUS_RUNNING, started_at=Timestamp(seconds=999)), "0s"),
        (JobInfo(status=JobStatus.JOB_STATUS_QUEUED, started_at=Timestamp(seconds=100)), ""),
        (
            JobInfo(
                status=JobStatus.JOB_STATUS_COMPLETED,
                started_at=Timestamp(seconds=100),
                completed_at=Timestamp(seconds=100 + 90_000),
            ),
            "1d01h",
        ),
        (JobInfo(status=JobStatus.JOB_STATUS_CANCELLED, completed_at=Timestamp(seconds=100)), ""),
    ],
    ids=["queued", "running", "a clock that lags", "to be tried again", "completed", "never ran"],
)
def test_the_duration_is_that_of_the_run_so_far_or_in_all(job: JobInfo, text: str) -> None:
    assert wording.run_time(job, Timestamp(seconds=165)) == text


@pytest.mark.parametrize(
    ("call", "command"),
    [
        ("ListJobs", ("list",)),
        ("ListMetrics", ("metrics", JOB_ID)),
        ("ListTasks", ("tasks",)),
        ("WatchJobs", ("watch-all",)),
        ("GetJob", ("wait", JOB_ID, "--timeout", "1h")),
    ],
)
@pytest.mark.parametrize("form", [(), ("-o", "csv")])
def test_an_error_is_printed_without_a_table(
    run: Run, service: FakeService, call: str, command: tuple[str, ...], form: tuple[str, ...]
) -> None:
    service.errors[call] = [errors.InvalidRequestError("no")] * 3

    result = run(*command, *form)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "evalrpc: no\n")
