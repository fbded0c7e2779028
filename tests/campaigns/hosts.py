"""Take several servers on one PostgreSQL database through faults under load, on three hosts; then check.

    make campaign HOST_FAULTS=100 SEED=1

Clients submit and cancel at all servers, and a watcher at each sees all jobs. Meanwhile a server is killed, or stands still for
longer than its lease and goes on, or is cut off from the database; a host is lost with all its runs, and given up (`evalrpc
node lost`); the database is killed; connections that listen are cut; the answers to commits are lost. A server that has ended
by itself, since it lost its lease, is started again.

At the end every acknowledged job has exactly one outcome, every attempt ran at most once, and exactly once if it produced a
result, no GPU was held twice at a time, no process is left, and each watcher has seen every revision once, in order.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from campaigns.kills import (
    PROGRAM,
    Trial,
    check,
    final_jobs,
    outcome,
    read_starts,
    request_of,
    submit_and_cancel,
    until_served,
    watch_everything,
)
from database_proxy import DatabaseProxy
from postgres_cluster import Cluster, start_cluster
from processes_of_tests import kill_all
from server_group import ServerGroup
from server_process import ServerProcess
from waiting import eventually

from evalrpc.client import AsyncEvalClient
from evalrpc.errors import ConfigurationError
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.store.postgres.hosts import give_up_host
from evalrpc.v1 import jobs_pb2 as pb

HOSTS = ("alpha", "beta", "gamma")
LEASE_SECONDS = 2.0
FAULTS = ("kill", "stop", "cut off", "lost", "database", "listening", "answers")
GPU_COUNTS = (0, 1)

_SHOWN_LINES = 40

CONFIG = """
gpus = "1"
max_running = 3
grace_seconds = 0.2
lease_seconds = {lease}
[harnesses.trial]
kind = "command"
command = ["{python}", "-m", "program", "{{output_dir}}", "{{job_id}}", "{{attempt}}", "{{model}}"]
"""


@dataclass
class Site:
    """The servers with their hosts, and what lies between them and the database."""

    cluster: Cluster
    servers: ServerGroup
    proxies: Mapping[str, DatabaseProxy]
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    """Does the faults. The database ends with the thread that has started it, so that stays until the end."""


def give_up(site: Site, host: str) -> None:
    """Give up a host whose server is gone, once nothing runs there any more, as an operator does. It may have given its lease
    back, or never had one."""

    def is_lost() -> bool:
        kill_all(lambda: [pid for job_id in jobs_on(site, host) for pid in processes_of(site.servers.any, job_id)])
        try:
            give_up_host(site.cluster.conninfo(), host)
        except ConfigurationError as refusal:
            return "there is no host" in str(refusal)
        return True

    eventually(is_lost, f"for the lease of {host} to expire")


def jobs_on(site: Site, host: str) -> list[str]:
    """Return the jobs that run on a host, by the database."""
    with psycopg.connect(site.cluster.conninfo(), autocommit=True) as connection:
        rows = connection.execute("SELECT job FROM jobs WHERE status = %s", (pb.JOB_STATUS_RUNNING,)).fetchall()
    return [job.job_id for job in (pb.JobInfo.FromString(row) for (row,) in rows) if job.attempts[-1].node == host]


def processes_of(server: ServerProcess, job_id: str) -> list[int]:
    return [*server.shims_of(job_id), *processes_of_job(job_id)]


def do_fault(site: Site, kind: str, host: str, dice: random.Random) -> None:
    """Do one fault, and undo it."""
    proxy, beyond_lease = site.proxies[host], threading.Event()
    match kind:
        case "kill":
            with site.servers.down(host):
                pass
        case "stop":
            with site.servers.kept_as_it_is(host) as server:
                server.send(signal.SIGSTOP)
                beyond_lease.wait(LEASE_SECONDS * dice.choice((0.5, 1.5)))
                server.send(signal.SIGCONT)
        case "cut off":
            proxy.cut()
            beyond_lease.wait(LEASE_SECONDS * dice.choice((0.1, 1.5)))
            proxy.mend()
        case "lost":
            with site.servers.down(host):
                give_up(site, host)
        case "database":
            site.cluster.kill()
            site.cluster.start()
        case "listening":
            for each in site.proxies.values():
                each.cut_listening()
        case "answers":
            proxy.lose_answers(3)


async def run_trial(site: Site, faults: Sequence[str], jobs_per_fault: int, seed: int) -> tuple[Trial, list[Trial]]:
    """Submit, cancel, watch and do the faults until every job has ended. Return what each watcher has seen, the first as the
    trial."""
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        addresses = (*site.servers.addresses, site.servers.address)
        clients = [await stack.enter_async_context(AsyncEvalClient(address)) for address in addresses]
        first = await until_served(lambda: clients[0].submit(request_of("quick")))
        trials = [Trial() for _ in clients]
        trial = trials[0]
        trial.acknowledged[first.job_id] = ""
        watchers = [
            asyncio.create_task(watch_everything(client, each, first.revision))
            for client, each in zip(clients, trials, strict=True)
        ]
        for kind in faults:
            load = asyncio.create_task(submit_and_cancel({"": clients}, trial, dice, jobs_per_fault, GPU_COUNTS))
            seen = len(trial.changes) + dice.randrange(2 * jobs_per_fault)
            await trial.wait_until(lambda seen=seen, load=load: len(trial.changes) >= seen or load.done())
            trial.kills[kind] += 1
            await asyncio.get_running_loop().run_in_executor(site.worker, do_fault, site, kind, dice.choice(HOSTS), dice)
            await load
        for each in trials:
            await each.wait_until(lambda each=each: each.ended >= trial.acknowledged.keys())
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    return trial, trials


def run_campaign(folder: Path, faults: Sequence[str], jobs_per_fault: int, seed: int) -> dict[str, object]:
    """Run a campaign in a folder and return its counts and problems."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "starts").touch()
    (folder / "data").mkdir(mode=0o700)
    cluster = start_cluster()
    proxies = {host: DatabaseProxy(cluster.folder / ".s.PGSQL.5432") for host in HOSTS}
    site = Site(cluster, ServerGroup({host: server_of(folder, host, proxy) for host, proxy in proxies.items()}), proxies)
    try:
        site.servers.start()
        trial, watched = asyncio.run(run_trial(site, faults, jobs_per_fault, seed))
        jobs = asyncio.run(final_jobs(site.servers.address, "", list(trial.acknowledged)))
        starts = read_starts(folder)
        eventually(lambda: not site.servers.any.processes_of_jobs(), "for no process to be left")
        problems = [problem for each in watched for problem in check(_with_jobs(each, trial), starts, jobs, 1)]
        logs = site.servers.logs
        problems += tracebacks_in(logs)
    finally:
        site.servers.close()
        for proxy in proxies.values():
            proxy.close()
        site.cluster.close()
        site.worker.shutdown()
    return {
        "faults": dict(trial.kills),
        "answers lost": sum(proxy.lost_answers for proxy in proxies.values()),
        "servers that gave up": site.servers.restarts,
        "writes refused by a fence": logs.count("another server sees to this job now"),
        "schedulers": logs.count("this server is the scheduler from now on"),
        "jobs": len(jobs),
        "attempts": sum(len(job.attempts) for job in jobs.values()),
        "hosts": dict(Counter(attempt.node for job in jobs.values() for attempt in job.attempts)),
        "programs_started": len(starts),
        "events": [len(each.revisions) for each in watched],
        "outcomes": dict(Counter(outcome(job) for job in jobs.values())),
        "problems": sorted(set(problems)),
    }


