"""Recognises the shim of a run among all processes, by what no run can forge for another process.

A shim holds a memory file with the name of its run (`shim.CLAIM`). A process can give itself any such file, but not another
process. So what is taken for the shim of a run is its shim, or a process that claims to be: never another job's, nor one that
has nothing to do with evalrpc, whatever a run has written into its traces.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from evalrpc.executors.local import shim
from evalrpc.executors.local.processes import GONE_OR_FOREIGN, name_of, parent_of, process_ids, uid_of

_NAMES: Final = frozenset({shim.RUN_NAME, shim.FORK_SERVER_NAME})  # one just forked still has the name of the fork server
_CLAIM: Final = f"/memfd:{shim.CLAIM}"
_DELETED: Final = " (deleted)"


class _Shim(NamedTuple):
    parent_count: int
    pid: int


def run_name(job_id: str, attempt: int) -> str:
    """Return the name of a run in the claim of its shim."""
    return f"{job_id} {attempt}"


def find_shim(job_id: str, attempt: int, uid: int | None = None) -> int | None:
    """Return the process id of the living shim of a run, or None. `uid`: the account that it has, if not this one. Raises
    OSError if that can't be determined.

    A shim is never below another one, so a process of a run that claims to be a shim yields to the real one.
    """
    run, uid = run_name(job_id, attempt), os.geteuid() if uid is None else uid
    found = [_Shim(sum(1 for _ in _shims_above(pid, uid)), pid) for pid in process_ids() if run in _claims(pid, uid)]
    return min(found).pid if found else None


def _shims_above(pid: int, uid: int) -> Iterator[int]:
    """Yield the shims among the ancestors of a process."""
    with suppress(*GONE_OR_FOREIGN):
        while pid := parent_of(pid):
            if _claims(pid, uid):
                yield pid


def _claims(pid: int, uid: int) -> list[str]:
    """Return the runs whose shim a process of an account claims to be. None for a process of another one."""
    claims: list[str] = []
    with suppress(*GONE_OR_FOREIGN):
        folder = f"/proc/{pid}"
        if name_of(pid) in _NAMES and uid_of(pid) == uid:
            for number in os.listdir(f"{folder}/fd"):  # noqa: PTH208 - as above
                with suppress(*GONE_OR_FOREIGN):
                    link = os.readlink(f"{folder}/fd/{number}")  # noqa: PTH115 - no path of a file
                    if link.startswith(_CLAIM):
                        claims.append(link.removeprefix(_CLAIM).removesuffix(_DELETED))
    return claims
