"""The server's side of warm runs: which parents there are, and which may fork a run (`warm_parent.py`).

A parent serves runs that would read the same when they import the harness: the same interpreter, folder, variables and
modules. It is made for the first such run, which waits for it: so all is imported once, and not by the run as well. It ends
once it was not used for a while, and where all parents together need too much memory, the one that was used least recently
ends. Runs go on without their parent.

Where runs have accounts of their own, a parent has the account of one owner's runs, and serves that owner. These can do to it
what they like. So it has a cgroup, and enters that of a run only to fork its shim there; what it says is checked before it
counts (`fork_server.py`, `LocalExecutor`), is shown to nobody, and decides nothing but how runs of this owner end.
"""

import errno
import logging
import marshal
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.executors.base import CommandOutput, RunLimits, WarmState
from evalrpc.executors.local import account_start, shim, warm_parent
from evalrpc.executors.local.cgroups import Cgroups, RunCgroup
from evalrpc.executors.local.environment import ATTEMPT_VARIABLE, JOB_ID_VARIABLE
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.processes import resident_bytes
from evalrpc.executors.local.warm_parent import NO_JOB_VARIABLE
from evalrpc.harnesses.base import Command, Preload
from evalrpc.printable import printable

NEEDS_CGROUPS: Final = (
    "runs with accounts of their own (run_as_uids) take cgroups to be warm, and those must enforce their limits"
)
"""Why none is, where there are accounts and no such cgroups. What a parent has become would be limited by nothing."""

_MARKS: Final = frozenset({JOB_ID_VARIABLE, ATTEMPT_VARIABLE, NO_JOB_VARIABLE})
_GPUS_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
_ASKING_FOR_GPUS: Final = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch reads it whenever it is asked whether there are any
_VARIABLES: Final = {_GPUS_VARIABLE: "", NO_JOB_VARIABLE: "-" * 36}  # as long as a job's id
_OF_ONE_RUN: Final = _MARKS | _VARIABLES.keys()
_LOOK_SECONDS: Final = 0.2
_END_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 600.0
_STARTS_PROCESSES: Final = "it starts processes as soon as it is imported, which would go on outside any job"

_log = logging.getLogger(__name__)


class WarmLimits(NamedTuple):
    """How long parents stay, and what they may need."""

    idle_seconds: float
    """How long one stays that no run is forked from."""
    max_bytes: int
    """The most memory of all parents together."""


NEVER_WARM: Final = WarmLimits(idle_seconds=0.0, max_bytes=0)


class _Kind(NamedTuple):
    """What all runs of a parent have in common."""

    preload: Preload
    folder: str
    variables: frozenset[tuple[str, str]]
    account: tuple[int, tuple[int, ...]] | None
    """The uid and the further groups. None: those of the server."""


class _Loaded(NamedTuple):
    """What came of importing a harness."""

    problem: str
    read: frozenset[str] = frozenset()
    """The variables that were read."""
    seconds: float = 0.0


@dataclass(eq=False)
class Parent:
    """A parent, at some point of its life. Guarded by the lock of `WarmParents`."""

    kind: _Kind
    limits: RunLimits
    begun: float
    last_used: float
    is_retry: bool = False
    """Whether there was a problem with the one before."""
    made: Future[None] = field(default_factory=Future)
    """Done once it may fork runs, or there is a problem."""
    process: ForkServer | None = None
    """None until it may fork runs."""
    cgroup: RunCgroup | None = None
    """None where it has the server's account."""
    forking: threading.Lock = field(default_factory=threading.Lock)
    """Held while it forks a run, and while it is ended. It is taken without the lock of `WarmParents`."""
    read: frozenset[str] = field(default_factory=frozenset)
    problem: str = ""
    """Why there is no process."""
    refusal: str = ""
    """Why the last run that it did not serve was not served."""


