"""What hostile runs, and callers who read what these leave, cost everybody else: calls and events with and without them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from benchmarks import load
from benchmarks.processes import Server, evalrpc_server, workplace
from benchmarks.report import Row, at_most, compare, figures, in_turn
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.errors import EvalrpcError
from evalrpc.jobs.paths import JOBS_DIR
from evalrpc.v1.jobs_pb2 import EvaluateRequest

PROGRAM: Final = """\
import os, pathlib, sys, time
kind, output = sys.argv[1], pathlib.Path(sys.argv[2])
folder = output / "m"
folder.mkdir()
results, samples = folder / "20260101_000000_results.json", folder / "20260101_000000_samples_t.jsonl"
results.write_text('{"results": {"t": {"acc,none": 1.0}}}')
samples.write_text('{"doc_id": 1, "acc": 1}\\n')
if kind == "hold":
    time.sleep(1000)
if kind == "lists":
    results.write_bytes(b'{"results": {}, "a": [' + b"[]," * (40 << 20) + b"[]]}")
if kind == "tables":
    results.write_bytes(b'{"results": {}, "a": [' + b"[[{}]]," * (8 << 20) + b"[]]}")
if kind == "row":
    samples.write_bytes(b'{"doc_id": 1, "acc": 1, "text": "' + b"x" * (30 << 20) + b'"}\\n')
if kind == "sparse":
    for path in (samples, output / "large", output.parent / "log"):
        os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 4 << 40)
if kind == "files":
    for number in range(20_000):
        (output / str(number)).touch()
if kind == "log":
    for _ in range(60):
        os.write(1, b"1/2\\n" * (256 << 10))
