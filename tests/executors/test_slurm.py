"""What Slurm loses, and what it says of an end, where a real one can't be had to do so: commands that answer as a test says."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.clock import SystemClock
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local.traces import make_room, traces_dir
from evalrpc.executors.slurm import cluster as cluster_module
from evalrpc.executors.slurm import run as run_module
from evalrpc.executors.slurm.batch import WITHDRAWN, claim
from evalrpc.executors.slurm.cluster import Cluster, Submission
from evalrpc.executors.slurm.commands import SlurmCommands, SlurmJob, SlurmUnavailableError
from evalrpc.executors.slurm.run import SlurmRun
from evalrpc.harnesses.base import Exit

NAME = "evalrpc-job-1"


class StubCommands(SlurmCommands):
    """A Slurm of which a test says what it knows."""

    def __init__(self) -> None:
        super().__init__({}, 1.0)
        self.known: list[SlurmJob] = []
        self.submitted = 0
        self.cancelled: list[str] = []
        self.is_reachable = True
        self.then = ""
        """The state of the job that is submitted again."""

    def say(self, state: str, id_: str = "7", reason: str = "None") -> None:
        self.known = [SlurmJob(f"{id_}|{state}|{reason}|n1|{NAME}")]

    def submit(self, options: Sequence[str], script: str) -> str:
        self._require()
        self.submitted += 1
        if self.submitted > 1 and self.then:
            self.say(self.then, "8")
        return str(self.submitted)

    def jobs(self) -> Sequence[SlurmJob]:
        self._require()
        return self.known

    def cancel(self, name: str, *options: str) -> None:
        self._require()
        self.cancelled.append(" ".join((name, *options)))

    def cancel_job(self, job_id: str) -> None:
        self._require()
        self.cancelled.append(job_id)

    def _require(self) -> None:
        if not self.is_reachable:
            raise SlurmUnavailableError("no route to host")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_SETTLE_SECONDS", "_UNSEEN_SECONDS", "_SHIM_SECONDS"):
        monkeypatch.setattr(run_module, bound, 0.05)
    monkeypatch.setattr(cluster_module, "_RETRY_SECONDS", 0.05)


@pytest.fixture
def commands() -> StubCommands:
    return StubCommands()


@pytest.fixture
def cluster(commands: StubCommands) -> Iterator[Cluster]:
    cluster = Cluster(commands, SystemClock(), 0.02)
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_room(traces_dir(tmp_path), 1)
    return traces_dir(tmp_path)


@pytest.fixture
def run(tmp_path: Path, folder: Path, cluster: Cluster) -> Iterator[SlurmRun]:
    assert folder.exists()
    submission = Submission(NAME, ["--job-name"], "script")
    with closing(SlurmRun("cluster", RunKey("job", 1, tmp_path), (), cluster, submission, lambda: False, 0.1)) as run:
        cluster.submit(submission)
        assert submission.done.wait(DEADLINE_SECONDS)
        yield run


def reason_of(run: SlurmRun) -> str:
    eventually(lambda: run.wait(0), "for the end")
    run.end(0.0)
    with pytest.raises(RunFailedError) as caught:
        run.exit_status()
    return caught.value.job_error.reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("TIMEOUT", "TIMED_OUT"),
        ("DEADLINE", "TIMED_OUT"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("PREEMPTED", "PREEMPTED"),
        ("NODE_FAIL", "RUN_LOST"),
        ("BOOT_FAIL", "RUN_LOST"),
        ("CANCELLED", "RUN_LOST"),
    ],
)
def test_the_state_in_which_a_job_ends_is_the_reason(
    run: SlurmRun, commands: StubCommands, folder: Path, state: str, reason: str
) -> None:
    claim(str(folder / "claim"), "7")
    commands.say(state)
    assert reason_of(run) == reason


def test_what_slurm_forgets_before_it_begins_is_submitted_again_but_not_for_ever(
    run: SlurmRun, commands: StubCommands, folder: Path
) -> None:
    eventually(lambda: run.wait(0.01), "for it to be given up")
    assert commands.submitted == 3
    run.end(0.0)
    assert (folder / "claim").read_text() == WITHDRAWN, "none of these will ever do anything"


def test_what_slurm_can_not_start_says_so_in_the_end(run: SlurmRun, commands: StubCommands) -> None:
    commands.say("FAILED", reason="NonZeroExitCode")
    assert reason_of(run) == "START_FAILED"
    assert commands.submitted == 3


def test_what_slurm_forgets_once_it_has_begun_is_not_submitted_again(
    run: SlurmRun, commands: StubCommands, folder: Path
) -> None:
    claim(str(folder / "claim"), "7")
    eventually(lambda: run.wait(0.01), "for it to be taken for lost")
    assert commands.submitted == 1
    assert reason_of(run) == "RUN_LOST"
    assert (folder / "stop").read_text() == "10", "wherever it may be, it ends"


def test_what_is_killed_before_its_program_begins_leaves_no_status_and_so_is_lost(
    run: SlurmRun, commands: StubCommands, folder: Path
) -> None:
    claim(str(folder / "claim"), "7")
    commands.say("FAILED", reason="RaisedSignal:126")
    eventually(lambda: run.wait(0), "for the end")
    run.end(0.0)
    assert run.exit_status() == Exit()


def test_a_job_that_runs_for_long_without_beginning_is_replaced(run: SlurmRun, commands: StubCommands) -> None:
    commands.then = "PENDING"
    commands.say("RUNNING", "7")
    eventually(lambda: run.wait(0.01) or commands.submitted == 2, "for another submission")
    assert commands.cancelled == ["7"], "by its number: the new one has the same name"


@pytest.mark.parametrize("state", ["NODE_FAIL", "FAILED"])
def test_a_node_that_fails_before_the_run_begins_costs_nothing(run: SlurmRun, commands: StubCommands, state: str) -> None:
    commands.then = "PENDING"
    commands.say(state, "7")
    eventually(lambda: run.wait(0.01) or commands.submitted == 2, "for another submission")
    assert not run.wait(0.05)


def test_what_has_not_begun_is_ended_without_slurm_which_is_told_when_it_answers(
    run: SlurmRun, commands: StubCommands, folder: Path
) -> None:
    commands.say("PENDING")
    commands.is_reachable = False
    run.end(5.0)
    assert not claim(str(folder / "claim"), "7"), "a job that begins now does nothing"
    assert run.wait(0)
    commands.is_reachable = True
    eventually(lambda: NAME in commands.cancelled, "for Slurm to be told")


def test_all_that_wait_for_slurm_say_so(cluster: Cluster, commands: StubCommands) -> None:
    commands.is_reachable = False
    waiting = [Submission(f"{NAME}{number}", ["--job-name"], "script") for number in range(2)]
    for submission in waiting:
        cluster.submit(submission)
    eventually(lambda: all(submission.problem == "no route to host" for submission in waiting), "for both to say why")


def test_what_has_begun_is_ended_by_the_disk_where_slurm_does_not_answer(
    run: SlurmRun, commands: StubCommands, folder: Path
) -> None:
    claim(str(folder / "claim"), "7")
    commands.say("RUNNING")
    commands.is_reachable = False
    (folder / "exit").write_text("0 signal 9\nnone left\n")
    run.end(0.0)
    assert not commands.cancelled


def test_slurm_is_told_of_an_end_that_it_does_not_notice(
    run: SlurmRun, cluster: Cluster, commands: StubCommands, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_NOTICE_SECONDS", 0.2)
    claim(str(folder / "claim"), "7")
    commands.say("RUNNING")
    (folder / "exit").write_text("0 code 0\nnone left\n")
    begin_seconds = time.monotonic()
    run.end(0.0)
    assert not cluster.living(), "nothing of it is alive, whatever Slurm says"
    eventually(lambda: NAME in commands.cancelled, "for Slurm to be told")
    assert time.monotonic() - begin_seconds >= 0.2, "it has a while to notice by itself"


@pytest.mark.parametrize(
    ("message", "is_refused"),
    [
        ("Batch job submission failed: Unexpected missing socket error", False),
        ("Batch job submission failed: Message receive failure", False),
        ("Batch job submission failed: Unable to create job record, try again", False),
        ("Batch job submission failed: Invalid partition name specified", True),
    ],
)
def test_what_fails_on_the_way_to_slurm_is_tried_again_and_what_slurm_refuses_is_not(
    tmp_path: Path, message: str, is_refused: bool
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f'#!/bin/sh\necho "sbatch: error: {message}" >&2\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(RunFailedError if is_refused else SlurmUnavailableError, match=message):
        SlurmCommands({"PATH": f"{tmp_path}:{os.environ['PATH']}"}, 60).submit((), "")
