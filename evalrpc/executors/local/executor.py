"""Run commands on this machine, each in its own session, writing straight to a log file.

A run is found again by its shim (`shims.py`), and by the traces on disk which that leaves in `attempt_dir/run` (`shim.py`).
Waiting uses a pidfd, which any process can open for any other, so a run found again is handled like one that was started.

A run with the server's account may change its traces and kill its shim. One with an account of its own can't, unless it is
warm: then it may kill its shim and write into two of its traces. That nothing is left of a run is therefore proved by its
cgroup where it has one (`cgroups.py`), and by the exit code of its shim; where neither is known, all processes are looked
through.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalrpc.clock import SystemClock
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import CommandOutput, Device, Node, Resources, RunKey, WarmState
from evalrpc.executors.local import shim, warm_parent
from evalrpc.executors.local.cgroups import Cgroups, RunCgroup
from evalrpc.executors.local.environment import build_environment
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.gpu_memory import GpuGuard, NvmlMemory
from evalrpc.executors.local.listeners import listening_sockets, sockets_of
from evalrpc.executors.local.orders import order_of
from evalrpc.executors.local.processes import (
    ScriptProcess,
    jobs_with_processes,
    processes_of_job,
    processes_of_script,
    send_signal,
)
from evalrpc.executors.local.shims import find_shim
from evalrpc.executors.local.short_commands import ShortCommands
from evalrpc.executors.local.traces import (
    Exits,
    close_to_account,
    forget_warm,
    has_output,
    has_pid,
    make_room,
    note_pid,
    note_warm,
    open_to_account,
    read_devices,
    read_exits,
    remove_traces,
    traces_dir,
    uid_of_shim,
    was_warm,
    write_devices,
)
from evalrpc.executors.local.waiting_run import WaitingRun
from evalrpc.executors.local.warm_parents import NEVER_WARM, WarmLimits, WarmParents
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.private import make_private_folder
from evalrpc.harnesses.base import Command, Exit

LOCAL_NODE: Final = "local"

_SURVIVOR_CHECK_SECONDS: Final = 0.02
_KILL_SECONDS: Final = 30.0
_START_SECONDS: Final = 30.0
_FORK_SERVERS: Final = 3  # how many may be killed before the start is given up
_SHIM_SECONDS: Final = 5.0  # how long a shim may take to see that no process is left


class LocalExecutor:
    """The executor for the GPUs of this machine, its only node. `environment` is what runs inherit. With `cgroups`, each run
    has one. May be used from several threads.

    The fork server, which forks the shims of runs, is started by the first run or by `prepare`. Shims of warm runs are forked
    by the parents of these, within `warm_limits`.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        devices: Sequence[Device] = (),
        gpu_guard: GpuGuard | None = None,
        cgroups: Cgroups | None = None,
        warm_limits: WarmLimits = NEVER_WARM,
    ) -> None:
        self._environment = environment
        self._devices = devices
        self._gpu_guard = gpu_guard or GpuGuard(NvmlMemory(), SystemClock())
        self._warm_parents = WarmParents(warm_limits, SystemClock(), cgroups)
        self._cgroups = cgroups
        self._known: tuple[Mapping[str, str] | None, Sequence[Node]] = None, ()  # the nodes, and which quarantine they show
        self._short_commands = ShortCommands()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._fork_server: ForkServer | None = None

    def prepare(self) -> None:
        """Start the fork server, unless it is there. If that fails, the next run reports why. End what an earlier server has
        left of parents with other accounts, which need not have ended with it."""
        with suppress(OSError):
            self._get_fork_server()
        with suppress(OSError):
            for server, cgroup in self._cgroups.cgroups_of_parents() if self._cgroups is not None else ():
                if not _is_living_server(server):
                    cgroup.remove_killed()

    def nodes(self) -> Sequence[Node]:
        """Return the one node with its GPUs: the same object until something changes. Never blocks."""
        quarantined = self._gpu_guard.quarantined()
        known = self._known
        if quarantined is not known[0]:
            known = self._known = quarantined, _nodes(self._devices, quarantined)
        return known[1]

    def needs_recheck(self) -> bool:
        """Tell whether anything is quarantined."""
        return self._gpu_guard.needs_recheck()

    def recheck(self) -> None:
        """Look whether the memory of quarantined GPUs is free, and kill what is left of runs that could not be ended."""
        self._gpu_guard.recheck()

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Make the folder of a run's traces, with space reserved for them. Raises OSError."""
        make_room(_traces_dir(key), step_count)

    def start(self, key: RunKey, command: Command, resources: Resources) -> "LocalRun | WaitingRun":
        """Start a run. Raises RunFailedError with reason START_FAILED; what only shows when the program is started, such as a
        program that does not exist, is raised by `exit_status` instead. Raises OSError if this server is temporarily short of
        a resource; then `find` tells whether the run has begun anyway."""
        made = self._making(key, command, resources)
        if made is None:
            return self._begin(key, command, resources)
        return WaitingRun(resources, made, partial(self._begin, key, command, resources), partial(self.find, key))

    def find(self, key: RunKey) -> "LocalRun | None":
        """Find a run that an earlier server started: alive, ended or vanished. None: it never started. Raises OSError."""
        if not _has_begun(key):
            return None
        pid, cgroup = _find_shim(key), self._find_cgroup(key)
        recorded = read_devices(_traces_dir(key))  # a run may have written others
        devices = {device: used for device, used in recorded.items() if key.devices is None or device in key.devices}
        self._gpu_guard.restore({device: used for device, used in devices.items() if used is not None})
        wake = os.eventfd(0)
        try:
            return self._run(key, pid, None, wake, tuple(devices), cgroup)
        except OSError:
            os.close(wake)
            raise

    def jobs_with_processes(self) -> set[str]:
        """Return the ids of the jobs that have living processes, including jobs of other servers. Raises OSError."""
        return jobs_with_processes() | (self._cgroups.jobs_with_processes() if self._cgroups is not None else set())

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """Place no run on these GPUs until nothing is left of the run; `recheck` kills what is left."""
        self._gpu_guard.quarantine(devices, reason, partial(self.kill_leftovers, key))

    def kill_leftovers(self, key: RunKey) -> bool:
        """Kill what is left of a run, without waiting for it. Return whether nothing was left. Raises OSError."""
        leftovers = _Leftovers(key, _find_shim(key), self._find_cgroup(key))
        # A scan can miss a process that is forked during it, so it takes two to believe that none is left.
        if not leftovers.look() and not leftovers.look():
            leftovers.clean_up()
            return True
        leftovers.kill()
        return False

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:
        """Run a short command, and return what it printed. Raises OSError, TimeoutError."""
        environment = build_environment(self._environment, command.env, gpus=(), job_id="", attempt=0)
        warm = self._warm_parents.run_script(command, environment, timeout_seconds)
        return warm or self._short_commands.run(command, environment, timeout_seconds)

    def warm_state(self, harness_name: str) -> WarmState:
        """Return whether the next run of a harness may be warm, or why not. Never blocks for long."""
        return self._warm_parents.state(harness_name)

    def begin_close(self) -> None:
        """Make each `end` that waits for the memory of GPUs return."""
        self._closing.set()

    def close(self) -> None:
        """End the fork server, the parents of warm runs and the short commands; runs go on."""
        self._short_commands.close()
        self._warm_parents.close()
        with self._lock:
            fork_server = self._fork_server
        if fork_server is not None:
            self._discard(fork_server)

    def _making(self, key: RunKey, command: Command, resources: Resources) -> Future[None] | None:
        """Return what a run waits for before it begins, if anything."""
        if command.preload is not None:
            with suppress(OSError):  # which comes again when it begins
                return self._warm_parents.making(command, self._order(key, command, resources), resources.limits)
        return None

    def _begin(self, key: RunKey, command: Command, resources: Resources) -> "LocalRun":
        """Start a run now. Raises as `start` does."""
        wake = os.eventfd(0)  # first: if no descriptor is left, nothing is started
        try:
            make_private_folder(_traces_dir(key))
            forget_warm(_traces_dir(key))
            used_bytes = self._gpu_guard.acquire(resources.devices)
            write_devices(_traces_dir(key), {device: used_bytes.get(device) for device in resources.devices})
            cgroup = self._cgroups.create(key.job_id, key.attempt, resources.limits) if self._cgroups is not None else None
            order = self._order(key, command, resources, cgroup)
            pid, fork_server = self._begin_warm(key, command, order, cgroup) or self._hand_over(key, order)
            return self._run(key, pid, fork_server, wake, resources.devices, cgroup)
        except OSError as error:
            os.close(wake)
            require_no_shortage(error)
            _Leftovers(key, None, self._find_cgroup(key)).clean_up()
            raise RunFailedError("START_FAILED", f"the run could not be started: {error}") from error

    def _run(
        self,
        key: RunKey,
        pid: int | None,
        fork_server: ForkServer | None,
        wake: int,
        devices: tuple[str, ...],
        cgroup: RunCgroup | None,
    ) -> "LocalRun":
        release = partial(self._gpu_guard.release, devices, self._closing)
        return LocalRun(key, _Leftovers(key, pid, cgroup), fork_server, wake, devices, release)

    def _find_cgroup(self, key: RunKey) -> RunCgroup | None:
        return self._cgroups.find(key.job_id, key.attempt) if self._cgroups is not None else None

    def _order(self, key: RunKey, command: Command, resources: Resources, cgroup: RunCgroup | None = None) -> Mapping[str, Any]:
        controllers = self._cgroups.controllers if self._cgroups is not None else frozenset[str]()
        path = cgroup.path if cgroup is not None else None
        return order_of(key, command, resources, self._environment, resources.devices, path, controllers)

    def _begin_warm(
        self, key: RunKey, command: Command, order: Mapping[str, Any], cgroup: RunCgroup | None
    ) -> tuple[int | None, ForkServer | None] | None:
        """Let a parent fork the shim of the run, if there is one that may. Return what `_hand_over` returns. Raises OSError."""
        parent = self._warm_parents.find(command, order)
        if parent is None:
            return None
        forked: tuple[int | None, ForkServer | None] | None = None
        if (own_order := _warm_order(key, order)) is not None:
            try:
                forked = self._warm_parents.fork(parent, own_order, cgroup)
            except BrokenPipeError:  # somebody killed it
                forked = (_find_shim(key), None) if _has_begun(key) else None
        if forked is None:
            _make_cold(key, cgroup, len(order["steps"]))
        elif key.account is not None and cgroup is not None:
            forked = _judge(key, forked, cgroup)
        return forked

    def _hand_over(self, key: RunKey, order: Mapping[str, Any]) -> tuple[int | None, ForkServer | None]:
        """Send the order to the fork server, or to a new one if it is gone. Return the pid of the shim, or None if that has
        ended, and the fork server that forked it, or None if that is gone. Raises OSError."""
        for _ in range(_FORK_SERVERS):
            fork_server = self._get_fork_server()
            try:
                return fork_server.fork(order), fork_server
            except BrokenPipeError:  # somebody killed it
                self._discard(fork_server)
            if _has_begun(key):  # it had already carried out the order
                return _find_shim(key), None
        raise OSError("the process that starts runs ends by itself")

    def _get_fork_server(self) -> ForkServer:
        with self._lock:
            if self._fork_server is None:
                self._fork_server = ForkServer()
            return self._fork_server

    def _discard(self, fork_server: ForkServer) -> None:
        with self._lock:
            if self._fork_server is fork_server:
                self._fork_server = None
        fork_server.close()


