"""A run on this machine, from its start to the proof of its end.

Waiting uses a pidfd, which any process can open for any other, so a run found again is handled like one that was started.

A run with the server's account may change its traces and kill its shim. One with an account of its own can't, unless it is
warm: then it may kill its shim and write into two of its traces. That nothing is left of a run is therefore proved by its
cgroup where it has one (`cgroups.py`), and by the exit code of its shim; where neither is known, all processes are looked
through.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.leftovers import LOOK_SECONDS, Leftovers, traces_of
from evalrpc.executors.local.listeners import listening_sockets, sockets_of
from evalrpc.executors.local.processes import send_signal
from evalrpc.executors.local.traces import Exits, close_to_account, read_exits, uid_of_shim, was_warm
from evalrpc.harnesses.base import Exit

LOCAL_NODE: Final = "local"

SHIM_SECONDS: Final = 5.0
"""How long a shim may take to see that no process is left."""
_KILL_SECONDS: Final = 30.0


class LocalRun:
    """A run on this machine. `leftovers` has its shim, if that has not ended already. `fork_server` forked the shim, None if
    that is unknown. `wake` is an eventfd, which the run owns from then on. `release` gives its devices back, once nothing of it
    is left. Raises OSError."""

    node: Final = LOCAL_NODE
    waits_for: Final = ""
    begun_ns: Final = 0  # it begins when it is started

    def __init__(
        self,
        key: RunKey,
        leftovers: Leftovers,
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
        return was_warm(traces_of(self._key))

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
            or (self._leftovers.cgroup is None and self._gone_after(signal.SIGKILL, shim.KILL_REQUEST, SHIM_SECONDS))
            or self._gone_after(signal.SIGKILL, signal.SIGKILL, _KILL_SECONDS)
        ):
            left = ", ".join(map(str, sorted(self._leftovers.look().pids)))
            raise RunFailedError("PROCESS_UNKILLABLE", f"processes {left} of the run could not be killed")
        if self._leftovers.cgroup is not None:  # which is gone once it is cleaned up
            self._memory_kill = self._memory_kill or self._leftovers.cgroup.find_memory_kill()
        self._leftovers.clean_up()
        if uid_of_shim(traces_of(self._key)) is not None:
            close_to_account(traces_of(self._key), self._key.log_path)

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
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        return True

    def _read_exits(self) -> Exits:
        return read_exits(traces_of(self._key))

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


def _open_pidfd(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
