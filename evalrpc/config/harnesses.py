"""The keys of a `[harnesses.NAME]` table, but for those of its policy."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evalrpc.config.declaration import (
    FOLDER,
    FOLDERS,
    NAMES,
    PROGRAM,
    RUN_MEMORY,
    RUN_PROCESSES,
    STRING,
    STRINGS,
    VARIABLES,
    metadata,
    one_of,
    replacing,
    setting,
)
from evalrpc.config.policy import PolicySettings


@dataclass(frozen=True)
class HarnessSettings:
    """One `[harnesses.NAME]` table."""

    name: str
    kind: str = field(
        metadata=metadata(
            STRING, "`lmms-eval`, `lm-eval`, `inspect-ai`, `command`, or a plugin's kind.", default_text="the table's name"
        )
    )
    python: Path = setting(
        Path(sys.executable), PROGRAM, "The interpreter of the harness's own environment.", default_text="the server's"
    )
    include_path: tuple[Path, ...] = setting(
        (),
        FOLDERS,
        "The operator's task folders. Tasks in them run their authors' code, so no request can name one.",
        default_text="none",
    )
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata=metadata(
            VARIABLES,
            "Added to the environment of every run. May hold secrets, so it is never logged or shown.",
            default_text="none",
        ),
    )
    command: tuple[str, ...] = setting(
        (), STRINGS, "The command line, for the kind `command`, which needs it.", default_text="none"
    )
    preload: tuple[str, ...] = setting(
        (),
        STRINGS,
        "For the kind `command`, where `command` is `PYTHON -m MODULE …`: the modules that a process imports beforehand, for "
        "runs to be forked from (`warm`). They must start no thread and use no GPU when they are imported.",
        default_text="none: each run is started anew",
    )
    working_dir: Path = field(
        default_factory=Path.cwd,
        metadata=metadata(
            FOLDER,
            "The folder that runs start in. By default `command` may name programs beside the config file.",
            default_text="the config file's folder",
        ),
    )
    args: tuple[str, ...] = setting(
        (), STRINGS, "Arguments added to every command line that the harness builds itself.", default_text="none"
    )
    executors: tuple[str, ...] = setting(
        (),
        NAMES,
        "Where its runs may be placed: `local`, the server's own machine, and executors by the names of their tables.",
        default_text="all of them",
    )
    warm: str = setting(
        "auto",
        STRING,
        "Whether a run may be forked from a process that has the harness in memory, which is started for the first one. "
        "`auto`: where nothing speaks against it; `evalrpc harnesses` and `evalrpc doctor --warm` say what does.",
        rule=one_of("auto", "off"),
    )
    max_run_memory_bytes: int | None = replacing("max_run_memory_bytes", "its runs", "bytes", RUN_MEMORY)
    max_run_processes: int | None = replacing("max_run_processes", "its runs", "processes", RUN_PROCESSES)
    policy: PolicySettings = PolicySettings()
    """Its table `policy`."""
