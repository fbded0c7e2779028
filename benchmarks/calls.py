"""Throughput and latency of single calls: GetJob, SubmitJob, GetQueue, ListJobs."""

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import messages
from benchmarks.filling import fill
from benchmarks.h2load import Call, GrpcCall, HttpCall
from benchmarks.processes import Server, both, evalrpc_server, free_port, workplace
from benchmarks.report import Aim, Row, Sides, at_most, compare, figures, in_turn, ratio_at_least, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.server.auth.token_format import new_token
from evalrpc.server.auth.token_store import StoredToken, TokenStore
from evalrpc.v1.jobs_pb2 import JOB_STATUS_CANCELLED, GetJobRequest, JobFilter

_FEW_QUEUED = 10
_FEW_LISTED = 1000
_FSYNCS = 100
_MAX_SIGN_IN_MICROSECONDS = 15.0
_MAX_METRICS_MB = 12.0
_WARM_UP_CALLS = 200


class Load(NamedTuple):
    """The call to repeat on one server, and how often."""

    server: Server
    call: Call
    calls: int

    def measure(self, scale: Scale, in_flight: int) -> "Measured":
        """Make the calls."""
        return measure(self.server, self.call, self.calls, in_flight, scale.clients)


@dataclass(frozen=True)
class Measured:
    """The measurements of a load of calls on one server."""

    per_second: float
    p50: float
    p99: float
    server_cpu: float
    """Processor seconds of the server per call."""
    client_share: float
    """The share of a processor that the client used. Near 1, the client is the limit."""


