"""Kill or stop parts of Slurm and servers, at random under load; then check.

    make campaign SLURM_FAULTS=100 SEED=1

Two servers share a PostgreSQL database, and the one that is the scheduler hands the runs over: it is killed or stopped, and
comes back at once, or only when the other one has taken its runs over. Three owners, who have signed in, submit and cancel
jobs that run on a real cluster of one machine; two watchers follow all of them. A node that Slurm takes out of service is
brought back, as an operator would. At the end every acknowledged job has one outcome, no attempt ran twice, both watchers have
seen every revision once, in order, and neither a process nor a job of Slurm is left.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import patch

from callers import add_token
from campaigns import kills
from postgres_cluster import start_cluster
from server_group import ServerGroup, scheduler_of
from server_process import ServerProcess
from slurm_cluster import SlurmCluster, is_runnable
from waiting import eventually

from evalrpc.client import AsyncEvalClient
from evalrpc.v1 import jobs_pb2 as pb

CONFIG = """
default_executor = "cluster"
store = "{store}"
lease_seconds = {lease_seconds}
{trial}
[executors.cluster]
kind = "slurm"
python = "{python}"
max_gpus = 6
max_submitted = 8
command_seconds = 3
poll_seconds = 1
start_seconds = 10
"""

PARTS = ("slurmctld", "slurmd", "slurmstepd", "server")
FAULTS = (*(f"{part} {how}" for how in ("killed", "stopped") for part in PARTS), "server replaced")

HOSTS = ("alpha", "beta")
LEASE_SECONDS = 2.0

_LEAST_OUTAGE_SECONDS = 0.1


class Campaign:
    """Servers that hand their runs over to a cluster, and what is done to both. `conninfo`: of their database."""

    def __init__(
        self, servers: ServerGroup, conninfo: str, cluster: SlurmCluster, dice: random.Random, max_outage_seconds: float
    ) -> None:
        self.servers = servers
        self.cluster = cluster
        self._conninfo = conninfo
        self.trial = kills.Trial()
        self.second = kills.Trial()
        self._dice = dice
        self._max_outage_seconds = max_outage_seconds

    async def run(self, tokens: Mapping[str, str], rounds: Sequence[Sequence[str]], jobs_per_round: int) -> None:
        """Submit, cancel, watch, and do the faults of each round at once, until every job has ended."""
        trial, dice = self.trial, self._dice
        async with AsyncExitStack() as stack:
            clients = {
                owner: await stack.enter_async_context(AsyncEvalClient(self.servers.address, token=token))
                for owner, token in tokens.items()
            }
            of_owner = {owner: [client] for owner, client in clients.items()}
            first = await clients[kills.OWNERS[0]].submit(kills.request_of("quick"))
            trial.acknowledged[first.job_id] = kills.OWNERS[0]
            watchers = [
                asyncio.create_task(kills.watch_everything(clients[kills.OPERATOR], each, first.revision))
                for each in (trial, self.second)
            ]
            for faults in rounds:
                load = asyncio.create_task(kills.submit_and_cancel(of_owner, trial, dice, jobs_per_round))
                seen = len(trial.changes) + dice.randrange(2 * jobs_per_round)
                await trial.wait_until(lambda seen=seen, load=load: len(trial.changes) >= seen or load.done())
                await asyncio.gather(*(asyncio.to_thread(self.do, fault) for fault in faults))
                await load
            await trial.wait_until(lambda: trial.ended >= trial.acknowledged.keys())
            last = trial.revisions[-1]
            await self.second.wait_until(lambda: self.second.revisions[-1:] >= [last])
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def do(self, fault: str) -> None:
        """Do one of FAULTS, and see to it that all goes on."""
        part, _, how = fault.partition(" ")
        self.trial.kills[fault] += 1
        outage_seconds = self._dice.uniform(_LEAST_OUTAGE_SECONDS, self._max_outage_seconds)
        if part == "server":
            self._take_down_server(how, outage_seconds)
        elif part == "slurmstepd":
            self._take_down_stepd(how, outage_seconds)
        elif how == "killed":
            self.cluster.kill(part)
            time.sleep(outage_seconds)
            self.cluster.restart(part)
        else:
            with self.cluster.stopped(part):
                time.sleep(outage_seconds)

    def _take_down_server(self, how: str, outage_seconds: float) -> None:
        host = eventually(lambda: scheduler_of(self._conninfo), "for a scheduler")
        if how == "stopped":
            with self.servers.kept_as_it_is(host) as server:
                _stop([server.pid], outage_seconds)
            return
        with self.servers.down(host):
            if how == "replaced":
                eventually(lambda: scheduler_of(self._conninfo) not in ("", host), "for the other server to take over")

    def _take_down_stepd(self, how: str, outage_seconds: float) -> None:
        """Take down the slurmstepd of one run, as soon as there is one."""
        stepds = eventually(lambda: self._stepds() or self._is_idle(), "for a run on the cluster")
        if not isinstance(stepds, list):
            return
        victim = self._dice.choice(stepds)
        if how == "killed":
            os.kill(victim, signal.SIGKILL)
        else:
            _stop([victim], outage_seconds)

    def _stepds(self) -> list[int]:
        open_jobs = sorted(self.trial.acknowledged.keys() - self.trial.ended)
        parents = [parent_of(pid) for job_id in open_jobs for pid in self.servers.any.shims_of(job_id)]
        return [pid for pid in parents if pid > 1]

    def _is_idle(self) -> bool:
        return not self.trial.acknowledged.keys() - self.trial.ended


def _stop(pids: Sequence[int], seconds: float) -> None:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGSTOP:
            time.sleep(seconds)


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def unended(cluster: SlurmCluster) -> list[str]:
    """Return the jobs that Slurm has, but for those whose processes have ended, and which it still tidies up after."""
    return [job for job in cluster.jobs() if " COMPLETING " not in job]


def choose(count: int, together: int, dice: random.Random) -> list[list[str]]:
    """Return so many faults, of each kind equally many, by chance: in rounds of some that befall different parts."""
    chosen = [FAULTS[number % len(FAULTS)] for number in range(count)]
    dice.shuffle(chosen)
    rounds: list[list[str]] = []
    for fault in chosen:
        parts = {earlier.split()[0] for earlier in rounds[-1]} if rounds else set()
        if rounds and len(rounds[-1]) < together and fault.split()[0] not in parts:
            rounds[-1].append(fault)
        else:
            rounds.append([fault])
    return rounds


def server_of(folder: Path, store: str, host: str) -> ServerProcess:
    trial = kills.CONFIG.format(uids="", python=sys.executable)
    config = CONFIG.format(trial=trial, python=sys.executable, store=store, lease_seconds=LEASE_SECONDS)
    return ServerProcess(folder / "data", config, "--host-name", host, name=host)


def run_campaign(
    folder: Path,
    cluster: SlurmCluster,
    faults: int,
    seed: int,
    *,
    jobs_per_round: int = 4,
    together: int = 1,
    max_outage_seconds: float = 4.0,
) -> dict[str, object]:
    """Run a campaign in a folder, and return its counts and problems."""
    dice = random.Random(seed)
    (folder / "program.py").write_text(kills.PROGRAM)
    (folder / "starts").touch()
    database = start_cluster()
    try:
        with patch.dict(os.environ, cluster.environment), cluster.operated():
            servers = ServerGroup({host: server_of(folder, database.conninfo(), host) for host in HOSTS})
            servers.any.data_dir.mkdir(mode=0o700)
            campaign = Campaign(servers, database.conninfo(), cluster, dice, max_outage_seconds)
            tokens = {owner: add_token(servers.any.data_dir, owner) for owner in kills.OWNERS}
            tokens[kills.OPERATOR] = add_token(servers.any.data_dir, kills.OPERATOR, "operator")
            try:
                servers.start()
                began_seconds = time.monotonic()
                asyncio.run(campaign.run(tokens, choose(faults, together, dice), jobs_per_round))
                took_seconds = time.monotonic() - began_seconds
                trial = campaign.trial
                jobs = asyncio.run(kills.final_jobs(servers.address, tokens[kills.OPERATOR], list(trial.acknowledged)))
                problems = []
                try:
                    eventually(lambda: not unended(cluster), "for Slurm to have no job left")
                except AssertionError as error:
                    problems = [f"{error}: {cluster.jobs()}"]
                starts = kills.read_starts(folder)
                problems += kills.check(trial, starts, jobs, 1)
                problems += [f"process {pid} is left" for pid in servers.any.processes_of_jobs()]
                attempts = [attempt for job in jobs.values() for attempt in job.attempts]
                problems += [attempt.error.message for attempt in attempts if attempt.error.reason == "START_FAILED"]
                if campaign.second.revisions != trial.revisions:
                    problems.append("the watchers have not seen the same")
            finally:
                servers.close()
    finally:
        database.close()
    return {
        "faults": dict(trial.kills),
        "schedulers": servers.logs.count("this server is the scheduler from now on"),
        "jobs": len(jobs),
        "attempts": sum(len(job.attempts) for job in jobs.values()),
        "programs_started": len(starts),
        "events": len(trial.revisions),
        "outcomes": dict(Counter(kills.outcome(job) for job in jobs.values())),
        "attempts_ended": dict(Counter(attempt_outcome(attempt) for job in jobs.values() for attempt in job.attempts)),
        "seconds": round(took_seconds, 1),
        "problems": problems,
    }


def attempt_outcome(attempt: pb.JobAttempt) -> str:
    return attempt.error.reason or "without an error"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--jobs-per-round", type=int, default=4)
    parser.add_argument("--together", type=int, default=1, help="how many faults happen at once")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not is_runnable():
        print(
            "There is no Slurm here, or no root, so its campaign is left out: apt-get install slurm-wlm slurmctld slurmd munge"
        )
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "cluster").mkdir()
        Path(folder).chmod(0o755)
        cluster = SlurmCluster(Path(folder) / "cluster")
        try:
            cluster.start()
            rounds = {"jobs_per_round": options.jobs_per_round, "together": options.together}
            counts = run_campaign(Path(folder), cluster, options.faults, options.seed, **rounds)
        finally:
            cluster.stop()
    print(json.dumps(counts, indent=2))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
