"""What limits a run where its cgroup does not: rlimits, which bind each of its processes."""

import resource
from collections.abc import Set

from evalrpc.executors.base import Resources
from evalrpc.executors.local.cgroups import MEMORY, PIDS


def rlimits_of(resources: Resources, controllers: Set[str], *, has_account: bool) -> list[tuple[int, int]]:
    """Return the rlimits of a run whose cgroup has these controllers, each a resource with its bound.

    Address space is none for a run with GPUs: CUDA reserves far more than all memory of the machine. Processes are counted by
    account: together with the server's own where the run has no other, and not at all for root.
    """
    limits, rlimits = resources.limits, []
    if limits.memory_bytes and MEMORY not in controllers and not resources.devices:
        rlimits.append((resource.RLIMIT_AS, limits.memory_bytes))
    if limits.processes and PIDS not in controllers and has_account:
        rlimits.append((resource.RLIMIT_NPROC, limits.processes))
    return rlimits
