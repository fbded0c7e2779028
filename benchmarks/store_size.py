"""Start time and memory of an idle server on an empty store and on full ones, and its speed on a full one."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice
from operator import itemgetter
from pathlib import Path
from typing import Final

from benchmarks import load, messages
from benchmarks.filling import fill
from benchmarks.h2load import Call, GrpcCall
from benchmarks.processes import Server, evalrpc_server, workplace, yardstick_server
from benchmarks.report import Aim, Row, Sides, at_most, compare, figures, in_turn, ratio_at_least
from benchmarks.scale import Scale

_SETTLE_SECONDS: Final = 1.0
_MAX_ROUNDS: Final = 3
_FEW_QUEUED: Final = 10
_IN_FLIGHT: Final = 32


def start_up(scale: Scale) -> Iterator[Row]:
    """Idle servers, against the bare one."""
    with workplace() as folder:
        yield from _start("an empty store", scale, folder, "empty", memory=at_most(60.0))
        fill(folder / "stored", finished=scale.stored)
        yield from _start(f"{scale.stored:,} stored jobs", scale, folder, "stored", memory=at_most(80.0))


def full_store(scale: Scale) -> Iterator[Row]:
    """A server that keeps very many jobs, one in ten of them queued, against the bare one and against one with ten."""
    queued = scale.kept // 10
    with workplace() as folder:
        job_ids = fill(folder / "many", finished=scale.kept - queued, queued=queued)
        few = fill(folder / "few", queued=_FEW_QUEUED)
        name = f"{scale.kept:,} jobs, {queued:,} of them queued"
        yield from _start(name, scale, folder, "many", seconds=at_most(2.0), memory=at_most(200.0))
        random.Random(1).shuffle(others := job_ids[1:-1])  # the first has started
        with evalrpc_server(folder, "many") as many_server, evalrpc_server(folder, "few") as few_server:
            figure = f"GetJob of the last of {queued:,} queued in {scale.kept:,}, against the last of {_FEW_QUEUED}"
            yield compare(figure, "calls/s", _rates(scale, many_server, job_ids[-1:], few_server, few), ratio_at_least(0.95))
            figure = f"GetJob of others of {queued:,} queued in {scale.kept:,}, against the last of {_FEW_QUEUED}"
            note = "each for the first time, so from the file; yardstick: from memory"
            yield compare(figure, "calls/s", _rates(scale, many_server, others, few_server, few), note=note)


def _start(name: str, scale: Scale, folder: Path, data_dir: str, *, seconds: Aim | None = None, memory: Aim) -> Iterator[Row]:
    sides = in_turn(
        min(scale.rounds, _MAX_ROUNDS),
        lambda: idle(lambda: evalrpc_server(folder, data_dir), GrpcCall(messages.get_queue())),
        lambda: idle(lambda: yardstick_server(folder), GrpcCall(messages.get_queue())),
    )
    times, megabytes = (figures(sides, itemgetter(index)) for index in (0, 1))
    yield compare(f"start on {name}", "s", times, seconds, "until it listens")
    yield compare(f"memory of an idle server with {name}", "MB", megabytes, memory, "after one call")


def idle(start: Callable[[], AbstractContextManager[Server]], call: Call) -> tuple[float, float]:
    """Start a server and make one call. Return the seconds until it listened, and its megabytes a moment after the call."""
    with start() as server:
        call.repeat(server.address, 1, 1, 1)
        time.sleep(_SETTLE_SECONDS)
        return server.start_seconds, server.memory() / 1e6


def _rates(scale: Scale, many: Server, wanted: Sequence[str], few: Server, queued: Sequence[str]) -> Sides[float]:
    """Measure GetJob of `wanted`, a different part of them in every round, against GetJob of the last of a few."""
    shares = [wanted[number :: scale.rounds] or wanted for number in range(scale.rounds)]
    return in_turn(scale.rounds, lambda: _rate(many, shares.pop(), scale), lambda: _rate(few, queued[-1:], scale))


def _rate(server: Server, job_ids: Sequence[str], scale: Scale) -> float:
    requests = [messages.get_job(job_id) for job_id in islice(cycle(job_ids), scale.calls)]
    calls: load.Calls = load.in_process(load.call_each, server.address, requests, _IN_FLIGHT)
    return calls.per_second
