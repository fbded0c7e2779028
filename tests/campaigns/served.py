"""Kill a harness, an engine, the gateway, what holds its socket, a shim, the server, or several, at random; then check.

    make campaign SERVED_KILLS=100 SEED=1

Jobs of two models ask engines that end soon without them, and some of them replicas on a third GPU. At the end every job has
the results of one that was not interrupted, the engines have answered no question more often than the job asked it, but for
those in flight at a kill, and nothing is left: no process of a job, an engine or the gateway, and no GPU that anybody holds.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from campaigns.kills import final_jobs, outcome, until_served
from processes_of_tests import PROC, kill_all, read_pid
from server_process import ServerProcess
from waiting import eventually

from evalrpc.client import AsyncEvalClient
from evalrpc.executors.local.processes import processes_of_job, send_signal
from evalrpc.jobs.transitions import ENGINE_LOST_REASON
from evalrpc.v1 import jobs_pb2 as pb

HERE = Path(__file__).parent
MANNERS = ("careful", "careless")
QUESTIONS = 24
MODELS = ("one", "two")
TARGETS = ("server", "harness", "engine", "gateway", "holder", "shim of the engine", "server and gateway", "engine and harness")

CONFIG = """
gpus = "3"
max_running = 6
grace_seconds = 0.2
cgroups = "{cgroups}"
[harnesses.asking]
kind = "command"
command = ["{python}", "{here}/served_harness.py", "{{output_dir}}", "{{job_id}}", "{{tasks}}", "{questions}"]
[engines.stub]
command = ["{python}", "{here}/served_engine.py", "{{port}}", "{notes}", "{{model}}"]
env = {{ PYTHONPATH = "{support}" }}
idle_seconds = 2
"""

ENGINE_ID = re.compile(r"engine-[0-9a-f-]{36}")
MAX_ATTEMPTS = 10
RECORDING_NS = 2 * 10**9
"""How long an answer may be on its way to the recording, on a busy machine."""
AWAY_NS = 60 * 10**9
"""How long before or after a kill a question may come that nobody takes the answer to: it waits for its engine."""


class Asked(NamedTuple):
    """A question, as an engine has noted it."""

    at_ns: int
    answered_at_ns: int | None
    """None: nobody has taken the answer."""


@dataclass
class Trial:
    """What was done."""

    jobs: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    moments_ns: list[int] = field(default_factory=list)
    """When something was killed, in monotonic time."""
    killed_engines: dict[str, list[int]] = field(default_factory=dict)
    """When each engine was killed, or what supervises it, in nanoseconds since 1970."""


class Site:
    """A server with engines, and what it has started."""

    def __init__(self, folder: Path, cgroups: str = "off") -> None:
        self.folder = folder
        self.notes = folder / "notes"
        self.notes.touch()
        for model in MODELS:
            (folder / model).mkdir()
            (folder / model / "weights").write_text(model)
        support = HERE.parent / "support"
        config = CONFIG.format(
            cgroups=cgroups, python=sys.executable, here=HERE, support=support, questions=QUESTIONS, notes=self.notes
        )
        self.server = ServerProcess(folder / "data", config)

    def engines(self) -> list[str]:
        return [path.name for path in (self.folder / "data" / "engines").glob("engine-*")]

    def gateways(self) -> list[str]:
        return [path.name for path in (self.folder / "data" / "engines" / "gateway").glob("*")]

    def processes(self, names: Sequence[str], words: str = "") -> list[int]:
        """Return the processes of engines, the gateway or jobs whose command lines have these words."""
        return [pid for name in names for pid in processes_of_job(name) if words in command_of(pid)]

    def shims(self, engine: str) -> list[int]:
        folders = (self.folder / "data" / "engines" / engine).glob("start-*/run")
        return [pid for pid, _ in filter(None, map(read_pid, folders))]

    def left(self) -> list[int]:
        """Return all processes of jobs, engines and gateways."""
        return [*self.server.processes_of_jobs(), *self.processes([*self.engines(), *self.gateways()])]

    def close(self) -> None:
        self.server.clean_up()
        kill_all(self.left)


def command_of(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def request_of(folder: Path, model: str, manner: str, max_replicas: int = 1) -> pb.EvaluateRequest:
    served = pb.ServedModel(engine="stub", model=str(folder / model), num_gpus=1, max_replicas=max_replicas)
    return pb.EvaluateRequest(harness="asking", tasks=[manner], served_model=served)


async def run_trial(site: Site, kills: int, jobs_per_kill: int, seed: int, manners: Sequence[str]) -> Trial:
    """Submit and kill until all kills are done and every job has ended. The first job is not interrupted."""
    trial, dice = Trial(), random.Random(seed)
    async with AsyncEvalClient(site.server.address) as client:
        trial.jobs.append((await client.submit(request_of(site.folder, MODELS[0], MANNERS[0]))).job_id)
        await client.wait_for_job(trial.jobs[0])
        for _ in range(kills):
            for _ in range(jobs_per_kill):
                request = request_of(site.folder, dice.choice(MODELS), dice.choice(manners), dice.choice((1, 2)))
                submit = partial(client.submit, request, max_attempts=MAX_ATTEMPTS)
                trial.jobs.append((await until_served(submit)).job_id)
            await wait_for_questions(site, client, trial, dice.randrange(1, jobs_per_kill * QUESTIONS))
            await asyncio.to_thread(kill_something, site, trial, dice)
        for job_id in trial.jobs:
            await client.wait_for_job(job_id, raise_on_failure=False)
    return trial


async def wait_for_questions(site: Site, client: AsyncEvalClient, trial: Trial, count: int) -> None:
    """Wait until the engines were asked so many questions more, or no job is left to ask them."""
    begin = site.notes.stat().st_size
    while site.notes.stat().st_size < begin + count * 60:
        await asyncio.sleep(0.02)
        if await until_served(partial(is_idle, client, trial)):
            return


async def is_idle(client: AsyncEvalClient, trial: Trial) -> bool | pb.JobInfo:
    return (await client.get_job(trial.jobs[-1])).HasField("completed_at")


def kill_something(site: Site, trial: Trial, dice: random.Random) -> None:
    """Kill what the dice say, as far as it is there."""
    target = dice.choice(TARGETS)
    trial.kills[target] += 1
    pids = []
    if "harness" in target:
        pids += dice.sample(running, 1) if (running := site.processes(trial.jobs, "served_harness")) else []
    for engine in site.engines():
        own = site.processes([engine], "served_engine") if target.startswith("engine") else []
        own += site.shims(engine) if target.startswith("shim") else []
        if own:
            trial.killed_engines.setdefault(engine, []).append(time.time_ns())
        pids += own
    if "gateway" in target:
        pids += site.processes(site.gateways(), "evalrpc.engines.gateway")
    if target == "holder":
        pids += site.processes(site.gateways(), "socket_holder")
    trial.moments_ns.append(time.monotonic_ns())
    send_signal(pids, signal.SIGKILL)
    if "server" in target:
        site.server.kill()
        site.server.start()


def asked_questions(notes: str) -> Mapping[str, list[Asked]]:
    """Return how often each question was asked, in the order in which they came."""
    lines = [line.split(" ", 3) for line in notes.splitlines()]
    answered = {place: int(moment) for what, moment, place, _ in lines if what == "answered"}
    asked: dict[str, list[Asked]] = {}
    for what, moment, place, text in lines:
        if what == "asked":
            asked.setdefault(text, []).append(Asked(int(moment), answered.get(place)))
    return asked


def lost_count(times: Sequence[Asked], moments_ns: Sequence[int]) -> int:
    """Return how many answers to a question may have been lost at a kill."""
    return sum(any(may_be_lost(each, moment) for moment in moments_ns) for each in times)


def may_be_lost(asked: Asked, killed_at_ns: int) -> bool:
    """Tell whether an answer was lost at a kill: nobody took it, or it was about to be recorded."""
    if asked.answered_at_ns is None:
        return abs(asked.at_ns - killed_at_ns) <= AWAY_NS
    return abs(asked.answered_at_ns - killed_at_ns) <= RECORDING_NS


def check(trial: Trial, jobs: Mapping[str, pb.JobInfo], notes: str) -> list[str]:
    """Return the problems found; none if all guarantees held."""
    problems = []
    expected = results_of(jobs[trial.jobs[0]])
    for job_id in trial.jobs:
        job = jobs[job_id]
        if job.status != pb.JOB_STATUS_COMPLETED:
            has_right_to_fail = is_worn_out(job) or was_engine_killed(job, trial)
            problems += [] if has_right_to_fail else [f"{job_id}: {outcome(job)}: {job.error.message}"]
        elif results_of(job) != expected:
            problems.append(f"{job_id}: its results are not those of a job that was not interrupted: {results_of(job)}")
        elif job.usage.answered_count != QUESTIONS:
            problems.append(f"{job_id}: {job.usage.answered_count} of {QUESTIONS} answers are counted")
    for text, times in asked_questions(notes).items():
        job_id, _, number = text.partition(" ")
        wanted = 2 if int(number) == QUESTIONS - 2 else 1
        if len(times) > wanted + lost_count(times, trial.moments_ns):
            problems.append(f"{job_id}: engines were asked question {number} {len(times)} times: {times}")
    return problems


def results_of(job: pb.JobInfo) -> list[object]:
    """Return what a job has found out, without times and paths."""
    results = [result for _, result in sorted(job.results.items())]
    metrics = [(metric.task, metric.metric, metric.value) for result in results for metric in result.metrics]
    return [*metrics, *(Path(path).read_text() for result in results for path in sorted(result.samples))]


def is_worn_out(job: pb.JobInfo) -> bool:
    """Tell whether a job was hit as often as it takes."""
    reasons = Counter(attempt.error.reason for attempt in job.attempts)
    return reasons[ENGINE_LOST_REASON] > 3 or job.attempt >= MAX_ATTEMPTS


def was_engine_killed(job: pb.JobInfo, trial: Trial) -> bool:
    """Tell whether the engine that a job's error names was killed before that, while it loaded its model."""
    if job.error.reason != "ENGINE_START_FAILED" or "ended before it answered" not in job.error.message:
        return False
    named = ENGINE_ID.findall(job.error.message)
    failed_ns = job.completed_at.ToNanoseconds()
    return any(moment < failed_ns for engine in named for moment in trial.killed_engines.get(engine, ()))


