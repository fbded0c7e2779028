"""The program that an operator's command line starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def program_of(command: Sequence[str], working_dir: Path) -> str:
    """Return the program of a command line, as a path if it is given by one."""
    return str(working_dir / command[0]) if "/" in command[0] else command[0]


def missing_program(command: Sequence[str], working_dir: Path, setting: str) -> str:
    """Say why a command line can't run, which is set by this setting; nothing if its program is there. Looks at the disk."""
    if shutil.which(program := program_of(command, working_dir)):
        return ""
    return f"there is no program {program}: install it or set {setting}"
