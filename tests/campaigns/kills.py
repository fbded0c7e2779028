"""Kill a server, a process that forks runs, a harness, its shim, its group, or several, at random under load; then check.

    make campaign KILLS=200 SEED=1

Three owners, who have signed in, submit jobs that may give way to each other; as root once more with accounts of runs.
At the end every acknowledged job has its owner and exactly one outcome, every attempt ran at most once, and exactly once if it
produced a result, no GPU was held twice at a time, no process is left, and a watcher of all jobs has seen every
revision once, in order.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from accounts import PYTHON, UIDS, is_runnable
from callers import add_token
from server_process import ServerProcess

from evalrpc.client import AsyncEvalClient
from evalrpc.errors import PreconditionError, UnavailableError
from evalrpc.executors.local.processes import processes_of_job, send_signal
from evalrpc.jobs import transitions
from evalrpc.jobs.lifecycle import TERMINAL, TRANSITIONS, status_name
from evalrpc.v1 import jobs_pb2 as pb

PROGRAM = """
import json, os, pathlib, signal, subprocess, sys, time
output_dir, job_id, attempt, kind = sys.argv[1:]
descriptor = os.open("starts", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(descriptor, f"{job_id} {attempt}\\n".encode())
os.close(descriptor)
if kind == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if kind == "children":
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
if kind == "failing":
    sys.exit("failed as it was told to")
time.sleep({"quick": 0, "children": 0.1, "slow": 0.5, "stubborn": 1}[kind])
folder = pathlib.Path(output_dir) / kind
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.25}}}))
"""

CONFIG = """
gpus = "2"
auth = "required"
max_running = 4
grace_seconds = 0.2
run_as_uids = "{uids}"
[harnesses.trial]
kind = "command"
command = ["{python}", "-m", "program", "{{output_dir}}", "{{job_id}}", "{{attempt}}", "{{model}}"]
preload = ["json"]
"""

TARGETS = ("server", "fork server", "parent", "harness", "shim", "group", "server and group")
"""The shim is the process that waits for the harness; the group is both. The fork server forks the shims of cold runs, a parent
those of warm ones."""

OWNERS = ("alice", "bob", "carol")
OPERATOR = "olga"

KINDS = ("quick", "quick", "quick", "slow", "children", "stubborn", "failing")


@dataclass
class Trial:
    """What happened, as the clients saw it."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    """The owner of each job."""
    cancelled: set[str] = field(default_factory=set)
    revisions: list[int] = field(default_factory=list)
    changes: list[tuple[str, int]] = field(default_factory=list)
    """The job and its new status, of each change of a status."""
    kills: Counter[str] = field(default_factory=Counter)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def ended(self) -> set[str]:
        return {job_id for job_id, status in self.changes if status in TERMINAL}

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with self.news:
            await self.news.wait_for(condition)


async def run_trial(server: ServerProcess, tokens: Mapping[str, str], kills: int, jobs_per_kill: int, seed: int) -> Trial:
    """Submit, cancel, watch and kill until all kills are done and every job has ended."""
    trial, dice = Trial(), random.Random(seed)
    async with AsyncExitStack() as stack:
        clients = {
            owner: await stack.enter_async_context(AsyncEvalClient(server.address, token=token))
            for owner, token in tokens.items()
        }
        of_owner = {owner: [client] for owner, client in clients.items()}
        first = await clients[OWNERS[0]].submit(request_of("quick"))
        trial.acknowledged[first.job_id] = OWNERS[0]
        watcher = asyncio.create_task(watch_everything(clients[OPERATOR], trial, first.revision))
        for _ in range(kills):
            load = asyncio.create_task(submit_and_cancel(of_owner, trial, dice, jobs_per_kill))
            seen = len(trial.changes) + dice.randrange(2 * jobs_per_kill)
            await trial.wait_until(lambda seen=seen, load=load: len(trial.changes) >= seen or load.done())
            await asyncio.to_thread(kill_something, server, trial, dice)
            await load
        await trial.wait_until(lambda: trial.ended >= trial.acknowledged.keys())
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return trial


async def submit_and_cancel(
    clients: Mapping[str, Sequence[AsyncEvalClient]],
    trial: Trial,
    dice: random.Random,
    count: int,
    gpu_counts: Sequence[int] = (0, 1, 1, 2),
) -> None:
    """Submit so many jobs, and cancel some. `clients`: those of each owner, who may cancel a job of theirs, and those of the
    operator, if there is one, who may cancel any."""
    owners = sorted(clients.keys() - {OPERATOR})
    for _ in range(count):
        owner = dice.choice(owners)
        request, request_id = (
            request_of(dice.choice(KINDS), dice.choice(gpu_counts)),
            str(uuid.UUID(int=dice.getrandbits(128))),
        )
        options = {"max_attempts": dice.choice((1, 3)), "priority": dice.choice((0, 0, 5)), "preemptible": dice.random() < 0.5}
        submit = partial(dice.choice(clients[owner]).submit, request, request_id=request_id, **options)
        trial.acknowledged[(await until_served(submit)).job_id] = owner
        open_jobs = sorted(trial.acknowledged.keys() - trial.ended)
        if open_jobs and dice.random() < 0.2:
            victim = dice.choice(open_jobs)
            cancellers = [*clients[trial.acknowledged[victim]], *clients.get(OPERATOR, ())]
            with suppress(PreconditionError):  # it ended first
                await until_served(partial(dice.choice(cancellers).cancel_job, victim, "the dice said so"))
                trial.cancelled.add(victim)
    async with trial.news:
        trial.news.notify_all()


async def until_served(call: Callable[[], Awaitable[pb.JobInfo]]) -> pb.JobInfo:
    """Retry for as long as the server is unavailable, as the schema allows for both calls."""
    while True:
        try:
            return await call()
        except UnavailableError:
            await asyncio.sleep(0.05)


async def watch_everything(client: AsyncEvalClient, trial: Trial, after_revision: int) -> None:
    async for event in client.watch_all(after_revision=after_revision):
        if event.type in (pb.JOB_EVENT_TYPE_STATUS, pb.JOB_EVENT_TYPE_UPDATED):
            trial.revisions.append(event.revision)
        if event.type == pb.JOB_EVENT_TYPE_STATUS:
            trial.changes.append((event.job.job_id, event.job.status))
            async with trial.news:
                trial.news.notify_all()


def kill_something(server: ServerProcess, trial: Trial, dice: random.Random) -> None:
    """Kill one of the targets; the server if nothing runs."""
    running = sorted(job_id for job_id in trial.acknowledged.keys() - trial.ended if server.shims_of(job_id))
    target = dice.choice(TARGETS) if running else "server"
    trial.kills[target] += 1
    if target == "fork server":
        send_signal(server.fork_servers(), signal.SIGKILL)
    elif target == "parent":
        send_signal(server.parents(), signal.SIGKILL)
    elif target != "server":
        victim = dice.choice(running)
        pids = server.shims_of(victim) if target != "harness" else []
        pids += processes_of_job(victim) if target != "shim" else []
        send_signal(pids, signal.SIGKILL)
    if "server" in target:
        server.kill()
        server.start()


def request_of(kind: str, num_gpus: int = 0) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(harness="trial", model=kind, tasks=["t"], num_gpus=num_gpus)


def read_starts(folder: Path) -> list[tuple[str, int]]:
    """Return the job and the attempt of each start of PROGRAM, as it has noted them."""
    return [(job, int(attempt)) for job, attempt in map(str.split, (folder / "starts").read_text().splitlines())]


def check(trial: Trial, starts: list[tuple[str, int]], jobs: dict[str, pb.JobInfo], first_revision: int) -> list[str]:
    """Return the problems found; none if all guarantees held."""
    problems = []
    if trial.revisions != list(range(first_revision + 1, first_revision + 1 + len(trial.revisions))):
        problems.append("the watcher missed, repeated or disordered a revision")
    for job_id in sorted(trial.acknowledged):
        history = [status for its_id, status in trial.changes if its_id == job_id]
        problems += [f"{job_id}: {problem}" for problem in problems_of(jobs[job_id], history, starts)]
        if jobs[job_id].owner != trial.acknowledged[job_id]:
            problems.append(f"{job_id}: it belongs to {jobs[job_id].owner}")
    problems += [f"{gpu} was held twice at a time" for gpu in sorted(held_twice(list(jobs.values())))]
    problems += [f"attempt {attempt} of {job} ran {n} times" for (job, attempt), n in Counter(starts).items() if n > 1]
    return problems


def problems_of(job: pb.JobInfo, history: list[int], starts: list[tuple[str, int]]) -> list[str]:
    problems = []
    if sum(status in TERMINAL for status in history) != 1 or history[-1] != job.status:
        problems.append(f"history {list(map(status_name, history))} and status {status_name(job.status)}")
    if any(pair not in TRANSITIONS for pair in pairwise(history)):
        problems.append(f"an illegal transition in {list(map(status_name, history))}")
    if job.status == pb.JOB_STATUS_COMPLETED and (job.job_id, job.attempt) not in starts:
        problems.append("it has results of an attempt that never ran")
    if len(job.attempts) != job.attempt or any(not attempt.HasField("completed_at") for attempt in job.attempts):
        problems.append("an attempt is missing or never ended")
    if transitions.counted_attempts(job) > job.max_attempts:
        problems.append(f"{transitions.counted_attempts(job)} attempts count, of {job.max_attempts} at most")
    if any(attempt.error.reason == transitions.PREEMPTED_REASON for attempt in job.attempts) and not job.preemptible:
        problems.append("it gave way, and is not preemptible")
    return problems


def held_twice(jobs: Sequence[pb.JobInfo]) -> set[str]:
    """Return the GPUs that one attempt got before another one had ended."""
    uses: dict[str, list[tuple[int, int]]] = {}
    for attempt in (attempt for job in jobs for attempt in job.attempts):
        for gpu in attempt.gpus:
            uses.setdefault(gpu, []).append((attempt.started_at.ToNanoseconds(), attempt.completed_at.ToNanoseconds()))
    return {gpu for gpu, spans in uses.items() if any(end > begin for (_, end), (begin, _) in pairwise(sorted(spans)))}


def run_campaign(folder: Path, kills: int, jobs_per_kill: int, seed: int, *, accounts: bool = False) -> dict[str, object]:
    """Run a campaign in a folder and return its counts and problems. With `accounts`, each owner's runs have an account; the
    folder must be one that any account can get to."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "starts").touch()
    (folder / "starts").chmod(0o666)
    config = CONFIG.format(uids=UIDS, python=PYTHON) if accounts else CONFIG.format(uids="", python=sys.executable)
    server = ServerProcess(folder / "data", config)
    server.data_dir.mkdir(mode=0o700)
    tokens = {owner: add_token(server.data_dir, owner) for owner in OWNERS}
    tokens[OPERATOR] = add_token(server.data_dir, OPERATOR, "operator")
    server.start()
    try:
        trial = asyncio.run(run_trial(server, tokens, kills, jobs_per_kill, seed))
        jobs = asyncio.run(final_jobs(server.address, tokens[OPERATOR], list(trial.acknowledged)))
        starts = read_starts(folder)
        left = server.processes_of_jobs()
        problems = check(trial, starts, jobs, 1) + [f"process {pid} is left" for pid in left]
    finally:
        server.clean_up()
    return {
        "kills": dict(trial.kills),
        "jobs": len(jobs),
        "attempts": sum(len(job.attempts) for job in jobs.values()),
        "preempted": sum(len(job.attempts) - transitions.counted_attempts(job) for job in jobs.values()),
        "warm": sum(attempt.warm for job in jobs.values() for attempt in job.attempts),
        "programs_started": len(starts),
        "events": len(trial.revisions),
        "outcomes": dict(Counter(outcome(job) for job in jobs.values())),
        "problems": problems,
    }


async def final_jobs(address: str, token: str, job_ids: Sequence[str]) -> dict[str, pb.JobInfo]:
    async with AsyncEvalClient(address, token=token) as client:
        return {job_id: await until_served(partial(client.get_job, job_id)) for job_id in job_ids}


def outcome(job: pb.JobInfo) -> str:
    return f"{status_name(job.status)} {job.error.reason}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs-per-kill", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    problems = False
    for accounts in (False, True) if is_runnable() else (False,):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            counts = run_campaign(Path(folder), options.kills, options.jobs_per_kill, options.seed, accounts=accounts)
        print(json.dumps({"accounts of runs": accounts, **counts}, indent=2))
        problems |= bool(counts["problems"])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
