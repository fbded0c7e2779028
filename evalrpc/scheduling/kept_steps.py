"""Steps of a run that a later attempt does not repeat: those that finished well, with the same command and harness version.

    attempt-1/task-2/finished     a digest of what ran, written once the results of the step have been read and are good
    attempt-2/task-2/kept         the number of the attempt that ran it; its output is linked into the folder of this attempt

Blocks on the disk. A run may have put anything in the place of these files: that keeps nothing, and holds nobody.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.files.private import create_private_file
from evalrpc.harnesses.base import Command, Harness, Run
from evalrpc.harnesses.steps import commands_of

_FINISHED: Final = "finished"
_KEPT: Final = "kept"
_MAX_BYTES: Final = 1024
_NOWHERE: Final = Path("/evalrpc")  # stands for the folders of a step, which differ between attempts


class RunSteps:
    """The steps of an attempt: those that it has taken over, and those that it runs itself."""

    def __init__(self, harness: Harness, steps: Sequence[Run], *, is_last_attempt: bool = False) -> None:
        self._harness = harness
        self._steps = steps
        self._is_noted = len(steps) > 1 and not is_last_attempt
        self._digests: Mapping[Path, bytes] = {}

        self.kept = [(step, attempt) for step in steps if (attempt := kept_from(step))]
        """Those that it has taken over, each with the attempt that ran it."""
        self.to_run = [step for step in steps if not kept_from(step)]
        """Those that it runs itself."""

    @property
    def are_several(self) -> bool:
        """Whether there is more than one step in all."""
        return len(self._steps) > 1

    def note_finished(self, step: Run) -> None:
        """Note that a step has finished well, for the attempt after this one. Without room on the disk it is repeated."""
        if self._is_noted:
            self._digests = self._digests or _digests(self._harness, self._steps)
            with suppress(OSError, KeyError):
                _write(step, _FINISHED, self._digests[step.attempt_dir])


def keep_steps(harness: Harness, steps: Sequence[Run], earlier: Sequence[Sequence[Run]]) -> None:
    """Take over from earlier attempts, which are given oldest first, what they have finished. One step at least is left to run,
    so that the attempt has a process and a log. May be called again for the same attempt."""
    digests = _digests(harness, steps)
    if not digests:
        return
    kept_count = 0
    for number, step in enumerate(steps):
        if kept_count == len(steps) - 1:
            return
        digest = digests[step.attempt_dir]
        source = next((before[number] for before in reversed(earlier) if _read(before[number], _FINISHED) == digest), None)
        kept_count += source is not None and _take_over(source, step)


def kept_from(step: Run) -> int:
    """Return the number of the attempt that ran a step which this one has taken over; 0 if it runs itself.

    Raises OSError for a shortage of the server.
    """
    number = _read(step, _KEPT)
    return int(number) if number.isdigit() else 0


def _take_over(source: Run, step: Run) -> bool:
    """Link the output of a finished step into the folder of the new one. Return whether that could be done."""
    try:
        with scan_folder(source.output_dir):
            pass  # it is a folder, and no link to one
        shutil.copytree(source.output_dir, step.output_dir, symlinks=True, copy_function=_link, dirs_exist_ok=True)
        _write(step, _FINISHED, _read(source, _FINISHED))
        _write(step, _KEPT, str(kept_from(source) or source.attempt).encode())
    except (OSError, RecursionError):
        return False
    return True


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        pass  # from an earlier call
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _read(step: Run, name: str) -> bytes:
    """Return what a file has; nothing if there is none. Raises OSError for a shortage of the server."""
    try:
        with open_in(step.attempt_dir, name) as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        require_no_shortage(error)
        return b""


def _write(step: Run, name: str, content: bytes) -> None:
    """Write a file, or replace whatever is in its place. Raises OSError."""
    with create_private_file(step.attempt_dir / name) as file:
        file.write(content)


def _digests(harness: Harness, steps: Sequence[Run]) -> Mapping[Path, bytes]:
    """Return what identifies the program of each step, by its folder; nothing, where the harness can't build it any more."""
    nameless = [replace(step, job_id="", attempt=1, attempt_dir=_NOWHERE, output_dir=_NOWHERE / "output") for step in steps]
    try:
        commands = commands_of(harness, nameless)
    except RunFailedError:
        return {}
    program = (harness.name, harness.kind, harness.info().version)
    return {step.attempt_dir: _digest(program, command) for step, command in zip(steps, commands, strict=True)}


def _digest(program: tuple[str, ...], command: Command) -> bytes:
    facts = (program, command.argv, sorted(command.env.items()), command.cwd, sorted(command.files.items()))
    return hashlib.sha256(repr(facts).encode()).hexdigest().encode()
