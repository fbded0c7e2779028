"""Reading the log of a run while it grows, and its end when it is over. The harness writes the file itself."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from evalrpc.files.errnos import require_no_shortage, unreadable
from evalrpc.files.opening import open_regular_file
from evalrpc.harnesses.failures import strip_colours
from evalrpc.jobs.transitions import MAX_TAIL_BYTES, MAX_TAIL_LINES
from evalrpc.protobuf.texts import last_lines
from evalrpc.scheduling.log_marks import LINE_END, marked_lines
from evalrpc.secrets.logs import read_masked
from evalrpc.secrets.masking import NO_MASK, Mask

_READ_BYTES: Final = 256 * 1024
_MAX_SEARCHED_BYTES: Final = 32 * 1024 * 1024
"""How much of what is new is looked at. Of the rest nothing is known."""
_MAX_STRETCH_BYTES: Final = 2 * 1024 * 1024
"""How much of that is given line by line, and of the rest only lines with marks."""
_MAX_LINES: Final = 512  # of what is read at once: looking at half a million would hold up every call for seconds
_MAX_LINE_BYTES: Final = 64 * 1024
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")  # a run at a time: a sparse file has a million of them
_BLANK: Final = b" \t\r\n\v\f\0"
_MAX_CUT_BYTES: Final = 3
_REST_OF_CHARACTER: Final = re.compile(rb"[\x80-\xbf]{1,%d}" % _MAX_CUT_BYTES)


class LogFollower:
    """Reads what has been added to a log since the last look. Used by one thread.

    A log that can't be read has nothing new: the progress of a run is not worth its end. The next look may read it. One that
    was replaced, or cut short, is read from its beginning.
    """

    def __init__(self, path: Path, mask: Mask = NO_MASK, words: Sequence[bytes] = ()) -> None:
        """`words`: what lines have that count even among very many, as those do that have a count such as `3/10`."""
        self._path = path
        self._mask = mask
        self._words = words
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._partial = b""
        self._is_cut = False  # whether the offset is in the middle of a line whose beginning was not read

    def new_lines(self, end: int | None = None) -> Iterator[str]:
        """Yield the lines that were completed since the last call, split at newline or carriage return; only up to byte `end`.

        A line that never ends is given in pieces, so memory stays bounded. What is added during the call waits for the next,
        and of a very long stretch, or very many lines, only the last are given, and before them some that have a mark. So a
        call ends however loud the harness is.
        """
        self._notice_other_file()
        end = self.size() if end is None else min(end, self.size())
        if self._offset < end - _MAX_SEARCHED_BYTES:
            self._offset, self._partial, self._is_cut = end - _MAX_SEARCHED_BYTES, b"", True
        while data := self._read(end):
            is_near_end = self._offset > end - _MAX_STRETCH_BYTES
            yield from self._lines(self._partial + data, _MAX_LINES if is_near_end else 0)

    def _lines(self, data: bytes, max_lines: int) -> Iterator[str]:
        """Yield the last lines of some data, and those with marks before them. Keep what comes after the last."""
        if self._is_cut:
            ends = [place for place in (data.find(b"\n"), data.find(b"\r")) if place >= 0]  # faster than LINE_END
            if not ends:
                return
            data, self._is_cut = data[min(ends) + 1 :], False
        size_bytes = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._partial = data[size_bytes:]
        begin = _begin_of_last(data, size_bytes, max_lines)
        for line in marked_lines(data, begin, self._words):
            yield self._plain(line)
        for line_end in LINE_END.finditer(data, begin, size_bytes):  # one by one: a list would take fifty times as much
            yield self._plain(data[begin : line_end.start()])
            begin = line_end.end()
        if len(self._partial) > _MAX_LINE_BYTES and max_lines:
            yield self.end_line()
        elif len(self._partial) > _MAX_LINE_BYTES:
            self._partial, self._is_cut = b"", True

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

    def _notice_other_file(self) -> None:
        """Begin anew where the log is another file by now, or has become shorter than what was read of it."""
        status = self._status()
        if status is None:
            return
        file = status.st_dev, status.st_ino
        if self._file not in (None, file) or status.st_size < self._offset:
            self._offset, self._partial, self._is_cut = 0, b"", False
        self._file = file

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
    written = (line for line in _from_the_end(data) if line.strip(_BLANK))
    lines = (plain(line.rstrip(b"\r").rpartition(b"\r")[2]) for line in written)
    last = list(islice((line for line in lines if line.strip()), max_lines))
    return last_lines(last[::-1], max_lines, max_bytes)


def plain(line: bytes) -> str:
    """Return a line of a log without colour codes and control characters."""
    return _CONTROL.sub("", strip_colours(line.decode(errors="replace"))).rstrip()


def _begin_of_last(data: bytes, end: int, max_lines: int) -> int:
    """Return where the last lines of the first `end` bytes begin, which end with a line."""
    if not max_lines:
        return end
    skipped_count = data.count(b"\n", 0, end) + data.count(b"\r", 0, end) - max_lines
    if skipped_count <= 0:
        return 0
    return next(islice(LINE_END.finditer(data, 0, end), skipped_count - 1, None)).end()


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
        first = max(begin, end - 4 * _MAX_LINE_BYTES)
        data = read_masked(log, min(first, end), max(0, end - first), mask, is_growing=False)
    cut_in_two = _REST_OF_CHARACTER.match(data) if first > begin else None
    return data[cut_in_two.end() :] if cut_in_two else data