def what_is_left(site: Site) -> list[str]:
    """Return what is left once no engine has jobs any more; they end by themselves then."""
    with site.server.client() as client:
        eventually(lambda: not any(gpu.held for gpu in client.get_queue_status().gpus), "for all GPUs to be free")
        eventually(lambda: not site.left(), "for all processes to end")
        queue = client.get_queue_status()
    return [] if queue.free_gpu_count == 3 else [f"{queue.free_gpu_count} of 3 GPUs are free"]


def run_campaign(
    folder: Path, kills: int, jobs_per_kill: int, seed: int, manners: Sequence[str] = MANNERS
) -> dict[str, object]:
    """Run a campaign in a folder and return its counts and problems."""
    site = Site(folder)
    site.server.data_dir.mkdir(mode=0o700)
    site.server.start()
    try:
        trial = asyncio.run(run_trial(site, kills, jobs_per_kill, seed, manners))
        jobs = asyncio.run(final_jobs(site.server.address, "", trial.jobs))
        left = what_is_left(site)
        notes = site.notes.read_text()
    finally:
        site.close()
    asked = asked_questions(notes)
    return {
        "kills": dict(trial.kills),
        "jobs": len(jobs),
        "attempts": sum(len(job.attempts) for job in jobs.values()),
        "engines": len({attempt.engine_id for job in jobs.values() for attempt in job.attempts if attempt.engine_id}),
        "engine processes": len({line.split(" ")[2].partition("-")[0] for line in notes.splitlines()}),
        "questions": len(asked),
        "asked": sum(map(len, asked.values())),
        "replayed": sum(job.usage.replayed_count for job in jobs.values()),
        "outcomes": dict(Counter(outcome(job) for job in jobs.values())),
        "reasons": dict(Counter(attempt.error.reason for job in jobs.values() for attempt in job.attempts)),
        "problems": check(trial, jobs, notes) + left,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs-per-kill", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run_campaign(Path(folder), options.kills, options.jobs_per_kill, options.seed)
    print(json.dumps(counts, indent=2))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