class WarmParents:
    """The parents of this server. May be used from several threads. Only `close` waits for one to be made."""

    def __init__(self, limits: WarmLimits, clock: Clock, cgroups: Cgroups | None = None) -> None:
        self._limits = limits
        self._clock = clock
        self._cgroups = cgroups
        self._changed = threading.Condition()
        self._parents: dict[_Kind, Parent] = {}
        self._without_cgroups: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._loading: list[ForkServer] = []
        self._closed = False

    def making(self, command: Command, order: Mapping[str, Any], limits: RunLimits) -> Future[None] | None:
        """Have the parent of a run with these limits made, unless there is one. Return what is done once that has succeeded or
        failed; None if the run is not to wait: then it can be forked at once, or not at all."""
        kind = self._kind_of(command, order)
        parent = self._find_or_make(kind, limits) if kind is not None else None
        if parent is None or parent.made.done() or parent.is_retry:  # a retry is probably in vain
            return None
        return parent.made

    def find(self, command: Command, order: Mapping[str, Any]) -> Parent | None:
        """Return the parent that a run can be forked from now, if there is one."""
        kind = self._kind_of(command, order)
        with self._changed:
            parent = self._parents.get(kind) if kind is not None else None
            if parent is None or parent.process is None:
                return None
            parent.last_used = self._clock.monotonic()
            parent.refusal = _refusal(parent, order)
            return None if parent.refusal else parent

    def fork(self, parent: Parent, order: Mapping[str, Any], cgroup: RunCgroup | None) -> tuple[int, ForkServer] | None:
        """Fork the shim of a run from a parent, in the cgroup of the run if the parent has one itself. Return its process id
        and the parent's process; None if it does not fork it. Raises BrokenPipeError if the parent is gone, which may still
        have forked the shim; OSError."""
        try:
            return _fork(parent, order, cgroup)
        except OSError as error:
            self._discard(parent)
            if error.errno == errno.ESTALE:
                _log.info("a warm parent of harness %s is out of date; a new one is made", parent.kind.preload.harness)
                self._find_or_make(parent.kind, parent.limits)
                return None
            if parent.cgroup is not None and not isinstance(error, BrokenPipeError):
                return None  # one of an account may name any error
            raise

    def run_script(self, command: Command, environment: Mapping[str, str], timeout_seconds: float) -> CommandOutput | None:
        """Run a short command, `PYTHON -c SCRIPT ...`, in a process forked from any parent of its harness, and return what it
        printed; None if there is none that may. Raises OSError, and TimeoutError if it takes too long."""
        parent = self._any_parent(command, environment)
        process = parent.process if parent is not None else None
        if parent is None or process is None:
            return None
        with TemporaryFile() as stdout, TemporaryFile() as stderr:
            order = {
                "script": command.argv[2],
                "arguments": command.argv[3:],
                "env": environment,
                "stdout": f"/proc/{os.getpid()}/fd/{stdout.fileno()}",
                "stderr": f"/proc/{os.getpid()}/fd/{stderr.fileno()}",
            }
            try:
                pid = process.fork(order)
            except OSError:  # it is out of date, or was killed
                self._discard(parent)
                return None
            self._await(process, pid, timeout_seconds)
            return CommandOutput(*(_content(file) for file in (stdout, stderr)))

    def state(self, harness_name: str) -> WarmState:
        """Return how it stands with the parents of a harness. Never blocks for long."""
        if harness_name in self._without_cgroups:
            return WarmState(is_warm=False, problem=NEEDS_CGROUPS)
        with self._changed:
            parents = [parent for kind, parent in self._parents.items() if kind.preload.harness == harness_name]
        problems = [_shown_problem(parent) for parent in parents if parent.problem or parent.refusal]
        return WarmState(any(parent.process for parent in parents), problems[-1] if problems else "")

    def close(self) -> None:
        """End all parents. Runs go on."""
        with self._changed:
            self._closed = True
            for process in self._loading:
                process.kill()
            threads = list(self._threads)
            self._changed.notify_all()
        for thread in threads:
            thread.join()
        for parent in list(self._parents.values()):
            self._discard(parent)

    def _kind_of(self, command: Command, order: Mapping[str, Any]) -> _Kind | None:
        """Return what parent a run needs; None if it can have none."""
        if command.preload is None or not self._limits.max_bytes:
            return None
        if order["account"] is not None and (self._cgroups is None or order["rlimits"]):
            self._without_cgroups.add(command.preload.harness)
            return None
        return _kind_of(command.preload, command, order)

    def _find_or_make(self, kind: _Kind, limits: RunLimits) -> Parent | None:
        """Return the parent of a kind, which may be in the making, or have a problem. None: there can be none."""
        with self._changed:
            parent, now = self._parents.get(kind), self._clock.monotonic()
            if parent is None or (parent.problem and now - parent.begun > _RETRY_SECONDS):
                return self._begin_making(Parent(kind, limits, now, now, is_retry=parent is not None))
            return parent

    def _any_parent(self, command: Command, environment: Mapping[str, str]) -> Parent | None:
        """Return a parent of a command's harness in which the command would find the same."""
        if command.preload is None:
            return None
        folder, variables = str(Path.cwd() / (command.cwd or "")), _variables_of_all(environment, command)
        wanted = command.preload.harness, folder, variables
        with self._changed:
            of_harness = [
                parent
                for kind, parent in self._parents.items()
                if (kind.preload.harness, kind.folder, kind.variables, kind.account) == (*wanted, None)
                and not _differing(parent, environment)
            ]
        return next((parent for parent in of_harness if parent.process is not None), None)

    def _await(self, process: ForkServer, pid: int, timeout_seconds: float) -> None:
        """Wait for a forked process to end. Raises OSError."""
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            deadline = self._clock.monotonic() + timeout_seconds
            while not poll.poll(_LOOK_SECONDS * 1000):
                if self._closed or self._clock.monotonic() >= deadline:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    poll.poll(_END_SECONDS * 1000)  # until it can be reaped
                    raise TimeoutError(f"it took longer than {timeout_seconds:g} seconds, or the server stops")
        finally:
            os.close(descriptor)
            process.reap(pid)

    def _begin_making(self, parent: Parent) -> Parent | None:
        """Have a parent made, on a thread of its own. Return None where there can be none. The lock is held."""
        if self._closed:
            return None
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        try:
            if not self._threads:
                self._start_thread(self._keep)
            self._start_thread(self._make, parent)
        except RuntimeError as error:
            _log.warning("harness %s can't be loaded for warm runs: %s", parent.kind.preload.harness, error)
            return None
        self._parents[parent.kind] = parent
        return parent

    def _start_thread(self, act: Callable[..., None], *arguments: Parent) -> None:
        thread = threading.Thread(target=act, args=arguments, name="warm-parents", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep(self) -> None:
        """End parents that are not used any more, for as long as this server runs."""
        while not self._closed:
            self._end_superfluous()
            with self._changed:
                if not self._closed:
                    self._changed.wait(self._seconds_to_next_end())

    def _end_superfluous(self) -> None:
        for parent in self._superfluous():
            self._discard(parent)

    def _seconds_to_next_end(self) -> float | None:
        last_used = [parent.last_used for parent in self._parents.values() if parent.process is not None]
        return max(0.0, min(last_used) + self._limits.idle_seconds - self._clock.monotonic()) if last_used else None

    def _superfluous(self) -> Sequence[Parent]:
        """Return the parents that were not used for long, or that need more memory than all may."""
        now, used_bytes, found = self._clock.monotonic(), 0, []
        with self._changed:
            for parent in sorted(self._parents.values(), key=lambda each: -each.last_used):
                if parent.process is None:
                    continue
                size_bytes = _memory_bytes(parent.process, parent.cgroup)
                used_bytes += size_bytes
                if size_bytes > self._limits.max_bytes:
                    parent.problem = f"a process with it in memory needs {size_bytes:,} bytes: see the setting warm_max_bytes"
                if used_bytes > self._limits.max_bytes or now - parent.last_used >= self._limits.idle_seconds:
                    found.append(parent)
        return found

    def _make(self, parent: Parent) -> None:
        """Start a parent, and wait until it has imported everything, or there is a problem."""
        try:
            loaded = self._load(parent)
            if loaded.problem and not self._closed:
                problem = printable(loaded.problem)
                _log.warning("runs of harness %s can't be warm: %s", parent.kind.preload.harness, problem)
            self._end_superfluous()
        finally:  # whatever happens: runs wait for it
            parent.made.set_result(None)

    def _load(self, parent: Parent) -> _Loaded:
        process, loaded = None, _Loaded("it could not be imported beforehand")
        try:
            process = self._start(parent)
            with self._changed:
                self._loading.append(process)
                if self._closed:
                    process.kill()
            loaded = _load(process, parent.kind.preload, parent.kind.folder)
            if not loaded.problem and parent.cgroup is not None and set(parent.cgroup.processes()) - {process.pid}:
                loaded = loaded._replace(problem=_STARTS_PROCESSES)
        except (OSError, ValueError) as error:  # the latter for variables that no program can have
            loaded = _Loaded(f"no process can be started that imports it beforehand: {error}")
        finally:
            with self._changed:
                self._loading = [each for each in self._loading if each is not process]
                parent.process, parent.read, parent.problem = None if loaded.problem else process, loaded.read, loaded.problem
                parent.last_used = self._clock.monotonic()
                self._changed.notify_all()
            if loaded.problem:
                if process is not None:
                    process.kill()
                    process.close()
                _end_cgroup(parent)
        return loaded

    def _start(self, parent: Parent) -> ForkServer:
        """Start a parent; one with an account of its own in a new cgroup. Raises OSError, ValueError."""
        kind = parent.kind
        if kind.account is None or self._cgroups is None:
            return _start(kind.preload, kind.folder, dict(kind.variables))
        parent.cgroup = self._cgroups.create_for_parent(parent.limits, own_name())
        return _start_with_account(kind, kind.account, parent.cgroup)

    def _discard(self, parent: Parent) -> None:
        with self._changed:
            if self._parents.get(parent.kind) is parent and not parent.problem:
                del self._parents[parent.kind]
            process, parent.process = parent.process, None
        if process is not None:
            with parent.forking:
                process.kill()  # somebody may have stopped it
                process.close()
            _end_cgroup(parent)


def own_name() -> str:
    """Return the name of this server in the cgroups of its parents."""
    return f"{os.getpid()}-{shim.start_time(os.getpid())}"


def try_preload(preload: Preload, folder: Path, environment: Mapping[str, str]) -> str:
    """Make a parent, end it, and say what came of it. Raises OSError."""
    process = _start(preload, str(folder), environment)
    try:
        loaded = _load(process, preload, str(folder))
        size_bytes = _memory_bytes(process)
    finally:
        process.kill()
        process.close()
    if loaded.problem:
        return f"its jobs can't be warm: {loaded.problem}"
    return f"its jobs can be warm: {size_bytes / 1024**2:,.0f} MiB, loaded in {loaded.seconds:.1f} s"


def _fork(parent: Parent, order: Mapping[str, Any], cgroup: RunCgroup | None) -> tuple[int, ForkServer] | None:
    """Fork the shim of a run: see `WarmParents.fork`."""
    with parent.forking:
        process = parent.process
        if process is None:
            return None
        with _inside(parent, process, cgroup):
            return process.fork(order), process


@contextmanager
def _inside(parent: Parent, process: ForkServer, cgroup: RunCgroup | None) -> Iterator[None]:
    """Have a parent with a cgroup in that of a run meanwhile. `parent.forking` is held: so a child that has not been reaped yet
    is not reaped, and its id not reused."""
    if parent.cgroup is None:
        yield
        return
    if cgroup is None:
        raise FileNotFoundError(errno.ENOENT, "the run has no cgroup")
    if process.has_ended():
        raise BrokenPipeError("the parent was killed")
    cgroup.add(process.pid)
    try:
        yield
    finally:
        try:
            if not process.has_ended():
                parent.cgroup.add(process.pid)
        except OSError:  # it is gone, or must go: it would be ended with the run
            process.kill()


def _end_cgroup(parent: Parent) -> None:
    if parent.cgroup is not None:
        with suppress(OSError):  # the next server finds it
            parent.cgroup.remove_killed()


def _shown_problem(parent: Parent) -> str:
    """Return why there is no parent, for everyone: so not what one with the account of an owner says."""
    if parent.kind.account is None or parent.problem == _STARTS_PROCESSES:
        return parent.problem or parent.refusal
    return "it could not be loaded with the account of some owner's runs: the server's log says why"


def _start(preload: Preload, folder: str, environment: Mapping[str, str]) -> ForkServer:
    return ForkServer(_program(preload), {**environment, **_VARIABLES}, folder)


def _start_with_account(kind: _Kind, account: tuple[int, tuple[int, ...]], cgroup: RunCgroup) -> ForkServer:
    """Start a parent that has neither its environment nor its folder until it has its account (`account_start.py`)."""
    uid, groups = account
    with os.fdopen(os.memfd_create("evalrpc-start"), "wb") as file:
        file.write(marshal.dumps((kind.folder, {**dict(kind.variables), **_VARIABLES})))
        file.seek(0)
        start = (sys.executable, "-I", "-S", account_start.__file__, str(cgroup.path), str(uid), ",".join(map(str, groups)))
        return ForkServer((*start, str(file.fileno()), *_program(kind.preload)), {}, "/", (file.fileno(),))


def _program(preload: Preload) -> Sequence[str]:
    return preload.program[0], warm_parent.__file__


def _load(process: ForkServer, preload: Preload, folder: str) -> _Loaded:
    """Let a process import what runs will, and wait for that."""
    order = {
        "folder": folder,
        "program": list(preload.program),
        "module": preload.module,
        "modules": list(preload.modules),
        "script": str(preload.script or ""),
    }
    try:
        problem, seconds, *read = process.load(order)
        return _Loaded(problem, frozenset(read), float(seconds))
    except (OSError, ValueError) as error:
        return _Loaded(f"the process that imports it beforehand has ended: {error}")


def _kind_of(preload: Preload, command: Command, order: Mapping[str, Any]) -> _Kind | None:
    """Return what parent a run needs; None if one of its programs is another."""
    if any(tuple(step[: len(preload.program)]) != preload.program for step in order["steps"]):
        return None
    account = order["account"] and (order["account"][0], tuple(order["account"][1]))
    return _Kind(preload, order["cwd"], _variables_of_all(order["env"], command), account)


def _variables_of_all(environment: Mapping[str, str], command: Command) -> frozenset[tuple[str, str]]:
    """Return the variables that do not belong to one run alone."""
    own = _OF_ONE_RUN | command.secrets.keys()
    return frozenset((name, value) for name, value in environment.items() if name not in own)


def _differing(parent: Parent, environment: Mapping[str, str]) -> list[str]:
    """Return the variables that were read when the harness was imported, and are others in this environment."""
    own = {**_VARIABLES, **dict(parent.kind.variables)}
    read = parent.read | {_GPUS_VARIABLE} if _ASKING_FOR_GPUS in parent.read else parent.read
    return sorted(name for name in read if name not in _MARKS and environment.get(name) != own.get(name))


def _refusal(parent: Parent, order: Mapping[str, Any]) -> str:
    """Return what keeps a run from being forked."""
    differing = _differing(parent, order["env"])
    return f"it reads {', '.join(differing)} when it is imported" if differing else ""


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _memory_bytes(process: ForkServer, cgroup: RunCgroup | None = None) -> int:
    """Return what a parent needs, with what it may have started in its cgroup."""
    started: list[int] = []
    if cgroup is not None:
        with suppress(OSError):  # of a shortage
            if (charged_bytes := cgroup.memory_bytes()) is not None:
                return charged_bytes
            started = cgroup.processes()
    return sum(map(_resident_bytes, {process.pid, *started}))


def _resident_bytes(pid: int) -> int:
    with suppress(OSError):  # it has ended
        return resident_bytes(pid)
    return 0
