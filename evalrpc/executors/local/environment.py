"""The environment of a run: what it inherits from the server, minus what would mislead a harness, plus what it needs."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

JOB_ID_VARIABLE: Final = "EVALRPC_JOB_ID"
"""Marks every process of a run, even one that leaves its session."""

ATTEMPT_VARIABLE: Final = "EVALRPC_ATTEMPT"
"""The attempt of the job."""

# Launchers (torchrun, accelerate, srun, mpirun) set these. A harness that finds them takes itself for one rank of many and
# waits for the others.
_LAUNCHER_VARIABLES: Final = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
    }
)
_LAUNCHER_PREFIXES: Final = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "MPI_", "TORCHELASTIC_", "ACCELERATE_")

# These point to the server's own Python; the harness has another one.
_PYTHON_VARIABLES: Final = frozenset({"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"})

_SECRETS: Final = ("*TOKEN", "*_KEY", "*_KEY_ID", "*APIKEY", "*SECRET*", "*PASSWORD*", "*PASSWD*", "*CREDENTIAL*")
"""What looks like a secret, in capitals."""


def inherited_variables(environment: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the variables that runs inherit: those that a pattern matches. What looks like a secret has to be named exactly:
    a pattern such as `HF_*` does not give HF_TOKEN to every run."""
    return {name: value for name, value in environment.items() if _is_inherited(name, patterns)}


def looks_secret(name: str) -> bool:
    """Tell whether a variable has a name such as secrets have."""
    return any(fnmatchcase(name.upper(), secret) for secret in _SECRETS)


def build_environment(
    inherited: Mapping[str, str], added: Mapping[str, str], gpus: tuple[str, ...], job_id: str, attempt: int
) -> dict[str, str]:
    """Return the whole environment of a run. `inherited` is what `inherited_variables` gave. `added`, set by the operator,
    overrides all but the GPUs, job id and attempt."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that an index means the same GPU as in the driver's tools
        **{name: value for name, value in inherited.items() if not _misleads(name)},
        "PYTHONUNBUFFERED": "1",
        **added,
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        JOB_ID_VARIABLE: job_id,
        ATTEMPT_VARIABLE: str(attempt),
    }


def _is_inherited(name: str, patterns: Sequence[str]) -> bool:
    if looks_secret(name):
        return name in patterns
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _misleads(name: str) -> bool:
    return name in _LAUNCHER_VARIABLES or name in _PYTHON_VARIABLES or name.startswith((*_LAUNCHER_PREFIXES, "EVALRPC_"))
