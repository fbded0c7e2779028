"""What limits a run where its cgroup does not: rlimits, which bind each of its processes."""

import resource
from collections.abc import Set

from evalrpc.executors.base import Resources
from evalrpc.executors.local.cgroups import MEMORY, PIDS


def rlimits_of(resources: Resources, controllers: Set[str], *, has_account: bool) -> list[tuple[int, int]]:
    """Return the rlimits of a run whose cgroup has these controllers, each a resource with its bound.

    A run with GPUs gets no limit of address space, of which CUDA reserves more than the machine has memory. Processes are
    counted by account, so a run with that of the server gets no limit of them: its own would count too, and root's none.
    """
    limits, rlimits = resources.limits, []
    if limits.memory_bytes and MEMORY not in controllers and not resources.devices:
        rlimits.append((resource.RLIMIT_AS, limits.memory_bytes))
    if limits.processes and PIDS not in controllers and has_account:
        rlimits.append((resource.RLIMIT_NPROC, limits.processes))
    return rlimits
