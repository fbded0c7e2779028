"""Jobs on a Slurm cluster of one machine beside a bare `sbatch`. Needs root and Slurm, as its tests do."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from benchmarks.processes import REPOSITORY, evalrpc_server, workplace
from benchmarks.report import Row, at_most, compare, in_turn, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.errors import JobNotCompletedError
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest

_CONFIG: Final = """
[executors.cluster]
kind = "slurm"
python = "{python}"
[harnesses.none]
kind = "command"
command = ["/bin/true"]
"""
_ROUNDS_AT_LEAST: Final = 9
"""The controller schedules about once a second, so single rounds differ by as much."""

_WAIT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.005


def missing() -> str:
    """Return what is missing; empty: nothing."""
    return (
        ""
        if _support().is_runnable()
        else "there is no Slurm here, or no root: apt-get install slurm-wlm slurmctld slurmd munge"
    )


def submission(scale: Scale) -> Iterator[Row]:
    """The time from SubmitJob to the start of the batch script, beside that from the start of a bare `sbatch`."""
    with workplace() as folder:
        (folder / "cluster").mkdir()
        cluster = _support().SlurmCluster(folder / "cluster")
        try:
            cluster.start()
            with patch.dict(os.environ, cluster.environment):
                yield from _rows(folder, max(scale.rounds, _ROUNDS_AT_LEAST))
        finally:
            cluster.stop()


def _rows(folder: Path, rounds: int) -> Iterator[Row]:
    (folder / "evalrpc.toml").write_text(_CONFIG.format(python=sys.executable))
    programs: list[float] = []
    ends: list[float] = []
    with evalrpc_server(folder, gpus=0) as server, EvalClient(server.address) as client:

        def ours() -> float:
            begin = time.time()
            job = client.submit(EvaluateRequest(harness="none", model="m", tasks=["t"], num_gpus=0, executor="cluster"))
            try:
                job = client.wait_for_job(job.job_id)
            except JobNotCompletedError as error:  # it leaves no results
                job = error.job
            traces = folder / "data" / "jobs" / job.job_id / "attempt-1" / "run"
            exits = (traces / "exit").stat().st_mtime
            programs.append((traces / "pid").stat().st_mtime - begin)
            ends.append(seconds_of(job.completed_at) - exits)
            return (traces / "claim").stat().st_mtime - begin

        def bare() -> float:
            return _bare(folder)

        for each in (ours, bare):  # the first pays for much that comes only once
            each()
        programs.clear()
        ends.clear()
        sides = in_turn(rounds, ours, bare)
    note = "a cluster of one machine; yardstick: `sbatch` of a script of one line"
    yield compare("from SubmitJob to the start of the batch script", "s", sides, aim=ratio_at_most(1.2), note=note)
    bares = sides[1]
    yield compare("the same, to the start of the harness", "s", (programs, bares))
    yield Row("from the end on the shared disk to the end of the job, at most", "s", max(ends), aim=at_most(1.0))


def _bare(folder: Path) -> float:
    stamp = folder / f"stamp-{time.monotonic_ns()}"
    script = f"#!/bin/sh\n: > {stamp}\n"
    begin = time.time()
    subprocess.run(
        ["sbatch", f"--output={os.devnull}", "--export=NIL"], input=script, text=True, check=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _WAIT_SECONDS
    while not stamp.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("Slurm has not started a bare script")
        time.sleep(_POLL_SECONDS)
    while subprocess.run(["squeue", "--noheader"], check=True, capture_output=True).stdout:  # the next one finds the node idle
        time.sleep(_POLL_SECONDS)
    return stamp.stat().st_mtime - begin


def _support() -> Any:
    """Return the module with the cluster that the tests use, too."""
    folder = str(REPOSITORY / "tests" / "support")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("slurm_cluster")
