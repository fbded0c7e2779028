"""The keys of a `[quotas.OWNER]` table."""

from dataclasses import dataclass
from typing import Final

from evalrpc.config.declaration import INTEGER, at_least, setting

DEFAULT_QUOTA: Final = "default"
"""The `[quotas.OWNER]` table of those who have none."""


def _quota(unit: str, description: str) -> int | None:
    return setting(
        None, INTEGER, description, unit=unit, rule=at_least(0), default_text="that of `[quotas.default]`, else none"
    )


@dataclass(frozen=True)
class QuotaSettings:
    """One `[quotas.OWNER]` table. None: no limit."""

    max_queued: int | None = _quota("jobs", "The most jobs that wait; beyond that SubmitJob answers RESOURCE_EXHAUSTED.")
    max_running: int | None = _quota("jobs", "The most jobs that run at once; further ones wait.")
    max_gpus: int | None = _quota(
        "GPUs", "The most GPUs that running jobs hold together; further jobs wait. A job that asks for more is refused."
    )
    max_bytes: int | None = _quota(
        "bytes",
        "The most bytes that jobs have below their folders, until they are deleted; beyond that SubmitJob answers "
        "RESOURCE_EXHAUSTED. Measured every minute, so a job may exceed it.",
    )
