"""`evalrpc history`: the table, the plots, and the errors when they can't be drawn."""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result
from fake_server import FakeService
from google.protobuf import json_format

from evalrpc.v1.history_pb2 import GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JobStatus
from evalrpc.v1.results_pb2 import Metric, MetricSelector

Run = Callable[..., Result]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ODD_NAME = "<a> $x^{ 中文 " + "long" * 100


@pytest.fixture
def run(run: Run, service: FakeService) -> Run:
    """Run `evalrpc history` against a server that has an answer."""
    service.history = answer()
    return partial(run, "history")


def answer(*steps: float, odd: str = "mme") -> GetHistoryResponse:
    """Build two metrics at each step; one has neither error nor direction."""
    points = [
        HistoryPoint(
            job_id=f"job-{step:g}",
            labels={"run": "x", "step": f"{step:g}"},
            step=step,
            model="m",
            metrics=[
                Metric(task=odd, metric="acc", filter="none", value=step / 100, standard_error=0.1, higher_is_better=True),
                Metric(task="wer", metric="rate", value=float("nan") if step == 20 else 1 / step),
            ],
        )
        for step in steps or (10, 20, 30)
    ]
    return GetHistoryResponse(points=points)


def test_the_table_has_a_row_for_every_value_series_by_series(run: Run) -> None:
    rows = [line.split("\t") for line in run("--label", "run=x").stdout.splitlines()]
    assert [(row[0], row[3], row[4], row[5], row[6]) for row in rows] == [
        ("mme", "10", "0.1000", "0.1000", "higher"),
        ("mme", "20", "0.2000", "0.1000", "higher"),
        ("mme", "30", "0.3000", "0.1000", "higher"),
        ("wer", "10", "0.1000", "", ""),
        ("wer", "20", "nan", "", ""),
        ("wer", "30", "0.0333", "", ""),
    ]


def test_every_flag_reaches_the_server(run: Run, service: FakeService) -> None:
    flags = ("--metric", "a/b", "--metric", "c/d,e", "--metric", "/f", "--metric", "x/y/z", "--step-label", "tokens")
    jobs = (
        "--label",
        "run=x",
        "--model",
        "m",
        "--harness",
        "h",
        "--since",
        "2026-01-01T00:00Z",
        "--status",
        "failed",
        "--task",
        "t",
    )
    assert run(*jobs, *flags).exit_code == 0
    request = service.received["GetHistory"][0]
    assert list(request.metrics) == [
        MetricSelector(task="a", metric="b"),
        MetricSelector(task="c", metric="d", filter="e"),
        MetricSelector(metric="f"),
        MetricSelector(task="x/y", metric="z"),
    ]
    assert (request.filter.labels, request.filter.models, request.filter.harnesses) == ({"run": "x"}, ["m"], ["h"])
    assert (request.filter.statuses, request.filter.tasks) == ([JobStatus.JOB_STATUS_FAILED], ["t"])
    assert (request.filter.created_after.seconds, request.step_label) == (1_767_225_600, "tokens")


def test_json_is_the_message(run: Run, service: FakeService) -> None:
    parsed = json_format.Parse(run("--json").stdout, GetHistoryResponse())
    assert parsed.SerializeToString(deterministic=True) == service.history.SerializeToString(deterministic=True)


def test_a_plot_in_the_terminal_is_plain_text_where_no_terminal_reads_it(run: Run) -> None:
    result = run("--plot")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "mme: acc (none)" in result.stdout
    assert "higher is better" in result.stdout
    assert "wer: rate" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_picture_is_a_png(run: Run, tmp_path: Path) -> None:
    result = run("--output", str(tmp_path / "run.PNG"))
    assert (result.exit_code, result.stderr) == (0, f"evalrpc: wrote {tmp_path / 'run.PNG'}\n")
    assert (tmp_path / "run.PNG").read_bytes().startswith(PNG_MAGIC)
    assert len(result.stdout.splitlines()) == 6


def test_a_page_needs_nothing_beside_itself_and_has_the_drawing_and_the_table(run: Run, tmp_path: Path) -> None:
    assert run("--label", "run=x", "--output", str(tmp_path / "run.html")).exit_code == 0
    page = (tmp_path / "run.html").read_text()
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>").replace('<meta charset="utf-8">', ""))
    assert [title.text for title in root.iter("title")] == ["run=x"]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1
    assert [cell.text for cell in list(root.iter("tr"))[1]][:5] == ["mme", "acc", "none", "10", "0.1000"]
    assert not {"script", "link", "img"} & {element.tag for element in root.iter()}


@pytest.mark.parametrize("how", [["--plot"], ["--output", "x.png"], ["--output", "x.svg"], ["--output", "x.html"]])
@pytest.mark.parametrize(
    "history",
    [answer(10), answer(10, 10), answer(1e300, 0.001), answer(20), answer(1, 2, odd=ODD_NAME), answer(1, 2, odd="_")],
    ids=["one", "twice", "far apart", "nothing finite", "an odd name", "an underscore"],
)
def test_whatever_the_values_it_is_drawn(
    run: Run, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: list[str], history: GetHistoryResponse
) -> None:
    monkeypatch.chdir(tmp_path)
    service.history = history
    result = run(*how)
    assert result.exit_code == 0, result.stderr


def test_without_steps_jobs_follow_one_another(run: Run, service: FakeService) -> None:
    service.history.points[1].ClearField("step")
    assert "job, in order of creation" in run("--plot").stdout


@pytest.mark.parametrize(("flags", "missing"), [(["--plot"], "plotext"), (["--output", "x.png"], "matplotlib")])
def test_a_missing_extra_is_named_with_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str], missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = run(*flags)
    assert result.exit_code == 2
    assert result.stderr == f"evalrpc: {missing} is missing, which draws plots; install it: pip install 'evalrpc[plot]'\n"


def test_a_table_needs_no_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotext", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run().exit_code == 0


def test_nothing_to_draw_and_too_much_to_draw_are_wrong_calls(run: Run, service: FakeService) -> None:
    service.history = GetHistoryResponse()
    assert (run().exit_code, run().stdout) == (0, "")
    assert run("--plot").exit_code == 2
    metrics = [Metric(task=f"t{number}", metric="acc") for number in range(61)]
    service.history = GetHistoryResponse(points=[HistoryPoint(job_id="j", model="m", metrics=metrics)])
    result = run("--plot")
    assert (result.exit_code, "61 metrics" in result.stderr, "--metric" in result.stderr) == (2, True, True)


def test_a_point_that_came_in_two_parts_is_one(run: Run, service: FakeService) -> None:
    (point,) = answer(10).points
    first, second = (HistoryPoint(job_id="j", step=10, model="m", metrics=[metric]) for metric in point.metrics)
    service.history = GetHistoryResponse(points=[answer(5).points[0], first, second, answer(20).points[0]])
    parsed = json_format.Parse(run("--json").stdout, GetHistoryResponse())
    assert [(point.step, len(point.metrics)) for point in parsed.points] == [(5, 2), (10, 2), (20, 2)]


@pytest.mark.parametrize("flags", [["--output", "run.pdf"], ["--output", "run"]])
def test_a_flag_that_says_nothing_useful_is_refused(run: Run, service: FakeService, flags: list[str]) -> None:
    assert run(*flags).exit_code == 2
    assert not service.received["GetHistory"]
