"""Reads progress bars in a log, as drawn by tqdm and similar tools."""

import math
import re
from dataclasses import dataclass

from evalrpc.harnesses.failures import strip_colours
from evalrpc.protobuf.bounds import MAX_COUNT, MAX_SECONDS
from evalrpc.v1.jobs_pb2 import Progress

_MAX_LINE_CHARACTERS = 1000
_COUNT = r"(?P<done>[0-9]{1,15})/(?P<total>[0-9]{1,15})"
_TQDM = re.compile(rf"[0-9]{{1,3}}%\|[^|]*\| *{_COUNT} \[[0-9:]*<(?P<left>[0-9:?]+)(?:, +(?P<rate>[0-9.]+)(?P<inverse>s/)?)?")
_PLAIN = re.compile(rf"(?:^|[:\s]){_COUNT}(?:$| \([0-9.]+%\)(?: \| (?P<rate>[0-9.]+) it/s)?(?:.* ETA (?P<left>[0-9a-z]+))?)")
_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]+)")
_UNITS = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_FACTORS = (3600, 60, 1)


@dataclass(frozen=True)
class Bar:
    """One update of a progress bar."""

    label: str
    """The text before it."""
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


def follow_bar(line: str, progress: Progress, unit: str) -> bool:
    """Apply a line with a progress bar to `progress`, and return whether that changed anything: `Harness.read_progress` for a
    program that reports nothing else. `unit` is what the bar counts, such as `samples`."""
    bar = read_bar(line)
    if bar is None:
        return False
    before = Progress()
    before.CopyFrom(progress)
    progress.phase = Progress.PHASE_EVALUATING
    progress.unit = unit
    advance(progress, bar)
    return progress != before


def advance(progress: Progress, bar: Bar) -> None:
    """Add a bar to the overall progress, in which consecutive bars add up. `done` never falls.

    A bar whose total does not fit the field is ignored.
    """
    if bar.total > MAX_COUNT:
        return
    finished = progress.done == progress.total > 0
    if finished and bar.done < bar.total:
        progress.total = min(progress.total + bar.total, MAX_COUNT)
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
    if inverse:
        rate = 1 / rate if rate else math.inf
    return rate if math.isfinite(rate) else None


def _seconds(text: str | None) -> int | None:
    """Parse `1:02:03`, `02:03`, or `1h02m`, `2m03s`. An estimate longer than any run is meaningless: None."""
    match = _CLOCK.fullmatch(text or "") or _UNITS.fullmatch(text or "")
    if match is None or not match[0]:
        return None
    seconds = sum(int(amount or 0) * factor for amount, factor in zip(match.groups(), _FACTORS, strict=True))
    return seconds if seconds <= MAX_SECONDS else None
