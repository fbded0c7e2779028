"""Behind nginx with its defaults, which cuts a stream that is quiet for 60 seconds: nothing is cut, and nothing is lost."""

import asyncio
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from nginx import Nginx
from server_process import EVALRPC, ServerProcess
from test_examples import LANGUAGES, built
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.client import AsyncEvalClient, EvalClient
from evalrpc.errors import EvalrpcError, UnavailableError
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

QUIET_SECONDS = 90.0
"""Half as long again as nginx waits. Real time, since it is nginx that counts it."""

PROGRAM = """
import json, os, pathlib, sys, time
output_dir, model, gate = sys.argv[1:]
print("begun", flush=True)
line = 0
while model != "quick" and not os.path.exists(gate):
    time.sleep(0.05)
    if model == "chatty":
        line += 1
        print("line", line, flush=True)
print("ended", flush=True)
folder = pathlib.Path(output_dir) / model
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.25}}}))
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that lets the runs go on to their end."""
    return tmp_path / "gate"


@pytest.fixture
def server(tmp_path: Path, gate: Path, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    (tmp_path / "program.py").write_text(PROGRAM)
    return serve(f"""
        gpus = "1"
        [harnesses.gated]
        kind = "command"
        command = ["{sys.executable}", "-S", "{tmp_path}/program.py", "{{output_dir}}", "{{model}}", "{gate}"]
    """)


@pytest.fixture
def nginx(tmp_path: Path, server: ServerProcess) -> Iterator[Nginx]:
    with Nginx(tmp_path / "nginx", server.address) as nginx:
        yield nginx


class Thread:
    """A client in a thread. `result` waits for its end, and raises what it has raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self._error = error

    def result(self) -> Any:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "it has not ended"
        if self._error is not None:
            raise self._error
        return self._result


class Program:
    """A client in a process of its own, whose output goes to files."""

    def __init__(self, folder: Path, name: str, command: Sequence[str], address: str) -> None:
        self.stdout, self.stderr = folder / f"{name}.out", folder / f"{name}.err"
        environment = {**os.environ, "EVALRPC_ADDRESS": address, "no_proxy": "127.0.0.1"}
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_async(address: str, job_id: str) -> pb.JobInfo:
    async def wait() -> pb.JobInfo:
        async with AsyncEvalClient(address) as client:
            return await client.wait_for_job(job_id)

    return asyncio.run(wait())


def wait_blocking(address: str, job_id: str) -> pb.JobInfo:
    with EvalClient(address) as client:
        return client.wait_for_job(job_id)


class Breaks:
    """Hears of the breaks of one stream."""

    def __init__(self) -> None:
        self.errors: list[EvalrpcError] = []

    def __call__(self, error: EvalrpcError, delay_seconds: float) -> None:
        self.errors.append(error)


def watch(address: str, job_id: str, breaks: Breaks, **options: Any) -> list[pb.JobEvent]:
    with EvalClient(address) as client:
        return list(client.watch(job_id, on_disconnect=breaks, **options))


def watch_all(address: str, job_ids: set[str], breaks: Breaks, job_filter: pb.JobFilter | None = None) -> list[pb.JobEvent]:
    """Watch until all these jobs have ended."""
    left, seen = set(job_ids), []
    with EvalClient(address) as client:
        for event in client.watch_all(job_filter, on_disconnect=breaks):
            seen.append(event)
            if event.job.status in TERMINAL:
                left.discard(event.job.job_id)
            if not left:
                return seen
    raise AssertionError


def read_log(address: str, job_id: str, **options: Any) -> bytes:
    with EvalClient(address) as client:
        return b"".join(client.logs(job_id, follow=True, **options))


def build_examples(folders: pytest.TempPathFactory) -> dict[str, Sequence[str]]:
    """Return the commands of the examples that can be built here."""
    commands = {}
    for name, language in LANGUAGES.items():
        if not language.missing():
            with suppress(pytest.skip.Exception):  # raised by one whose packages can't be fetched
                commands[name] = built(name, folders)
    return commands


def test_nothing_quiet_is_cut_except_what_wants_no_heartbeats(
    tmp_path: Path, server: ServerProcess, nginx: Nginx, gate: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A running job prints nothing, and a queued one has no events; those of a running job would come every five seconds."""
    examples = build_examples(tmp_path_factory)
    address = nginx.address
    with EvalClient(address) as client:
        running = client.evaluate("quiet", ["t"], harness="gated", num_gpus=1).job_id
        eventually(lambda: client.get_job(running).status == pb.JOB_STATUS_RUNNING)
        queued = client.evaluate("quiet", ["t"], harness="gated", num_gpus=1, labels={"quiet": "yes"}).job_id
    one, every, unwanted = Breaks(), Breaks(), Breaks()
    with ExitStack() as stack:

        def start(name: str, *command: str) -> Program:
            program = Program(tmp_path, name, command, address)
            stack.callback(program.clean_up)
            return program

        waiting = [Thread(lambda w=wait: w(address, queued)) for wait in (wait_blocking, wait_async)]
        watching = Thread(lambda: watch(address, queued, one))
        watching_all = Thread(lambda: watch_all(address, {queued}, every, pb.JobFilter(labels={"quiet": "yes"})))
        reading = [Thread(lambda j=job_id: read_log(address, j)) for job_id in (running, queued)]
        watching_without = Thread(lambda: watch(address, queued, unwanted, heartbeat_interval_seconds=0))
        reading_without = Thread(lambda: read_log(address, running, heartbeat_interval_seconds=0))
        example_flags = ("--harness", "gated", "--model", "quiet", "--tasks", "t", "--num-gpus", "1")
        ending = [
            start("watch", EVALRPC, "watch", queued),
            start("watch-json", EVALRPC, "watch", queued, "--json"),
            start("logs", EVALRPC, "logs", "-f", running),
            start("logs-queued", EVALRPC, "logs", "-f", queued),
            *(start(name, *command, *example_flags) for name, command in examples.items()),
        ]
        endless = [
            start("watch-all", EVALRPC, "watch-all", "--label", "quiet=yes"),
            start("watch-all-json", EVALRPC, "watch-all", "--label", "quiet=yes", "--json"),
        ]
        programs = [*ending, *endless]
        time.sleep(QUIET_SECONDS)

        assert len(unwanted.errors) == 1, "nginx does not cut what is quiet, so this test shows nothing"
        assert [nginx.cuts(method) for method in ("WatchJob", "ReadLog", "WatchJobs")] == [1, 1, 0], nginx.errors()
        assert [program.process.poll() for program in programs] == [None] * len(programs)

        gate.touch()
        assert [thread.result().status for thread in waiting] == [pb.JOB_STATUS_COMPLETED] * 2
        assert watching.result()[-1].terminal
        assert watching_without.result()[-1].terminal
        watching_all.result()
        assert [thread.result() for thread in (*reading, reading_without)] == [b"begun\nended\n"] * 3
        assert [program.wait() for program in ending] == [0] * len(ending)
        assert (one.errors, every.errors) == ([], [])
        for program in programs:
            assert "trying again" not in program.stderr.read_text()
        for name in ("logs", "logs-queued"):
            assert (tmp_path / f"{name}.out").read_bytes() == b"begun\nended\n"
        for program in endless:
            eventually(lambda p=program: "completed" in p.stdout.read_text().lower())


def submit_until(address: str, stop: threading.Event) -> set[str]:
    """Submit one job after the other and wait for it, each again until it is acknowledged. Return their ids."""
    job_ids: set[str] = set()
    with EvalClient(address) as client:
        while not stop.is_set():
            job_ids.add(client.wait_for_job(submit(client).job_id).job_id)
    return job_ids


def submit(client: EvalClient) -> pb.JobInfo:
    request_id = str(uuid.uuid4())
    while True:
        try:
            return client.evaluate("quick", ["t"], harness="gated", num_gpus=0, request_id=request_id)
        except UnavailableError:
            continue


def test_a_rolling_restart_behind_it_loses_nothing(server: ServerProcess, nginx: Nginx, gate: Path, tmp_path: Path) -> None:
    address = nginx.address
    with EvalClient(address) as client:
        chatty = client.evaluate("chatty", ["t"], harness="gated", num_gpus=1).job_id
        queued = client.evaluate("quiet", ["t"], harness="gated", num_gpus=1).job_id
        eventually(lambda: client.get_job(chatty).status == pb.JOB_STATUS_RUNNING)
    stop, one, every = threading.Event(), Breaks(), Breaks()
    submitting = [Thread(lambda: submit_until(address, stop)) for _ in range(2)]
    watching = Thread(lambda: watch(address, queued, one))
    waiting = [Thread(lambda w=wait: w(address, queued)) for wait in (wait_blocking, wait_async)]
    reading = Thread(lambda: read_log(address, chatty))
    everything = Thread(lambda: watch_all(address, {chatty, queued}, every))
    for round_ in range(1, 4):
        eventually(lambda: len(list((server.data_dir / "jobs").iterdir())) >= 6 * round_)  # noqa: B023
        assert server.stop() == 0
        server.start()
        eventually(lambda: len(every.errors) >= round_, "for the watch to break")  # noqa: B023
    stop.set()
    job_ids = set.union(*(thread.result() for thread in submitting))
    with EvalClient(address) as client:
        for job_id in job_ids:
            assert client.wait_for_job(job_id).status == pb.JOB_STATUS_COMPLETED
        gate.touch()
        assert [thread.result().status for thread in waiting] == [pb.JOB_STATUS_COMPLETED] * 2
        jobs = {job.job_id: job for job in client.list_jobs()}
    assert set(jobs) == job_ids | {chatty, queued}, "each submission is one job"
    log = (server.data_dir / "jobs" / chatty / "attempt-1" / "log").read_bytes()
    assert reading.result() == log
    assert b"line 1\n" in log
    changes = [event.job.status for event in watching.result() if event.type != pb.JOB_EVENT_TYPE_PROGRESS]
    assert changes == [pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED]
    seen = [event for event in everything.result() if event.type == pb.JOB_EVENT_TYPE_STATUS]
    revisions = [event.revision for event in seen]
    assert revisions == sorted(set(revisions))
    completed = {event.job.job_id for event in seen if event.job.status == pb.JOB_STATUS_COMPLETED}
    assert completed == set(jobs)
