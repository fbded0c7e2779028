"""The keys of an `[executors.NAME]` table, each declared once: a cluster that runs are handed over to."""

from dataclasses import dataclass, field
from typing import Final

from evalrpc.config.declaration import (
    INTEGER,
    NAMES,
    NUMBER,
    POSITIVE,
    STRING,
    STRINGS,
    Rule,
    at_least,
    metadata,
    one_of,
    setting,
)
from evalrpc.config.secrets import EVERYBODY

LOCAL_EXECUTOR: Final = "local"
"""What requests and settings call the server's own machine. It needs no table."""

SLURM: Final = "slurm"

_IS_PLAIN: Final = Rule(
    "be printable, and not begin with `-`", lambda text: not text or (text.isprintable() and not text.startswith("-"))
)
_ARE_FLAGS: Final = Rule(
    "be arguments that begin with `--`", lambda args: all(arg.startswith("--") and arg.isprintable() for arg in args)
)


@dataclass(frozen=True)
class ExecutorSettings:
    """One `[executors.NAME]` table. Its name is what requests have in `executor`."""

    name: str
    kind: str = field(
        metadata=metadata(STRING, "The kind of cluster: `slurm`.", rule=one_of(SLURM), default_text="none: it is required")
    )
    partition: str = setting("", STRING, "The partition of its runs.", rule=_IS_PLAIN, default_text="that of Slurm")
    account: str = setting("", STRING, "The account that they are charged to.", rule=_IS_PLAIN, default_text="that of Slurm")
    qos: str = setting("", STRING, "Their quality of service.", rule=_IS_PLAIN, default_text="that of Slurm")
    constraint: str = setting("", STRING, "What their nodes must have.", rule=_IS_PLAIN, default_text="none")
    time_limit_seconds: float | None = setting(
        None,
        NUMBER,
        "How long Slurm lets a run take, in full minutes. A job with a shorter `timeout` is ended by the server before that.",
        unit="seconds",
        rule=POSITIVE,
        default_text="that of the partition",
    )
    args: tuple[str, ...] = setting(
        (), STRINGS, "Further arguments of sbatch, such as `--cpus-per-gpu=8`.", rule=_ARE_FLAGS, default_text="none"
    )
    max_gpus: int = setting(
        0,
        INTEGER,
        "How many GPUs the runs that are handed over may have together, and so the most that a job may ask for.",
        unit="GPUs",
        rule=at_least(0),
    )
    max_submitted: int = setting(
        100,
        INTEGER,
        "How many runs are handed over at once, whether they run or wait there. All others wait here, in the order of service.",
        unit="runs",
        rule=at_least(1),
    )
    owners: tuple[str, ...] = setting(
        (EVERYBODY,),
        NAMES,
        'Whose jobs may be placed there: owners as they are signed in. `["*"]`: those of everybody, signed in or not.',
        default_text='`["*"]`',
    )
    python: str = setting(
        "/usr/bin/python3",
        STRING,
        "The interpreter, 3.10 or newer, that starts and watches the harness on the nodes.",
    )
    command_seconds: float = setting(30.0, NUMBER, "How long a command of Slurm may take.", unit="seconds", rule=POSITIVE)
    start_seconds: float = setting(
        600.0,
        NUMBER,
        "How long a run may be running by Slurm without having begun, as with a slow prolog. Then its job there is lost, "
        "and is replaced by another one.",
        unit="seconds",
        rule=POSITIVE,
    )
    poll_seconds: float = setting(
        10.0,
        NUMBER,
        "How often Slurm is asked about all runs. That a run has ended is seen at once, on the shared disk.",
        unit="seconds",
        rule=POSITIVE,
    )


def may_place(executor: ExecutorSettings, owner: str) -> bool:
    """Return whether the jobs of an owner may be placed there. Empty: who is not signed in."""
    return EVERYBODY in executor.owners or (owner != "" and owner in executor.owners)
