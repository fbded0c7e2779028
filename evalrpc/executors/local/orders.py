"""What a shim is told to run, wherever it does."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from evalrpc.executors.base import Resources, RunKey
from evalrpc.executors.local.environment import build_environment
from evalrpc.executors.local.limits import rlimits_of
from evalrpc.executors.local.shims import run_name
from evalrpc.executors.local.traces import traces_dir
from evalrpc.harnesses.base import Command


def order_of(
    key: RunKey,
    command: Command,
    resources: Resources,
    environment: Mapping[str, str],
    visible_gpus: tuple[str, ...],
    cgroup: Path | None = None,
    controllers: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Return the order for a run, as `shim.py` takes it. `environment`: what it inherits. `controllers`: of its cgroup."""
    return {
        "steps": [command.argv, *command.further_steps],
        "files": {str(path): content for path, content in command.files.items()},
        "env": build_environment(environment, _added(key, command), visible_gpus, key.job_id, key.attempt),
        "cwd": str(Path.cwd() / (command.cwd or "")),
        "umask": command.umask,
        "log": str(key.log_path),
        "traces_dir": str(traces_dir(key.attempt_dir)),
        "run": run_name(key.job_id, key.attempt),
        "cgroup": str(cgroup) if cgroup is not None else "",
        "account": (key.account.uid, list(key.account.groups)) if key.account is not None else None,
        "notes_pid": True,
        "rlimits": rlimits_of(resources, controllers, has_account=key.account is not None),
    }


def _added(key: RunKey, command: Command) -> Mapping[str, str]:
    """Return what a command adds to the environment. The server's HOME is nothing for another account."""
    home = {"HOME": str(key.account.home)} if key.account is not None else {}
    return {**home, **command.env, **command.secrets}
