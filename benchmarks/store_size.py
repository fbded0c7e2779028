"""What a server costs before anyone calls it: start-up and memory, on an empty store and on a full one."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from benchmarks import load, messages
from benchmarks.filling import fill
from benchmarks.load import AnyRequest
from benchmarks.processes import Server, evalrpc_server, workplace, yardstick_server
from benchmarks.report import Row, at_most, compare, in_turn
from benchmarks.scale import Scale

_SETTLE_SECONDS: Final = 1.0
_MAX_ROUNDS: Final = 3


def start_up(scale: Scale) -> Iterator[Row]:
    """Idle servers, against the bare one."""
    with workplace() as folder:
        yield from _start("an empty store", 60.0, scale, folder, "empty")
        fill(folder / "stored", finished=scale.stored)
        yield from _start(f"{scale.stored:,} stored jobs", 80.0, scale, folder, "stored")


def _start(name: str, megabytes: float, scale: Scale, folder: Path, data_dir: str) -> Iterator[Row]:
    sides = in_turn(
        min(scale.rounds, _MAX_ROUNDS),
        lambda: idle(lambda: evalrpc_server(folder, data_dir), messages.get_queue()),
        lambda: idle(lambda: yardstick_server(folder), messages.get_queue()),
    )
    seconds, memory = ([[each[index] for each in side] for side in sides] for index in (0, 1))
    yield compare(f"start on {name}", "s", *seconds, note="until it listens")
    yield compare(f"memory of an idle server with {name}", "MB", *memory, at_most(megabytes), "after one call")


def idle(start: Callable[[], AbstractContextManager[Server]], request: AnyRequest) -> tuple[float, float]:
    """Start a server and make one call. Return the seconds until it listened, and its megabytes a moment after the call."""
    with start() as server:
        load.call_now(server.address, request)
        time.sleep(_SETTLE_SECONDS)
        return server.start_seconds, server.memory() / 1e6
