"""Progress bars in a log, as tqdm and its like draw them."""

import re
from dataclasses import dataclass

from evalrpc.harnesses.failures import strip_colours
from evalrpc.v1.job_pb2 import Progress

_MAX_LINE_CHARACTERS = 1000
_COUNT = r"(?P<done>\d{1,15})/(?P<total>\d{1,15})"
_TQDM = re.compile(rf"\d{{1,3}}%\|[^|]*\| *{_COUNT} \[[\d:]*<(?P<left>[\d:?]+)(?:, +(?P<rate>[\d.]{{1,15}})(?P<inverse>s/)?)?")
_PLAIN = re.compile(
    rf"(?:^|[:\s]){_COUNT}(?:$| \([\d.]+%\)(?: \| (?P<rate>[\d.]{{1,15}}) it/s)?(?:.* ETA (?P<left>[\dhms]+))?)"
)
_CLOCK_FACTORS = (1, 60, 3600)
_UNIT_FACTORS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Bar:
    """One drawing of a bar."""

    label: str
    """What stands before it."""
    done: int
    total: int
    rate_per_second: float | None
    seconds_left: int | None


def read_bar(line: str) -> Bar | None:
    """Read a line such as `Responding:  20%|██ | 4/20 [00:00<00:01, 20.73it/s]` or `Responding: 4/20 (20.0%)`."""
    text = strip_colours(line[:_MAX_LINE_CHARACTERS])
    match = _TQDM.search(text) or _PLAIN.search(text)
    if match is None or not int(match["total"]):
        return None
    total = int(match["total"])
    return Bar(
        label=text[: match.start()].strip(" :"),
        done=min(int(match["done"]), total),
        total=total,
        rate_per_second=_rate(match["rate"], bool(match.groupdict().get("inverse"))),
        seconds_left=_seconds(match["left"]),
    )


def advance(progress: Progress, bar: Bar) -> None:
    """Count a bar into the whole, to which bars that follow each other add up. `done` never falls."""
    finished = progress.done == progress.total > 0
    if finished and bar.done < bar.total:
        progress.total += bar.total
    progress.total = max(progress.total, bar.total)
    before = progress.total - bar.total
    if before <= progress.done <= before + bar.done:
        progress.done = before + bar.done
        _set_speed(progress, bar)


def _set_speed(progress: Progress, bar: Bar) -> None:
    progress.ClearField("rate_per_second")
    progress.ClearField("time_left")
    if bar.rate_per_second is not None:
        progress.rate_per_second = bar.rate_per_second
    if bar.seconds_left is not None:
        progress.time_left.FromSeconds(bar.seconds_left)


def _rate(text: str | None, inverse: bool) -> float | None:
    try:
        rate = float(text or "")
    except ValueError:
        return None
    if not inverse:
        return rate
    return 1 / rate if rate else None


def _seconds(text: str | None) -> int | None:
    """Read `1:02:03`, `02:03`, or `1h02m`, `2m03s`."""
    if not text or "?" in text:
        return None
    if ":" in text:
        return sum(int(part or 0) * factor for part, factor in zip(reversed(text.split(":")), _CLOCK_FACTORS, strict=False))
    return sum(int(amount) * _UNIT_FACTORS[unit] for amount, unit in re.findall(r"(\d{1,9})([hms])", text))
