"""Calls a function in a process of its own.

Parsing a large document holds the interpreter for many seconds, and with it every call, and may take any memory. A process can
be given limits, and can be killed when nobody waits for what it reads.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from evalrpc.errors import EvalrpcError

PROCESS_NAME: Final = "evalrpc-reader"

_MIB: Final = 1024 * 1024
_PROGRAM: Final = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from evalrpc.scheduling import limited_process
limited_process.main()
"""

_T = TypeVar("_T")


class Limits(NamedTuple):
    """What a process may use."""

    memory_bytes: int = 2048 * _MIB
    processor_seconds: int = 60


class ProcessLimitError(Exception):
    """A process has reached its limits, or was killed. Its text completes: it takes ..."""


class LimitedProcess:
    """Calls functions, each in a process of its own. Used by one thread at a time, but for `close`, which any may call."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """What each of them may use."""
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function of a module, and return what it returns. All of it travels as pickles.

        Raises EvalrpcError and OSError of the function; ProcessLimitError; OSError where no process can be started, or this has
        been closed; RuntimeError for a bug in the process.
        """
        order = pickle.dumps(sys.path) + pickle.dumps((self.limits, function, arguments))
        process = self._start()
        try:
            answer, _ = process.communicate(order)
        finally:
            with self._lock:
                self._process = None
                is_closed = self._is_closed
        if is_closed:
            raise OSError(errno.ECANCELED, "the reading was broken off")
        outcome: _T = _outcome(answer, process.returncode, self.limits)
        return outcome

    def close(self) -> None:
        """Kill the process, if there is one, and start no more."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_closed:
                raise OSError(errno.ECANCELED, "nothing is read any more")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # whoever ends the server with Ctrl-C has not judged what is read
            )
            return self._process


def main() -> None:
    """Be the process: carry out the order in standard input, and answer on standard output."""
    limits, function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the server itself
    with suppress(OSError):
        Path("/proc/self/comm").write_text(PROCESS_NAME)
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes first
    _set_limits(limits)
    gc.disable()  # it would look through a large document again and again
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what a harness prints is for the log
        pickle.dump(_carry_out(limits, function, arguments), answer)


class _Failure(NamedTuple):
    """What was raised in the process."""

    error: Exception


def _set_limits(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.processor_seconds, limits.processor_seconds + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _carry_out(limits: Limits, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
    with suppress(MemoryError):
        try:
            return function(*arguments)
        except EvalrpcError as error:
            return _Failure(error)
        except OSError as error:
            return _Failure(OSError(error.errno, error.strerror))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it is raised in the server, which knows what it is about
            return _Failure(RuntimeError(f"in a process that reads:\n{traceback.format_exc()}"))
    return _Failure(ProcessLimitError(f"more than {limits.memory_bytes // _MIB} MiB of memory"))


def _outcome(answer: bytes, return_code: int, limits: Limits) -> Any:
    """Take the answer of a process that has ended. Raises what went wrong."""
    if return_code == -signal.SIGXCPU:
        raise ProcessLimitError(f"more than {limits.processor_seconds} seconds of a processor")
    if return_code < 0:
        raise ProcessLimitError(f"a process that was ended by signal {-return_code}")
    if return_code:
        raise RuntimeError(f"a process that reads ended with {return_code}")
    outcome = pickle.loads(answer)  # noqa: S301 - from a program of ours
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome
