"""An executor that starts nothing: its runs end when a test says so. It has as many nodes as a test wants."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from evalrpc.executors.base import NO_WARM_RUNS, CommandOutput, Device, Node, Resources, RunKey, WarmState
from evalrpc.harnesses.base import Command, Exit

ONE_NODE: Final[Mapping[str, Sequence[str]]] = {"local": ("0", "1")}
TWO_NODES: Final[Mapping[str, Sequence[str]]] = {"a": ("a0", "a1", "a2", "a3"), "b": ("b0", "b1")}


def nodes_of(devices: Mapping[str, Sequence[str]], quarantined: Mapping[str, str] | None = None) -> Sequence[Node]:
    """Return nodes with the ids of their devices, by name. `quarantined`: the reasons by device."""
    reasons = quarantined or {}
    return tuple(Node(name, tuple(Device(id_, "", reasons.get(id_, "")) for id_ in ids)) for name, ids in devices.items())


class FakeRun:
    """A run of FakeExecutor."""

    waits_for: Final = ""
    begun_ns: Final = 0  # it begins when it is started

    def __init__(self, key: RunKey, command: Command, resources: Resources) -> None:
        self.key = key
        self.command = command
        self.node = resources.node
        self.devices = resources.devices
        self.closed = False
        """Whether its handle was released."""
        self._exits: list[Exit] = []
        self._ended = threading.Event()
        self._wake = threading.Event()

    def finish(self, code: int = 1) -> None:
        """Let its current step end with an exit code. The run ends with its last step."""
        if not self.has_ended:
            self._exits.append(Exit(code=code))
        if len(self._exits) > len(self.command.further_steps):
            self._end()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def is_warm(self) -> bool:
        """No run is."""
        return False

    def owns_port(self, port: int) -> bool | None:  # noqa: ARG002 - there are no processes
        """Say that nobody listens."""
        return None

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
        """Return the end of each step that has ended, in an empty log."""
        return [0] * len(self._exits)

    def exit_status(self, step: int = 0) -> Exit:
        """Return how a step ended."""
        return self._exits[step] if step < len(self._exits) else Exit()

    def end(self, grace_seconds: float) -> None:  # noqa: ARG002 - it ends at once
        """End it, its current step with an exit code of 1."""
        self.kill()

    def kill(self) -> None:
        """Do the same, also where a test has replaced `end`."""
        self.finish()
        self._end()

    def close(self) -> None:
        """Release the handle."""
        self.closed = True

    def _end(self) -> None:
        self._ended.set()
        self._wake.set()


class _Quarantined(NamedTuple):
    key: RunKey
    devices: tuple[str, ...]
    reason: str


class FakeExecutor:
    """Keeps what it was asked to start. May be used from several threads.

    It stands for the machines too: pass it to the next server in a test of a restart. `devices`: the ids of the devices of each
    node, by its name.
    """

    def __init__(self, devices: Mapping[str, Sequence[str]] = ONE_NODE) -> None:
        self.runs: dict[str, FakeRun] = {}
        """The latest run of each job."""
        self.started: list[str] = []
        """The jobs in the order of their starts, once per run."""
        self.on_start: Callable[[RunKey], None] = lambda _: None
        """Called at each start, before there is a run. May raise what `Executor.start` raises."""
        self.on_command: Callable[[Command], CommandOutput] = lambda _: CommandOutput(b"", b"")
        """Called for each short command."""
        self.leftovers: set[str] = set()
        """Jobs that have ended, of which processes are left."""
        self.can_kill_leftovers = False
        """Whether nothing is left of a run once its leftovers were killed."""
        self._devices = devices
        self._nodes = nodes_of(devices)
        self._quarantined: list[_Quarantined] = []
        self._lock = threading.Lock()  # held while quarantines change

    def prepare(self) -> None:
        """Prepare nothing."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes."""
        return self._nodes

    def quarantined(self) -> dict[str, str]:
        """Return the reasons of the devices that are quarantined."""
        return {id_: each.reason for each in self._quarantined for id_ in each.devices}

    def needs_recheck(self) -> bool:
        """Tell whether anything is quarantined."""
        return bool(self._quarantined)

    def recheck(self) -> None:
        """End what is quarantined, if `can_kill_leftovers`."""
        if self.can_kill_leftovers:
            with self._lock:
                for run in filter(None, (self.find(each.key) for each in self._quarantined)):
                    run.kill()
                self._quarantined = []
                self._nodes = nodes_of(self._devices)

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Reserve nothing."""

    def start(self, key: RunKey, command: Command, resources: Resources) -> FakeRun:
        """Return a run that goes on until the test ends it."""
        self.started.append(key.job_id)
        self.on_start(key)
        self.runs[key.job_id] = FakeRun(key, command, resources)
        return self.runs[key.job_id]

    def find(self, key: RunKey) -> FakeRun | None:
        """Return a run that was started and is the latest of its job."""
        run = self.runs.get(key.job_id)
        return run if run is not None and run.key == key else None

    def jobs_with_processes(self) -> set[str]:
        """Return the jobs whose runs go on, and `leftovers`."""
        return {run.key.job_id for run in self.runs.values() if not run.has_ended} | self.leftovers

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """Keep runs from the devices until nothing is left of this one."""
        with self._lock:
            self._quarantined = [*self._quarantined, _Quarantined(key, tuple(devices), reason)]
            self._nodes = nodes_of(self._devices, self.quarantined())

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:  # noqa: ARG002 - it takes no time
        """Return what `on_command` does."""
        return self.on_command(command)

    def warm_state(self, harness_name: str) -> WarmState:  # noqa: ARG002 - the same of all
        """No run is warm."""
        return NO_WARM_RUNS

    def begin_close(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Keep nothing."""
