"""GPUs whose memory is not freed are quarantined, and released when it is."""

import sys
import threading

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.executors.base import Device, Resources, RunKey
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.gpu_memory import RELEASE_SECONDS, SLACK_BYTES, GpuGuard, NvmlMemory
from evalrpc.executors.local.run import LOCAL_NODE
from evalrpc.harnesses.base import Command

GIB = 1 << 30


class SteppingClock:
    """Advances by a second on every call of `monotonic`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Timestamp:
        return Timestamp()

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds


class FakeMemory:
    """Returns the readings in turn, then repeats the last one."""

    def __init__(self, *readings: int | None) -> None:
        self.readings = list(readings)

    def used_bytes(self, gpu: str) -> int | None:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


class NeverStopping(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return False


def guard_of(*readings: int | None) -> tuple[GpuGuard, FakeMemory, SteppingClock]:
    memory, clock = FakeMemory(*readings), SteppingClock()
    return GpuGuard(memory, clock), memory, clock


def test_a_gpu_is_released_once_its_memory_is_what_it_was() -> None:
    guard, memory, _ = guard_of(GIB, 40 * GIB, 20 * GIB, GIB + SLACK_BYTES)
    guard.acquire(["0"])
    guard.release(["0"], NeverStopping())
    assert guard.quarantined() == {}
    assert memory.readings == [GIB + SLACK_BYTES], "it waited through all the readings before"


def test_a_gpu_whose_memory_stays_in_use_is_quarantined_with_the_reason_after_a_bound() -> None:
    guard, memory, clock = guard_of(GIB, 5 * GIB)
    guard.acquire(["0", "1"])
    memory.readings = [6 * GIB]
    guard.release(["0"], NeverStopping())
    assert list(guard.quarantined()) == ["0"]
    assert "MiB are still in use" in guard.quarantined()["0"]
    assert clock.seconds <= RELEASE_SECONDS + 3


def test_a_quarantined_gpu_comes_back_when_its_memory_does() -> None:
    guard, memory, _ = guard_of(0, 5 * GIB)
    guard.acquire(["0"])
    guard.release(["0"], NeverStopping())
    guard.recheck()
    assert list(guard.quarantined()) == ["0"]
    memory.readings = [0]
    guard.recheck()
    assert guard.quarantined() == {}


def test_memory_is_missed_though_another_server_saw_the_run_begin() -> None:
    noted = guard_of(GIB)[0].acquire(["0"])
    assert noted == {"0": GIB}
    guard, _, _ = guard_of(5 * GIB)
    guard.restore(noted)
    guard.release(["0"], NeverStopping())
    assert list(guard.quarantined()) == ["0"]


def test_without_a_driver_no_gpu_is_quarantined() -> None:
    guard, _, _ = guard_of(None)
    assert guard.acquire(["0"]) == {}
    guard.release(["0"], NeverStopping())
    assert guard.quarantined() == {}


def test_the_driver_is_asked_and_says_nothing_of_a_gpu_that_it_does_not_know() -> None:
    assert NvmlMemory().used_bytes("GPU-of-no-machine") is None


def executor_of(*readings: int | None) -> tuple[LocalExecutor, FakeMemory]:
    guard, memory, _ = guard_of(*readings)
    return LocalExecutor(devices=[Device("0", "H200"), Device("1")], gpu_guard=guard), memory


SLEEPS = Command((sys.executable, "-S", "-c", "import time; time.sleep(1000)"))


def test_the_memory_of_a_run_is_missed_by_the_server_that_took_it_up(key: RunKey) -> None:
    first, _ = executor_of(GIB)
    first.start(key, SLEEPS, Resources(LOCAL_NODE, ("0",))).close()
    first.close()
    second, memory = executor_of(9 * GIB)
    run = second.find(key)
    assert run is not None
    assert run.devices == ("0",)
    run.end(0.0)
    run.close()
    (node,) = second.nodes()
    assert [(device.name, bool(device.quarantine_reason)) for device in node.devices] == [("H200", True), ("", False)]
    assert second.needs_recheck()
    memory.readings = [GIB]
    second.recheck()
    assert not second.needs_recheck()
    assert not any(device.quarantine_reason for device in second.nodes()[0].devices)


def test_an_end_does_not_wait_for_memory_once_the_server_stops(key: RunKey) -> None:
    executor, memory = executor_of(GIB)
    run = executor.start(key, SLEEPS, Resources(LOCAL_NODE, ("0",)))
    memory.readings = [9 * GIB]
    executor.begin_close()
    run.end(0.0)
    run.close()
    executor.close()
    assert not executor.needs_recheck(), "nobody has waited long enough to tell"
