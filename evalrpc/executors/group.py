"""Several executors as one: each run goes to the one whose node it was placed on.

What has no node is the server's own: short commands, engines, and attempts of releases that did not say where they ran.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from evalrpc.executors.base import CommandOutput, Executor, Node, Resources, RunHandle, RunKey, WarmState
from evalrpc.harnesses.base import Command


class ExecutorGroup:
    """`local` is the server's own machine, `others` have one node each, by its name. May be used from several threads."""

    def __init__(self, local: Executor, others: Mapping[str, Executor]) -> None:
        self._local = local
        self._others = others
        self._known: tuple[Sequence[Sequence[Node]], Sequence[Node]] = (), ()

    def prepare(self) -> None:
        """Let each get ready."""
        for executor in self._all():
            executor.prepare()

    def nodes(self) -> Sequence[Node]:
        """Return the nodes of all, those of the server's own machine first. The same object until something changes."""
        of_each = [executor.nodes() for executor in self._all()]
        known = self._known
        if len(known[0]) != len(of_each) or any(old is not new for old, new in zip(known[0], of_each, strict=True)):
            known = self._known = of_each, tuple(node for nodes in of_each for node in nodes)
        return known[1]

    def needs_recheck(self) -> bool:
        """Tell whether any does."""
        return any(executor.needs_recheck() for executor in self._all())

    def recheck(self) -> None:
        """Let each look again."""
        for executor in self._all():
            executor.recheck()

    def make_room(self, key: RunKey, step_count: int) -> None:
        """See Executor.make_room."""
        self._of(key.node).make_room(key, step_count)

    def start(self, key: RunKey, command: Command, resources: Resources) -> RunHandle:
        """See Executor.start."""
        return self._of(resources.node).start(key, command, resources)

    def find(self, key: RunKey) -> RunHandle | None:
        """See Executor.find."""
        return self._of(key.node).find(key)

    def jobs_with_processes(self) -> set[str]:
        """Return the jobs of all. What one can't tell at present is left out: its runs are looked for when it can. Raises
        OSError if the server's own machine can't be looked at."""
        jobs = set(self._local.jobs_with_processes())
        for executor in self._others.values():
            with suppress(OSError):
                jobs |= executor.jobs_with_processes()
        return jobs

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """See Executor.quarantine."""
        self._of(key.node).quarantine(key, devices, reason)

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:
        """See Executor.run_to_end. On the server's own machine."""
        return self._local.run_to_end(command, timeout_seconds)

    def warm_state(self, harness_name: str) -> WarmState:
        """See Executor.warm_state. On the server's own machine."""
        return self._local.warm_state(harness_name)

    def begin_close(self) -> None:
        """See Executor.begin_close."""
        for executor in self._all():
            executor.begin_close()

    def close(self) -> None:
        """See Executor.close."""
        for executor in self._all():
            executor.close()

    def _all(self) -> Sequence[Executor]:
        return [self._local, *self._others.values()]

    def _of(self, node: str) -> Executor:
        return self._others.get(node, self._local)
