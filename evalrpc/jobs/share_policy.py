"""What each owner of jobs is entitled to: a weight and quotas. Owners are those who submit jobs, as they have signed in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from evalrpc.config import DEFAULT_QUOTA, QuotaSettings, Settings

URGENT_PRIORITY: Final = 500
"""Above this, a job of someone who has signed in comes before those of all other owners."""

_NO_LIMITS: Final = QuotaSettings()


@dataclass(frozen=True, eq=False)
class SharePolicy:
    """The weights and quotas of all owners. Never changes: another one takes its place, see `Entitlements`."""

    weights: Mapping[str, float] = field(default_factory=dict)
    quotas: Mapping[str, QuotaSettings] = field(default_factory=dict)

    def weight(self, owner: str) -> float:
        """Return the weight of an owner."""
        return self.weights.get(owner, 1.0)

    def quota(self, owner: str) -> QuotaSettings:
        """Return the limits of an owner."""
        return self.quotas.get(owner) or self.quotas.get(DEFAULT_QUOTA, _NO_LIMITS)


class Entitlements:
    """Where everybody reads what owners may have now. Each attribute is exchanged by one assignment, from any thread."""

    def __init__(self, policy: SharePolicy | None = None) -> None:
        self.policy: SharePolicy = policy or SharePolicy()
        """The weights and quotas."""
        self.kept_bytes: Mapping[str, int] = {}
        """How much of the disk the jobs of each owner take, as last measured."""


def policy_of(settings: Settings) -> SharePolicy:
    """Return the policy that the operator has configured."""
    return SharePolicy(settings.shares, settings.quotas)


def is_urgent(owner: str, priority: int) -> bool:
    """Return whether a job comes before those of all other owners."""
    return bool(owner) and priority > URGENT_PRIORITY


def owner_name(owner: str) -> str:
    """Return how an owner is called in texts."""
    return owner or "anonymous"


def charged_width(gpus: Sequence[str], engine_gpu_count: int) -> int:
    """Return how many seconds of use a second of an attempt with these GPUs is: one for each, and one for its slot if it has
    none; nothing if engines have GPUs for it, since these count."""
    return len(gpus) or int(not engine_gpu_count)
