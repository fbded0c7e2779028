"""Reads what a run left: here where it is small, and otherwise in a process of its own.

Parsing a large document holds the interpreter for many seconds, and with it every call, and may take any memory. A process can
be given limits, and can be killed when nobody waits for what it reads. Starting it takes as long as it takes to parse
IN_PLACE_BYTES of the worst kind.
"""

import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalrpc.config import HarnessSettings
from evalrpc.errors import RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.harnesses.base import Exit, Harness, Run, TaskReporter
from evalrpc.harnesses.registry import build_harness
from evalrpc.results.layout import require_size
from evalrpc.results.merging import Results
from evalrpc.v1.jobs_pb2 import JobError

IN_PLACE_BYTES: Final = 256 * 1024
"""Up to this size files are read in the server itself."""

PROCESS_NAME: Final = "evalrpc-results"

_IN_PLACE_ENTRIES: Final = 1000
_MAX_PROCESSES: Final = 2
_MIB: Final = 1024 * 1024
_PROGRAM: Final = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from evalrpc.scheduling import results_reader
results_reader.main()
"""

_places = threading.BoundedSemaphore(_MAX_PROCESSES)  # of all jobs together, so that their memory has a bound


class Limits(NamedTuple):
    """What a process that reads may use; past that the results count as invalid."""

    memory_bytes: int = 2048 * _MIB
    processor_seconds: int = 60


class ResultsReader:
    """Calls a harness for one run. Used by one thread at a time, but for `close`, which any may call."""

    def __init__(self, harness: Harness, settings: HarnessSettings, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self._harness = harness
        self._settings = settings
        self._limits = limits
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

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
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def _call(self, method: str, is_small: bool, *arguments: object) -> Results:
        if is_small:
            results: Results = getattr(self._harness, method)(*arguments)
            return results
        order = pickle.dumps(sys.path) + pickle.dumps((self._settings, self._limits, method, arguments))
        with _places:
            process = self._start()
            try:
                answer, _ = process.communicate(order)
            finally:
                with self._lock:
                    self._process = None
                    is_closed = self._is_closed
        if is_closed:
            raise OSError(errno.ECANCELED, "the reading of the results was broken off")
        return _results(answer, process.returncode, self._limits)

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process that reads one thing. Raises OSError."""
        with self._lock:
            if self._is_closed:
                raise OSError(errno.ECANCELED, "no results are read any more")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # whoever ends the server with Ctrl-C has not judged the results
            )
            return self._process


def main() -> None:
    """Be the process that reads: carry out the order in standard input, and answer on standard output."""
    settings, limits, method, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the server itself
    with suppress(OSError):
        Path("/proc/self/comm").write_text(PROCESS_NAME)
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes first
    _set_limits(limits)
    gc.disable()  # it would look through a large document again and again
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what a harness prints is for the log
        pickle.dump(_carry_out(settings, limits, method, arguments), answer)


def _set_limits(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.processor_seconds, limits.processor_seconds + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _carry_out(settings: HarnessSettings, limits: Limits, method: str, arguments: tuple[Any, ...]) -> object:
    """Return results, or what went wrong: a JobError, an OSError, or the traceback of a bug."""
    with suppress(MemoryError):
        try:
            results: Mapping[str, Any] = getattr(build_harness(settings), method)(*arguments)
            require_size(results)
        except RunFailedError as error:
            return error.job_error
        except OSError as error:
            return OSError(error.errno, error.strerror)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it is raised in the server, which knows of which job it is
            return traceback.format_exc()
        return dict(results)
    return _invalid(f"take more than {limits.memory_bytes // _MIB} MiB of memory to read").job_error


def _results(answer: bytes, return_code: int, limits: Limits) -> Results:
    """Take the answer of a process that has ended. Raises what it says went wrong."""
    if return_code == -signal.SIGXCPU:
        raise _invalid(f"take more than {limits.processor_seconds} seconds of a processor to read")
    if return_code < 0:
        raise _invalid(f"can't be read: the process that does so was ended by signal {-return_code}")
    if return_code:
        raise RuntimeError(f"the process that reads results ended with {return_code}")
    match pickle.loads(answer):  # noqa: S301 - from a program of ours
        case JobError() as job_error:
            failure = RunFailedError(job_error.reason, job_error.message)
            failure.job_error.MergeFrom(job_error)
            raise failure
        case OSError() as error:
            raise error
        case str() as bug:
            raise RuntimeError(f"in the process that reads results:\n{bug}")
        case results:
            return dict(results)


def _invalid(problem: str) -> RunFailedError:
    return RunFailedError("RESULTS_INVALID", f"the results {problem}")


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
