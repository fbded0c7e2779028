"""Whether a GPU's memory is really free again after a run: one whose memory is not is set aside, and nothing is placed on it.

A driver gives memory back when the last process that holds it is gone, and that may take a while, or never happen after a crash
in the driver. Processes of others on the same GPU are none of our business, so what counts is what was used before the run.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import pynvml

from evalrpc.clock import Clock

SLACK_BYTES: Final = 512 * 1024 * 1024
"""How much more than before a run may be in use after it."""

RELEASE_SECONDS: Final = 15.0
"""How long the driver has to give the memory back, before the GPU is set aside."""

_CHECK_SECONDS: Final = 0.1


class GpuMemory(Protocol):
    """Tells how much memory of a GPU is in use."""

    def used_bytes(self, gpu: str) -> int | None:
        """Return the bytes in use, by whomever; None where that can't be told."""


class NvmlMemory:
    """Asks NVIDIA's driver."""

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
    """Knows which GPUs are set aside, and why. May be used from several threads; each GPU is one run's at a time."""

    def __init__(self, memory: GpuMemory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._used_before: dict[str, int] = {}
        self._quarantined: dict[str, str] = {}
        self._unended: list[_Unended] = []
        self._lock = threading.Lock()

    def acquire(self, gpus: Iterable[str]) -> dict[str, int]:
        """Note what is in use before a run takes the GPUs, and return it in bytes, for `restore`."""
        used = {gpu: used_bytes for gpu in gpus if (used_bytes := self._memory.used_bytes(gpu)) is not None}
        self.restore(used)
        return used

    def restore(self, used_before: Mapping[str, int]) -> None:
        """Note what was in use before a run of an earlier server took its GPUs."""
        with self._lock:
            self._used_before.update(used_before)

    def release(self, gpus: Iterable[str], give_up: threading.Event) -> None:
        """Wait until the memory that a run held is free, and set a GPU aside where it does not become so."""
        deadline = self._clock.monotonic() + RELEASE_SECONDS
        for gpu in gpus:
            while (problem := self._problem(gpu)) and self._clock.monotonic() < deadline:
                if give_up.wait(_CHECK_SECONDS):
                    return
            if problem:
                with self._lock:
                    self._quarantined[gpu] = problem

    def quarantine(self, gpus: Iterable[str], reason: str, is_gone: Callable[[], bool]) -> None:
        """Set GPUs aside because a process that could not be ended may still use them, until `is_gone` says that none is left.

        `is_gone` is asked now and then, on the thread that calls `recheck`. An OSError of it means that this can't be told yet.
        """
        with self._lock:
            self._unended.append(_Unended(tuple(gpus), reason, is_gone))

    def has_quarantined(self) -> bool:
        """Tell whether there is something that `recheck` would look at."""
        with self._lock:
            return bool(self._quarantined or self._unended)

    def recheck(self) -> bool:
        """Look again at the GPUs that are set aside; tell whether one is good again."""
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
                # What its processes held may take the driver some time yet.
                self._quarantined |= {gpu: problem for gpu in run.gpus if (problem := problems.get(gpu))}
        return bool(recovered or gone)

    def quarantined(self) -> dict[str, str]:
        """Return the GPUs that must not be used, each with the reason."""
        with self._lock:
            return self._quarantined | {gpu: run.reason for run in self._unended for gpu in run.gpus}

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
