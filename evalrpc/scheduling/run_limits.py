"""How much memory and how many processes a run may have, and by what that is enforced."""

from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from evalrpc.config import EngineSettings, HarnessSettings, Settings
from evalrpc.executors.base import RunLimits
from evalrpc.executors.local.cgroups import MEMORY, PIDS


class RunLimitsPolicy:
    """What the runs of each harness may take, by the settings. May be used from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """Those that hold for runs that start from now on. May be exchanged."""

    def of(self, harness: str) -> RunLimits:
        """Return what a run of this harness may take: as its own table says, else as the server's settings do."""
        return self._limits(self.settings.harnesses.get(harness))

    def of_engine(self, engine: str) -> RunLimits:
        """Return what an engine of this name may take, in the same way."""
        return self._limits(self.settings.engines.get(engine))

    def _limits(self, own: HarnessSettings | EngineSettings | None) -> RunLimits:
        settings = self.settings
        memory_bytes = own.max_run_memory_bytes if own else None
        processes = own.max_run_processes if own else None
        return RunLimits(
            settings.max_run_memory_bytes if memory_bytes is None else memory_bytes,
            settings.max_run_processes if processes is None else processes,
        )


class Enforcement(NamedTuple):
    """By what a limit is enforced."""

    subject: str
    detail: str
    """For people, with the limit."""
    holds: bool
    """Whether there is no run that has a limit which nothing enforces."""


def describe_limits(settings: Settings, controllers: Set[str], *, has_gpus: bool) -> Iterator[Enforcement]:
    """Say by what limits are enforced, where the cgroups of runs have these controllers."""
    policy = RunLimitsPolicy(settings)
    limits = {harness: policy.of(harness) for harness in sorted(settings.harnesses)}
    memory = _limited("max_run_memory_bytes", "bytes", {name: each.memory_bytes for name, each in limits.items()})
    if MEMORY in controllers:
        yield Enforcement("memory of runs", f"{memory} enforced by cgroup", holds=True)
    elif has_gpus:
        means = "enforced by rlimits (address space of each process), and not at all for runs with GPUs: that takes cgroups"
        is_limited = any(each.memory_bytes for each in limits.values())
        yield Enforcement("memory of runs", f"{memory} {means}", holds=not is_limited)
    else:
        yield Enforcement("memory of runs", f"{memory} enforced by rlimits (address space of each process)", holds=True)
    processes = _limited("max_run_processes", "at once", {name: each.processes for name, each in limits.items()})
    if PIDS in controllers:
        yield Enforcement("processes of runs", f"{processes} enforced by cgroup", holds=True)
    elif settings.run_as_uids:
        yield Enforcement("processes of runs", f"{processes} enforced by rlimits (all runs of an owner together)", holds=True)
    else:
        means = "enforced by nothing: that takes cgroups or run_as_uids"
        is_limited = any(each.processes for each in limits.values())
        yield Enforcement("processes of runs", f"{processes} {means}", holds=not is_limited)


def _limited(setting: str, unit: str, by_harness: Mapping[str, int]) -> str:
    """Say which limits there are, as the beginning of a sentence."""
    if not any(by_harness.values()):
        return f"not limited (setting {setting}); a limit would be"
    names = {limit: [name for name in by_harness if by_harness[name] == limit] for limit in by_harness.values()}
    figures = {limit: f"at most {limit} {unit}" if limit else "not limited" for limit in names}
    if len(names) == 1:
        return f"{figures[next(iter(names))]},"
    texts = [f"{figures[limit]} ({' and '.join(names[limit])})" for limit in names]
    return f"{', '.join(texts)},"
