"""Reading the log of a run while it grows, and its end when it is over. The harness writes the file itself."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from evalrpc.files.errnos import require_no_shortage, unreadable
from evalrpc.files.opening import open_regular_file
from evalrpc.harnesses.failures import strip_colours
from evalrpc.jobs.transitions import MAX_TAIL_BYTES, MAX_TAIL_LINES
from evalrpc.protobuf.texts import last_lines
from evalrpc.secrets.logs import read_masked
from evalrpc.secrets.masking import NO_MASK, Mask

_READ_BYTES: Final = 256 * 1024
_MAX_STRETCH_BYTES: Final = 2 * 1024 * 1024
_MAX_LINES: Final = 512  # of what is read at once: looking at half a million would hold up every call for seconds
_MAX_LINE_BYTES: Final = 64 * 1024
_LINE_END: Final = re.compile(rb"[\r\n]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")  # a run at a time: a sparse file has a million of them


class LogFollower:
    """Reads what has been added to a log since the last look. Used by one thread.

    A log that can't be read has nothing new: the progress of a run is not worth its end. The next look may read it.
    """

    def __init__(self, path: Path, mask: Mask = NO_MASK) -> None:
        self._path = path
        self._mask = mask
        self._offset = 0
        self._partial = b""

    def new_lines(self, end: int | None = None) -> Iterator[str]:
        """Yield the lines that were completed since the last call, split at newline or carriage return; only up to byte `end`.

        A line that never ends is given in pieces, so memory stays bounded. What is added during the call waits for the next,
        and of a very long stretch, or very many lines, only the last are given, so a call ends however loud the harness is.
        """
        end = self.size() if end is None else min(end, self.size())
        self._offset = max(self._offset, end - _MAX_STRETCH_BYTES)
        while data := self._read(end):
            data = self._partial + data
            size_bytes = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            self._partial = data[size_bytes:]
            line_ends = _LINE_END.finditer(data, 0, size_bytes)  # one by one: as a list, short lines take fifty times as much
            skipped_count = data.count(b"\n") + data.count(b"\r") - _MAX_LINES
            begin = next(islice(line_ends, skipped_count - 1, None)).end() if skipped_count > 0 else 0
            for line_end in line_ends:
                yield self._plain(data[begin : line_end.start()])
                begin = line_end.end()
            if len(self._partial) > _MAX_LINE_BYTES:
                yield self.end_line()

    def last_line(self) -> str:
        """Return the line that is not completed yet: a progress bar ends where the cursor stands."""
        return self._plain(self._partial)

    def end_line(self) -> str:
        """Return the line that is not completed yet, and take it for completed."""
        line = self.last_line()
        self._partial = b""
        return line

    def last_output_ns(self) -> int | None:
        """Return when the log was last written to, as time of day; None while it is empty."""
        status = self._status()
        return status.st_mtime_ns if status is not None and status.st_size else None

    def size(self) -> int:
        """Return how many bytes the log has now."""
        status = self._status()
        return status.st_size if status is not None else 0

    def _plain(self, line: bytes) -> str:
        """Return a line masked; nothing of one that can't be."""
        return "" if self._mask.unreadable else plain(self._mask.data(line))

    def _status(self) -> os.stat_result | None:
        with suppress(OSError), open_regular_file(self._path) as log:
            return os.fstat(log) if log is not None else None
        return None

    def _read(self, end: int) -> bytes:
        size_bytes = max(0, min(_READ_BYTES, end - self._offset))
        try:
            with open_regular_file(self._path) as log:
                data = os.pread(log, size_bytes, self._offset) if log is not None else b""
        except OSError:
            return b""
        self._offset += len(data)
        return data


def read_tail(
    path: Path,
    max_lines: int = MAX_TAIL_LINES,
    max_bytes: int = MAX_TAIL_BYTES,
    begin: int = 0,
    end: int | None = None,
    mask: Mask = NO_MASK,
) -> list[str]:
    """Return the last lines of a log, or of a stretch of it, for people: no colour codes, of a progress bar its last state, and
    none of them empty. If a value of the mask is not known, only a line that says so.

    Nothing where there is no log. Where it can't be read, or is no file any more, a line that says why. Raises OSError where
    the server lacks something at present, or its disk fails.
    """
    if mask.unreadable:
        return [f"(the log is withheld: {mask.problem})"]
    try:
        data = _read_end(path, begin, end, mask)
    except OSError as error:
        require_no_shortage(error)
        return [unreadable(error).message]
    lines = (plain(line.rstrip(b"\r").rpartition(b"\r")[2]) for line in _from_the_end(data))
    last = list(islice((line for line in lines if line.strip()), max_lines))
    return last_lines(last[::-1], max_lines, max_bytes)


def plain(line: bytes) -> str:
    """Return a line of a log without colour codes and control characters."""
    return _CONTROL.sub("", strip_colours(line.decode(errors="replace"))).rstrip()


def _from_the_end(data: bytes) -> Iterator[bytes]:
    """Yield the lines, the last one first."""
    end = len(data)
    while end >= 0:
        begin = data.rfind(b"\n", 0, end) + 1
        yield data[begin:end]
        end = begin - 1


def _read_end(path: Path, begin: int, end: int | None, mask: Mask) -> bytes:
    """Return the end of a stretch of a file. Raises OSError."""
    with open_regular_file(path) as log:
        if log is None:
            return b""
        size_bytes = os.fstat(log).st_size
        end = size_bytes if end is None else min(end, size_bytes)
        begin = min(max(begin, end - 4 * _MAX_LINE_BYTES), end)
        return read_masked(log, begin, end - begin, mask, is_growing=False)
