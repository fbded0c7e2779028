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

from evalrpc import extras
from evalrpc.cli import history, plotting
from evalrpc.v1.history_pb2 import FallAlarm, GetHistoryResponse, HistoryPoint, MetricTrend, TrendOptions
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
    rows = [line.split("\t") for line in run("--label", "run=x").stdout.splitlines()[1:]]
    assert [(row[0], row[2], row[3], row[4], row[6]) for row in rows] == [
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
        "-l",
        "step!=5",
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
    assert request.filter.label_selector == "step!=5"
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
    assert len(result.stdout.splitlines()) == 1 + 6


def test_a_page_needs_nothing_beside_itself_and_has_the_drawing_and_the_table(run: Run, tmp_path: Path) -> None:
    assert run("--label", "run=x", "--selector", "step!=5", "--output", str(tmp_path / "run.html")).exit_code == 0
    page = (tmp_path / "run.html").read_text()
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>").replace('<meta charset="utf-8">', ""))
    assert [title.text for title in root.iter("title")] == ["run=x, step!=5"]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1
    assert [cell.text for cell in list(root.iter("tr"))[1]][:6] == ["mme", "acc", "10", "0.1000", "0.1000", "none"]
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
    assert result.stderr == f"evalrpc: {missing} is missing; install it: {extras.install_command('plot')}\n"


def test_a_table_needs_no_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotext", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run().exit_code == 0


def test_nothing_to_draw_and_too_much_to_draw_are_wrong_calls(run: Run, service: FakeService) -> None:
    service.history = GetHistoryResponse()
    assert (run().exit_code, len(run().stdout.splitlines())) == (0, 1)
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


# Runs and models beside each other


def two_runs(models: Callable[[str, int], str] = lambda run, step: "m") -> GetHistoryResponse:
    """Build two runs of three steps, the second value of the first being NaN."""
    values = {"a": (0.1, float("nan"), 0.3), "b": (0.2, 0.3, 0.4)}
    points = [
        HistoryPoint(
            job_id=f"{run}-{step}",
            labels={"run": run, "step": str(step)},
            step=step,
            model=models(run, step),
            metrics=[Metric(task="t", metric="acc", value=values[run][place])],
        )
        for place, step in enumerate((500, 1000, 1500))
        for run in ("b", "a")
    ]
    return GetHistoryResponse(points=points)


def lines_of(response: GetHistoryResponse, by: str) -> dict[str, list[float]]:
    (panel,) = history._panels(history._History(response.points, "step", by))
    return {line.name: list(line.x) for line in panel.lines}


def test_a_plot_has_a_line_for_each_value_of_the_label() -> None:
    assert lines_of(two_runs(), "run") == {"a": [500, 1000, 1500], "b": [500, 1000, 1500]}
    assert lines_of(two_runs(), "other") == {"": [500, 500, 1000, 1000, 1500, 1500]}
    assert lines_of(two_runs(), "") == {"": [500, 500, 1000, 1000, 1500, 1500]}


def test_a_plot_has_a_line_for_each_model_unless_each_step_has_its_own() -> None:
    by_run_and_model = lines_of(two_runs(lambda run, step: f"model {step > 500}"), "run")
    assert by_run_and_model == {
        "a, model False": [500],
        "a, model True": [1000, 1500],
        "b, model False": [500],
        "b, model True": [1000, 1500],
    }
    assert set(lines_of(two_runs(lambda run, step: f"model of {run}"), "")) == {"model of a", "model of b"}
    assert set(lines_of(two_runs(lambda run, step: f"checkpoint-{step}"), "run")) == {"a", "b"}


def test_the_table_and_the_csv_tell_runs_apart(run: Run, service: FakeService) -> None:
    service.history = two_runs()
    header, *rows = [line.split("\t") for line in run("--by", "run").stdout.splitlines()]
    assert header[0] == "run"
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("a", "500", "0.1000"),
        ("a", "1000", "nan"),
        ("a", "1500", "0.3000"),
        ("b", "500", "0.2000"),
        ("b", "1000", "0.3000"),
        ("b", "1500", "0.4000"),
    ]
    assert [line.split(",")[0] for line in run("--by", "run", "-o", "csv").stdout.splitlines()] == ["run", *"aaabbb"]


def test_the_wide_form_has_a_row_for_each_step_and_a_column_for_each_metric(run: Run) -> None:
    rows = [line.split("\t") for line in run("-o", "wide").stdout.splitlines()]
    assert rows == [
        ["step", "mme/acc,none", "wer/rate", "model", "job"],
        ["10", "0.1000", "0.1000", "m", "job-10"],
        ["20", "0.2000", "nan", "m", "job-20"],
        ["30", "0.3000", "0.0333", "m", "job-30"],
    ]


def test_too_many_lines_in_a_plot_are_a_wrong_call(run: Run, service: FakeService) -> None:
    metric = Metric(task="t", metric="acc", value=1)
    service.history = GetHistoryResponse(
        points=[HistoryPoint(job_id=str(n), labels={"run": str(n)}, step=1, model="m", metrics=[metric]) for n in range(21)]
    )
    result = run("--by", "run", "--plot")
    assert (result.exit_code, "21 lines are too many" in result.stderr) == (2, True)


# What is drawn


