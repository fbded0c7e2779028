"""Who pays for the GPUs of engines. Pure: no threads, no clock.

The first load of a model is charged to the job that it is for. From then on the GPU seconds of an engine are shared equally by
the owners that have running jobs on it, and by the jobs of each. Nobody pays for an engine without jobs.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evalrpc.engines.holdings import EngineHolding


class ChargedJob(NamedTuple):
    """A running job with a served model."""

    owner: str
    started_seconds: float
    """Time of day."""


class EngineCharges:
    """What running jobs have used of engines so far. Times are times of day, in seconds."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._as_of = 0.0

    def follow(
        self, holdings: Iterable[EngineHolding], jobs: Mapping[str, ChargedJob], now_seconds: float
    ) -> Mapping[str, float]:
        """Take up what engines and jobs there are from now on. Return how many GPUs each owner pays for.

        A job that comes new is taken to have used its engine since it was started, as after a restart of the server.
        """
        self._add_up(now_seconds)
        self._rates = {}
        by_owner: dict[str, float] = {}
        for holding in holdings:
            for job_id, rate in _rates(holding, jobs).items():
                self._rates[job_id] = rate
                self._taken.setdefault(job_id, rate * max(0.0, now_seconds - jobs[job_id].started_seconds))
                by_owner[jobs[job_id].owner] = by_owner.get(jobs[job_id].owner, 0.0) + rate
        self._taken = {job_id: taken for job_id, taken in self._taken.items() if job_id in jobs}
        return by_owner

    def taken(self, job_id: str, now_seconds: float) -> float:
        """Return how many GPU seconds a job has used."""
        self._add_up(now_seconds)
        return self._taken.get(job_id, 0.0)

    def _add_up(self, now_seconds: float) -> None:
        seconds = max(0.0, now_seconds - self._as_of)
        for job_id, rate in self._rates.items():
            self._taken[job_id] += rate * seconds
        self._as_of = now_seconds


def _rates(holding: EngineHolding, jobs: Mapping[str, ChargedJob]) -> Mapping[str, float]:
    """Return how many GPUs each job of an engine pays for."""
    num_gpus = len(holding.devices)
    users = [job_id for job_id in holding.users if job_id in jobs]
    if holding.is_loading and not holding.has_answered:
        return {job_id: float(num_gpus * (job_id == holding.asked_by)) for job_id in users}
    of_owner: dict[str, list[str]] = {}
    for job_id in users:
        of_owner.setdefault(jobs[job_id].owner, []).append(job_id)
    return {job_id: num_gpus / len(of_owner) / len(own) for own in of_owner.values() for job_id in own}