def server_of(folder: Path, host: str, proxy: DatabaseProxy) -> ServerProcess:
    store = f"postgresql://evalrpc@127.0.0.1:{proxy.port}/postgres?sslmode=disable&gssencmode=disable"
    config = CONFIG.format(lease=LEASE_SECONDS, python=sys.executable)
    return ServerProcess(folder / "data", config, "--host-name", host, "--store", store, name=host)


def tracebacks_in(logs: str) -> list[str]:
    """Return the beginnings of the tracebacks in the servers' logs, each with the line before it."""
    lines = logs.splitlines()
    return ["\n".join(lines[max(0, at - 1) : at + _SHOWN_LINES]) for at, line in enumerate(lines) if "Traceback" in line]


def _with_jobs(watched: Trial, trial: Trial) -> Trial:
    watched.acknowledged = trial.acknowledged
    return watched


def faults_of(count: int, seed: int) -> list[str]:
    """Return so many faults, all kinds equally often, in an order of their own."""
    kinds = [FAULTS[place % len(FAULTS)] for place in range(count)]
    random.Random(seed).shuffle(kinds)
    return kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--jobs-per-fault", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = faults_of(options.faults, options.seed)
        counts = run_campaign(Path(folder), faults, options.jobs_per_fault, options.seed)
    print(json.dumps(counts, indent=2))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
