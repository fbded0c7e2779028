"""Reads what a run left: here where it is small, and otherwise in a process of its own.

Starting a process takes as long as it takes to parse IN_PLACE_BYTES of the worst kind.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.harnesses.base import Exit, Harness, Run, TaskReporter
from evalrpc.harnesses.registry import build_harness
from evalrpc.results.layout import require_size
from evalrpc.results.merging import MergedResults, Results
from evalrpc.scheduling.limited_process import LimitedProcess, Limits, ProcessLimitError
from evalrpc.v1.jobs_pb2 import JobError

IN_PLACE_BYTES: Final = 256 * 1024
"""Up to this size files are read in the server itself."""

_IN_PLACE_ENTRIES: Final = 1000
_MAX_PROCESSES: Final = 2

_places = threading.BoundedSemaphore(_MAX_PROCESSES)  # of all jobs together, so that their memory has a bound


class ResultsReader:
    """Calls a harness for one run. Used by one thread at a time, but for `close`, which any may call."""

    def __init__(self, harness: Harness, settings: HarnessSettings, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self._harness = harness
        self._settings = settings
        self._process = LimitedProcess(limits)

    @property
    def reports_tasks(self) -> bool:
        """Whether there are results of tasks that have finished before the run has."""
        return isinstance(self._harness, TaskReporter)

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Results:
        """Do what `Harness.read_results` does.

        Raises what that raises; RunFailedError with reason RESULTS_INVALID where the limits are reached; OSError where no
        process can be started, or the reader has been closed; RuntimeError for a bug in the process.
        """
        return self._call("read_results", _is_small(run.output_dir), run, exit_status, log_tail)

    def read_finished(self, run: Run, name: str) -> Results:
        """Do what `TaskReporter.read_finished` does. Raises the same as `read_results`."""
        return self._call("read_finished", _size_bytes(run.output_dir, name) <= IN_PLACE_BYTES, run, name)

    def close(self) -> None:
        """Break off what is being read, if it is in a process of its own, and read no more there."""
        self._process.close()

    def _call(self, method: str, is_small: bool, *arguments: object) -> Results:
        if is_small:
            results: Results = getattr(self._harness, method)(*arguments)
            return results
        try:
            with _places:
                outcome = self._process.call(_read, self._settings, method, arguments)
        except ProcessLimitError as error:
            raise RunFailedError("RESULTS_INVALID", f"the results take {error} to read") from error
        if isinstance(outcome, JobError):
            failure = RunFailedError(outcome.reason, outcome.message)
            failure.job_error.MergeFrom(outcome)
            raise failure
        return outcome


def _read(settings: HarnessSettings, method: str, arguments: tuple[Any, ...]) -> dict[str, Any] | JobError:
    """Be called in the process that reads. Return results, in order, or why the run has failed."""
    try:
        results: Mapping[str, Any] = getattr(build_harness(settings), method)(*arguments)
        require_size(results)
        merged = MergedResults()
        merged.add(results)
    except RunFailedError as error:
        return error.job_error
    return dict(merged.results())


def _is_small(folder: Path) -> bool:
    """Tell whether all files in a folder and below are so few, and so small together, that they can be read in place."""
    size_bytes = entry_count = 0
    folders = [""]
    while folders:
        below = folders.pop()
        with _left_to_the_harness(), scan_folder(folder, below) as entries:
            for entry in entries:
                entry_count += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{entry.name}/")
                else:
                    size_bytes += entry.stat(follow_symlinks=False).st_size
                if size_bytes > IN_PLACE_BYTES or entry_count > _IN_PLACE_ENTRIES:
                    return False
    return True


def _size_bytes(folder: Path, name: str) -> int:
    try:
        with open_in(folder, name) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        require_no_shortage(error)
        return 0  # the harness will judge


@contextmanager
def _left_to_the_harness() -> Iterator[None]:
    """Leave the judgement of what can't be looked into to the harness. Raises OSError for a shortage or a failing disk."""
    try:
        yield
    except OSError as error:
        require_no_shortage(error)
