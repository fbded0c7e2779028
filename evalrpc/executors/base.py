"""The executor contract: run a command somewhere, wait for it, end it, and find it again after a restart.

An executor knows nothing of harnesses, and of a job only the id that marks its processes. It has nodes, each with devices, and
knows which of these can't be used at present. Which run gets which is decided by the scheduler.

The server reads a run's log and results itself. So a node that is another machine must share the disk that holds the data
directory and the output folders, under the same paths.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from evalrpc.harnesses.base import Command, Exit
from evalrpc.jobs.paths import log_path


class RunAccount(NamedTuple):
    """An account for the programs of runs, so that they have not the rights of the server."""

    uid: int
    """Its number, which is also that of its group."""
    groups: tuple[int, ...]
    """Its further groups, such as those that may use GPUs."""
    home: Path
    """Its home folder."""


@dataclass(frozen=True)
class RunKey:
    """Identifies a run: one attempt of one job, with the folder where the executor keeps its traces."""

    job_id: str
    attempt: int
    attempt_dir: Path
    devices: tuple[str, ...] | None = field(default=None, compare=False)
    """The ids of the devices that the job has by the store. Of a run that is found again, no others count. None: unknown."""
    account: RunAccount | None = field(default=None, compare=False)
    """The account of its programs. None: the server's own."""
    node: str = field(default="", compare=False)
    """The node that it was placed on by the store. Empty: the server's own machine."""

    @property
    def log_path(self) -> Path:
        """The file that receives the run's output."""
        return log_path(self.attempt_dir)


class Device(NamedTuple):
    """A device, such as a GPU, that one run at a time may hold."""

    id: str
    """Unique among all nodes of an executor."""
    name: str = ""
    """What it is, such as `NVIDIA H200`; empty if unknown."""
    quarantine_reason: str = ""
    """Why no run may be placed on it at present; empty if it can be used."""
    is_cordoned: bool = False
    """Whether an operator keeps it from being used. An executor does not know."""


class Node(NamedTuple):
    """A machine that runs are placed on."""

    name: str
    devices: tuple[Device, ...]
    executor: str = ""
    """The name of the executor that it belongs to, whose jobs alone are placed on it. Empty: that of the server's own machine.
    """
    max_runs: int | None = None
    """How many runs it takes at once. None: as many as the server has slots, which they take."""
    max_runs_without_gpus: int | None = None
    """How many of these may have no device. None: all."""
    is_remote: bool = False
    """Whether another machine is that of the scheduler, where engines are started and models prepared."""
    is_out_of_reach: bool = False
    """Whether nothing was heard of that server lately."""


class RunLimits(NamedTuple):
    """What a run may take of its machine. 0: as much as it likes."""

    memory_bytes: int = 0
    """How much memory all its processes may have together."""
    processes: int = 0
    """How many processes and threads it may have at once."""


NO_LIMITS: Final = RunLimits()


class Resources(NamedTuple):
    """What a run is placed on."""

    node: str
    devices: tuple[str, ...] = ()
    """The ids of the devices that it holds, all of this node. The run sees them in this order, numbered from 0."""
    limits: RunLimits = NO_LIMITS
    """What else it may take there, as far as the executor can enforce that."""


class CommandOutput(NamedTuple):
    """What a short command printed."""

    stdout: bytes
    stderr: bytes


class WarmState(NamedTuple):
    """How it stands with the processes that have a harness in memory, from which its runs may be forked."""

    is_warm: bool
    """Whether there is one."""
    problem: str
    """Why there could be none when there should have been; empty otherwise."""


NO_WARM_RUNS: Final = WarmState(is_warm=False, problem="")


