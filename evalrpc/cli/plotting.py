"""Plots of metrics across jobs: as text by plotext, in a file by matplotlib. Both belong to the extra `plot` and are imported
only to draw, which raises ModuleNotFoundError if they are missing."""

import html
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from evalrpc.cli.tables import cut, folded
from evalrpc.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_SUFFIXES: Final = (".html", ".png", ".svg")

_TERMINAL_ROWS: Final = 16
_TERMINAL_TICK_CELLS: Final = 12
_TERMINAL_Y_TICKS: Final = 5
_TERMINAL_COLOURS: Final = ("blue", "red", "green", "magenta", "cyan", "orange")
_TERMINAL_MARKS: Final = "o+*#%@=~"
_NO_NUMBER: Final = "x"
_PANEL_INCHES: Final = (5.2, 3.2)
_PANELS_PER_ROW: Final = 2
_MAX_TITLE_CELLS: Final = 60
_MAX_LEGEND_CELLS: Final = 40
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 70em; margin: 2em auto; }}
svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 85%; }}
td, th {{ padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid #ddd; }}
</style>
</head>
<body>
<h1>{title}</h1>
{drawing}
<table>
{table}
</table>
</body>
</html>
"""


class Line(NamedTuple):
    """The values of one metric along the steps of one run."""

    name: str
    """What tells it from the other lines; empty if there are none."""
    x: Sequence[float]
    y: Sequence[float]
    """NaN and infinite values are gaps, which are marked."""
    stderr: Sequence[float]
    """NaN where there is none."""


class Panel(NamedTuple):
    """One metric, ready to be drawn."""

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]


class _Point(NamedTuple):
    x: float
    y: float
    stderr: float
    """0 where there is none."""


def draw_text(panel: Panel, width: int, *, colourless: bool) -> str:
    """Draw one metric as lines of text. Standard errors are bars, unless there are several lines."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, _TERMINAL_ROWS)
    figure.title(_shorten(panel.title, min(width, _MAX_TITLE_CELLS)))
    figure.label(cut(printable(f"{panel.x_title}    ({panel.y_title})"), width))
    bottom = min((point.y for line in panel.lines for point in _finite(line)), default=0.0)
    marks = cycle(_TERMINAL_MARKS) if len(panel.lines) > 1 else cycle(["hd"])
    legend: list[str] = []
    for line, mark, colour in zip(panel.lines, marks, cycle(_TERMINAL_COLOURS), strict=False):
        pixel = plotext.pixel(colour)
        for run in _runs(line):
            x, y, stderr = ([*values] for values in zip(*run, strict=True))
            figure.draw(figure.signal(x, y, marker=plotext.marker(mark, pixel)).lines())
            if len(panel.lines) == 1:
                figure.draw(figure.error(x, y, [2 * bar for bar in stderr], pixel=pixel))  # it takes the whole length
        if gaps := _gaps(line):
            figure.draw(figure.signal(gaps, [bottom] * len(gaps), marker=plotext.marker(_NO_NUMBER, pixel)))
        legend += _legend(line, mark, gaps, width, x_title=panel.x_title)
    _set_ticks(figure, panel, width)
    return "\n".join([str(figure.build().string(colorless=colourless)).rstrip("\n"), *legend, ""])


def draw_file(path: Path, title: str, panels: Sequence[Panel], columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Draw all metrics into a file in the format of its suffix. An HTML page also has the table, and is self-contained."""
    kind = path.suffix.lower().removeprefix(".")
    title = printable(title)
    if kind == "html":
        drawing = _draw(title="", panels=panels, kind="svg").decode()
        table = "\n".join((_table_row("th", columns), *(_table_row("td", row) for row in rows)))
        page = _PAGE.format(title=html.escape(title), drawing=drawing[drawing.index("<svg") :], table=table)
        path.write_text(page, encoding="utf-8")
    else:
        path.write_bytes(_draw(title, panels, kind))


def tick_text(value: float) -> str:
    """Write the number at a tick: plain, a whole one as an integer, and with an exponent only where it would be very long."""
    if _is_whole(value) and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.10g}"


def nice_ticks(low: float, high: float, count: int, *, whole: bool) -> list[float]:
    """Return at most this many round numbers from `low` to `high`; `whole` allows integers only."""
    if not (high > low and math.isfinite(high - low)):
        return sorted({low, high})
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)][:count] or [low, high]


def _set_ticks(figure: Any, panel: Panel, width: int) -> None:
    x = [step for line in panel.lines for step in line.x]
    y = [point.y for line in panel.lines for point in _finite(line)]
    whole = all(map(_is_whole, x))
    for axis, values, count in ((0, x, max(2, width // _TERMINAL_TICK_CELLS)), (1, y, _TERMINAL_Y_TICKS)):
        if values:
            ticks = nice_ticks(min(values), max(values), count, whole=whole and axis == 0)
            figure.ruler(axis).ticks(ticks, [tick_text(tick) for tick in ticks])


def _legend(line: Line, mark: str, gaps: Sequence[float], width: int, *, x_title: str) -> Iterator[str]:
    """Yield what stands below a plot: which line has which mark, and where a value is no number."""
    if line.name:
        yield cut(printable(f"{mark} {line.name}"), width)
    if gaps:
        where = ", ".join(map(tick_text, gaps))
        yield from folded(printable(f"{_NO_NUMBER} no number at {x_title} {where}"), width)


def _draw(title: str, panels: Sequence[Panel], kind: str) -> bytes:
    """Draw with matplotlib's own canvases, which need no display."""
    import matplotlib as mpl

    style = mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "evalrpc", "font.size": 9.0})  # `$` is literal
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure = _figure(title, panels)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _figure(title: str, panels: Sequence[Panel]) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(_PANELS_PER_ROW, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure((columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), layout="constrained")
    if title:
        figure.suptitle(_shorten(title, _MAX_TITLE_CELLS))
    for place, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), panel)
    return figure


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for number, line in enumerate(panel.lines):
        label, colour = _shorten(line.name, _MAX_LEGEND_CELLS), f"C{number}"
        for run in _runs(line):
            x, y, stderr = zip(*run, strict=True)
            axes.errorbar(
                x, y, yerr=stderr, color=colour, label=label, marker="o", markersize=4, capsize=3, linewidth=1.5, elinewidth=1
            )
            label = ""  # once for all its runs
        if gaps := _gaps(line):
            at_bottom = axes.get_xaxis_transform()  # x in the data's units, y in the panel's
            axes.plot(gaps, [0.02] * len(gaps), "x", color=colour, label=label, transform=at_bottom, clip_on=False)
            axes.annotate(
                "no number", (gaps[0], 0.02), xycoords=at_bottom, xytext=(5, 0), textcoords="offset points", color=colour
            )
    axes.set_title(_shorten(panel.title, _MAX_TITLE_CELLS))
    axes.set_xlabel(_shorten(panel.x_title, _MAX_TITLE_CELLS))
    axes.set_ylabel(_shorten(panel.y_title, _MAX_TITLE_CELLS))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    whole = all(_is_whole(step) for line in panel.lines for step in line.x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=whole))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    if any(line.name for line in panel.lines):
        axes.legend(fontsize="small", framealpha=0.6)


def _is_whole(number: float) -> bool:
    return float(number).is_integer()  # ints have no such method before Python 3.12


def _points(line: Line) -> list[_Point]:
    bars = [bar if math.isfinite(bar) and bar > 0 else 0.0 for bar in line.stderr]
    return [_Point(*values) for values in zip(line.x, line.y, bars, strict=True)]


def _finite(line: Line) -> list[_Point]:
    return [point for point in _points(line) if math.isfinite(point.y)]


def _runs(line: Line) -> Iterator[list[_Point]]:
    """Yield the stretches between values that are no numbers."""
    for is_finite, run in groupby(_points(line), key=lambda point: math.isfinite(point.y)):
        if is_finite:
            yield list(run)


def _gaps(line: Line) -> list[float]:
    """Return where values are no numbers."""
    return [x for x, y in zip(line.x, line.y, strict=True) if not math.isfinite(y)]


def _table_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in cells) + "</tr>"


def _shorten(text: str, max_cells: int) -> str:
    return cut(printable(text), max_cells)