def measure(server: Server, call: Call, count: int, in_flight: int, clients: int = 1) -> Measured:
    """Repeat a call, from `clients` threads. Raises RuntimeError if any fails."""
    call.repeat(server.address, min(count, _WARM_UP_CALLS), in_flight, clients)
    cpu_before = server.cpu_seconds()
    answered = call.repeat(server.address, count, in_flight, clients)
    cpu_seconds = server.cpu_seconds() - cpu_before
    return Measured(
        per_second=answered.per_second,
        p50=answered.latencies[count // 2],
        p99=answered.latencies[count * 99 // 100],
        server_cpu=cpu_seconds / count,
        client_share=answered.client_share,
    )


def get_job(scale: Scale) -> Iterator[Row]:
    """GetJob of a queued job, against the empty handler."""
    with workplace() as folder:
        call = GrpcCall(messages.get_job(fill(folder / "data", queued=100)[-1]))
        with both(folder) as (ours, bare):
            loads = Load(ours, call, scale.calls), Load(bare, call, scale.calls)
            for in_flight in (1, 32):
                yield from rates("GetJob", scale, loads, in_flight, ratio_at_least(0.90))


def get_job_over_connect(scale: Scale) -> Iterator[Row]:
    """GetJob over HTTP, in both forms of the Connect protocol, against the same server over gRPC."""
    with workplace() as folder:
        job_id = fill(folder / "data", queued=100)[-1]
        port, path = free_port(), "/evalrpc.v1.EvaluationService/GetJob"
        forms = {
            "application/proto": GetJobRequest(job_id=job_id).SerializeToString(),
            "application/json": json.dumps({"jobId": job_id}).encode(),
        }
        with evalrpc_server(folder, more=("--http-listen", f"127.0.0.1:{port}")) as server:
            over_grpc = Load(server, GrpcCall(messages.get_job(job_id)), scale.calls)
            for kind, body in forms.items():
                over_http = Load(server, HttpCall(path, body, kind, port), scale.calls)
                for in_flight in (1, 32):
                    name = f"GetJob over Connect, {kind.partition('/')[2]}"
                    loads = over_http, over_grpc
                    yield from rates(name, scale, loads, in_flight, ratio_at_least(1.0), "yardstick: the same over gRPC")


def get_job_with_token(scale: Scale) -> Iterator[Row]:
    """GetJob where callers sign in with a token, against the same where nobody does."""
    with workplace() as folder:
        job_ids = [fill(folder / name, queued=100)[-1] for name in ("asking", "open")]
        token, parts = new_token()
        owner = StoredToken(parts.token_id, parts.digest, "alice", "submitter", created_ns=0)
        TokenStore(folder / "asking").add(owner)
        with evalrpc_server(folder, "asking", auth="required") as asking, evalrpc_server(folder, "open") as open_to_all:
            signed_in = Load(asking, GrpcCall(messages.get_job(job_ids[0], token)), scale.calls)
            anonymous = Load(open_to_all, GrpcCall(messages.get_job(job_ids[1])), scale.calls)
            for in_flight in (1, 32):
                yield from _more_cpu("GetJob with a token", scale, signed_in, anonymous, in_flight)


def get_job_watched(scale: Scale) -> Iterator[Row]:
    """GetJob of a server with metrics, against the same server without them; and what they take of an idle one."""
    with workplace() as folder:
        job_ids = [fill(folder / name, queued=100)[-1] for name in ("watched", "plain")]
        flags = ("--metrics-listen", "0")
        with evalrpc_server(folder, "watched", more=flags) as watched, evalrpc_server(folder, "plain") as plain:
            note = "yardstick: the same server without metrics"
            aim = at_most(plain.memory() / 1e6 + _MAX_METRICS_MB)
            yield Row(
                "memory of an idle server with metrics", "MB", watched.memory() / 1e6, plain.memory() / 1e6, aim=aim, note=note
            )
            with_metrics = Load(watched, GrpcCall(messages.get_job(job_ids[0])), scale.calls)
            without = Load(plain, GrpcCall(messages.get_job(job_ids[1])), scale.calls)
            for in_flight in (1, 32):
                yield from rates("GetJob with metrics", scale, (with_metrics, without), in_flight, ratio_at_least(0.95))


def _more_cpu(name: str, scale: Scale, ours: Load, yardstick: Load, in_flight: int) -> Iterator[Row]:
    """Yield the server's processor time per call, and how much more it is than the yardstick's."""
    measured = in_turn(scale.rounds, lambda: ours.measure(scale, in_flight), lambda: yardstick.measure(scale, in_flight))
    sides = figures(measured, lambda each: each.server_cpu * 1e6)
    figure, note = f"{name}, {in_flight} in flight: server CPU per call", "yardstick: the same server without sign-in"
    yield compare(figure, "µs", sides, note=note)
    more = statistics.median(with_it - without for with_it, without in zip(*sides, strict=True))
    yield Row(f"{figure} more than without", "µs", more, aim=at_most(_MAX_SIGN_IN_MICROSECONDS))


def get_job_of_last(scale: Scale) -> Iterator[Row]:
    """GetJob of the last of many queued jobs, against the last of ten."""
    with workplace() as folder:
        last_of_many = fill(folder / "many", queued=scale.queued)[-1]
        last_of_few = fill(folder / "few", queued=_FEW_QUEUED)[-1]
        with evalrpc_server(folder, "many") as many, evalrpc_server(folder, "few") as few:
            of_many = Load(many, GrpcCall(messages.get_job(last_of_many)), scale.calls)
            of_few = Load(few, GrpcCall(messages.get_job(last_of_few)), scale.calls)
            measured = in_turn(scale.rounds, lambda: of_many.measure(scale, 32), lambda: of_few.measure(scale, 32))
    figure = f"GetJob of the last of {scale.queued:,} queued, against the last of {_FEW_QUEUED}"
    yield _rate_row(figure, measured, ratio_at_least(0.95))


def get_queue(scale: Scale) -> Iterator[Row]:
    """GetQueue with many queued, against the empty handler with an answer of the same size."""
    with workplace() as folder:
        fill(folder / "data", queued=scale.queued)
        with both(folder) as (ours, bare):
            call = GrpcCall(messages.get_queue())
            loads = Load(ours, call, scale.calls), Load(bare, call, scale.calls)
            yield from rates(f"GetQueue, {scale.queued:,} queued", scale, loads, 1)


def submit_job(scale: Scale) -> Iterator[Row]:
    """SubmitJob: durable, against the empty handler."""
    with workplace() as folder, both(folder) as (ours, bare):
        call = GrpcCall(messages.submit())
        call.repeat(ours.address, 1, 1, 1)  # this one runs, and keeps the GPU
        loads = Load(ours, call, scale.calls), Load(bare, call, scale.calls)
        yield from rates("SubmitJob", scale, loads, 64, ratio_at_least(0.60))
        yield _submit_alone(scale, ours, bare, folder)


def list_jobs(scale: Scale) -> Iterator[Row]:
    """A page of 50 out of many jobs, by several filters, against the same out of a thousand."""
    with workplace() as folder:
        fill(folder / "many", finished=scale.listed)
        fill(folder / "few", finished=_FEW_LISTED)
        with evalrpc_server(folder, "many") as many, evalrpc_server(folder, "few") as few:
            for name, job_filter in _filters().items():
                yield _listing(name, scale, (many, job_filter), (few, job_filter))
            by_prefix = [(server, JobFilter(job_id_prefix=_newest_job_id(server)[:8])) for server in (many, few)]
            yield _listing("the first 8 characters of an id, so 1 job", scale, *by_prefix)


def rates(
    name: str, scale: Scale, loads: tuple[Load, Load], in_flight: int, aim: Aim | None = None, note: str = ""
) -> Iterator[Row]:
    """Yield calls per second and the server's processor time per call."""
    ours, yardstick = loads
    measured = in_turn(scale.rounds, lambda: ours.measure(scale, in_flight), lambda: yardstick.measure(scale, in_flight))
    yield _rate_row(f"{name}, {in_flight} in flight", measured, aim, note)
    cpu = figures(measured, lambda each: each.server_cpu * 1e6)
    yield compare(f"{name}, {in_flight} in flight: server CPU per call", "µs", cpu, note=note)


def _rate_row(figure: str, measured: Sides[Measured], aim: Aim | None, note: str = "") -> Row:
    share = statistics.median(each.client_share for each in measured[1])
    per_second = figures(measured, lambda each: each.per_second)
    return compare(figure, "calls/s", per_second, aim, "; ".join(filter(None, (note, f"client at {share:.0%} of a CPU"))))


def _submit_alone(scale: Scale, ours: Server, bare: Server, folder: Path) -> Row:
    call, count = GrpcCall(messages.submit()), max(100, scale.calls // 20)

    def limit() -> float:
        return measure(bare, call, count, 1).p50 + _fsync_seconds(folder)

    pairs = in_turn(scale.rounds, lambda: measure(ours, call, count, 1).p50, limit)
    milliseconds = figures(pairs, lambda seconds: seconds * 1e3)
    note = f"yardstick: empty handler and one fsync, last {_fsync_seconds(folder) * 1e3:.2f} ms"
    return compare("SubmitJob alone, p50", "ms", milliseconds, ratio_at_most(1.0), note)


def _fsync_seconds(folder: Path) -> float:
    """Return the median time to append a page to a file and sync it to disk."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(_FSYNCS):
            begin = time.monotonic()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.monotonic() - begin)
    return statistics.median(times)


def _filters() -> dict[str, JobFilter]:
    return {
        "no filter": JobFilter(),
        "a status": JobFilter(statuses=[JOB_STATUS_CANCELLED]),
        "a model, 1 in 10": JobFilter(models=["model_3"]),
        "a label, 1 in 10": JobFilter(labels={messages.LABEL: "red"}),
        "a label, 9 in 10": JobFilter(labels={messages.LABEL: "blue"}),
        "a task, 1 in 10": JobFilter(tasks=["task_3"]),
        "a task that all have": JobFilter(tasks=["mmmu_val"]),
        "a status, a model and a label": JobFilter(
            statuses=[JOB_STATUS_CANCELLED], models=["model_0"], labels={messages.LABEL: "red"}
        ),
        "three models and two tasks": JobFilter(models=["model_3", "model_4", "model_5"], tasks=["task_3", "task_5"]),
        "a model and a label that never meet": JobFilter(models=["model_3"], labels={messages.LABEL: "red"}),
        "selector team=blue,draft!=yes, 8 in 10": JobFilter(label_selector="team=blue,draft!=yes"),
        "selector team in (red,green),!draft, 1 in 10": JobFilter(label_selector="team in (red,green),!draft"),
        "selector draft, 1 in 10": JobFilter(label_selector="draft"),
        "selector !draft, 9 in 10": JobFilter(label_selector="!draft"),
        "selector team!=blue, 1 in 10": JobFilter(label_selector="team!=blue"),
        "selector !team, none": JobFilter(label_selector="!team"),
    }


def _newest_job_id(server: Server) -> str:
    with EvalClient(server.address) as client:
        return next(client.list_jobs()).job_id


def _listing(name: str, scale: Scale, many: tuple[Server, JobFilter], few: tuple[Server, JobFilter]) -> Row:
    count = max(20, scale.calls // 200)

    def milliseconds(server: Server, job_filter: JobFilter) -> float:
        return measure(server, GrpcCall(messages.list_jobs(job_filter)), count, 1).p50 * 1e3

    measured = in_turn(scale.rounds, lambda: milliseconds(*many), lambda: milliseconds(*few))
    figure = f"ListJobs, 50 of {scale.listed:,} against 50 of {_FEW_LISTED:,}: {name}"
    return compare(figure, "ms", measured, ratio_at_most(3.0))
