"""The checkpoints in a folder that a training run writes: which there are, of which step each is, and which are complete."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.files.fingerprints import fingerprint_files

QUIET_SECONDS: Final = 30.0
"""How long the files of a checkpoint have to stay as they are before it counts as complete."""

_STEP: Final = re.compile(r"(?:checkpoint|ckpt|step|iteration|iter)[-_=.]?(\d+)(?!\d|\.\d)", re.IGNORECASE | re.ASCII)
_LAST_NUMBER: Final = re.compile(r"(?<![\d.])(\d+)(?!.*\d)", re.ASCII)
_UNFINISHED: Final = re.compile(r"^(?:\.|tmp\b|tmp[-_])|[-_.](?:tmp|temp|partial|incomplete|unfinished)$", re.IGNORECASE)
_MAX_STEP_DIGITS: Final = 18
_REST: Final = 20


class Checkpoint(NamedTuple):
    """A complete checkpoint."""

    path: Path
    """Absolute, without links."""
    step: int
    fingerprint: str
    """Another one if any of its files has changed: hexadecimal, of their names, sizes and times."""


class Scan(NamedTuple):
    """What a look at the folder has found."""

    is_readable: bool
    """Whether the folder could be looked at. If not, nothing is known of its checkpoints."""
    complete: list[Checkpoint]
    """Newest first: by step, then by name."""
    unfinished: frozenset[tuple[Path, str | None]]
    """Those that are not complete yet, with their fingerprints."""
    remarks: list[str]
    """What people should know, each once: what is left out and why."""


def step_of(name: str, pattern: re.Pattern[str] | None = None) -> int | None:
    """Return the step in the name of a checkpoint, such as `checkpoint-500`, `global_step500`, `iter_0000500`, `epoch-3` or
    `epoch=1-step=500`: the number after the word for a step, else the last number. None if there is none.

    A pattern replaces these rules; its first group is the step.
    """
    found = pattern.search(name) if pattern else _STEP.search(name) or _LAST_NUMBER.search(name)
    if found is None:
        return None
    digits = found[1] if found.re.groups else found[0]
    return int(digits) if digits and digits.isdecimal() and len(digits) <= _MAX_STEP_DIGITS else None


def fingerprint_of(path: Path) -> str | None:
    """Return the fingerprint of a folder; None if it has no files, too many (10,000), or one that can't be looked at."""
    try:
        with os.scandir(path) as entries:
            is_empty = next(entries, None) is None
    except OSError:
        return None
    digest = None if is_empty else fingerprint_files([path])
    return digest.hex() if digest else None


@dataclass
class _Seen:
    """What a folder looked like, and since when."""

    fingerprint: str
    since_seconds: float
    is_rewritten: bool
    """Whether it was complete before, with other files."""
    is_complete: bool = False


class CheckpointFolder:
    """Looks for checkpoints among the folders in a folder, which need not exist yet.

    One is complete when it has a file of the name `marker`, and looks the same in two scans, since other processes may still
    write to it; without such a name, once its files have been quiet for so long. If they change later, it is another checkpoint
    under the same name, and has to be quiet first even with a marker, which may still be that of before.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        marker: str = "",
        quiet_seconds: float = QUIET_SECONDS,
        step_pattern: re.Pattern[str] | None = None,
    ) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._clock = clock
        self._marker = marker
        self._quiet_seconds = quiet_seconds
        self._step_pattern = step_pattern
        self._seen: dict[Path, _Seen] = {}
        self._remarked: set[str] = set()
        self.rest_seconds = 0.0
        """How long to leave the folder alone after a look: 20 times as long as that took, as it may be large, and far away."""

    def scan(self) -> Scan:
        """Look once."""
        begin = self._clock.monotonic()
        scan = self._scan()
        self.rest_seconds = _REST * (self._clock.monotonic() - begin)
        return scan

    def _scan(self) -> Scan:
        complete: list[Checkpoint] = []
        remarks: list[str] = []
        try:
            candidates = dict(self._candidates(remarks))
        except OSError as error:
            self._remark(remarks, f"{self.folder}: {error.strerror}; there is nothing to evaluate yet")
            return Scan(False, [], frozenset(), remarks)
        unfinished: set[tuple[Path, str | None]] = set()
        for path, step in candidates.items():
            has_marker = bool(self._marker) and (path / self._marker).exists()  # first: what is written before it counts
            fingerprint = fingerprint_of(path)
            if fingerprint is None:
                self._remark(remarks, f"{path.name}: not complete, since it is empty, or its files can't be looked at")
            if fingerprint is not None and self._is_complete(path, fingerprint, has_marker=has_marker):
                complete.append(Checkpoint(path, step, fingerprint))
            else:
                unfinished.add((path, fingerprint))
        self._seen = {path: seen for path, seen in self._seen.items() if path in candidates}
        complete.sort(key=lambda checkpoint: (checkpoint.step, checkpoint.path), reverse=True)
        return Scan(True, complete, frozenset(unfinished), remarks)

    def _candidates(self, remarks: list[str]) -> Iterator[tuple[Path, int]]:
        """Yield the folders with a step in their name, each once however many links lead to it."""
        names: dict[str, str] = {}
        for entry in sorted(os.scandir(self.folder), key=lambda entry: (entry.is_symlink(), entry.name)):
            if _UNFINISHED.search(entry.name) or not _is_folder(entry):
                continue
            step = step_of(entry.name, self._step_pattern)
            if step is None:
                self._remark(remarks, f"{entry.name}: left out, since its name has no step")
            elif not _is_text(entry.name):
                self._remark(remarks, f"{entry.name}: left out, since its name is not UTF-8")
            elif (name := names.setdefault(path := os.path.realpath(entry.path), entry.name)) != entry.name:
                self._remark(remarks, f"{entry.name}: left out, since it leads to {name}")
            else:
                yield Path(path), step

    def _is_complete(self, path: Path, fingerprint: str, *, has_marker: bool) -> bool:
        now = self._clock.monotonic()
        seen = self._seen.get(path)
        is_as_before = seen is not None and seen.fingerprint == fingerprint
        if seen is None or not is_as_before:
            is_rewritten = seen is not None and (seen.is_complete or seen.is_rewritten)
            seen = self._seen[path] = _Seen(fingerprint, now, is_rewritten)
        if not seen.is_complete:
            is_quiet = now - seen.since_seconds >= self._quiet_seconds
            is_marked = has_marker and is_as_before and (is_quiet or not seen.is_rewritten)
            seen.is_complete = is_marked if self._marker else is_quiet
        return seen.is_complete

    def _remark(self, remarks: list[str], text: str) -> None:
        if text not in self._remarked:
            self._remarked.add(text)
            remarks.append(text)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
