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
        if _reserves(job, free, now_seconds, reservation_seconds):
            return _first_without_gpus(heads, free)
    return None


def reserving_job(
    heads: Iterable[QueuedJob], free: Capacity, now_seconds: float, reservation_seconds: float
) -> QueuedJob | None:
    """Return the job that free GPUs are kept for, or None. Asked of the same as `next_job`, when that has none to start."""
    return next((job for job in sorted(heads) if _reserves(job, free, now_seconds, reservation_seconds)), None)


def fits(num_gpus: int, free: Capacity) -> bool:
    """Tell whether a job of this width can start on what is free."""
    if free.slots < 1:
        return False
    return num_gpus <= len(free.gpus) if num_gpus else free.slots_without_gpus > 0


def _reserves(job: QueuedJob, free: Capacity, now_seconds: float, reservation_seconds: float) -> bool:
    has_waited = now_seconds - job.created_seconds >= reservation_seconds
    return job.num_gpus > 0 and not fits(job.num_gpus, free) and has_waited


def _first_without_gpus(heads: Iterable[QueuedJob], free: Capacity) -> QueuedJob | None:
    return next((job for job in sorted(heads) if not job.num_gpus and fits(0, free)), None)


def wait_reason(job: QueuedJob, position: int, free: Capacity, quarantined: int = 0, reserving: QueuedJob | None = None) -> str:
    """Say in words why a queued job does not run yet. `quarantined` GPUs can't be used at present, and what is free may be kept
    for the job `reserving`."""
    before = f"{_jobs(position)} before this one"
    if free.slots < 1:
        return f"all slots for running jobs are taken; {before}"
    if job.num_gpus == 0:
        return "about to start" if fits(0, free) else f"all slots for jobs without GPUs are taken; {before}"
    needs = f"needs {_gpus(job.num_gpus)}, {len(free.gpus)} free"
    if reserving is not None and reserving < job:
        kept = f"GPUs are kept for job {reserving.job_id}, which needs {reserving.num_gpus} and has waited long"
        return f"{needs}; {kept}; {before}"
    if fits(job.num_gpus, free) and position == 0:
        return "about to start"
    return f"{needs}, {quarantined} set aside, see GetQueue; {before}" if quarantined else f"{needs}; {before}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
