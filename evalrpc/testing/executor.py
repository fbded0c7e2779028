"""An executor that starts nothing: its runs end when a test says so."""

import threading
from collections.abc import Callable

from evalrpc.executors.base import RunKey
from evalrpc.harnesses.base import Command, Exit


class FakeRun:
    """A run of FakeExecutor."""

    def __init__(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> None:
        self.key = key
        self.command = command
        self.gpus = gpus
        self.closed = False
        """Whether its handle was released."""
        self._exit = Exit()
        self._ended = threading.Event()
        self._wake = threading.Event()

    def finish(self, code: int = 1) -> None:
        """Let it end with an exit code."""
        self._exit = Exit(code=code)
        self._ended.set()
        self._wake.set()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def wait(self, timeout_seconds: float) -> bool:
        """Do as `RunHandle.wait`."""
        self._wake.wait(timeout_seconds)
        if not self.has_ended:
            self._wake.clear()
        return self.has_ended

    def interrupt(self) -> None:
        """Make the current or the next `wait` return."""
        self._wake.set()

    def step_ends(self) -> list[int]:
        """Return the end of its only step, in an empty log."""
        return [0] if self.has_ended else []

    def exit_status(self, step: int = 0) -> Exit:  # noqa: ARG002 - it has one step
        """Return how it ended."""
        return self._exit

    def end(self, grace_seconds: float) -> None:  # noqa: ARG002 - it ends at once
        """End it, with an exit code of 1."""
        self.finish()

    def close(self) -> None:
        """Release the handle."""
        self.closed = True


class FakeExecutor:
    """Keeps what it was asked to start. May be used from several threads."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        """The latest run of each job."""
        self.started: list[str] = []
        """The jobs in the order of their starts, once per run."""
        self.on_start: Callable[[RunKey], None] = lambda _: None
        """Called at each start, before there is a run. May raise what `Executor.start` raises."""
        self.leftovers: set[str] = set()
        """The jobs that have living processes."""
        self.can_kill_leftovers = False
        """Whether nothing is left of a run once its leftovers were killed."""

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Reserve nothing."""

    def start(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> FakeRun:
        """Return a run that goes on until the test ends it."""
        self.started.append(key.job_id)
        self.on_start(key)
        self.runs[key.job_id] = FakeRun(key, command, gpus)
        return self.runs[key.job_id]

    def find(self, key: RunKey) -> FakeRun | None:
        """Return the latest run of a job."""
        return self.runs.get(key.job_id)

    def jobs_with_processes(self) -> set[str]:
        """Return `leftovers`."""
        return self.leftovers

    def kill_leftovers(self, key: RunKey) -> bool:  # noqa: ARG002 - it is the same for all
        """Return `can_kill_leftovers`."""
        return self.can_kill_leftovers

    def close(self) -> None:
        """Keep nothing."""
