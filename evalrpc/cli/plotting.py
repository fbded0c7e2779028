"""Plots of metrics across jobs: as text by plotext, in a file by matplotlib. Both belong to the extra `plot` and are imported
only to draw, which raises ModuleNotFoundError if they are missing."""

import html
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_SUFFIXES: Final = (".html", ".png", ".svg")

_TERMINAL_ROWS: Final = 16
_PANEL_INCHES: Final = (5.2, 3.2)
_PANELS_PER_ROW: Final = 2
_MAX_TITLE_CHARACTERS: Final = 60
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


class Series(NamedTuple):
    """One metric across jobs, ready to be drawn."""

    title: str
    x_title: str
    y_title: str
    x: Sequence[float]
    y: Sequence[float]
    stderr: Sequence[float]
    """NaN where there is none."""


def draw_text(series: Series, width: int, *, colourless: bool) -> str:
    """Draw one metric as lines of text, with its standard errors as bars."""
    import plotext

    x, y, stderr = _finite(series)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, _TERMINAL_ROWS)
    figure.title(_shorten(series.title))
    figure.label(f"{series.x_title}    ({series.y_title})")
    if x:
        figure.draw(figure.signal(x, y).lines())
        figure.draw(figure.error(x, y, stderr))
    return str(figure.build().string(colorless=colourless))


def draw_file(
    path: Path, title: str, all_series: Sequence[Series], columns: Iterable[str], rows: Iterable[Iterable[str]]
) -> None:
    """Draw all metrics into a file in the format of its suffix. An HTML page also has the table, and is self-contained."""
    kind = path.suffix.lower().removeprefix(".")
    if kind == "html":
        drawing = _draw(title="", all_series=all_series, kind="svg").decode()
        table = "\n".join((_table_row("th", columns), *(_table_row("td", row) for row in rows)))
        page = _PAGE.format(title=html.escape(title), drawing=drawing[drawing.index("<svg") :], table=table)
        path.write_text(page, encoding="utf-8")
    else:
        path.write_bytes(_draw(title, all_series, kind))


def _draw(title: str, all_series: Sequence[Series], kind: str) -> bytes:
    """Draw with matplotlib's own canvases, which need no display."""
    import matplotlib as mpl

    style = mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "evalrpc", "font.size": 9.0})  # `$` is literal
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure = _figure(title, all_series)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _figure(title: str, all_series: Sequence[Series]) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(_PANELS_PER_ROW, len(all_series))
    rows = math.ceil(len(all_series) / columns)
    figure = Figure((columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), layout="constrained")
    if title:
        figure.suptitle(_shorten(title))
    for place, series in enumerate(all_series, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), series)
    return figure


def _draw_panel(axes: "Axes", series: Series) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y, stderr = _finite(series)
    axes.errorbar(x, y, yerr=stderr, marker="o", markersize=4, capsize=3, linewidth=1.5, elinewidth=1)
    axes.set_title(_shorten(series.title))
    axes.set_xlabel(series.x_title)
    axes.set_ylabel(series.y_title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=all(step.is_integer() for step in x)))


def _finite(series: Series) -> tuple[list[float], list[float], list[float]]:
    """Drop points whose value is not finite. A missing error bar has length 0."""
    points = [point for point in zip(series.x, series.y, series.stderr, strict=True) if math.isfinite(point[1])]
    bars = [stderr if math.isfinite(stderr) and stderr > 0 else 0.0 for _, _, stderr in points]
    return [x for x, _, _ in points], [y for _, y, _ in points], bars


def _table_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TITLE_CHARACTERS else line[: _MAX_TITLE_CHARACTERS - 1] + "…"
