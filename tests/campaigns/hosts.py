"""Take several servers on one PostgreSQL database through faults under load, on three hosts; then check.

    make campaign HOST_FAULTS=100 SEED=1

Clients submit and cancel at all servers, and a watcher at each sees all jobs. Meanwhile a server is killed, or stands still for
longer than its lease and goes on, or is cut off from the database; the database is killed; connections that listen are cut; the
answers to commits are lost. A server that has ended by itself, since it lost its lease, is started again.

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
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from campaigns.kills import KINDS, PROGRAM, Trial, check, outcome, read_starts, request_of, until_served, watch_everything
from database_proxy import DatabaseProxy
from postgres_cluster import Cluster, start_cluster
from server_process import ServerProcess
from waiting import eventually

from evalrpc.client import AsyncEvalClient
from evalrpc.errors import PreconditionError
from evalrpc.v1 import jobs_pb2 as pb

HOSTS = ("alpha", "beta", "gamma")
LEASE_SECONDS = 2.0
FAULTS = ("kill", "stop", "cut off", "database", "listening", "answers")

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
    proxies: dict[str, DatabaseProxy] = field(default_factory=dict)
    servers: dict[str, ServerProcess] = field(default_factory=dict)
    restarts: int = 0
    """How often a server was started again that had ended by itself."""
    is_over: threading.Event = field(default_factory=threading.Event)
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    """Does the faults. The database ends with the thread that has started it, so that stays until the end."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a server is started, or ended by a fault."""

    def keep_running(self) -> None:
        """Start servers again that have ended by themselves, as systemd does. Runs on a thread."""
        while not self.is_over.wait(0.1):
            for server in self.servers.values():
                with self.lock:
                    if server.has_ended:
                        self.restarts += 1
                        start(server)


def start(server: ServerProcess) -> None:
    """Start a server, again where the database is not there."""

    def is_started() -> bool:
        try:
            server.start()
        except AssertionError:
            return False
        return True

    eventually(is_started, "for the server to start")


def do_fault(site: Site, kind: str, host: str, dice: random.Random) -> None:
    """Do one fault, and undo it."""
    server, proxy = site.servers[host], site.proxies[host]
    beyond_lease = threading.Event()
    match kind:
        case "kill":
            with site.lock:
                server.kill()
                start(server)
        case "stop":
            with site.lock:
                server.send(signal.SIGSTOP)
            beyond_lease.wait(LEASE_SECONDS * dice.choice((0.5, 1.5)))
            server.send(signal.SIGCONT)
        case "cut off":
            proxy.cut()
            beyond_lease.wait(LEASE_SECONDS * dice.choice((0.1, 1.5)))
            proxy.mend()
        case "database":
            site.cluster.kill()
            site.cluster.start()
        case "listening":
            for each in site.proxies.values():
                each.cut_listening()
        case "answers":
            proxy.lose_answers(3)


async def submit_and_cancel(clients: Sequence[AsyncEvalClient], trial: Trial, dice: random.Random, count: int) -> None:
    for _ in range(count):
        client = dice.choice(clients)
        request, request_id = request_of(dice.choice(KINDS), dice.choice((0, 1))), str(uuid.UUID(int=dice.getrandbits(128)))
        options = {"max_attempts": dice.choice((1, 3)), "priority": dice.choice((0, 0, 5))}

        async def submit(
            client: AsyncEvalClient = client,
            request: pb.EvaluateRequest = request,
            request_id: str = request_id,
            options: dict[str, int] = options,
        ) -> pb.JobInfo:
            return await client.submit(request, request_id=request_id, **options)

        trial.acknowledged[(await until_served(submit)).job_id] = ""
        open_jobs = sorted(trial.acknowledged.keys() - trial.ended)
        if open_jobs and dice.random() < 0.2:
            victim = dice.choice(open_jobs)
            with suppress(PreconditionError):  # it ended first
                await until_served(lambda victim=victim, client=client: client.cancel_job(victim, "the dice said so"))
                trial.cancelled.add(victim)
    async with trial.news:
        trial.news.notify_all()


async def run_trial(site: Site, faults: Sequence[str], jobs_per_fault: int, seed: int) -> tuple[Trial, list[Trial]]:
    """Submit, cancel, watch and do the faults until every job has ended. Return what each watcher has seen, the first as the
    trial."""
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        addresses = [server.address for server in site.servers.values()]
        everywhere = f"ipv4:{','.join(addresses)}"
        clients = [await stack.enter_async_context(AsyncEvalClient(address)) for address in (*addresses, everywhere)]
        first = await until_served(lambda: clients[0].submit(request_of("quick")))
        trials = [Trial() for _ in clients]
        trial = trials[0]
        trial.acknowledged[first.job_id] = ""
        watchers = [
            asyncio.create_task(watch_everything(client, each, first.revision))
            for client, each in zip(clients, trials, strict=True)
        ]
        for kind in faults:
            load = asyncio.create_task(submit_and_cancel(clients, trial, dice, jobs_per_fault))
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
    site = Site(start_cluster())
    config = CONFIG.format(lease=LEASE_SECONDS, python=sys.executable)
    for host in HOSTS:
        proxy = site.proxies[host] = DatabaseProxy(site.cluster.folder / ".s.PGSQL.5432")
        store = f"postgresql://evalrpc@127.0.0.1:{proxy.port}/postgres?sslmode=disable&gssencmode=disable"
        flags = "--host-name", host, "--store", store
        site.servers[host] = ServerProcess(folder / "data", config, *flags, name=host)
    keeper = threading.Thread(target=site.keep_running, daemon=True)
    try:
        for server in site.servers.values():
            start(server)
        keeper.start()
        trial, watched = asyncio.run(run_trial(site, faults, jobs_per_fault, seed))
        jobs = asyncio.run(final_jobs(site.servers[HOSTS[-1]].address, list(trial.acknowledged)))
        starts = read_starts(folder)
        eventually(lambda: not site.servers[HOSTS[0]].processes_of_jobs(), "for no process to be left")
        problems = [problem for each in watched for problem in check(_with_jobs(each, trial), starts, jobs, 1)]
        logs = "".join(server.log_path.read_text() for server in site.servers.values())
        problems += ["a traceback is in a log"] if "Traceback" in logs else []
    finally:
        site.is_over.set()
        if keeper.is_alive():
            keeper.join()
        for server in site.servers.values():
            server.clean_up()
        for proxy in site.proxies.values():
            proxy.close()
        site.cluster.close()
        site.worker.shutdown()
    return {
        "faults": dict(trial.kills),
        "answers lost": sum(proxy.lost_answers for proxy in site.proxies.values()),
        "servers that gave up": site.restarts,
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


def _with_jobs(watched: Trial, trial: Trial) -> Trial:
    watched.acknowledged = trial.acknowledged
    return watched


async def final_jobs(address: str, job_ids: Sequence[str]) -> dict[str, pb.JobInfo]:
    async with AsyncEvalClient(address) as client:
        return {job_id: await until_served(partial(client.get_job, job_id)) for job_id in job_ids}


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
