"""What a run may leave on the disk: how large its log and its output folder may become."""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalrpc.clock import Clock
from evalrpc.errors import RunFailedError
from evalrpc.files.opening import open_regular_file
from evalrpc.files.trees import BLOCK_BYTES, disk_bytes

_INTERVAL_SECONDS: Final = 5.0
_REST_FACTOR: Final = 20.0
"""How much longer than measuring the output folder of a run takes, it is left alone afterwards."""


@dataclass(frozen=True)
class RunBounds:
    """The space on the disk that one run may occupy. 0: as much as it likes."""

    max_log_bytes: int = 0
    max_output_bytes: int = 0


class BoundsWatch:
    """Watches whether a run stays within its bounds. Used by one thread.

    The output folder is measured on the thread of `measurer`, one run's after the other's. What can't be measured at present is
    taken to be within its bounds.
    """

    def __init__(
        self,
        bounds: RunBounds,
        log_path: Path,
        output_dir: Path,
        clock: Clock,
        measurer: Executor,
        should_stop: Callable[[], bool],
    ) -> None:
        self._bounds = bounds
        self._log_path = log_path
        self._output_dir = output_dir
        self._clock = clock
        self._measurer = measurer
        self._should_stop = should_stop
        self._measuring: Future[None] | None = None
        self._next_at = float("-inf")
        self.failure: RunFailedError | None = None
        """Why the run is to be ended, as far as it was seen."""

    def look(self) -> bool:
        """Look at the log, and see to it that the output is measured now and then. Return whether the run is to be ended. Never
        waits."""
        self._look_at_log()
        is_due = self._bounds.max_output_bytes and self._clock.monotonic() >= self._next_at
        if is_due and (self._measuring is None or self._measuring.done()):
            self._measuring = self._measurer.submit(self._measure_output)
        return self.failure is not None

    def look_closely(self) -> None:
        """Look at the log, and measure the output. Blocks."""
        self._look_at_log()
        if self._bounds.max_output_bytes:
            self._measure_output()

    def _look_at_log(self) -> None:
        with suppress(OSError), open_regular_file(self._log_path) as log:
            if log is not None and self._bounds.max_log_bytes:
                size_bytes = os.fstat(log).st_blocks * BLOCK_BYTES
                self._judge(size_bytes, self._bounds.max_log_bytes, "LOG_TOO_LARGE", "log", "max_log_bytes")

    def _measure_output(self) -> None:
        begin = self._clock.monotonic()
        max_bytes = self._bounds.max_output_bytes
        with suppress(OSError):
            size_bytes = disk_bytes(self._output_dir, max_bytes, self._should_stop)
            self._judge(size_bytes, max_bytes, "OUTPUT_TOO_LARGE", "output folder", "max_output_bytes")
        end = self._clock.monotonic()
        self._next_at = end + max(_INTERVAL_SECONDS, _REST_FACTOR * (end - begin))

    def _judge(self, size_bytes: int, max_bytes: int, reason: str, what: str, setting: str) -> None:
        if size_bytes > max_bytes and self.failure is None:
            limit = f"the {max_bytes} bytes that this server allows ({setting})"
            self.failure = RunFailedError(reason, f"the {what} of the run occupied more than {limit} on the disk")
