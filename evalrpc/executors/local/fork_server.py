"""The server's side of the fork server, a process that forks the shims of runs so that no run waits for an interpreter."""

import marshal
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final

from evalrpc.executors.local import shim

_REPLY_SECONDS: Final = 60.0
_LOAD_SECONDS: Final = 300.0
_END_SECONDS: Final = 10.0
_MARSHAL_VERSION: Final = 4  # which every Python knows that a harness may have


class ForkServer:
    """This server's fork server. It ends with the server; the shims that it forked go on. May be used from several threads.

    Raises OSError if it can't be started.
    """

    def __init__(
        self,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        server = os.getpid()
        self._lock = threading.Lock()  # one request at a time, each with its reply
        self._process = subprocess.Popen(
            (*(program or (sys.executable, "-I", "-S", shim.__file__)), str(server), shim.start_time(server)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self, order: Mapping[str, Any]) -> int:
        """Fork the shim of a run, and return its process id, which is not reused until it is reaped.

        Raises OSError if that is impossible; BrokenPipeError if the fork server is gone, which may still have forked the shim.
        """
        pid = int(self._ask(order))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def load(self, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send the first message to a parent of warm runs, and return its reply: see `warm_parent.py`. Raises OSError."""
        return self._ask(order, _LOAD_SECONDS)  # type: ignore[no-any-return]

    def kill(self) -> None:
        """Kill it. Shims that it forked go on."""
        self._process.kill()

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
            status = self._ask(number)
        except BrokenPipeError:
            return None
        return None if status is None else os.waitstatus_to_exitcode(status)

    def _ask(self, message: Any, timeout_seconds: float | None = None) -> Any:
        """Send a message, and return the reply. A process that does not reply, as if somebody has stopped it, is killed."""
        with self._lock:
            stdin, stdout = self._pipes()
            if stdin.closed:
                raise BrokenPipeError("the fork server is closed")
            try:
                marshal.dump(message, stdin, _MARSHAL_VERSION)
                stdin.flush()
                if not _has_reply(stdout, timeout_seconds or _REPLY_SECONDS):
                    self._process.kill()
                    raise BrokenPipeError("the fork server did not answer, and was killed")
                return marshal.load(stdout)  # noqa: S302 - from a program of ours
            except EOFError as error:
                raise BrokenPipeError("the fork server was killed") from error

    def _pipes(self) -> tuple[Any, Any]:
        return self._process.stdin, self._process.stdout


def _has_reply(pipe: IO[bytes], timeout_seconds: float) -> bool:
    """Wait for the reply to the only message that is under way, so that nothing of it has been read already."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
