"""What one call may read. A file that costs a run nothing, such as a sparse one of terabytes, would take hours."""

import errno
import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import BinaryIO, Final, NamedTuple

from evalrpc.clock import Clock, SystemClock
from evalrpc.errors import ReadLimitError

_BUFFER_BYTES: Final = 64 * 1024


class ReadLimits(NamedTuple):
    """The most that one call may read, and how long that may take."""

    max_bytes: int
    max_seconds: float
    max_row_bytes: int | None = None
    """The most that may be read for one row, with what is read ahead. None: as much as for the call."""
    max_hole_bytes: int | None = None
    """How much of a file may never have been written. What a harness writes has no holes, and terabytes of them cost nothing to
    make. None: any."""


UNLIMITED: Final = ReadLimits(max_bytes=2**63, max_seconds=math.inf)


class ReadBudget:
    """What one call may still read. Used by one thread at a time, but for `stop`, which any may call."""

    def __init__(self, limits: ReadLimits, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._limits = limits
        self._spent_bytes = 0
        self._spent_before_row = 0
        self._deadline = self._clock.monotonic() + limits.max_seconds
        self._is_stopped = False
        self.is_spent = False
        """Whether something was refused for want of bytes or time, and not for what it is."""

    def spend(self, size_bytes: int = 0) -> None:
        """Note that so much was read. Raises ReadLimitError if that was too much or has taken too long, CancelledError if the
        caller has gone."""
        limits = self._limits
        self._spent_bytes += size_bytes
        if self._is_stopped:
            raise CancelledError
        if self._spent_bytes > limits.max_bytes:
            raise self._refusal(f"more than {limits.max_bytes} bytes", limit_bytes=limits.max_bytes)
        if limits.max_row_bytes is not None and self._spent_bytes - self._spent_before_row > limits.max_row_bytes:
            raise self._refusal(f"more than {limits.max_row_bytes} bytes for one row", limit_bytes=limits.max_row_bytes)
        if self._clock.monotonic() > self._deadline:
            raise self._refusal(f"longer than {limits.max_seconds:g} seconds", limit_seconds=limits.max_seconds)

    def begin_row(self) -> None:
        """Note that a new row begins here."""
        self._spent_before_row = self._spent_bytes

    def has_room_for(self, size_bytes: int) -> bool:
        """Return whether so much more may be read, as far as that can be known before."""
        return self._spent_bytes + size_bytes <= self._limits.max_bytes and self._clock.monotonic() <= self._deadline

    def require_room_for(self, size_bytes: int) -> None:
        """Raise ReadLimitError where so much more can't be read, before any of it is."""
        if self._spent_bytes + size_bytes > self._limits.max_bytes:
            raise self._refusal(f"more than {self._limits.max_bytes} bytes", limit_bytes=self._limits.max_bytes)

    def require_written(self, descriptor: int) -> None:
        """Raise ReadLimitError for an open file of which more was never written than may be. Moves its position."""
        limit_bytes = self._limits.max_hole_bytes
        size_bytes = os.fstat(descriptor).st_size
        if limit_bytes is not None and _has_holes(descriptor, size_bytes, limit_bytes):
            raise ReadLimitError(
                f"the file has {size_bytes} bytes, of which more than {limit_bytes} were never written: it is sparse, and not "
                "read; ReadArtifact gives a file as it is",
                metadata={"limit_bytes": str(limit_bytes)},
            )

    def stop(self) -> None:
        """Note that the caller has gone."""
        self._is_stopped = True

    def _refusal(self, what: str, **limit: float) -> ReadLimitError:
        self.is_spent = True
        return too_much(what, **limit)


@contextmanager
def open_within(budget: ReadBudget, descriptor: int) -> Iterator[BinaryIO]:
    """Yield an open file of which every byte that is read is spent: its methods raise what `ReadBudget.spend` does. The
    descriptor stays open. Raises what `ReadBudget.require_written` does."""
    budget.require_written(descriptor)
    with io.BufferedReader(_Counted(descriptor, budget), _BUFFER_BYTES) as file:
        yield file


class _Counted(io.RawIOBase):
    def __init__(self, descriptor: int, budget: ReadBudget) -> None:
        self._descriptor = descriptor
        self._budget = budget
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        size_bytes = os.preadv(self._descriptor, [buffer], self._offset)
        self._offset += size_bytes
        self._budget.spend(size_bytes)
        return size_bytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._offset = base + offset
        return self._offset

    def tell(self) -> int:
        return self._offset


def _has_holes(descriptor: int, size_bytes: int, limit_bytes: int) -> bool:
    """Return whether a file has more bytes than that in holes. No hole is smaller than a page, so that takes few steps. A
    file system that knows of no holes says that there are none."""
    position = hole_bytes = 0
    while position < size_bytes and hole_bytes <= limit_bytes:
        hole = os.lseek(descriptor, position, os.SEEK_HOLE)
        position = _data_after(descriptor, hole, size_bytes)
        hole_bytes += position - hole
    return hole_bytes > limit_bytes


def _data_after(descriptor: int, hole: int, size_bytes: int) -> int:
    """Return where the file goes on after a hole; its size, where it does not."""
    try:
        return os.lseek(descriptor, hole, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size_bytes


def too_much(what: str, **limit: float) -> ReadLimitError:
    """Return the error for a reading that takes `what`, with its limits as metadata."""
    return ReadLimitError(
        f"reading takes {what}, which no call may; ReadArtifact gives a file as it is",
        metadata={name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in limit.items()},
    )
