"""Check that a GPU's memory is free again after a run. If it is not, the GPU is quarantined: no run is placed on it.

The driver frees memory when the last process that holds it is gone. That may take a while, or never happen after a crash in the
driver. Other users' processes on the same GPU don't count, so the baseline is what was in use before the run.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import pynvml

from evalrpc.clock import Clock

SLACK_BYTES: Final = 512 * 1024 * 1024
"""How much more memory may be in use after a run than before it."""

RELEASE_SECONDS: Final = 15.0
"""How long the driver has to free the memory before the GPU is quarantined."""

_CHECK_SECONDS: Final = 0.1


class GpuMemory(Protocol):
    """Reports how much memory of a GPU is in use."""

    def used_bytes(self, gpu: str) -> int | None:
        """Return the bytes in use by any process; None if unknown."""


class NvmlMemory:
    """Queries NVIDIA's driver."""

    def used_bytes(self, gpu: str) -> int | None:
        """Return the bytes in use; None without a driver, or for an id that it does not know."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError:
            return None
        finally:
            pynvml.nvmlShutdown()


@dataclass(frozen=True)
class _Unended:
    """A run that could not be ended."""

    gpus: tuple[str, ...]
    reason: str
    is_gone: Callable[[], bool]


class GpuGuard:
    """Tracks which GPUs are quarantined, and why. May be used from several threads; each GPU has one run at a time."""

    def __init__(self, memory: GpuMemory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._used_before: dict[str, int] = {}
        self._quarantined: dict[str, str] = {}
        self._unended: list[_Unended] = []
        self._reasons: Mapping[str, str] = {}
        self._lock = threading.Lock()

    def acquire(self, gpus: Iterable[str]) -> dict[str, int]:
        """Record the bytes in use before a run takes the GPUs, and return them for `restore`."""
        used = {gpu: used_bytes for gpu in gpus if (used_bytes := self._memory.used_bytes(gpu)) is not None}
        self.restore(used)
        return used

    def restore(self, used_before: Mapping[str, int]) -> None:
        """Record the bytes in use before a run of an earlier server took its GPUs."""
        with self._lock:
            self._used_before.update(used_before)

    def release(self, gpus: Iterable[str], give_up: threading.Event) -> None:
        """Wait until the memory that a run held is free; quarantine a GPU whose memory is not. `give_up` ends the wait."""
        deadline = self._clock.monotonic() + RELEASE_SECONDS
        for gpu in gpus:
            while (problem := self._problem(gpu)) and self._clock.monotonic() < deadline:
                if give_up.wait(_CHECK_SECONDS):
                    return
            if problem:
                with self._lock:
                    self._quarantined[gpu] = problem
                    self._publish()

    def quarantine(self, gpus: Iterable[str], reason: str, is_gone: Callable[[], bool]) -> None:
        """Quarantine GPUs that a process that could not be ended may still use, until `is_gone` reports that none is left.

        `recheck` calls `is_gone` on its caller's thread. An OSError from it means that the answer is not known yet.
        """
        with self._lock:
            self._unended.append(_Unended(tuple(gpus), reason, is_gone))
            self._publish()

    def needs_recheck(self) -> bool:
        """Tell whether `recheck` has anything to check."""
        with self._lock:
            return bool(self._quarantined or self._unended)

    def recheck(self) -> None:
        """Check the quarantined GPUs again."""
        with self._lock:
            suspects, unended = list(self._quarantined), list(self._unended)
        recovered = [gpu for gpu in suspects if not self._problem(gpu)]
        gone = [run for run in unended if _is_gone(run)]
        problems = {gpu: self._problem(gpu) for run in gone for gpu in run.gpus}
        with self._lock:
            for gpu in recovered:
                del self._quarantined[gpu]
            for run in gone:
                self._unended.remove(run)
                # The driver may need more time to free what its processes held.
                self._quarantined |= {gpu: problem for gpu in run.gpus if (problem := problems.get(gpu))}
            if recovered or gone:
                self._publish()

    def quarantined(self) -> Mapping[str, str]:
        """Return the GPUs that must not be used, each with the reason: the same object until something changes."""
        return self._reasons

    def _publish(self) -> None:
        """Called with the lock held."""
        self._reasons = self._quarantined | {gpu: run.reason for run in self._unended for gpu in run.gpus}

    def _problem(self, gpu: str) -> str:
        with self._lock:
            before = self._used_before.get(gpu)
        used_bytes = self._memory.used_bytes(gpu) if before is not None else None
        if before is None or used_bytes is None or used_bytes <= before + SLACK_BYTES:
            return ""
        return f"{(used_bytes - before) >> 20} MiB are still in use after the last run, though no process of it is left"


def _is_gone(run: _Unended) -> bool:
    with suppress(OSError):
        return run.is_gone()
    return False
