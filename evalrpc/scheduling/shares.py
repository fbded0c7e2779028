"""What owners of jobs use, and which of their jobs comes first. Pure: no threads, no clock.

The order of service: urgent jobs, then those of the owner with the least recent use per weight, then by priority, then by
arrival. Use is counted in GPU seconds, or slot seconds of a job without GPUs, of all attempts, also those that run. It decays:
what was used a half-life ago counts half. Between owners of equal use, the one that holds least per weight comes first.

For an attempt of width w that began at s and has ended at e, the use at t is the integral of w * 2^-((t-x)/h) over x from s to
e, with h the half-life: h/ln(2) * w * (2^-((t-e)/h) - 2^-((t-s)/h)), where the first power is 1 while it runs. So all attempts
of an owner are two numbers, the width of those that run and a sum of powers, which halves every half-life.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from evalrpc.config import QuotaSettings
from evalrpc.jobs.share_policy import SharePolicy, is_urgent, owner_name
from evalrpc.scheduling.placement import QueuedJob
from evalrpc.scheduling.wait_reasons import gpus_text

KEPT_HALF_LIVES: Final = 10
"""What ended longer ago counts less than a thousandth, and is forgotten at the next start."""

_FIRST_TYPICAL_USE: Final = 600.0
_LEAST_TYPICAL_USE: Final = 1.0
_DIGITS: Final = 6
_NOVELTY: Final = 0.05  # how much the latest attempt counts for what is typical


class Standing(NamedTuple):
    """Where an owner stands: who sorts first is served first."""

    used_per_weight: float
    """In GPU seconds, decayed."""
    held_per_weight: float
    """GPUs, and slots of jobs without any."""


class ServiceOrder(NamedTuple):
    """The place of a job in the order of service: what sorts first is served first."""

    is_ordinary: bool
    """Not urgent."""
    used_per_weight: float
    held_per_weight: float
    negated_priority: int
    needs_start: bool
    """Of a queued job, whether its engine has to be started first."""
    sequence: int


class Holding(NamedTuple):
    """What an owner has at present."""

    running_count: int = 0
    gpu_count: int = 0
    width: int = 0
    """GPUs, and slots of jobs without any."""

    def plus(self, gpu_count: int, width: int) -> "Holding":
        """Return what it is with a further job."""
        return Holding(self.running_count + 1, self.gpu_count + gpu_count, self.width + width)

    def minus(self, gpu_count: int, width: int) -> "Holding":
        """Return what it is with a job less."""
        return Holding(self.running_count - 1, self.gpu_count - gpu_count, self.width - width)

    def with_engines(self, gpu_count: int) -> "Holding":
        """Return what it is with engines that have so many GPUs."""
        return self._replace(gpu_count=self.gpu_count + gpu_count, width=self.width + gpu_count)


_NOTHING: Final = Holding()


@dataclass
class _Account:
    holding: Holding = _NOTHING
    powers: float = 0.0
    """Of attempts that have begun, less those of attempts that have ended, as of `as_of`."""
    as_of: float = 0.0
    engine_rate: float = 0.0
    """How many GPUs of engines it pays for now."""

    def at(self, now_seconds: float, half_life_seconds: float) -> float:
        """Return the sum of powers as of a time. Where the clock was set back, nothing has decayed."""
        return self.powers * math.exp2(-max(0.0, now_seconds - self.as_of) / half_life_seconds)

    def add(self, width: float, seconds: float, now_seconds: float, half_life_seconds: float) -> None:
        """Add the power of a time, for each second of a width."""
        self.powers = self.at(now_seconds, half_life_seconds)
        self.powers += width * math.exp2(-max(0.0, now_seconds - seconds) / half_life_seconds)
        self.as_of = now_seconds


class RunUse(NamedTuple):
    """What a run counts for."""

    gpu_count: int
    """The GPUs that it holds itself."""
    width: int
    """How many seconds of use each of its seconds is: see `jobs.share_policy.charged_width`."""


class Shares:
    """The use of all owners. Times are times of day, in seconds."""

    def __init__(self, half_life_seconds: float) -> None:
        self._half_life_seconds = half_life_seconds
        self._accounts: dict[str, _Account] = {}
        self.typical_use = _FIRST_TYPICAL_USE
        """What an attempt used lately, in GPU seconds, on average."""

    @property
    def kept_seconds(self) -> float:
        """How long ago an attempt may have ended that still counts."""
        return KEPT_HALF_LIVES * self._half_life_seconds

    def begin(self, owner: str, use: RunUse, started_seconds: float, now_seconds: float) -> None:
        """Note that an attempt runs."""
        account = self._accounts.setdefault(owner, _Account(as_of=now_seconds))
        account.holding = account.holding.plus(*use)
        account.add(use.width, started_seconds, now_seconds, self._half_life_seconds)

    def end(self, owner: str, use: RunUse, started_seconds: float, ended_seconds: float, now_seconds: float) -> None:
        """Note that an attempt that ran has ended."""
        account = self._accounts[owner]
        account.holding = account.holding.minus(*use)
        account.add(-use.width, max(started_seconds, ended_seconds), now_seconds, self._half_life_seconds)
        if use.width:
            self._learn(use.width * (ended_seconds - started_seconds))

    def charge_engines(self, rates: Mapping[str, float], now_seconds: float) -> None:
        """Have each owner pay for so many GPUs of engines from now on, and all others for none."""
        for owner in {*rates, *(owner for owner, account in self._accounts.items() if account.engine_rate)}:
            account = self._accounts.setdefault(owner, _Account(as_of=now_seconds))
            rate = rates.get(owner, 0.0)
            account.add(rate - account.engine_rate, now_seconds, now_seconds, self._half_life_seconds)
            account.engine_rate = rate

    def restore(self, owner: str, width: int, started_seconds: float, ended_seconds: float, now_seconds: float) -> None:
        """Note an attempt that ended before the server was started."""
        account = self._accounts.setdefault(owner, _Account(as_of=now_seconds))
        account.add(width, started_seconds, now_seconds, self._half_life_seconds)
        account.add(-width, max(started_seconds, ended_seconds), now_seconds, self._half_life_seconds)
        self._learn(width * (ended_seconds - started_seconds))

    def used(self, owner: str, now_seconds: float) -> float:
        """Return the decayed use of an owner in GPU seconds."""
        account = self._accounts.get(owner)
        if account is None:
            return 0.0
        powers = account.holding.width + account.engine_rate - account.at(now_seconds, self._half_life_seconds)
        used = max(0.0, powers) * self._half_life_seconds / math.log(2)
        return round(used, _DIGITS)  # who has used the same must not be put in order by errors of rounding

    def holding(self, owner: str) -> Holding:
        """Return what the running jobs of an owner hold."""
        account = self._accounts.get(owner)
        return account.holding if account is not None else _NOTHING

    def owners(self) -> list[str]:
        """Return the owners that have running jobs."""
        return [owner for owner, account in self._accounts.items() if account.holding.running_count]

    def standing(self, owner: str, policy: SharePolicy, now_seconds: float, holding: Holding | None = None) -> Standing:
        """Return where an owner stands, who holds this, or else what the running jobs hold."""
        weight, held = policy.weight(owner), holding or self.holding(owner)
        return Standing(self.used(owner, now_seconds) / weight, held.width / weight)

    def _learn(self, used: float) -> None:
        self.typical_use = max(_LEAST_TYPICAL_USE, self.typical_use + _NOVELTY * (used - self.typical_use))


def service_order(
    owner: str, negated_priority: int, sequence: int, standing: Standing, *, needs_start: bool = False
) -> ServiceOrder:
    """Return the place of a job in the order of service."""
    return ServiceOrder(not is_urgent(owner, -negated_priority), *standing, negated_priority, needs_start, sequence)


class Allowed(NamedTuple):
    """Which queued jobs of an owner may start without exceeding a quota."""

    jobs: Sequence[QueuedJob]
    kept_for: QueuedJob | None = None
    """A wide job that has waited long, for which the GPUs of the quota that come free are kept."""


def within_quota(
    jobs: Sequence[QueuedJob],
    holding: Holding,
    quota: QuotaSettings,
    now_seconds: float,
    reservation_seconds: float,
    needs: Callable[[QueuedJob], int] = attrgetter("num_gpus"),
) -> Allowed:
    """Return which of an owner's jobs, which are given in the order of service, may start. `needs`: how many GPUs more each
    would count for.

    As on the server itself, smaller jobs may pass a wide one that exceeds the quota at present, until that has waited long.
    """
    if quota.max_running is not None and holding.running_count >= quota.max_running:
        return Allowed(())
    if quota.max_gpus is None:
        return Allowed(jobs)
    left = quota.max_gpus - holding.gpu_count
    allowed: list[QueuedJob] = []
    kept_for = None
    for job in jobs:
        needed = needs(job)
        if not needed or (needed <= left and kept_for is None):
            allowed.append(job)
        elif left < needed <= quota.max_gpus and now_seconds - job.created_seconds >= reservation_seconds:
            kept_for = kept_for or job
    return Allowed(allowed, kept_for)


def quota_reason(job: QueuedJob, needed: int, holding: Holding, quota: QuotaSettings, kept_for: QueuedJob | None) -> str:
    """Say in words why a quota keeps a queued job from starting, which counts for so many GPUs; nothing, if none does."""
    name = owner_name(job.owner)
    if quota.max_running is not None and holding.running_count >= quota.max_running:
        return f"{name} runs {holding.running_count} of at most {_jobs(quota.max_running)}"
    if quota.max_gpus is None or not needed:
        return ""
    needs = f"{'its engine has' if job.is_served else 'needs'} {gpus_text(needed)}"
    if needed > quota.max_gpus:
        return f"{needs}, and {name} may hold at most {quota.max_gpus}"
    if holding.gpu_count + needed > quota.max_gpus:
        return f"{needs}; {name} holds {holding.gpu_count} of at most {gpus_text(quota.max_gpus)}"
    if kept_for is not None and kept_for < job:
        kept = f"kept for job {kept_for.job_id}, which needs {kept_for.num_gpus} and has waited long"
        return f"{needs}; {name} holds {holding.gpu_count} of at most {gpus_text(quota.max_gpus)}, and the others are {kept}"
    return ""


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
