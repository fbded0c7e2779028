"""Why a queued job waits, in words. Pure."""

from evalrpc.jobs.defaults import HERE
from evalrpc.scheduling.capacity import Capacity
from evalrpc.scheduling.placement import QueuedJob, Reservation, fits


def wait_reason(
    job: QueuedJob,
    position: int,
    free: Capacity,
    reservation: Reservation | None = None,
    others: str = "",
    *,
    names_others: bool = True,
) -> str:
    """Say why a queued job does not run yet. The position says how many jobs are before it, `others` who comes first
    for another owner's share. A reservation counts if its job comes before this one. `names_others`: whether the jobs of other
    owners may be named."""
    is_among_others = len(free.of("").nodes) > 1
    free = free.of(job.executor)
    executor = "" if job.executor == HERE else job.executor
    if executor and not free.nodes:
        return f"this server has no executor {job.executor!r} any more"
    if job.executor == HERE and is_among_others and free.nodes and job.num_gpus > free.widest:
        machine = f"{free.nodes[0].name}, where engines are started and models prepared"
        return f"needs {gpus_text(job.num_gpus)} of {machine}, and that has {free.widest} in all"
    if job.num_gpus > free.widest:
        return _too_wide(job.num_gpus, free)
    if job.is_served and free.slots.served < 1:
        return _joined("all slots for jobs with a served model are taken", others)
    if not job.is_served and free.slots.total < 1:
        where = f" of {executor}" if executor else ""
        return _joined(f"all slots{where} for running jobs are taken", others)
    if job.num_gpus == 0:
        return (
            "about to start"
            if fits(job.num_gpus, free, is_served=job.is_served)
            else _joined(_missing_without_gpus(free), others)
        )
    needs = _needs(job.num_gpus, free)
    if reservation is not None and reservation.job.job_id != job.job_id:
        return _joined(needs, _kept(reservation, free, is_named=names_others or reservation.job.owner == job.owner))
    if fits(job.num_gpus, free, is_served=job.is_served):
        first = others or ("the jobs before it come first" if position else "")
        return _joined(needs, first) if first else "about to start"
    counts = ((free.quarantined_count, "quarantined"), (free.cordoned_count, "cordoned"))
    unusable = "".join(f", {count} {what}" for count, what in counts if count)
    quarantined = f"{unusable}, see GetQueue" if unusable else ""
    is_made_room_for = reservation is not None and reservation.is_made_room_for
    return _joined(f"{needs}{quarantined}", "other jobs give way to it" if is_made_room_for else others)


def _joined(reason: str, more: str) -> str:
    return f"{reason}; {more}" if more else reason


def _too_wide(num_gpus: int, free: Capacity) -> str:
    if len(free.nodes) > 1:
        return f"needs {gpus_text(num_gpus)} on one node, and no node of this server has more than {free.widest}"
    if free.nodes and free.nodes[0].executor:
        return f"needs {gpus_text(num_gpus)}, and {free.nodes[0].executor} has {free.widest} in all"
    return f"needs {gpus_text(num_gpus)}, and this server has {free.widest} in all"


def _missing_without_gpus(free: Capacity) -> str:
    return "all slots for jobs without GPUs are taken" if free.nodes else "there is no node to run on"


def _needs(num_gpus: int, free: Capacity) -> str:
    if num_gpus == 1 or len(free.nodes) == 1:
        return f"needs {gpus_text(num_gpus)}, {free.free_count} free"
    return f"needs {gpus_text(num_gpus)} on one node, at most {free.most_free} free on one"


def _kept(reservation: Reservation, free: Capacity, *, is_named: bool) -> str:
    gpus = f"GPUs of node {reservation.node}" if len(free.nodes) > 1 else "GPUs"
    job = f"job {reservation.job.job_id}" if is_named else "another job"
    why = "comes first" if reservation.is_made_room_for else "has waited long"
    return f"{gpus} are kept for {job}, which needs {reservation.job.num_gpus} and {why}"


def gpus_text(count: int) -> str:
    """Return a number of GPUs in words."""
    return "1 GPU" if count == 1 else f"{count} GPUs"
