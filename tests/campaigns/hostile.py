"""Run hostile programs beside good ones on a live server, while callers read everything that they leave; then look for harm.

    make campaign HOSTILE=100 SEED=1

Every good job has its own metric, every hostile job ends as its kind says, every GPU is free again, no call is answered with
INTERNAL or UNKNOWN, the log has no traceback, no process is left, the server gives back the memory that it needed, and once the
jobs are deleted, all their files are gone.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import engine_program
import grpc
from campaigns.fuzz import rss_mib
from campaigns.hostile_callers import IMPATIENT_SECONDS, Callers, gather_bounded
from campaigns.hostile_kinds import IN_SUITES, LARGE, Kind, combinations, kinds_here
from engine_site import end_engines
from processes_of_tests import kill_all, processes_with
from server_process import ServerProcess
from small_disk import small_disk
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.client import AsyncEvalClient
from evalrpc.jobs.lifecycle import status_name
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.engines_pb2 import ENGINE_STATE_ENDED
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

GOOD: Final = Kind("good", "print('1/1')")
WARM_UP: Final = Kind("warm-up", "print('1/1')")
GPUS: Final = 4
MAX_GROWTH: Final = 0.1
"""By which part the idle server may be larger afterwards than before, when it had done as many things at a time, and as many
good jobs as it takes until it grows no more."""

_AT_A_TIME: Final = 12
_WARM_UP_JOBS: Final = 22 * _AT_A_TIME  # each has four events, and the server keeps the last 1,024
_OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)
_INSPECT: Final = """\
import pathlib, runpy, sys
option = {name: value for name, _, value in (argument.partition("=") for argument in sys.argv)}
output_dir = pathlib.Path(option["--log-dir"])
sys.argv[1:] = [str(output_dir), output_dir.parent.parent.name, option["--model"].removeprefix("mock/"), "inspect"]
runpy.run_path(PROGRAM, run_name="__main__")
"""


@dataclass
class Trial:
    """What was submitted, and what came of it."""

    callers: Callers
    folder: Path
    ends: dict[str, str] = field(default_factory=dict)
    """By kind, how its job ended."""
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By kind, how long its job waited and ran, and how long reading took."""
    good_jobs: int = 0
    rss_mib: list[float] = field(default_factory=list)
    """The server's memory: idle before, at its end, and idle afterwards."""


def config(folder: Path, mark: str) -> str:
    """Return the configuration of the server, whose runs carry a mark in their environment."""
    name, _, value = mark.partition("=")
    command = [sys.executable, "-S", str(folder / "program.py"), "{output_dir}", "{job_id}", "{model}"]
    return f"""
gpus = "{GPUS}"
max_running = 8
grace_seconds = 0.2
max_log_bytes = {128 * 1024**2}
max_output_bytes = {512 * 1024**2}
output_root = "outputs"
[harnesses.trial]
kind = "command"
command = {json.dumps(command)}
env = {{ {name} = "{value}" }}
[harnesses.inspect]
kind = "inspect-ai"
python = "{sys.executable}"
include_path = ["tasks"]
env = {{ {name} = "{value}", PYTHONPATH = {json.dumps(str(folder / "fake"))} }}
[harnesses.served]
kind = "command"
command = {json.dumps([*command[:-1], "{tasks}"])}
env = {{ {name} = "{value}" }}
[engines.stub]
command = {json.dumps([sys.executable, engine_program.__file__, "--model", "{model}", "--port", "{port}"])}
args = {{ behave = "--behave" }}
idle_seconds = 1
start_timeout_seconds = 60
env = {{ {name} = "{value}" }}
[[suites.trial.entries]]
harness = "trial"
tasks = ["t"]
threshold = 0.5
tolerance = 0.1
higher_is_better = true
"""


def set_up(folder: Path, kinds: Sequence[Kind]) -> None:
    """Make the programs that the server runs: one, and one that stands in for inspect-ai."""
    (folder / "program.py").write_text(Path(__file__).with_name("hostile_program.py").read_text())
    (folder / "kinds.json").write_text(json.dumps({kind.name: kind.code for kind in kinds}))
    (folder / "fake" / "inspect_ai").mkdir(parents=True)
    (folder / "fake" / "inspect_ai" / "__main__.py").write_text(_INSPECT.replace("PROGRAM", repr(str(folder / "program.py"))))
    (folder / "model").mkdir()
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tasks.py").write_text("from inspect_ai import task\n\n@task\ndef t(): ...\n")


