"""Commands that answer a question of the server, such as which tasks a harness knows. Unlike runs, they end with the server."""

import subprocess
import threading
from collections.abc import Mapping
from typing import Final

from evalrpc.executors.base import CommandOutput
from evalrpc.harnesses.base import Command

_CLOSED: Final = "the server stops"


class ShortCommands:
    """Runs commands in the server's own session. May be used from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def run(self, command: Command, environment: Mapping[str, str], timeout_seconds: float) -> CommandOutput:
        """Run a command, and return what it printed. Raises OSError if it can't be started, takes too long, or is ended by
        `close`."""
        with self._start(command, environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(f"it takes longer than {timeout_seconds:g} seconds") from error
            finally:
                self._kill(process)
        if self._closed:
            raise OSError(_CLOSED)
        return CommandOutput(stdout, stderr)

    def close(self) -> None:
        """Kill what runs, and start nothing more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _start(self, command: Command, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._closed:
                raise OSError(_CLOSED)
            process = subprocess.Popen(
                command.argv,
                env=environment,
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._running.add(process)
            return process

    def _kill(self, process: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._running.discard(process)
        process.kill()
