"""Watchers: how fast all are notified of a change, what each costs, and how misbehaving ones affect the others."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import load, messages
from benchmarks.calls import measure
from benchmarks.filling import fill
from benchmarks.h2load import GrpcCall
from benchmarks.http2 import Request
from benchmarks.processes import Server, both, evalrpc_server, workplace
from benchmarks.report import Row, Sides, at_most, compare, figures, in_turn, ratio_at_least, ratio_at_most
from benchmarks.scale import Scale

_DROPPED_AT_ONCE = 100
_QUIET_SECONDS = 0.05
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Notified:
    """The cost of notifying all watchers of a change."""

    seconds: float
    """From sending the change until the last one had its event."""
    watcher_kilobytes: float
    """Memory of the server per open watcher."""


def one_job(scale: Scale) -> Iterator[Row]:
    """Many watchers of one job, against a bare broadcast of the same message."""
    with workplace() as folder:
        ids = fill(folder / "data", queued=scale.rounds + 1)[1:]
        fresh = iter(ids)
        with both(folder) as (ours, bare):
            measured = in_turn(scale.rounds, lambda: _notify(ours, [next(fresh)], scale), lambda: _notify(bare, ids[:1], scale))
    name = f"{scale.watchers:,} watchers on one job over {scale.connections} connections"
    times = figures(measured, lambda each: each.seconds * 1e3)
    yield compare(f"{name}: last one notified", "ms", times, ratio_at_most(1.25), "yardstick: a bare broadcast")
    yield _memory_row(f"{name}: memory of each", measured)


def many_jobs(scale: Scale) -> Iterator[Row]:
    """As many jobs as watchers, one watcher each; each job is changed by a separate call."""
    with workplace() as folder:
        ids = fill(folder / "data", queued=scale.watchers * scale.rounds + 1)[1:]
        batches = iter([ids[begin : begin + scale.watchers] for begin in range(0, len(ids), scale.watchers)])
        with both(folder) as (ours, bare):
            measured = in_turn(
                scale.rounds, lambda: _notify(ours, next(batches), scale), lambda: _notify(bare, ids[: scale.watchers], scale)
            )
    name = f"{scale.watchers:,} watchers on as many jobs"
    times = figures(measured, lambda each: each.seconds * 1e3)
    note = "each by a durable CancelJob of its own; yardstick: by an empty one"
    yield compare(f"{name}, all changed: last one notified", "ms", times, note=note)
    yield _memory_row(f"{name}: memory of each", measured)


def one_change(scale: Scale) -> Iterator[Row]:
    """The latency from a change to its watcher, against an empty unary call."""
    with workplace() as folder:
        ids = fill(folder / "data", queued=scale.changes * scale.rounds + 1)[1:]
        batches = iter([ids[begin : begin + scale.changes] for begin in range(0, len(ids), scale.changes)])
        with both(folder) as (ours, bare):
            measured = in_turn(
                scale.rounds,
                lambda: _watch_changes(ours, next(batches)),
                lambda: GrpcCall(messages.get_job(ids[0])).repeat(bare.address, scale.changes, 1, 1).latencies,
            )
    for name, quantile in (("p50", 50), ("p99", 99)):
        times = figures(measured, lambda seconds, quantile=quantile: _percentile(seconds, quantile) * 1e3)  # type: ignore[misc]
        note = "from sending CancelJob, so with its fsync; yardstick: an empty unary call"
        yield compare(f"a change to its watcher, {name}", "ms", times, note=note)


def dropped(scale: Scale) -> Iterator[Row]:
    """Streams that are opened and dropped: memory must not grow after the first fifth of them.

    gRPC itself leaks about a hundred bytes when a stream is dropped during a write (its issue 43360). So the streams are
    dropped while they are quiet; dropping them at once is measured separately.
    """
    name = f"memory growth over {scale.dropped:,} streams opened and dropped"
    with workplace() as folder:
        request = messages.watch_job(fill(folder / "data", queued=10)[-1])
        with both(folder) as (ours, bare):
            for pause_seconds, moment, aim in ((_QUIET_SECONDS, "", at_most(2.0)), (0.0, " in the moment of a write", None)):
                grown, bare_grown = (_growth_by_drops(server, request, scale.dropped, pause_seconds) for server in (ours, bare))
                note = "see gRPC's issue 43360" if moment else ""
                yield Row(f"{name}{moment}", "MB", grown, bare_grown, aim=aim, note=note)


def never_reading(scale: Scale) -> Iterator[Row]:
    """Watchers of all jobs that never read, during a load of submissions; the yardstick is a server without them."""
    with workplace() as folder:
        for data_dir in ("with", "without"):
            fill(folder / data_dir, queued=100)
        with evalrpc_server(folder, "with") as ours, evalrpc_server(folder, "without") as quiet:
            stuck = (ours.address, messages.watch_jobs(), scale.never_reading)
            with load.tasks(load.never_read, [stuck]):
                before = [server.memory() for server in (ours, quiet)]
                submits = in_turn(
                    scale.rounds,
                    lambda: measure(ours, GrpcCall(messages.submit()), scale.calls, 64, scale.clients),
                    lambda: measure(quiet, GrpcCall(messages.submit()), scale.calls, 64, scale.clients),
                )
                grown, grown_quiet = ((server.memory() - old) / 1e6 for server, old in zip((ours, quiet), before, strict=True))
    name = f"{scale.never_reading} watchers that never read"
    rates = figures(submits, lambda each: each.per_second)
    yield compare(f"{name}: SubmitJob, 64 in flight", "calls/s", rates, ratio_at_least(0.95), "yardstick: without them")
    note = f"over {scale.calls * scale.rounds:,} submissions; yardstick: without the watchers"
    yield Row(f"{name}: memory growth", "MB", grown, grown_quiet, note=note)


def _notify(server: Server, job_ids: Sequence[str], scale: Scale) -> Notified:
    """Watch jobs, change each, and measure how long it takes until all watchers are notified."""
    requests = [messages.watch_job(job_ids[number % len(job_ids)]) for number in range(scale.watchers)]
    clients = max(1, min(scale.clients, scale.connections))
    shares = [(server.address, requests[n::clients], scale.connections // clients, 1) for n in range(clients)]
    before = server.memory()
    with load.tasks(load.watch, shares) as watching:
        each = (server.memory() - before) / scale.watchers
        for task in watching:
            task.go()
        begin = _change(server, [messages.cancel(job_id) for job_id in job_ids])
        last = max(task.result() for task in watching)
    return Notified(last - begin, each / 1e3)


def _change(server: Server, requests: Sequence[Request]) -> float:
    """Make these calls, some at a time, and return when the first was sent."""
    if len(requests) > 1:
        result: load.Calls = load.in_process(load.call_each, server.address, requests, 64)
        return result.begin
    return load.call_now(server.address, requests[0])


def _watch_changes(server: Server, job_ids: Sequence[str]) -> list[float]:
    watches = [messages.watch_job(job_id) for job_id in job_ids]
    changes = [messages.cancel(job_id) for job_id in job_ids]
    seconds: list[float] = load.in_process(load.change_and_watch, server.address, watches, changes)
    return sorted(seconds)


def _growth_by_drops(server: Server, request: Request, count: int, pause_seconds: float) -> float:
    """Return the memory growth in megabytes after the first fifth of the streams."""
    load.in_process(load.open_and_drop, server.address, request, count // 5, _DROPPED_AT_ONCE, pause_seconds)
    time.sleep(_SETTLE_SECONDS)
    before = server.memory()
    load.in_process(load.open_and_drop, server.address, request, count - count // 5, _DROPPED_AT_ONCE, pause_seconds)
    time.sleep(_SETTLE_SECONDS)
    return (server.memory() - before) / 1e6


def _memory_row(figure: str, measured: Sides[Notified]) -> Row:
    """Return the memory per watcher in the first round, the only one on a server that has had no watchers yet."""
    ours, bare = (side[0].watcher_kilobytes for side in measured)
    return Row(figure, "KB", ours, bare, ours / bare, aim=at_most(30.0))


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
