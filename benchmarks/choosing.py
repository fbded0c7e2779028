"""What it costs to choose the next of very many jobs, and to say where a job stands, with many owners and with one."""

import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from benchmarks.report import Row, at_most
from benchmarks.scale import Scale
from evalrpc.clock import SystemClock
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import AttemptUse, QueuedRow
from evalrpc.testing.executor import nodes_of
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED

OWNERS: Final = 100
QUEUED: Final = 100_000
WIDTHS: Final = (1, 1, 1, 2, 4, 8)
_TIMES: Final = 300


def many_owners(scale: Scale) -> Iterator[Row]:  # noqa: ARG001 - it takes no time
    """A queue of 100 owners in memory; yardstick: the same queue of one."""
    ours, one = _queue(OWNERS), _queue(1)
    note = f"{QUEUED:,} queued jobs of {OWNERS} owners, on 64 GPUs; yardstick: of one owner"
    for figure, measure, bound in (
        ("choose the next job", _choice, 1000.0),
        ("find that no GPU is free for any", _vain_choice, 1000.0),
        ("position and wait reason of a job", _position, 200.0),
        ("the same of the first one asked for after a commit", _fresh_position, 2000.0),
    ):
        mine, yardstick = measure(ours), measure(one)
        yield Row(f"{figure}, processor time", "µs", mine, yardstick, mine / yardstick, aim=at_most(bound), note=note)


def _queue(owners: int) -> QueueState:
    dice = random.Random(1)
    nodes = nodes_of({f"n{node}": [f"n{node}g{gpu}" for gpu in range(8)] for node in range(8)})
    state = QueueState(lambda: nodes, 0, SystemClock())
    now_ns = time.time_ns()
    uses = (AttemptUse(str(owner), now_ns - (owner + 1) * 10**12, now_ns, 1) for owner in range(owners))
    rows = (QueuedRow(_job_id(job), job, 0, dice.choice(WIDTHS), now_ns, 0, owner=str(job % owners)) for job in range(QUEUED))
    state.load(rows, [], uses)
    return state


def _job_id(number: int) -> str:
    return f"job-{number}"


def _choice(state: QueueState) -> float:
    free, now = state.free(), state.now_seconds()
    return _microseconds(lambda _: state.choose(free, 600.0, {}, now))


def _vain_choice(state: QueueState) -> float:
    free, now = state.free(), state.now_seconds()
    full = type(free)(tuple(node._replace(free=()) for node in free.nodes), free.slots)
    return _microseconds(lambda _: state.choose(full, 600.0, {}, now))


def _position(state: QueueState) -> float:
    return _microseconds(lambda number: state.describe(_job_id(number * 331), JOB_STATUS_QUEUED, b""))


def _fresh_position(state: QueueState) -> float:
    def ask(number: int) -> None:
        state.generation += 1
        state.describe(_job_id(number * 331), JOB_STATUS_QUEUED, b"")

    return _microseconds(ask)


def _microseconds(call: Callable[[int], object]) -> float:
    times = []
    for number in range(_TIMES):
        begin = time.thread_time()
        call(number)
        times.append(time.thread_time() - begin)
    return median(times) * 1e6
