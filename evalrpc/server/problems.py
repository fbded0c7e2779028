"""The log of what can't be done at present, by name."""

import logging
from collections.abc import Set

from evalrpc.errors import EvalrpcError


class Problems:
    """Logs what keeps something from being done for one of many, but not again as long as it is the same.

    `what` completes `can't ...`. `field` names the field of a log line that says for whom. Thread-safe for different names.
    """

    def __init__(self, log: logging.Logger, what: str, field: str) -> None:
        self._log = log
        self._what = what
        self._field = field
        self._known: dict[str, str] = {}

    @property
    def names(self) -> Set[str]:
        """Those that have a problem."""
        return set(self._known)

    def report(self, name: str, problem: str) -> None:
        """Log a problem, if it is a new one."""
        self._report(name, problem, None)

    def report_error(self, name: str, error: Exception) -> None:
        """Do so with an error; with its traceback, if it is a bug."""
        is_bug = not isinstance(error, EvalrpcError | OSError | MemoryError)
        self._report(name, repr(error) if is_bug else str(error), error if is_bug else None)

    def solve(self, name: str) -> None:
        """Note that it was done. Log it, if there was a problem."""
        if self._known.pop(name, None) is not None:
            self._log.info("can now %s", self._what, extra={self._field: name})

    def _report(self, name: str, problem: str, bug: Exception | None) -> None:
        if problem != self._known.get(name):
            self._known[name] = problem
            self._log.warning("can't %s: %s", self._what, problem, extra={self._field: name}, exc_info=bug)
