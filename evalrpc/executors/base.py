"""The contract of an executor: run a command somewhere, see it end, end it, and find it again after a restart.

An executor knows no harness and no job beyond the id that marks its processes.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evalrpc.harnesses.base import Command, Exit
from evalrpc.jobs.paths import log_path


@dataclass(frozen=True)
class RunKey:
    """Which run is meant: one attempt of one job, and the folder in which the executor keeps its traces."""

    job_id: str
    attempt: int
    attempt_dir: Path

    @property
    def log_path(self) -> Path:
        """The file that takes the run's output."""
        return log_path(self.attempt_dir)


class RunHandle(Protocol):
    """A run that was started or found again. Used by one thread, but for `interrupt`.

    An OSError of `step_ends`, `exit_status` or `end` means that the server lacks something at present: call it again.
    """

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the run has ended, `interrupt` is called, or time is up. Tell whether it has ended."""

    def interrupt(self) -> None:
        """Make a `wait`, now or the next, return early. May be called from any thread."""

    def step_ends(self) -> Sequence[int]:
        """Return the size of the log at the end of each step that has ended, in their order. Cheap, also while the run goes on.
        What the log has further down is of the steps that follow."""

    def exit_status(self, step: int = 0) -> Exit:
        """Say how a step ended, once it or the whole run has. Neither code nor signal where nobody saw it.

        Raises RunFailedError with reason START_FAILED if the program could not be started at all.
        """

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: ask first, kill after the grace period. Returns once none is left. May be called again.

        Raises RunFailedError with reason PROCESS_UNKILLABLE if some can't be killed.
        """

    def close(self) -> None:
        """Let go of the run; it goes on if it still runs."""


class Executor(Protocol):
    """Starts runs and finds them again.

    An OSError of any call means that the server lacks something at present. It tells nothing of the run, which may have begun:
    `find` will tell.
    """

    def make_room(self, key: RunKey, step_count: int) -> None:
        """See to it that the end of a run with so many steps can be noted, also where the disk is full by then. May be called
        again before the start. Raises OSError."""

    def start(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> RunHandle:
        """Start a run. Raises RunFailedError with reason START_FAILED, or lets `exit_status` raise it."""

    def find(self, key: RunKey) -> RunHandle | None:
        """Find a run that an earlier server started, whether it still runs, has ended, or vanished. None: it never started,
        so starting it now makes no second one."""

    def jobs_with_processes(self) -> Set[str]:
        """Return the ids of the jobs of which processes are there, also those of other servers."""

    def kill_leftovers(self, key: RunKey) -> bool:
        """Kill what is left of a run that could not be ended, without waiting for it. Return whether nothing was left."""

    def close(self) -> None:
        """Let go of whatever it keeps for runs to come. Runs go on."""