def request_of(kind: Kind, folder: Path) -> pb.EvaluateRequest:
    """Return the request for a kind, which is the harness's model or, where that is served, its task."""
    if kind.engine:
        served = pb.ServedModel(engine="stub", model=str(folder / "model"), num_gpus=0)
        served.args["behave"] = kind.engine
        return pb.EvaluateRequest(harness=kind.harness, tasks=[kind.name], served_model=served)
    model = f"mock/{kind.name}" if kind.harness == "inspect" else kind.name
    return pb.EvaluateRequest(harness=kind.harness, model=model, tasks=["t"], num_gpus=1, output_dir=kind.output_dir)


@dataclass
class References:
    """Good jobs and runs of the suite, for comparisons."""

    job_id: str
    run_id: str


async def run_trial(server: ServerProcess, kinds: Sequence[Kind], impatient_seconds: float) -> Trial:
    """Run a good job beside each of the kinds, read and delete all of them, and wait for the memory to be given back."""
    folder = server.data_dir.parent
    async with AsyncEvalClient(server.address, timeout_seconds=DEADLINE_SECONDS) as client:
        # The callers read slowly, so the server may hang up on them: no other call should be on their connection.
        async with grpc.aio.insecure_channel(server.address, options=_OWN_CONNECTION) as channel:
            trial = Trial(Callers(EvaluationServiceStub(channel), impatient_seconds), folder)
            reference = await client.wait_for_job((await client.submit(request_of(GOOD, folder))).job_id)
            run = await client.submit_suite("trial", pb.EvaluateRequest(model=GOOD.name, num_gpus=1))
            references = References(reference.job_id, (await client.wait_for_suite_run(run.suite_run_id)).suite_run_id)
            # What is loaded only when it is needed is there by now, and all threads.
            await gather_bounded(_AT_A_TIME, _WARM_UP_JOBS * [partial(run_one, client, trial, WARM_UP, references)])
            trial.rss_mib.append(rss_mib(server.pid))
            works = [partial(run_one, client, trial, kind, references) for each in kinds for kind in (each, GOOD)]
            await gather_bounded(_AT_A_TIME, works)
            trial.rss_mib.append(rss_mib(server.pid))
            for job_id in (reference.job_id, run.jobs[0].job_id):
                await client.delete_job(job_id)
        await asyncio.to_thread(wait_for_gpus, server)
        bound = (1 + MAX_GROWTH) * trial.rss_mib[0]
        with suppress(AssertionError):
            await asyncio.to_thread(eventually, lambda: rss_mib(server.pid) <= bound)
        trial.rss_mib.append(rss_mib(server.pid))
    trial.problems += trial.callers.problems
    if trial.rss_mib[-1] > bound:
        trial.problems.append(f"the server has {trial.rss_mib[-1]} MiB, and had {trial.rss_mib[0]} when it was idle")
    return trial


async def run_one(client: AsyncEvalClient, trial: Trial, kind: Kind, references: References) -> None:
    """Run one job to its end while its log is followed, read all that it has left, and delete it."""
    try:
        async with asyncio.timeout(4 * DEADLINE_SECONDS):
            await run_and_read(client, trial, kind, references)
    except TimeoutError:
        trial.problems.append(f"{kind.name}: it, or a call that reads of it, never ends")


async def run_and_read(client: AsyncEvalClient, trial: Trial, kind: Kind, references: References) -> None:
    job_id, run_id = await submit(client, trial, kind)
    following = [asyncio.create_task(trial.callers.follow_log(kind.name, job_id))]
    following += [asyncio.create_task(trial.callers.watch_suite(kind.name, run_id))] if run_id else []
    if kind.is_cancelled:
        await wait_until_begun(client, job_id)
        await (client.cancel_suite_run(run_id) if run_id else client.cancel_job(job_id))
    began = time.monotonic()
    job = await client.wait_for_job(job_id, raise_on_failure=False)
    note_end(trial, kind, job)
    ended = time.monotonic()
    await trial.callers.read_everything(kind.name, job, references.job_id)
    if run_id:
        await trial.callers.decide(kind.name, run_id, references.run_id)
    trial.seconds[kind.name] = (round(ended - began, 1), round(time.monotonic() - ended, 1))
    await asyncio.gather(*following)
    await client.delete_job(job_id)


async def submit(client: AsyncEvalClient, trial: Trial, kind: Kind) -> tuple[str, str]:
    """Submit a job, of a suite or by itself. Return its id, and that of the suite run."""
    timeout = kind.timeout_seconds or None
    if kind.name in IN_SUITES:
        request = pb.EvaluateRequest(model=kind.name, num_gpus=1)
        run = await client.submit_suite("trial", request, timeout=timeout, max_attempts=1)
        return run.jobs[0].job_id, run.suite_run_id
    job = await client.submit(request_of(kind, trial.folder), timeout=timeout, max_attempts=1)
    return job.job_id, ""


async def wait_until_begun(client: AsyncEvalClient, job_id: str) -> None:
    async for chunk in client.logs(job_id, follow=True):
        if chunk:
            break