class RunHandle(Protocol):
    """A run that was started or found again. Used by one thread, except for `interrupt`.

    An OSError from `owns_port`, `wait`, `step_ends`, `exit_status` or `end` means that the server is temporarily short of a
    resource: call it again.
    """

    @property
    def node(self) -> str:
        """The node that it was placed on."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The ids of the devices that it was given; empty if that was not recorded, as on a full disk."""

    @property
    def is_warm(self) -> bool:
        """Whether it was forked from a process that had the harness in memory."""

    @property
    def waits_for(self) -> str:
        """Why it has not begun where it was handed over to, for people; empty once it has. Cheap."""

    @property
    def begun_ns(self) -> int:
        """The time of day at which it began, where that may be long after its start; 0 where not, or not yet."""

    def owns_port(self, port: int) -> bool | None:
        """Return whether those who listen at a TCP port of its node, for 127.0.0.1, are processes of the run; None: nobody
        listens."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the run has ended, `interrupt` is called, or time is up. Return whether the run has ended."""

    def interrupt(self) -> None:
        """Make the current or the next `wait` return early. May be called from any thread."""

    def step_ends(self) -> Sequence[int]:
        """Return the size of the log at the end of each step that has ended, in order. Cheap, even while the run goes on.
        The log beyond the last of these sizes belongs to later steps."""

    def exit_status(self, step: int = 0) -> Exit:
        """Return how a step ended, once the step or the whole run has. Neither code nor signal if nobody saw it end.

        Raises RunFailedError with reason START_FAILED if the program could not be started at all, and after `end` with reason
        OUT_OF_MEMORY if it was killed for want of memory.
        """

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: ask first, kill after the grace period. Returns once none is left, and its devices are
        usable again or quarantined. May be called again.

        Raises RunFailedError with reason PROCESS_UNKILLABLE if a process can't be killed: then call `Executor.quarantine`.
        """

    def close(self) -> None:
        """Release the handle; a run that still runs goes on."""


class Executor(Protocol):
    """Starts runs and finds them again. May be used from several threads.

    An OSError from any call means that the server is temporarily short of a resource. It says nothing about the run, which may
    have begun: ask `find`.
    """

    def prepare(self) -> None:
        """Get ready, so that the first run need not wait for it. What can't be done yet is done, or reported, by that run."""

    def nodes(self) -> Sequence[Node]:
        """Return what runs can be placed on, in an order that stays. Cheap, never blocks, and called for every choice: the same
        object is returned until something changes."""

    def needs_recheck(self) -> bool:
        """Tell whether `recheck` should be called every few seconds: `nodes` may change though no run ends. Never blocks."""

    def recheck(self) -> None:
        """Look again at what is quarantined. What has recovered is usable in `nodes` from then on. Blocks for a moment."""

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Reserve space to record the end of a run with this many steps, even if the disk is full by then. May be called again
        before the start. Raises OSError."""

    def start(self, key: RunKey, command: Command, resources: Resources) -> RunHandle:
        """Start a run. Raises RunFailedError with reason START_FAILED, or lets `exit_status` raise it."""

    def find(self, key: RunKey) -> RunHandle | None:
        """Find a run that an earlier server started, whether it still runs, has ended, or vanished. None: it never started,
        so starting it now does not run it twice."""

    def jobs_with_processes(self) -> Set[str]:
        """Return the ids of the jobs that have living processes, including jobs of other servers."""

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """Keep other runs from the devices of a run that could not be ended, until nothing is left of it. `recheck` kills what
        is left, also of a run without devices."""

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:
        """Run a short command that needs no device, on any node, and return what it printed, however it ended. Its files and
        further steps are ignored. It does not outlive the server.

        Raises OSError if it can't be started, takes too long (TimeoutError), or the executor is closed meanwhile.
        """

    def warm_state(self, harness_name: str) -> WarmState:
        """Tell whether the next run of a harness may be warm. Never blocks for long."""

    def begin_close(self) -> None:
        """Announce `close`: an `end` that only waits for devices to be usable again returns at once."""

    def close(self) -> None:
        """End the commands of `run_to_end`, and release what is kept for future runs. Current runs go on."""
