"""The server's side of the fork server, a process that forks the shims of runs so that no run waits for an interpreter."""

import marshal
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from evalrpc.executors.local import shim

_REPLY_SECONDS: Final = 60.0
_LOAD_SECONDS: Final = 300.0
_END_SECONDS: Final = 10.0
_MARSHAL_VERSION: Final = 4  # which every Python knows that a harness may have
_MAX_REPLY_BYTES: Final = 1024 * 1024
_CHUNK_BYTES: Final = 65_536
_MAX_ERRNO: Final = 4095
_MAX_PID: Final = 2**22

_T = TypeVar("_T")


class ForkServer:
    """This server's fork server. It ends with the server; the shims that it forked go on. May be used from several threads.

    `inherited` are descriptors that it gets. Raises OSError if it can't be started.
    """

    def __init__(
        self,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        server = os.getpid()
        self._lock = threading.Lock()  # one request at a time, each with its reply
        self._process = subprocess.Popen(
            (*(program or (sys.executable, "-I", "-S", shim.__file__)), str(server), shim.start_time(server)),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            cwd=folder,
            pass_fds=inherited,
        )
        os.set_blocking(self._pipes()[0].fileno(), False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self, order: Mapping[str, Any]) -> int:
        """Fork the shim of a run, and return its process id, which is not reused until it is reaped.

        Raises OSError if that is impossible; BrokenPipeError if the fork server is gone, which may still have forked the shim.
        """
        pid = self._ask(order, _pid_or_errno)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def load(self, order: Mapping[str, Any]) -> Sequence[str]:
        """Send the first message to a parent of warm runs, and return the parts of its reply: see `WarmParent.load`. Raises
        OSError."""
        return self._ask(order, lambda line: line.decode(errors="surrogatepass").split("\0"), _LOAD_SECONDS)

    def kill(self) -> None:
        """Kill it. Shims that it forked go on."""
        self._process.kill()

    def has_ended(self) -> bool:
        """Tell whether it has ended. Then it is reaped, and its process id may be another's."""
        return self._process.poll() is not None

    def reap(self, pid: int) -> int | None:
        """Reap a shim that has ended, and return its exit code as `subprocess` does; None if it can't be known."""
        return self._exit_code(pid)

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a shim that has ended, without reaping it; None if it can't be known."""
        return self._exit_code(-pid)

    def close(self) -> None:
        """End it. May be called again."""
        with self._lock:
            for pipe in self._pipes():
                with suppress(BrokenPipeError):
                    pipe.close()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:  # somebody has stopped it
                self._process.kill()
                self._process.wait()

    def _exit_code(self, number: int) -> int | None:
        try:
            return self._ask(number, lambda line: os.waitstatus_to_exitcode(int(line)) if line else None)
        except BrokenPipeError:
            return None

    def _ask(self, message: Any, read: Callable[[bytes], _T], timeout_seconds: float | None = None) -> _T:
        """Send a message, and return what `read` makes of the reply. A process that does not reply, as if somebody has stopped
        it, or with something else, is killed."""
        with self._lock:
            stdin, stdout = self._pipes()
            if stdin.closed:
                raise BrokenPipeError("the fork server is closed")
            deadline = time.monotonic() + (timeout_seconds or _REPLY_SECONDS)
            try:
                _write(stdin.fileno(), marshal.dumps(message, _MARSHAL_VERSION), deadline)
                return read(_read_line(stdout.fileno(), deadline).removesuffix(b"\n"))
            except (TimeoutError, ValueError, OverflowError) as error:
                self._process.kill()
                raise BrokenPipeError(f"the fork server did not answer as it should, and was killed: {error}") from error

    def _pipes(self) -> tuple[Any, Any]:
        return self._process.stdin, self._process.stdout


def _pid_or_errno(line: bytes) -> int:
    """Raises ValueError for what is neither."""
    number = int(line)
    if not -_MAX_ERRNO <= number <= _MAX_PID:
        raise ValueError("it is no process id")
    return number


def _write(pipe: int, message: bytes, deadline: float) -> None:
    """Write a message to a pipe that does not block. Raises TimeoutError, BrokenPipeError."""
    while message:
        _await(pipe, select.POLLOUT, deadline)
        with suppress(BlockingIOError):
            message = message[os.write(pipe, message) :]


def _read_line(pipe: int, deadline: float) -> bytes:
    """Read the reply to the only message that is under way. Raises TimeoutError, BrokenPipeError at the end of the pipe, and
    ValueError for a line that is too long."""
    line = b""
    while not line.endswith(b"\n"):
        _await(pipe, select.POLLIN, deadline)
        chunk = os.read(pipe, _CHUNK_BYTES)
        if not chunk:
            raise BrokenPipeError("the fork server was killed")
        line += chunk
        if len(line) > _MAX_REPLY_BYTES:
            raise ValueError("the reply is too long")
    return line


def _await(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("it took too long")
