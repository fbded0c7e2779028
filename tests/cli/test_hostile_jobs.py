"""Whatever a job, a client, a server or a file name says, nothing that a terminal obeys reaches it, in any form of output."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from fake_server import FakeService
from google.protobuf.struct_pb2 import Struct
from terminal_jobs import COMPLETED, FOREIGN, HOSTILE, fill, hostile_job

from evalrpc import errors
from evalrpc.cli import following
from evalrpc.errors import FieldViolation
from evalrpc.printable import first_unprintable
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.comparison_pb2 import CompareJobsResponse, JobComparison, MetricComparison
from evalrpc.v1.history_pb2 import GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JobStatus, Progress
from evalrpc.v1.queue_pb2 import Gpu
from evalrpc.v1.results_pb2 import Metric

Run = Callable[..., Result]

FORMS = [[], ["-o", "wide"], ["-o", "csv"], ["-o", "json"], ["-o", "jsonl"]]
SHOWN = r"\x1b[2J\x9b31m\x07a\u202eb\u200bc\u2028d"
TABLES = (
    ["list"],
    ["get", FOREIGN],
    ["watch", FOREIGN],
    ["results", FOREIGN],
    ["queue"],
    ["history"],
    ["compare", FOREIGN, COMPLETED],
    ["tasks"],
    ["models"],
    ["harnesses"],
    ["info"],
)
LINES = (["samples", FOREIGN], ["cancel", FOREIGN, "--reason", HOSTILE], ["submit", "--model", "m", "--tasks", "t"])


@pytest.fixture(autouse=True)
def hostile(service: FakeService) -> None:
    """Make everything that a server can say hostile."""
    fill(service)
    metric = Metric(task=HOSTILE, metric=HOSTILE, filter=HOSTILE, value=float("nan"))
    point = HistoryPoint(job_id=HOSTILE, labels={"step": "1", "run": HOSTILE}, step=1, model=HOSTILE, metrics=[metric])
    other = HistoryPoint(job_id="b", labels={"step": "2", "run": "b" * 300}, step=2, model="b", metrics=[metric])
    service.history = GetHistoryResponse(points=[point, other])
    compared = MetricComparison(task=HOSTILE, metric=HOSTILE, filter=HOSTILE, candidate_model=HOSTILE, note=HOSTILE)
    service.comparison = CompareJobsResponse(candidates=[JobComparison(candidate_job_id=HOSTILE, metrics=[compared])])
    service.queue.gpus.append(Gpu(id=HOSTILE, name=HOSTILE, quarantine_reason=HOSTILE))
    service.queue.queued_job_ids.append(HOSTILE)
    service.names = [HOSTILE]
    service.harnesses = [HarnessInfo(name=HOSTILE, kind=HOSTILE, version=HOSTILE, unavailable_reason=HOSTILE)]
    service.info.version = HOSTILE
    service.samples = [{HOSTILE: HOSTILE}]
    service.warnings = [HOSTILE]


def require_printable(result: Result) -> None:
    for stream in (result.stdout_bytes, result.stderr_bytes):
        for line in stream.decode().replace("\r\n", "\n").split("\n"):
            assert first_unprintable(line.replace("\t", "")) is None, line


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "".join(form) or "default")
@pytest.mark.parametrize("command", TABLES, ids=lambda command: command[0])
def test_no_table_in_any_form_lets_a_control_character_through(run: Run, command: list[str], form: list[str]) -> None:
    result = run(*command, *form)

    require_printable(result)
    assert "u202e" in result.stdout.lower() + result.stderr, "the text itself is shown"


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize("command", LINES, ids=lambda command: command[0])
def test_no_line_lets_one_through(run: Run, command: list[str], as_json: list[str]) -> None:
    result = run(*command, *as_json)

    require_printable(result)
    assert "u202e" in result.stdout + result.stderr


def test_json_is_still_the_same_data(run: Run) -> None:
    assert json.loads(run("get", FOREIGN, "--json").stdout)["labels"]["run"] == HOSTILE
    assert json.loads(run("samples", FOREIGN).stdout) == {HOSTILE: HOSTILE}


def test_progress_lines_and_metrics_of_finished_tasks_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(done=1, total=2, unit=HOSTILE, current_task=HOSTILE)
    running = hostile_job(status=JobStatus.JOB_STATUS_RUNNING, progress=progress)

    following._show_lines([running], err=False)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(SHOWN in line for line in lines)


def test_errors_of_the_server_are_printable_lines(run: Run, service: FakeService) -> None:
    service.errors["GetJob"] = [
        errors.JobNotFoundError(f"no job {HOSTILE}"),
        errors.InvalidRequestError(violations=[FieldViolation(HOSTILE, HOSTILE)]),
        errors.PermissionDeniedError(HOSTILE),
    ]
    for _ in range(3):
        result = run("get", FOREIGN)
        require_printable(result)
        assert SHOWN in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--status", HOSTILE],
        ["list", f"--{HOSTILE}"],
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["list", "--since", HOSTILE],
        ["submit", "--label", HOSTILE],
        ["submit", "--file", f"/none/{HOSTILE}"],
        ["compare", "a", "b", "--tolerance", HOSTILE],
        ["serve", "--config", f"/none/{HOSTILE}"],
    ],
    ids=range(9),
)
def test_what_is_wrong_with_an_argument_is_said_in_printable_lines(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    require_printable(result)


def test_names_of_files_are_printable(run: Run, service: FakeService, tmp_path: Path) -> None:
    service.files = {"a\x1b[2J\u202eb": b"x"}

    result = run("download", FOREIGN, str(tmp_path))

    assert result.stdout == f"{tmp_path}/a\\x1b[2J\\u202eb\n"


def test_a_log_is_raw_bytes_in_a_pipe(run: Run, service: FakeService) -> None:
    service.log = HOSTILE.encode() + b"\xff\n"

    assert run("logs", FOREIGN).stdout_bytes == service.log


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_a_drawing_is_well_formed_and_says_everything_visibly(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"

    assert run("history", "--by", "run", "--label", "run=<b>&\u202e", "--output", str(path)).exit_code == 0

    text = path.read_text()
    assert all(first_unprintable(line) is None for line in text.split("\n"))
    ET.fromstring(text.removeprefix("<!DOCTYPE html>").replace('<meta charset="utf-8">', ""))


def test_a_plot_in_the_terminal_is_printable_and_fits(run: Run) -> None:
    result = run("history", "--by", "run", "--plot")

    assert result.exit_code == 0
    require_printable(result)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_arguments_with_such_characters_are_data_and_are_sent_as_they_are(run: Run, service: FakeService) -> None:
    run("submit", "--model", "m", "--tasks", "t", "--gen-kwargs", json.dumps({"until": "\u2028\u200b"}))

    expected = Struct()
    expected.update({"until": "\u2028\u200b"})
    assert service.received["SubmitJob"][0].request.gen_kwargs == expected  # type: ignore[attr-defined]