"""
"""Leaves what is dear to read, by the name of its model."""

GPUS: Final = 4
KINDS: Final = ("lists", "tables", "row", "sparse", "files", "log")
CALLS: Final = ("GetJob", "SubmitJob", "GetQueue", "CancelJob", "an event to a watcher")
DISK: Final = "a bare fdatasync"
"""What any program waits for that has 4 KiB written to the same disk: neither SubmitJob nor CancelJob can be faster."""

_AIMED: Final = frozenset(CALLS) - {"CancelJob"}  # which waits for the disk, as SubmitJob does, and ends a queued job
_MAX_MORE_MS: Final = 50.0
_HOSTILE: Final = 2
_PAUSE_SECONDS: Final = 0.005
_READ_BYTES: Final = 8 << 20
_WRITTEN_BYTES: Final = 4 << 10
_WRITE_PAUSE_SECONDS: Final = 0.04

_Times = Mapping[str, list[float]]


def neighbours(scale: Scale) -> Iterator[Row]:
    """Half and 99 of 100 calls, and of events, beside hostile runs, against the same server without them."""
    return _neighbours(scale, "hostile neighbours", has_disk=False)


def neighbours_with_a_disk(scale: Scale) -> Iterator[Row]:
    """The same where runs have a disk of their own, which is in memory. Only root can mount it."""
    return _neighbours(scale, "hostile neighbours with a disk", has_disk=True)


def _neighbours(scale: Scale, title: str, *, has_disk: bool) -> Iterator[Row]:
    seconds = 20.0 if scale.name == "full" else 8.0
    with workplace() as folder:
        program = folder / "program.py"
        program.write_text(PROGRAM)
        command = json.dumps([sys.executable, "-S", str(program), "{model}", "{output_dir}"])
        (folder / "evalrpc.toml").write_text(f'[harnesses.hostile]\nkind = "command"\ncommand = {command}\n')
        disk = _disk_in_memory(folder / "data" / JOBS_DIR) if has_disk else nullcontext()
        with disk, evalrpc_server(folder, gpus=GPUS) as server:
            _measured(server, folder, 1.0, hostile=1)  # what is loaded only when it is needed is there by then
            sides = in_turn(
                scale.rounds,
                lambda: _measured(server, folder, seconds, _HOSTILE),
                lambda: _measured(server, folder, seconds, hostile=0),
            )
    note = f"beside {_HOSTILE} hostile runs at a time, and callers who read what they leave; yardstick: without"
    more_ms = {}
    for call in (*CALLS, DISK):
        for percent in (50, 99):
            at = figures(sides, lambda times, call=call, percent=percent: _percentile(times[call], percent))  # type: ignore[misc]
            row = compare(f"{title}: {call}, {percent} %", "ms", at, note=note)
            yield row
        more_ms[call] = row.ours - (row.yardstick or 0.0)
        aim = at_most(_MAX_MORE_MS) if call in _AIMED else None
        yield Row(f"{title}: {call}, 99 %, how much more", "ms", more_ms[call], aim=aim)
    beyond_disk = more_ms["SubmitJob"] - more_ms[DISK]
    yield Row(f"{title}: SubmitJob, 99 %, how much more than the disk", "ms", beyond_disk, aim=at_most(_MAX_MORE_MS))


@contextmanager
def _disk_in_memory(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", folder), check=True)
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", folder), check=True)


def _measured(server: Server, folder: Path, seconds: float, hostile: int) -> _Times:
    plays = [_make_calls, _write, *[_do_harm] * hostile]
    with load.tasks(_play, [(play, server.address, folder, seconds) for play in plays]) as started:
        of_calls, of_disk, *_ = load.go(started)
        return {**of_calls, **of_disk}


def _play(
    link: load.Link, play: Callable[[EvalClient, Path, float], _Times], address: str, folder: Path, seconds: float
) -> _Times:
    with EvalClient(address) as client:
        link.meet()
        return play(client, folder, time.monotonic() + seconds)


def _make_calls(client: EvalClient, _: Path, deadline: float) -> _Times:
    """Make one call after the other, and return how long each took, in milliseconds."""
    times: dict[str, list[float]] = {call: [] for call in CALLS}
    hold, request = (EvaluateRequest(harness="hostile", model=model, tasks=["t"], num_gpus=GPUS) for model in ("hold", "waits"))
    holding = client.submit(hold)  # so that the others wait
    while time.monotonic() < deadline:
        begin = time.perf_counter()
        job = client.submit(request)
        times["SubmitJob"].append(_since(begin))
        begin = time.perf_counter()
        client.get_job(job.job_id)
        times["GetJob"].append(_since(begin))
        begin = time.perf_counter()
        client.get_queue_status()
        times["GetQueue"].append(_since(begin))
        events = client.watch(job.job_id)
        next(events)
        begin = time.perf_counter()
        client.cancel_job(job.job_id)
        times["CancelJob"].append(_since(begin))
        begin = time.perf_counter()  # what has caused the event is on the disk
        while not next(events).terminal:
            pass
        times["an event to a watcher"].append(_since(begin))
        time.sleep(_PAUSE_SECONDS)
    client.cancel_job(holding.job_id)
    client.wait_for_job(holding.job_id, raise_on_failure=False)
    return times


def _write(_: EvalClient, folder: Path, deadline: float) -> _Times:
    """Append to a file as often as SubmitJob appends to the server's store; return how long that took, in milliseconds."""
    times = []
    with (folder / "written").open("ab", buffering=0) as file:
        while time.monotonic() < deadline:
            begin = time.perf_counter()
            file.write(bytes(_WRITTEN_BYTES))
            os.fdatasync(file.fileno())
            times.append(_since(begin))
            time.sleep(_WRITE_PAUSE_SECONDS)
    return {DISK: times}


def _do_harm(client: EvalClient, _: Path, deadline: float) -> _Times:
    """Run one hostile job after the other, and read all that it leaves."""
    number = 0
    while time.monotonic() < deadline:
        kind = KINDS[number % len(KINDS)]
        number += 1
        job = client.submit(EvaluateRequest(harness="hostile", model=kind, tasks=["t"], num_gpus=0))
        client.wait_for_job(job.job_id, raise_on_failure=False)
        with suppress(EvalrpcError):
            next(iter(client.samples(job.job_id)), None)
        with suppress(EvalrpcError):
            client.list_artifacts(job.job_id, checksums=kind != "sparse")
        with suppress(EvalrpcError):
            read = 0
            for data in client.logs(job.job_id):
                read += len(data)
                if read > _READ_BYTES:
                    break
        client.delete_job(job.job_id)
    return {}


def _since(begin: float) -> float:
    return 1e3 * (time.perf_counter() - begin)


def _percentile(times: list[float], percent: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * percent // 100)]
