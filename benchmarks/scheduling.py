"""How well jobs are packed onto GPUs, and the overhead of the service per run."""

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.processes import Server, evalrpc_server, workplace
from benchmarks.report import Row, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo

GPUS: Final = 8
JOBS: Final = 60
WIDTHS: Final = (1, 1, 1, 2, 2, 4, 8)

PROGRAM: Final = """\
date +%s%N > "$2/started"
sleep "$1"
mkdir "$2/m"
echo '{"results": {"t": {"acc,none": 1.0}}}' > "$2/m/20260101_000000_results.json"
date +%s%N > "$2/ended"
"""
"""Records its wall-clock start and end, and runs for as many seconds as its model's name says."""


class Shape(NamedTuple):
    """What a job asks for."""

    num_gpus: int
    seconds: float


def packing(scale: Scale) -> Iterator[Row]:
    """Mixed jobs on eight GPU slots: the makespan, against a bound that no schedule can beat."""
    dice = random.Random(8)
    longest = 3.0 if scale.name == "full" else 1.0
    shapes = [Shape(dice.choice(WIDTHS), round(dice.uniform(0.1, 1.0) * longest, 2)) for _ in range(JOBS)]
    work = sum(shape.num_gpus * shape.seconds for shape in shapes)
    bound = max(work / GPUS, max(shape.seconds for shape in shapes))
    with timed_server(GPUS) as server:
        packed = _makespan(server, shapes)
    one_by_one = sum(shape.seconds for shape in shapes)
    note = f"{JOBS} jobs of 1, 2, 4 and 8 GPUs; yardstick: max(work / {GPUS}, longest job), computed"
    yield Row("all jobs done", "s", packed, bound, packed / bound, aim=ratio_at_most(1.15), note=note)
    note = "yardstick: the sum of their run times alone, as a server that runs one at a time needs at the least; computed"
    yield Row("all jobs done, beside one at a time", "s", packed, one_by_one, packed / one_by_one, note=note)


def overhead(scale: Scale) -> Iterator[Row]:
    """From SubmitJob's answer to the program's start, and from its end to the terminal event; against a bare Popen."""
    count = scale.changes // 5
    with timed_server(0) as server, EvalClient(server.address) as client, workplace() as folder:
        starts, ends = zip(*(one_run(client) for _ in range(count)), strict=True)
        (folder / "program.sh").write_text(PROGRAM)
        bare_starts, bare_ends = zip(*(_bare_run(folder, number) for number in range(count)), strict=True)
    note = f"{count} jobs in turn; yardstick: subprocess.Popen and wait() of the same program"
    yield _overhead_row("SubmitJob's answer to the program's start, median", starts, bare_starts, note)
    yield _overhead_row("the program's end to the terminal event at the watcher, median", ends, bare_ends, note)


def _overhead_row(figure: str, ours: Sequence[float], bare: Sequence[float], note: str) -> Row:
    return Row(figure, "ms", median(ours) * 1e3, median(bare) * 1e3, median(ours) / median(bare), note=note)


def one_run(client: EvalClient, seconds: float = 0) -> tuple[float, float]:
    """Run the program on a timed server. Return the seconds from the answer to its start, and from its end to the event."""
    job = client.submit(_request(Shape(0, seconds)))
    answered = time.time()
    for event in client.watch(job.job_id, after_revision=job.revision):
        if event.terminal:
            notified = time.time()
            started, ended = _times(Path(event.job.attempts[0].output_dir))
            return started - answered, notified - ended
    raise AssertionError


def _bare_run(folder: Path, number: int) -> tuple[float, float]:
    output = folder / str(number)
    output.mkdir()
    begin = time.time()
    subprocess.Popen(("sh", str(folder / "program.sh"), "0", str(output))).wait()
    reaped = time.time()
    started, ended = _times(output)
    return started - begin, reaped - ended


def _times(output: Path) -> tuple[float, float]:
    return int((output / "started").read_text()) / 1e9, int((output / "ended").read_text()) / 1e9


def _makespan(server: Server, shapes: Sequence[Shape]) -> float:
    with EvalClient(server.address) as client:
        job_ids = [client.submit(_request(shape)).job_id for shape in shapes]
        jobs = [client.wait_for_job(job_id, timeout_seconds=600) for job_id in job_ids]
    return max(map(_ended, jobs)) - min(job.started_at.ToNanoseconds() for job in jobs) / 1e9


def _ended(job: JobInfo) -> float:
    return seconds_of(job.completed_at)


def _request(shape: Shape) -> EvaluateRequest:
    return EvaluateRequest(harness="timed", model=str(shape.seconds), tasks=["t"], num_gpus=shape.num_gpus)


@contextmanager
def timed_server(gpus: int) -> Iterator[Server]:
    """Run the real server with a harness `timed` that runs the program."""
    with workplace() as folder:
        program = folder / "program.sh"
        program.write_text(PROGRAM)
        config = f'[harnesses.timed]\nkind = "command"\ncommand = ["sh", "{program}", "{{model}}", "{{output_dir}}"]\n'
        (folder / "evalrpc.toml").write_text(config)
        with evalrpc_server(folder, gpus=gpus) as server:
            yield server
