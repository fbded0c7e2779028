"""What the states of Slurm's jobs mean, as a table. Slurm's documentation of squeue ("Job state codes") has them all."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from evalrpc.jobs.transitions import PREEMPTED_REASON

WAITING: Final = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
"""The job has no node yet, or its node is not ready."""

RUNNING: Final = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"})
"""Its processes may live."""

ALIVE: Final = WAITING | RUNNING

ENDING: Final = "COMPLETING"
"""Slurm ends what is left, and runs its epilog."""


UNSEEN: Final = frozenset({"NODE_FAIL", "BOOT_FAIL", "REVOKED"})
"""The job is over, but Slurm has not seen its processes end."""


NOT_STARTED: Final = UNSEEN | {"FAILED"}
"""Where the run has not begun, Slurm could not start it, as when its node is lost meanwhile. It may be able to next time."""


class Failure(NamedTuple):
    """What became of a run whose job ended in a state."""

    reason: str
    """As in JobError."""
    text: str


FAILURES: Final[Mapping[str, Failure]] = {
    "TIMEOUT": Failure("TIMED_OUT", "Slurm ended the run, since its time limit was up (time_limit_seconds of the executor)"),
    "DEADLINE": Failure("TIMED_OUT", "Slurm ended the run at its deadline"),
    "OUT_OF_MEMORY": Failure("OUT_OF_MEMORY", "Slurm ended the run, since it needed more memory than its job has"),
    "PREEMPTED": Failure(PREEMPTED_REASON, "Slurm ended the run to make room for another job"),
    "NODE_FAIL": Failure("RUN_LOST", "the node of the run has failed"),
    "BOOT_FAIL": Failure("RUN_LOST", "the node of the run could not be started"),
    "REVOKED": Failure("RUN_LOST", "Slurm has moved the run to another cluster"),
    "CANCELLED": Failure("RUN_LOST", "the run was cancelled in Slurm"),
}
"""States that say why a run ended. All others leave that to the traces of the run."""

_REASONS: Final[Mapping[str, str]] = {
    "Resources": "nodes are busy",
    "Priority": "jobs of higher priority come first",
    "Dependency": "an earlier submission of it has to end first",
    "Licenses": "licenses are taken",
    "ReqNodeNotAvail": "the nodes that it needs are not available",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "BeginTime": "it is started again in a moment",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held",
}


def wait_reason(executor: str, state: str, reason: str) -> str:
    """Say why a run waits in Slurm."""
    if state == "CONFIGURING":
        return f"{executor}: its node is made ready"
    known = _REASONS.get(reason, "")
    named = f" ({reason})" if reason not in ("", "None") else ""
    return f"{executor}: waits in Slurm{f': {known}' if known else ''}{named}"
