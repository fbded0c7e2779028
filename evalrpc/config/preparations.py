"""The keys of a `[preparations.NAME]` table, each declared once: a command that makes another model folder of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evalrpc.config import programs
from evalrpc.config.declaration import NUMBER, POSITIVE, STRINGS, metadata, setting


@dataclass(frozen=True)
class PreparationSettings:
    """One `[preparations.NAME]` table. Its name is what requests have in `preparation`."""

    name: str
    command: tuple[str, ...] = field(
        metadata=metadata(
            STRINGS,
            "The command line, without a shell. In it, `{model}` is the folder that the request names, `{output}` an empty "
            "folder for the prepared model, and `{merge_fsdp2}` the program that comes with evalrpc for checkpoints of FSDP2.",
            default_text="none: it is required",
        )
    )
    timeout_seconds: float = setting(
        3600.0,
        NUMBER,
        "How long it may take; past that it is ended, and the job is FAILED with `PREPARATION_FAILED`.",
        unit="seconds",
        rule=POSITIVE,
    )
    env: Mapping[str, str] = field(default_factory=dict, metadata=programs.ENVIRONMENT)
    working_dir: Path = field(default_factory=Path.cwd, metadata=programs.WORKING_DIR)
