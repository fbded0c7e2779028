"""The results of a comparison: rows, as a terminal table, as Markdown and as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Sides: TypeAlias = tuple[Sequence[T], Sequence[T]]
"""What was measured in each round: of our server, and of its yardstick."""

_HEADINGS = ("figure", "ours", "yardstick", "ratio", "rounds", "aim", "met", "note")


@dataclass(frozen=True)
class Aim:
    """The target for a figure: a bound on the ratio, or on our own figure."""

    of: str
    """`ratio` or `ours`."""
    at_most: bool
    bound: float

    def is_met(self, row: "Row") -> bool | None:
        """Return whether a row meets it; None if the row has no such value."""
        value = row.ratio if self.of == "ratio" else row.ours
        if value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True)
class Row:
    """One figure next to its yardstick, both measured in the same run."""

    figure: str
    unit: str
    ours: float
    yardstick: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    """The smallest and the largest ratio of a round."""
    aim: Aim | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        return self.aim.is_met(self) if self.aim else None


def ratio_at_least(bound: float) -> Aim:
    """Our figure over the yardstick's must reach this."""
    return Aim("ratio", False, bound)


def ratio_at_most(bound: float) -> Aim:
    """Our figure over the yardstick's must stay within this."""
    return Aim("ratio", True, bound)


def at_most(bound: float) -> Aim:
    """Our figure must stay within this."""
    return Aim("ours", True, bound)


def compare(figure: str, unit: str, sides: Sides[float], aim: Aim | None = None, note: str = "") -> Row:
    """Return the row for figures that were measured in turn: medians, and the median of the rounds' ratios."""
    ours, yardstick = sides
    ratios = [a / b for a, b in zip(ours, yardstick, strict=True)]
    return Row(
        figure,
        unit,
        statistics.median(ours),
        statistics.median(yardstick),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        aim,
        note,
    )


def in_turn(rounds: int, ours: Callable[[], T], yardstick: Callable[[], T]) -> Sides[T]:
    """Measure both several times, alternating, so that a temporary slowdown of the machine affects both."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = yardstick()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, yardstick()))
    return [a for a, _ in pairs], [b for _, b in pairs]


def figures(sides: Sides[T], figure: Callable[[T], float]) -> Sides[float]:
    """Return one figure of what was measured."""
    ours, yardstick = sides
    return list(map(figure, ours)), list(map(figure, yardstick))


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a table for a terminal."""
    cells = [_HEADINGS, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def markdown(rows: Iterable[Row], machine: str) -> str:
    """Return the rows as Markdown."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return f"{machine}\n\n" + "\n".join(lines) + "\n"


def write(rows: Sequence[Row], folder: Path, scale: str) -> None:
    """Write the rows to `results.json` and `results.md` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"machine": machine(), "scale": scale, "rows": [asdict(row) | {"met": row.met} for row in rows]}
    (folder / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "results.md").write_text(markdown(rows, f"{machine()}; scale {scale}."))


def machine() -> str:
    """Describe in one line where and when this runs."""
    cpus = len(os.sched_getaffinity(0))
    model = next((line.partition(": ")[2] for line in _cpu_lines() if line.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    now = datetime.now(UTC).isoformat(timespec="minutes")
    return f"{now}, {cpus} CPUs ({model}), load {load:.1f}, Python {platform.python_version()}"


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.figure,
        _number(row.ours, row.unit),
        _number(row.yardstick, row.unit),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.spread is None else f"{row.spread[0]:.2f} to {row.spread[1]:.2f}",
        _aim(row),
        {None: "", True: "yes", False: "NO"}[row.met],
        row.note,
    )


def _aim(row: Row) -> str:
    if row.aim is None:
        return ""
    sign = "≤" if row.aim.at_most else "≥"
    return f"{sign} {row.aim.bound:.2f}" if row.aim.of == "ratio" else f"{sign} {_number(row.aim.bound, row.unit)}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"