def _nodes(devices: Sequence[Device], quarantined: Mapping[str, str]) -> Sequence[Node]:
    return (Node(LOCAL_NODE, tuple(device._replace(quarantine_reason=quarantined.get(device.id, "")) for device in devices)),)


def _warm_order(key: RunKey, order: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Make the traces of a run ready for a shim that a parent forks, and return the order for it; None if that can't be done.

    One that runs with an account, as its parent does, can make no files here. So the server does what that can't.
    """
    traces = _traces_dir(key)
    try:
        note_warm(traces, key.account.uid if key.account is not None else None)
        if key.account is None:
            return order
        open_to_account(traces, key.log_path, key.account.uid)
    except OSError:  # such as a full disk
        return None
    if shim.write_files(dict(order)) is not None:
        return None
    return {**order, "account": None, "files": {}, "cgroup": "", "notes_pid": False}


def _make_cold(key: RunKey, cgroup: RunCgroup | None, step_count: int) -> None:
    """Undo that, of a run that no parent has forked. One with an account need not have told the truth. Raises OSError."""
    if key.account is not None and cgroup is not None:
        deadline = time.monotonic() + _SHIM_SECONDS
        while cgroup.is_populated() and time.monotonic() < deadline:
            cgroup.kill()
            time.sleep(_SURVIVOR_CHECK_SECONDS)
        remove_traces(_traces_dir(key), key.log_path)
        make_room(_traces_dir(key), step_count)
    forget_warm(_traces_dir(key))


def _judge(
    key: RunKey, forked: tuple[int | None, ForkServer | None], cgroup: RunCgroup
) -> tuple[int | None, ForkServer | None]:
    """Return what counts of what a parent with an account says: its shim is a process in the cgroup of the run, or has ended.
    Raises OSError."""
    pid, fork_server = forked
    if pid is None:
        return forked
    if pid not in cgroup.processes():
        if fork_server is not None:
            fork_server.reap(pid)
        return None, None
    note_pid(_traces_dir(key), pid)
    return forked


def _uids(key: RunKey) -> tuple[int, ...]:
    """Return the accounts that processes of a run can have. None: those of any account count, which carry its id. Raises
    OSError."""
    if key.account is None:
        return ()
    uid = uid_of_shim(_traces_dir(key))
    return (key.account.uid, os.geteuid()) if uid is None else (key.account.uid, uid)


def _find_shim(key: RunKey) -> int | None:
    return find_shim(key.job_id, key.attempt, uid_of_shim(_traces_dir(key)))


def _traces_dir(key: RunKey) -> Path:
    return traces_dir(key.attempt_dir)


def _has_begun(key: RunKey) -> bool:
    """Tell whether a run has, or had, a shim. If not, it never will."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        # The fork server may have died just before the shim wrote the file. So look at the processes before the file: one that
        # is no longer about to write it has written it. A scan can miss a process that is forked during it, so it takes two.
        uid = uid_of_shim(_traces_dir(key))
        about_to_begin = processes_of_job(key.job_id, uids=_uids(key)) or _about_to_begin(uid) or _about_to_begin(uid)
        if _has_left_traces(key):
            break
        if not about_to_begin:
            return False
        time.sleep(_SURVIVOR_CHECK_SECONDS)
    return True


def _has_left_traces(key: RunKey) -> bool:
    """Tell whether there is anything of a run, which may have removed some of it."""
    traces = _traces_dir(key)
    has_log = uid_of_shim(traces) is not None
    return has_pid(traces) or has_output(traces, key.log_path, has_log=has_log) or _find_shim(key) is not None


def _about_to_begin(uid: int | None = None) -> list[int]:
    """Return processes that may yet begin a run: shims just forked, and fork servers and parents whose server has ended. `uid`:
    the account of parents, if it is another one."""
    fork_servers = [each for each in processes_of_script(Path(shim.__file__), 2) if each.name != shim.RUN_NAME]
    # A run that was forked by a parent still looks like the parent, but for its name.
    parents = [each for each in processes_of_script(Path(warm_parent.__file__), 2, uid) if each.name == shim.FORK_SERVER_NAME]
    return [process.pid for process in (*fork_servers, *parents) if not _is_fork_server_at_work(process)]


def _is_fork_server_at_work(process: ScriptProcess) -> bool:
    server, start_time = process.arguments
    return process.parent == int(server) and _is_living(int(server), start_time)


class _Left(NamedTuple):
    """Processes that are left of a run."""

    pids: frozenset[int]
    has_others: bool
    """Whether there are some that this process can't see, in another namespace."""

    def __bool__(self) -> bool:
        return bool(self.pids) or self.has_others


class _Leftovers:
    """Finds and kills what is left of a run: the processes in its cgroup, if it has one, and those that a search finds. Both
    are needed, since a process that may write to cgroups can leave its own. Every method raises OSError."""

    def __init__(self, key: RunKey, shim_pid: int | None, cgroup: RunCgroup | None) -> None:
        self.shim: Final = shim_pid
        self.cgroup: Final = cgroup
        self._job_id = key.job_id
        self._uids = _uids(key)
        self._since_ticks = _started_ticks(shim_pid)

    def look(self) -> _Left:
        """Return what is left."""
        found = processes_of_job(self._job_id, self.shim, self._since_ticks, self._uids)
        if self.cgroup is None:
            return _Left(frozenset(found), has_others=False)
        return _Left(frozenset([*found, *self.cgroup.processes()]), self.cgroup.is_populated())

    def kill(self) -> None:
        """Kill it, without waiting for the end."""
        if self.cgroup is not None:
            self.cgroup.kill()
        send_signal(self.look().pids, signal.SIGKILL)

    def clean_up(self) -> None:
        """Remove the cgroup, once nothing is left."""
        if self.cgroup is not None:
            with suppress(OSError):  # a later server may find it, empty
                self.cgroup.remove()


class LocalRun:
    """A run on this machine. `leftovers` has its shim, if that has not ended already. `fork_server` forked the shim, None if
    that is unknown. `wake` is an eventfd, which the run owns from then on. `release` gives its devices back, once nothing of it
    is left. Raises OSError."""

    node: Final = LOCAL_NODE

    def __init__(
        self,
        key: RunKey,
        leftovers: _Leftovers,
        fork_server: ForkServer | None,
        wake: int,
        devices: tuple[str, ...],
        release: Callable[[], None],
    ) -> None:
        self._key = key
        self._devices = devices
        self._release = release
        self._fork_server = fork_server
        self._exit_code: int | None = None
        self._memory_kill: str | None = None
        self._known_sockets = frozenset[int]()  # at which it was found to listen
        self._leftovers = leftovers
        self._shim = leftovers.shim  # this server saw it alive, so its id is not reused while its session has members
        self._pidfd = _open_pidfd(self._shim)
        self._wake = wake
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        if self._pidfd is not None:
            self._poll.register(self._pidfd, select.POLLIN)

    @property
    def devices(self) -> tuple[str, ...]:
        """The GPUs that it was given."""
        return self._devices

    @property
    def is_warm(self) -> bool:
        """Whether it was forked from a process that had the harness in memory."""
        return was_warm(_traces_dir(self._key))

    @property
    def waits_for(self) -> str:
        """It waits for nothing."""
        return ""

    @property
    def begun_ns(self) -> int:
        """It begins when it is started."""
        return 0

    def owns_port(self, port: int) -> bool | None:
        """Return whether it is a process of the run that listens at a port; None: nobody does. Raises OSError.

        A process may be forked while all are looked through, so it takes two looks to believe that it is none of these.
        """
        listening = listening_sockets(port)
        if not listening:
            return None
        return listening <= self._known_sockets or self._has_sockets(listening) or self._has_sockets(listening)

    def _has_sockets(self, wanted: frozenset[int]) -> bool:
        sockets = sockets_of(self._leftovers.look().pids)
        is_owner = wanted <= sockets.inodes or not sockets.is_complete  # what hides its sockets may have these
        if is_owner:
            self._known_sockets = wanted
        return is_owner

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the run has ended, `interrupt` is called, or time is up. Return whether the run has ended."""
        if self._pidfd is None:
            return True
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout_seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._pidfd in ready

    def interrupt(self) -> None:
        """Make the current or the next `wait` return early."""
        os.eventfd_write(self._wake, 1)

    def step_ends(self) -> list[int]:
        """Return the size of the log at the end of each step that has ended. Raises OSError."""
        return [step.log_size_bytes for step in self._read_exits().steps]

    def exit_status(self, step: int = 0) -> Exit:
        """Return how a step of an ended run ended, as its shim recorded it. Raises RunFailedError, OSError; after `end` also if
        it was killed for want of memory, mostly together with the shim."""
        steps = self._read_exits().steps
        end = steps[step] if step < len(steps) else None
        if self._memory_kill is not None and (end is None or end.signal == signal.SIGKILL):
            raise RunFailedError("OUT_OF_MEMORY", self._memory_kill)
        if end is None:
            return self._exit_of_shim()
        if end.error is not None:
            raise RunFailedError("START_FAILED", f"the program could not be started: {end.error}")
        return Exit(code=end.code, signal=end.signal)

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: SIGTERM, a grace period, SIGKILL. Returns once none is left, and the memory of its GPUs
        is free, or these are quarantined.

        The shim is killed last, and only if it does not end by itself, because it adopts orphaned processes of the run. Raises
        RunFailedError if some can't be killed, and OSError if it can't be determined which are left.
        """
        self._end_processes(grace_seconds)
        self._release()

    def _end_processes(self, grace_seconds: float) -> None:
        if not (
            (self.wait(0) and self._is_proved_ended())
            or self._gone_after(signal.SIGTERM, signal.SIGTERM, grace_seconds)
            or (self._leftovers.cgroup is None and self._gone_after(signal.SIGKILL, shim.KILL_REQUEST, _SHIM_SECONDS))
            or self._gone_after(signal.SIGKILL, signal.SIGKILL, _KILL_SECONDS)
        ):
            left = ", ".join(map(str, sorted(self._leftovers.look().pids)))
            raise RunFailedError("PROCESS_UNKILLABLE", f"processes {left} of the run could not be killed")
        if self._leftovers.cgroup is not None:  # which is gone once it is cleaned up
            self._memory_kill = self._memory_kill or self._leftovers.cgroup.find_memory_kill()
        self._leftovers.clean_up()
        if uid_of_shim(_traces_dir(self._key)) is not None:
            close_to_account(_traces_dir(self._key), self._key.log_path)

    def _is_proved_ended(self) -> bool:
        """Tell whether it is known without a search that no process is left of the run, whose shim has ended.

        A run may have written what its shim records, so this is believed only together with a cgroup.
        """
        cgroup = self._leftovers.cgroup
        if cgroup is not None and cgroup.is_populated():
            return False
        if self._fork_server is not None and self._shim is not None:
            return self._fork_server.exit_code(self._shim) == 0
        return cgroup is not None and self._read_exits().none_left

    def close(self) -> None:
        """Close the run's descriptors, and reap its shim if that has ended."""
        if self.wait(0):
            self._reap()
        for descriptor in (self._pidfd, self._wake):
            if descriptor is not None:
                os.close(descriptor)

    def _gone_after(self, number: signal.Signals, to_shim: signal.Signals, seconds: float) -> bool:
        """Signal what is left of the run until nothing is, or time is up. New processes of the run get the signal too.

        A scan of /proc can miss a process forked during it, so after a signal it takes two to believe that all are gone.
        """
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while left := self._leftovers.look() or (signalled and self._leftovers.look()):
            if to_shim is signal.SIGKILL and self._leftovers.cgroup is not None:
                self._leftovers.cgroup.kill()
            new = left.pids - signalled
            send_signal(new & {self._shim}, to_shim)  # first, so that it starts no further step
            send_signal(new - {self._shim}, number)
            signalled |= new
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(_SURVIVOR_CHECK_SECONDS, max(0.0, deadline - time.monotonic())))
        return True

    def _read_exits(self) -> Exits:
        return read_exits(_traces_dir(self._key))

    def _exit_of_shim(self) -> Exit:
        """Judge by the shim itself, which was killed before it could record the end of the step."""
        exit_code = self._reap()
        # A shim that exits by itself without a record could not write one: then nobody knows how the program ended.
        return Exit(signal=-exit_code) if exit_code is not None and exit_code < 0 else Exit()

    def _reap(self) -> int | None:
        """Reap the shim, which has ended, and return its exit code, if that can be known."""
        if self._fork_server is not None and self._shim is not None:
            self._exit_code = self._fork_server.reap(self._shim)
            self._fork_server = None
        return self._exit_code


def _is_living_server(name: str) -> bool:
    """Tell whether a server lives, by its name in the cgroups of its parents."""
    pid, _, start_time = name.partition("-")
    return not pid.isdecimal() or _is_living(int(pid), start_time)


def _is_living(pid: int, start_time: str) -> bool:
    """Tell whether the process still runs, and its id was not reused. Raises OSError if that can't be determined."""
    try:
        return shim.start_time(pid) == start_time
    except OSError as error:
        require_no_shortage(error)
        return False


def _started_ticks(pid: int | None) -> int:
    """Return when a process started, in kernel ticks; 0 if it is gone: then any process may belong to its run."""
    try:
        return int(shim.start_time(pid)) if pid is not None else 0
    except OSError as error:
        require_no_shortage(error)
        return 0


def _open_pidfd(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