def note_end(trial: Trial, kind: Kind, job: pb.JobInfo) -> None:
    """Note how a job has ended, and whether that is right."""
    end = f"{status_name(job.status)} {job.error.reason}".strip()
    trial.ends[kind.name] = end
    if not any(end == allowed or end.startswith(f"{allowed} ") for allowed in kind.ends.split("|")):
        trial.problems.append(f"{kind.name}: {end} instead of {kind.ends}: {job.error.message} {list(job.error.log_tail)[-3:]}")
    if job.status == pb.JOB_STATUS_FAILED and (not job.error.message or job.error.reason == "SERVER_ERROR"):
        trial.problems.append(f"{kind.name}: {end}: no true reason: {job.error.message!r}")
    if kind is GOOD:
        trial.good_jobs += 1
        metrics = [metric.value for result in job.results.values() for metric in result.metrics]
        if metrics != [int(job.job_id[:8], 16) / 2**32]:
            trial.problems.append(f"a good job has the metrics {metrics}")


def wait_for_gpus(server: ServerProcess) -> None:
    with server.client() as client:
        eventually(lambda: client.get_queue_status().free_gpu_count == GPUS, "for all GPUs to be free")


def await_idle_engines(server: ServerProcess) -> None:
    """Wait for the end of all engines, which nobody uses any more."""
    with server.client() as client:
        eventually(
            lambda: all(engine.state == ENGINE_STATE_ENDED for engine in client.list_engines().engines), "for engines to end"
        )


def problems_at_the_end(log: str, exit_code: int, left: list[int]) -> Iterator[str]:
    if "Traceback" in log:
        place = log.index("Traceback")
        yield f"{log.count('Traceback')} tracebacks in the log, the first of them: {log[max(0, place - 300) : place + 3000]}"
    if exit_code:
        yield f"the server stopped with {exit_code}"
    yield from (f"process {pid} is left" for pid in left)


def remove_all(server: ServerProcess) -> list[str]:
    """Wait until the files of deleted jobs are gone, and after a restart those of no job. Return problems."""
    jobs = server.data_dir / "jobs"
    orphan = jobs / str(uuid.uuid4()) / "attempt-1" / "output" / "not UTF-8 \udcff"
    try:
        eventually(lambda: not list(jobs.iterdir()), "for the files of deleted jobs to be removed")
        server.stop()
        orphan.mkdir(parents=True)
        server.start()
        eventually(lambda: not list(jobs.iterdir()), "for a folder of no job to be removed")
    except AssertionError as error:
        return [f"{error}: {sorted(path.name for path in jobs.iterdir())}"]
    return []


def run_campaign(
    folder: Path,
    kinds: Sequence[Kind] = (),
    combined: int = 0,
    seed: int = 1,
    impatient_seconds: float = IMPATIENT_SECONDS,
) -> dict[str, object]:
    """Run a campaign in a folder, with these kinds and some combinations, and return its counts and problems. Callers wait so
    long for what may take minutes."""
    kinds = [*(kinds or kinds_here()), *combinations(combined, seed)]
    mark = f"HOSTILE_MARK={uuid.uuid4()}"
    set_up(folder, [GOOD, WARM_UP, *kinds])
    with ExitStack() as stack:
        if os.geteuid() == 0:
            stack.enter_context(small_disk(folder / "outputs", "8m"))
        else:
            (folder / "outputs").mkdir()
        server = ServerProcess(folder / "data", config(folder, mark))
        stack.callback(kill_all, lambda: processes_with(mark.encode()))
        stack.callback(end_engines, folder / "data")
        stack.callback(server.clean_up)
        server.start()
        trial = asyncio.run(run_trial(server, kinds, impatient_seconds))
        await_idle_engines(server)
        left = processes_with(mark.encode())
        problems = [*trial.problems, *remove_all(server)]
        problems += problems_at_the_end(server.log_path.read_text(), server.stop(), left)
    return {
        "hostile_jobs": len(trial.ends) - 2,
        "good_jobs": trial.good_jobs,
        "slowest": dict(sorted(trial.seconds.items(), key=lambda each: -sum(each[1]))[:10]),
        "ends": dict(Counter(trial.ends.values()).most_common()),
        "answers": dict(sorted(trial.callers.answers.items())),
        "rss_mib": trial.rss_mib,
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--combined", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="only those whose names contain this")
    options = parser.parse_args()
    kinds = [kind for kind in (*kinds_here(), LARGE) if options.kinds in kind.name]
    with tempfile.TemporaryDirectory() as folder:
        counts = run_campaign(Path(folder), kinds, options.combined, options.seed)
    print(json.dumps(counts, indent=2))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
