"""Runs of a test: started, found again, and ended when the test is over."""

import os
import sys

from processes_of_tests import kill_job
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.executors.base import Resources, RunHandle, RunKey
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.run import LOCAL_NODE, LocalRun
from evalrpc.harnesses.base import Command, Exit

CLEANING_UP = """
import signal, sys, time
def stop(*_):
    print("cleaned up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(1000)
"""
"""A program that ends well when it is asked to."""


class Runs:
    """Starts runs of Python programs, and ends them when the test is over."""

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.executor = LocalExecutor({**os.environ, "RANK": "3", "INHERITED": "yes"})
        self._handles: list[LocalRun] = []

    def start(self, program: str, *arguments: str, gpus: tuple[str, ...] = (), **command: object) -> LocalRun:
        argv = (sys.executable, "-c", program, *arguments)
        return self.keep(self.executor.start(self.key, Command(argv, **command), Resources(LOCAL_NODE, gpus)))  # type: ignore[arg-type]

    def keep(self, handle: LocalRun) -> LocalRun:
        self._handles.append(handle)
        return handle

    def find(self) -> LocalRun:
        handle = LocalExecutor().find(self.key)
        assert handle is not None
        return self.keep(handle)

    def close(self) -> None:
        self.executor.close()
        for handle in self._handles:
            handle.end(0.0)
            handle.close()
        kill_job(self.key.job_id)

    def log(self) -> str:
        return self.key.log_path.read_text()

    def wait_for_log(self, text: str) -> None:
        eventually(lambda: self.key.log_path.exists() and text in self.log(), f"for {text!r} in the log")


def ended(handle: RunHandle) -> Exit:
    assert handle.wait(SECONDS)
    return handle.exit_status()
