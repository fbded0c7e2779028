"""The executor of one of several machines. Its node has the machine's name, and its devices have that before theirs, since
all machines number their GPUs from 0. The nodes of the others are listed, too: jobs are placed on them, and their own servers
start them.
"""

import errno
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any, cast

from evalrpc.executors.base import CommandOutput, Executor, Node, Resources, RunHandle, RunKey, WarmState
from evalrpc.harnesses.base import Command


class HostExecutor:
    """`local` is the machine's own, `others` returns the nodes of the others, the same object until something changes.
    `may_start` returns whether this server may start runs just now. May be used from several threads.

    `max_runs` and `max_runs_without_gpus`: as of a Node.
    """

    def __init__(
        self,
        local: Executor,
        host: str,
        others: Callable[[], Sequence[Node]],
        may_start: Callable[[], bool],
        max_runs: int,
        max_runs_without_gpus: int,
    ) -> None:
        self._local = local
        self._host = host
        self._prefix = f"{host}/"
        self._others = others
        self._may_start = may_start
        self._bounds = max_runs, max_runs_without_gpus
        self._known_own: tuple[Sequence[Node], Node | None] = (), None
        self._known: tuple[Node | None, Sequence[Node], Sequence[Node]] = None, (), ()

    @property
    def own_node(self) -> Node:
        """This machine: the same object until something changes."""
        nodes = self._local.nodes()
        known, node = self._known_own
        if node is None or known is not nodes:
            devices = tuple(device._replace(id=f"{self._prefix}{device.id}") for each in nodes for device in each.devices)
            max_runs, without_gpus = self._bounds
            node = Node(self._host, devices, max_runs=max_runs, max_runs_without_gpus=without_gpus)
            self._known_own = nodes, node
        return node

    def prepare(self) -> None:
        """See Executor.prepare."""
        self._local.prepare()

    def nodes(self) -> Sequence[Node]:
        """Return this machine, then the others. The same object until something changes."""
        own, others = self.own_node, self._others()
        known_own, known_others, known = self._known
        if own is not known_own or others is not known_others:
            known = (own._replace(is_remote=not all(each.is_remote for each in others)), *others)
            self._known = own, others, known
        return known

    def needs_recheck(self) -> bool:
        """See Executor.needs_recheck."""
        return self._local.needs_recheck()

    def recheck(self) -> None:
        """See Executor.recheck."""
        self._local.recheck()

    def make_room(self, key: RunKey, step_count: int) -> None:
        """See Executor.make_room. The folder is on the disk that all machines share."""
        self._local.make_room(key, step_count)

    def start(self, key: RunKey, command: Command, resources: Resources) -> RunHandle:
        """See Executor.start. Raises BlockingIOError while another server may see to the runs of this machine."""
        if not self._may_start():
            raise BlockingIOError(errno.EAGAIN, "another server may see to the runs of this machine")
        devices = self._without_prefix(resources.devices)
        return self._run(self._local.start(self._own(key), command, resources._replace(devices=devices)))

    def find(self, key: RunKey) -> RunHandle | None:
        """See Executor.find."""
        run = self._local.find(self._own(key))
        return self._run(run) if run is not None else None

    def jobs_with_processes(self) -> Set[str]:
        """See Executor.jobs_with_processes."""
        return self._local.jobs_with_processes()

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """See Executor.quarantine."""
        self._local.quarantine(self._own(key), self._without_prefix(devices), reason)

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:
        """See Executor.run_to_end."""
        return self._local.run_to_end(command, timeout_seconds)

    def warm_state(self, harness_name: str) -> WarmState:
        """See Executor.warm_state."""
        return self._local.warm_state(harness_name)

    def begin_close(self) -> None:
        """See Executor.begin_close."""
        self._local.begin_close()

    def close(self) -> None:
        """See Executor.close."""
        self._local.close()

    def _run(self, run: RunHandle) -> RunHandle:
        return cast(RunHandle, _HostRun(run, self._host, self._prefix))

    def _own(self, key: RunKey) -> RunKey:
        return replace(key, devices=key.devices and self._without_prefix(key.devices))

    def _without_prefix(self, devices: Sequence[str]) -> tuple[str, ...]:
        return tuple(device.removeprefix(self._prefix) for device in devices)


class _HostRun:
    """A run of the machine's own executor, with the name of its node, and of its devices, among several machines."""

    def __init__(self, run: RunHandle, host: str, prefix: str) -> None:
        self._run = run
        self._prefix = prefix
        self.node = host

    @property
    def devices(self) -> tuple[str, ...]:
        """See RunHandle.devices."""
        return tuple(f"{self._prefix}{device}" for device in self._run.devices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)
