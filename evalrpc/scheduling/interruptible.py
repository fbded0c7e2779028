"""A reading that may take long, on a thread of its own, so that whoever waits for it can be called away."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


class InterruptibleReader:
    """Reads for one thread, one thing at a time. `interrupt` may be called from any thread."""

    def __init__(self) -> None:
        self._attention = threading.Event()  # there is something to look at: the end of the reading, or an interrupt
        self._reading: Future[None] | None = None

    def interrupt(self) -> None:
        """Make a `read` that waits ask at once whether to stop."""
        self._attention.set()

    def read(
        self, read: Callable[[], None], reason_to_stop: Callable[[], _T | None], timeout_seconds: float | None = None
    ) -> _T | None:
        """Read until it is done, or there is a reason to stop, and return that reason. With a timeout only that breaks it off.

        What is broken off goes on, and the next call waits for it instead of reading. Raises what `read` raises, and OSError
        where there can be no thread.
        """
        if self._reading is None or self._reading.done():
            self._reading = self._start(read)
        if timeout_seconds is not None:
            with suppress(TimeoutError):
                self._reading.result(timeout_seconds)
            return None
        while not self._reading.done():
            self._attention.wait()
            self._attention.clear()
            if not self._reading.done() and (reason := reason_to_stop()):
                return reason
        reading, self._reading = self._reading, None
        try:
            reading.result()
        finally:
            del reading  # an error has this frame, and would keep all that was read until garbage is collected
        return None

    def _start(self, read: Callable[[], None]) -> Future[None]:
        reading: Future[None] = Future()
        attention = self._attention  # instead of this reader, which refers to the reading
        reading.add_done_callback(lambda _: attention.set())
        try:
            threading.Thread(target=_read_into, args=(reading, read), name="results", daemon=True).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        return reading


def _read_into(reading: Future[None], read: Callable[[], None]) -> None:
    """Run on the thread of a reading."""
    try:
        read()
    except Exception as error:  # noqa: BLE001 - it is raised where the end of the reading is waited for
        reading.set_exception(error)
    else:
        reading.set_result(None)
    finally:
        del reading, read  # the error has this frame