def test_a_nan_is_a_gap_with_a_mark_and_never_crossed_by_a_line() -> None:
    line = plotting.Line("", x=[1, 2, 3, 4, 5], y=[0.1, 0.2, float("nan"), 0.4, float("inf")], stderr=[float("nan")] * 5)

    assert [[point.x for point in run] for run in plotting._runs(line)] == [[1, 2], [4]]
    assert plotting._gaps(line) == [3, 5]
    figure = plotting._figure("", [plotting.Panel("t", "step", "acc", [line])])
    (axes,) = figure.axes
    drawn = [[float(x) for x in artist.get_xdata()] for artist in axes.get_lines() if artist.get_linestyle() == "-"]
    assert [1.0, 2.0] in drawn
    assert all(not (min(xs) < 3 < max(xs)) for xs in drawn if xs)
    marked = [float(x) for artist in axes.get_lines() if artist.get_marker() == "x" for x in artist.get_xdata()]
    assert marked == [3.0, 5.0]


def test_a_plot_in_the_terminal_says_where_there_is_no_number(run: Run) -> None:
    text = run("--plot").stdout
    assert "x no number at step 20" in text
    assert text.count("no number") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (500.0, "500"),
        (1_000_000.0, "1000000"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.3"),
        (1234.5, "1234.5"),
        (1e300, "1e+300"),
        (0.00025, "0.00025"),
        (-3.0, "-3"),
        (0.0, "0"),
    ],
)
def test_ticks_are_plain_numbers(value: float, text: str) -> None:
    assert plotting.tick_text(value) == text


@pytest.mark.parametrize(
    ("low", "high", "count", "whole", "ticks"),
    [
        (500, 2000, 6, True, [500, 1000, 1500, 2000]),
        (0.41, 0.6, 5, False, [0.45, 0.5, 0.55, 0.6]),
        (1, 3, 9, True, [1, 2, 3]),
        (7, 7, 5, True, [7]),
    ],
)
def test_ticks_are_round_numbers_and_steps_are_integers(
    low: float, high: float, count: int, whole: bool, ticks: list[float]
) -> None:
    assert plotting.nice_ticks(low, high, count, whole=whole) == pytest.approx(ticks)


def test_a_bar_reaches_one_standard_error_up_and_down() -> None:
    line = plotting.Line("", x=[1, 2], y=[0, 1], stderr=[2, 2])
    text = plotting.draw_text(plotting.Panel("t", "step", "acc", [line]), 60, colourless=True)
    rows = [row.split("┤")[0].strip() if "┤" in row else "" for row in text.splitlines()[2:13]]
    assert rows.index("0") - rows.index("1") == 2, "from -2 to 3 in eleven rows, a unit takes two"


# Trends


def trends() -> GetHistoryResponse:
    """Build a metric that has fallen, one that goes well where less is better, one without direction, a short one, and one
    of which all values are of one step."""
    names = {"task": "mme", "filter": "none", "run": "x", "point_count": 9, "first_step": 100, "last_step": 900}
    line = {"slope": -1e-4, "slope_lower": -2e-4, "slope_upper": -5e-5, "noise": 0.01}
    alarm = FallAlarm(job_id="job-900", step=900, before=0.61, after=0.52, after_count=2)
    return GetHistoryResponse(
        trends=[
            MetricTrend(metric="acc", higher_is_better=True, alarm_p_value=0.001, alarm=alarm, **names, **line),
            MetricTrend(metric="wer", higher_is_better=False, alarm_p_value=1, **names, **line),
            MetricTrend(metric="size", **names, **{**line, "slope_upper": 1e-5}),
            MetricTrend(metric="short", higher_is_better=True, **{**names, "point_count": 4}),
            MetricTrend(metric="still", higher_is_better=True, alarm_p_value=1, **{**names, "last_step": 100}),
        ]
    )


def test_the_trend_of_a_metric_is_a_row_with_its_change_and_alarm_or_why_there_are_none(run: Run, service: FakeService) -> None:
    service.history = trends()
    header, *rows = (line.split("\t") for line in run("--trend", "--by", "run").stdout.splitlines())
    names = ("run", "metric", "trend", "alarm", "change", "at_least", "at_most", "noise", "alarm_p", "points", "job")
    assert [[row[header.index(name)] for name in names] for row in rows] == [
        ["x", "acc", "worse", "at 900", "-0.0800", "-0.1600", "-0.0400", "0.0100", "0.0010", "9", "job-900"],
        ["x", "wer", "better", "", "-0.0800", "-0.1600", "-0.0400", "0.0100", "1.0000", "9", ""],
        ["x", "size", "unclear", "needs --direction", "-0.0800", "-0.1600", "0.0080", "0.0100", "", "9", ""],
        ["x", "short", "too few", "too few", "", "", "", "", "", "4", ""],
        ["x", "still", "one step", "", "", "", "", "", "1.0000", "9", ""],
    ]


def test_trends_are_asked_for_only_with_the_flag_and_with_their_own_flags(run: Run, service: FakeService) -> None:
    run()
    run("--trend", "--by", "run", "--tolerance", "0.02", "--direction", "lower")
    plain, asked = service.received["GetHistory"][0], service.received["GetHistory"][-1]
    assert not plain.HasField("trends")
    assert asked.trends == TrendOptions(run_label="run", tolerance=0.02, higher_is_better=False)


@pytest.mark.parametrize("flags", [("--trend", "--plot"), ("--tolerance", "0.02"), ("--direction", "lower")])
def test_what_would_do_nothing_beside_other_flags_is_refused(run: Run, service: FakeService, flags: tuple[str, ...]) -> None:
    result = run(*flags)
    assert (result.exit_code, dict(service.received)) == (2, {})
    assert "--trend" in result.stderr


def test_trends_as_json_are_the_messages(run: Run, service: FakeService) -> None:
    service.history = trends()
    lines = run("--trend", "-o", "jsonl").stdout.splitlines()
    assert [json_format.Parse(line, MetricTrend()) for line in lines] == list(service.history.trends)
