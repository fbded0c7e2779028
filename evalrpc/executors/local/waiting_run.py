"""A run that waits for the process that it is to be forked from."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunHandle
from evalrpc.harnesses.base import Exit


class WaitingRun:
    """A run that begins once `made` is done; until then there is nothing of it, so that it can be ended at any time, and a
    later server starts it anew. It begins in `wait`, by `begin`. Where that lacked something, `find` tells whether it has.
    """

    waits_for: Final = ""
    begun_ns: Final = 0  # it begins when it is started

    def __init__(
        self, resources: Resources, made: Future[None], begin: Callable[[], RunHandle], find: Callable[[], RunHandle | None]
    ) -> None:
        self.node = resources.node
        self.devices = resources.devices
        self._made = made
        self._begin = begin
        self._find = find
        self._run: RunHandle | None = None
        self._may_have_begun = False
        self._failure: RunFailedError | None = None
        self._has_ended = False
        self._is_interrupted = False
        self._attention = threading.Event()  # it may begin, or is interrupted
        made.add_done_callback(lambda _: self._attention.set())

    @property
    def is_warm(self) -> bool:
        """Whether it was forked in the end."""
        return self._run is not None and self._run.is_warm

    def owns_port(self, port: int) -> bool | None:
        """Return whether it listens at a port."""
        return self._run.owns_port(port) if self._run is not None else None

    def wait(self, timeout_seconds: float) -> bool:
        """Do as `RunHandle.wait`, and begin the run in time. Raises OSError if the server is short of something for that."""
        deadline = time.monotonic() + timeout_seconds
        if self._run is None and not self._has_ended:
            self._attention.wait(timeout_seconds)
            self._attention.clear()
            if self._made.done():
                self._start()
        if self._run is None or self._is_interrupted:
            self._is_interrupted = False
            return self._has_ended
        return self._run.wait(max(0.0, deadline - time.monotonic()))

    def interrupt(self) -> None:
        """Do as `RunHandle.interrupt`."""
        self._is_interrupted = self._run is None  # before the run is looked at again, which a `wait` may be about to begin
        self._attention.set()
        if self._run is not None:
            self._run.interrupt()

    def step_ends(self) -> list[int]:
        """Return the size of the log at the end of each step."""
        return list(self._run.step_ends()) if self._run is not None else []

    def exit_status(self, step: int = 0) -> Exit:
        """Return how a step ended."""
        if self._failure is not None:
            raise self._failure
        return self._run.exit_status(step) if self._run is not None else Exit()

    def end(self, grace_seconds: float) -> None:
        """End the run; one that has not begun never will."""
        self._has_ended = True
        if self._run is not None:
            self._run.end(grace_seconds)

    def close(self) -> None:
        """Release the handle."""
        if self._run is not None:
            self._run.close()

    def _start(self) -> None:
        try:
            found = self._find() if self._may_have_begun else None
            self._may_have_begun = True
            self._run = found or self._begin()
        except RunFailedError as error:
            self._failure = error
            self._has_ended = True
