"""Which queued job starts next, and on which GPUs. Pure: no threads, no clock, no processes.

Jobs start by priority, then in order of arrival. A smaller job may pass a wide one that does not fit yet, but only until the
wide one has waited for `reservation_seconds`; from then on the GPUs that come free are kept for it. Jobs that need no GPU have
slots of their own, so neither kind keeps the other waiting.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class QueuedJob(NamedTuple):
    """What matters about a queued job. Sorts in the order of service."""

    negated_priority: int
    sequence: int
    job_id: str
    num_gpus: int
    created_seconds: float
    """Time of day."""
    ready_seconds: float = 0.0
    """Time of day before which it must not start: after a failed attempt."""


class Capacity(NamedTuple):
    """What there is, or what of it is free."""

    gpus: tuple[str, ...]
    slots_without_gpus: int
    """For jobs that need no GPU."""
    slots: int
    """For jobs of both kinds together."""


def capacity(gpus: Sequence[str], max_running: int) -> Capacity:
    """Return what a server has. Jobs without GPUs get the slots that GPU jobs can't fill, and at least one.

    `max_running` 0 means one per GPU and two more.
    """
    slots = max_running or len(gpus) + 2
    return Capacity(tuple(gpus), max(1, slots - len(gpus)), slots)


def next_job(heads: Iterable[QueuedJob], free: Capacity, now_seconds: float, reservation_seconds: float) -> QueuedJob | None:
    """Return the job to start now, or None while nothing fits.

    `heads` holds, for each number of GPUs that is asked for, the first job in the order of service that is ready.
    """
    if free.slots < 1:
        return None
    for job in sorted(heads):
        if fits(job.num_gpus, free):
            return job
        if job.num_gpus > 0 and now_seconds - job.created_seconds >= reservation_seconds:
            return _first_without_gpus(heads, free)
    return None


def fits(num_gpus: int, free: Capacity) -> bool:
    """Tell whether a job of this width can start on what is free."""
    if free.slots < 1:
        return False
    return num_gpus <= len(free.gpus) if num_gpus else free.slots_without_gpus > 0


def _first_without_gpus(heads: Iterable[QueuedJob], free: Capacity) -> QueuedJob | None:
    return next((job for job in sorted(heads) if not job.num_gpus and fits(0, free)), None)


def wait_reason(num_gpus: int, position: int, free: Capacity) -> str:
    """Say in words why a queued job does not run yet."""
    if fits(num_gpus, free) and position == 0:
        return "about to start"
    if free.slots < 1:
        return f"all slots for running jobs are taken; {_jobs(position)} before this one"
    if num_gpus == 0:
        return f"all slots for jobs without GPUs are taken; {_jobs(position)} before this one"
    return f"needs {_gpus(num_gpus)}, {len(free.gpus)} free; {_jobs(position)} before this one"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
