"""Run commands on this machine, each in its own session, writing straight to a log file.

A run is found again by its shim (`shims.py`), and by the traces on disk which that leaves in `attempt_dir/run` (`shim.py`).
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from evalrpc.clock import SystemClock
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import CommandOutput, Device, Node, Resources, RunKey, WarmState
from evalrpc.executors.local import shim
from evalrpc.executors.local.cgroups import Cgroups, RunCgroup
from evalrpc.executors.local.environment import build_environment
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.gpu_memory import GpuGuard, NvmlMemory
from evalrpc.executors.local.leftovers import LOOK_SECONDS, Leftovers, has_begun, is_living, shim_of, traces_of
from evalrpc.executors.local.orders import order_of
from evalrpc.executors.local.processes import jobs_with_processes
from evalrpc.executors.local.run import LOCAL_NODE, SHIM_SECONDS, LocalRun
from evalrpc.executors.local.short_commands import ShortCommands
from evalrpc.executors.local.traces import (
    forget_warm,
    make_room,
    note_pid,
    note_warm,
    open_to_account,
    read_devices,
    remove_traces,
    write_devices,
)
from evalrpc.executors.local.waiting_run import WaitingRun
from evalrpc.executors.local.warm_parents import NEVER_WARM, WarmLimits, WarmParents
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.private import make_private_folder
from evalrpc.harnesses.base import Command

_FORK_SERVERS: Final = 3  # how many may be killed before the start is given up


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
        make_room(traces_of(key), step_count)

    def start(self, key: RunKey, command: Command, resources: Resources) -> LocalRun | WaitingRun:
        """Start a run. Raises RunFailedError with reason START_FAILED; what only shows when the program is started, such as a
        program that does not exist, is raised by `exit_status` instead. Raises OSError if this server is temporarily short of
        a resource; then `find` tells whether the run has begun anyway."""
        made = self._making(key, command, resources)
        if made is None:
            return self._begin(key, command, resources)
        return WaitingRun(resources, made, partial(self._begin, key, command, resources), partial(self.find, key))

    def find(self, key: RunKey) -> LocalRun | None:
        """Find a run that an earlier server started: alive, ended or vanished. None: it never started. Raises OSError."""
        if not has_begun(key):
            return None
        pid, cgroup = shim_of(key), self._find_cgroup(key)
        recorded = read_devices(traces_of(key))  # a run may have written others
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
        leftovers = Leftovers(key, shim_of(key), self._find_cgroup(key))
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

    def _begin(self, key: RunKey, command: Command, resources: Resources) -> LocalRun:
        """Start a run now. Raises as `start` does."""
        wake = os.eventfd(0)  # first: if no descriptor is left, nothing is started
        try:
            make_private_folder(traces_of(key))
            forget_warm(traces_of(key))
            used_bytes = self._gpu_guard.acquire(resources.devices)
            write_devices(traces_of(key), {device: used_bytes.get(device) for device in resources.devices})
            cgroup = self._cgroups.create(key.job_id, key.attempt, resources.limits) if self._cgroups is not None else None
            order = self._order(key, command, resources, cgroup)
            pid, fork_server = self._begin_warm(key, command, order, cgroup) or self._hand_over(key, order)
            return self._run(key, pid, fork_server, wake, resources.devices, cgroup)
        except OSError as error:
            os.close(wake)
            require_no_shortage(error)
            Leftovers(key, None, self._find_cgroup(key)).clean_up()
            raise RunFailedError("START_FAILED", f"the run could not be started: {error}") from error

    def _run(
        self,
        key: RunKey,
        pid: int | None,
        fork_server: ForkServer | None,
        wake: int,
        devices: tuple[str, ...],
        cgroup: RunCgroup | None,
    ) -> LocalRun:
        release = partial(self._gpu_guard.release, devices, self._closing)
        return LocalRun(key, Leftovers(key, pid, cgroup), fork_server, wake, devices, release)

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
                forked = (shim_of(key), None) if has_begun(key) else None
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
            if has_begun(key):  # it had already carried out the order
                return shim_of(key), None
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
    traces = traces_of(key)
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
        deadline = time.monotonic() + SHIM_SECONDS
        while cgroup.is_populated() and time.monotonic() < deadline:
            cgroup.kill()
            time.sleep(LOOK_SECONDS)
        remove_traces(traces_of(key), key.log_path)
        make_room(traces_of(key), step_count)
    forget_warm(traces_of(key))


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
    note_pid(traces_of(key), pid)
    return forked


def _is_living_server(name: str) -> bool:
    """Tell whether a server lives, by its name in the cgroups of its parents."""
    pid, _, start_time = name.partition("-")
    return not pid.isdecimal() or is_living(int(pid), start_time)
