"""Calls functions in a process of its own.

Parsing a large document holds the interpreter for many seconds, and with it every call, and may take any memory. A process can
be given limits, and can be killed when nobody waits for what it reads. Its memory, and that of the libraries it needs, is free
once it has ended.
"""

import errno
import gc
import math
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
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar, cast

from evalrpc.errors import EvalrpcError
from evalrpc.executors.local.processes import resident_bytes

PROCESS_NAME: Final = "evalrpc-reader"

_MIB: Final = 1024 * 1024
_TAKEN: Final = b"\0"  # what comes before an answer, as soon as an order does
_KEPT_BYTES: Final = 512 * _MIB  # a process that has grown larger serves no other call
_PROGRAM: Final = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from evalrpc.scheduling import limited_process
limited_process.main()
"""

_T = TypeVar("_T")


class Limits(NamedTuple):
    """What a call may use."""

    memory_bytes: int = 2048 * _MIB
    processor_seconds: int = 60


class ProcessLimitError(Exception):
    """A process has reached its limits, or was killed. Its text completes: it takes ..."""


class LimitedProcess:
    """Calls functions, in a process of its own: one for each call or, if it is kept, one for all. Used by one thread at a time,
    but for `close`, which any may call."""

    def __init__(self, limits: Limits, *, is_kept: bool = False) -> None:
        self.limits = limits
        """What each call may use."""
        self._is_kept = is_kept
        self._lock = threading.Lock()  # guards what follows
        self._child: _Child | None = None
        self._is_calling = False
        self._is_closed = False

    def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function of a module, and return what it returns. All of it travels as pickles.

        Raises EvalrpcError and OSError of the function; ProcessLimitError; OSError where no process can be started, or this has
        been closed; RuntimeError for a bug in the process.
        """
        order = pickle.dumps((self.limits, function, arguments))
        child, is_kept = self._begin()
        outcome = self._carry_out(child, order)
        if isinstance(outcome, _NoAnswer) and not outcome.is_taken and is_kept:
            # It was killed while it was idle: where memory runs out, it goes first.
            child, _ = self._begin()
            outcome = self._carry_out(child, order)
        result: _T = _result(outcome, child.process.returncode, self.limits)
        return result

    def close(self) -> None:
        """Kill the process, if there is one, and start no more."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.process.kill()
                if not self._is_calling:
                    self._child.wait()

    def _begin(self) -> "tuple[_Child, bool]":
        """Return a process, and whether it is the one that was kept."""
        with self._lock:
            self._require_open()
            is_kept = self._child is not None
            self._child = self._child or _start()
            self._is_calling = True
            return self._child, is_kept

    def _carry_out(self, child: "_Child", order: bytes) -> object:
        """Give an order to a process, and let it end unless it is kept. Return its answer, or why there is none."""
        outcome: object = _NoAnswer(is_taken=False)
        try:
            outcome = child.carry_out(order)
        finally:
            is_kept = self._is_kept and not isinstance(outcome, _NoAnswer) and child.is_small()
            if not is_kept:
                child.wait()
            with self._lock:
                self._child = child if is_kept else None
                self._is_calling = False
        with self._lock:
            self._require_open()
        return outcome

    def _require_open(self) -> None:
        if self._is_closed:
            raise OSError(errno.ECANCELED, "nothing is read any more")


class _Child(NamedTuple):
    """A process, and both ends of the pipes to it."""

    process: "subprocess.Popen[bytes]"
    orders: IO[bytes]
    answers: IO[bytes]

    def carry_out(self, order: bytes) -> object:
        """Give an order, and return the answer, or what is known once the process has ended without one."""
        with suppress(BrokenPipeError):
            self.orders.write(order)
            self.orders.flush()
        if self.answers.read(len(_TAKEN)) != _TAKEN:
            return _NoAnswer(is_taken=False)
        try:
            return pickle.load(self.answers)  # noqa: S301 - from a program of ours
        except (EOFError, pickle.UnpicklingError):
            return _NoAnswer(is_taken=True)

    def is_small(self) -> bool:
        try:
            return self.process.poll() is None and resident_bytes(self.process.pid) < _KEPT_BYTES
        except OSError:  # it has just ended
            return False

    def wait(self) -> None:
        """Wait for the end of the process, which comes once nobody can give it orders."""
        with suppress(BrokenPipeError):
            self.orders.close()
        self.answers.close()
        self.process.wait()


class _NoAnswer(NamedTuple):
    """What is known of an order whose process has ended without an answer."""

    is_taken: bool
    """Whether the process had begun with it."""


def _start() -> _Child:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # whoever ends the server with Ctrl-C has not judged what is read
    )
    child = _Child(process, cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))
    with suppress(BrokenPipeError):  # it has ended at once, as the missing answer will show
        child.orders.write(pickle.dumps(sys.path))
    return child


def main() -> None:
    """Be the process: carry out the orders in standard input, and answer on standard output."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(PROCESS_NAME)
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes first
    gc.disable()  # it would look through a large document again and again
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a harness prints is for the log
        orders = cast(BufferedReader, sys.stdin.buffer)
        while orders.peek(1):
            answers.write(_TAKEN)
            answers.flush()
            limits, function, arguments = pickle.load(orders)  # noqa: S301 - from the server itself
            _set_limits(limits)
            pickle.dump(_carry_out(limits, function, arguments), answers)
            answers.flush()
            del arguments
            gc.collect()
            gc.freeze()  # what was imported is not looked through again after the next order


class _Failure(NamedTuple):
    """What was raised in the process."""

    error: Exception


def _set_limits(limits: Limits) -> None:
    _set_limit(resource.RLIMIT_AS, limits.memory_bytes)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + limits.processor_seconds)  # SIGXCPU
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_limit(kind: int, value: int) -> None:
    """Limit the process until the next order, and never to more than it was started with."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


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


def _result(outcome: object, return_code: int | None, limits: Limits) -> Any:
    """Return what the function has returned. Raises what went wrong."""
    if isinstance(outcome, _Failure):
        raise outcome.error
    if not isinstance(outcome, _NoAnswer):
        return outcome
    if return_code == -signal.SIGXCPU:
        raise ProcessLimitError(f"more than {limits.processor_seconds} seconds of a processor")
    if return_code is not None and return_code < 0:
        raise ProcessLimitError(f"a process that was ended by signal {-return_code}")
    raise RuntimeError(f"a process that reads ended with {return_code}")
