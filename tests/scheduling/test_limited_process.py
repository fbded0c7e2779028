"""A process that is kept for further calls: replaced if it was killed meanwhile, but no call of it is tried a second time."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalrpc.scheduling.limited_process import LimitedProcess, Limits, ProcessLimitError


@pytest.fixture
def process() -> Iterator[LimitedProcess]:
    process = LimitedProcess(Limits(), is_kept=True)
    yield process
    process.close()


def test_one_that_was_killed_while_it_was_idle_is_replaced(process: LimitedProcess) -> None:
    killed = process.call(os.getpid)
    assert process.call(os.getpid) == killed
    os.kill(killed, signal.SIGKILL)
    assert process.call(os.getpid) != killed


def test_a_call_that_ends_its_process_is_not_tried_again(process: LimitedProcess, tmp_path: Path) -> None:
    process.call(os.getpid)
    calls = tmp_path / "calls"
    with pytest.raises(ProcessLimitError, match="signal 9"):
        process.call(os.system, f"echo called >> '{calls}'; kill -KILL $PPID")
    assert calls.read_text() == "called\n"
    assert process.call(os.getpid)
