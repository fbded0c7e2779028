"""The executor contract: run a command somewhere, wait for it, end it, and find it again after a restart.

An executor knows nothing of harnesses, and of a job only the id that marks its processes.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evalrpc.harnesses.base import Command, Exit
from evalrpc.jobs.paths import log_path


@dataclass(frozen=True)
class RunKey:
    """Identifies a run: one attempt of one job, with the folder where the executor keeps its traces."""

    job_id: str
    attempt: int
    attempt_dir: Path

    @property
    def log_path(self) -> Path:
        """The file that receives the run's output."""
        return log_path(self.attempt_dir)


class RunHandle(Protocol):
    """A run that was started or found again. Used by one thread, except for `interrupt`.

    An OSError from `step_ends`, `exit_status` or `end` means that the server is temporarily short of a resource: call it again.
    """

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the run has ended, `interrupt` is called, or time is up. Return whether the run has ended."""

    def interrupt(self) -> None:
        """Make the current or the next `wait` return early. May be called from any thread."""

    def step_ends(self) -> Sequence[int]:
        """Return the size of the log at the end of each step that has ended, in order. Cheap, even while the run goes on.
        The log beyond the last of these sizes belongs to later steps."""

    def exit_status(self, step: int = 0) -> Exit:
        """Return how a step ended, once the step or the whole run has. Neither code nor signal if nobody saw it end.

        Raises RunFailedError with reason START_FAILED if the program could not be started at all.
        """

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: ask first, kill after the grace period. Returns once none is left. May be called again.

        Raises RunFailedError with reason PROCESS_UNKILLABLE if a process can't be killed.
        """

    def close(self) -> None:
        """Release the handle; a run that still runs goes on."""


class Executor(Protocol):
    """Starts runs and finds them again.

    An OSError from any call means that the server is temporarily short of a resource. It says nothing about the run, which may
    have begun: ask `find`.
    """

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Reserve space to record the end of a run with this many steps, even if the disk is full by then. May be called again
        before the start. Raises OSError."""

    def start(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> RunHandle:
        """Start a run. Raises RunFailedError with reason START_FAILED, or lets `exit_status` raise it."""

    def find(self, key: RunKey) -> RunHandle | None:
        """Find a run that an earlier server started, whether it still runs, has ended, or vanished. None: it never started,
        so starting it now does not run it twice."""

    def jobs_with_processes(self) -> Set[str]:
        """Return the ids of the jobs that have living processes, including jobs of other servers."""

    def kill_leftovers(self, key: RunKey) -> bool:
        """Kill what is left of a run that could not be ended, without waiting for it. Return whether nothing was left."""

    def close(self) -> None:
        """Release what is kept for future runs. Current runs go on."""
