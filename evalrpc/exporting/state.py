"""How far an export has come, in a file that is either as it was or as it is meant to be."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from evalrpc.errors import ConfigurationError

_FORMAT: Final = 1


@dataclass(frozen=True)
class ExportState:
    """What has been exported for good."""

    selection: str
    """What is exported, and where to: an export goes on only with the same."""
    revision: int = 0
    """All jobs that have ended up to this revision. 0: none yet."""
    part_count: int = 0
    """How many files the target has written, if it writes files."""
    format: int = _FORMAT


def read_state(path: Path, selection: str) -> ExportState | None:
    """Return the state of an export; None if there is none yet. Raises ConfigurationError if it is that of another selection or
    damaged, OSError."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(text)
        state = ExportState(**{field.name: stored[field.name] for field in fields(ExportState)})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is no state of an export, or a damaged one; name another file, or begin anew"
        ) from error
    if state.format != _FORMAT:
        raise ConfigurationError(f"{path} is of another release of evalrpc (format {state.format})")
    if state.selection != selection:
        raise ConfigurationError(
            f"{path} is of an export with other filters or another target ({state.selection}); name another state file"
        )
    return state


def write_state(path: Path, state: ExportState) -> None:
    """Replace the state of an export, so that a crash leaves the old one or the new one. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that. Raises OSError."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
