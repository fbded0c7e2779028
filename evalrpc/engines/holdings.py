"""What others plan with: what engines hold, and what they are about to do."""

from typing import NamedTuple


class EngineHolding(NamedTuple):
    """An engine that holds its devices, or is about to give them back."""

    engine_id: str
    identity: str
    """That of the jobs that it may serve: see `jobs.served_models.identity`."""
    model: str
    """What it serves, as the request named it; empty before it was started."""
    owner: str
    """For whom alone it answers; empty: for everybody."""
    asked_by: str
    """The job that it was started for, by id."""
    node: str
    devices: tuple[str, ...]
    users: frozenset[str]
    """The jobs that use it, by id, also those that were placed on it and have not begun."""
    is_loading: bool
    """Whether it does not answer yet, or not again yet."""
    has_answered: bool
    """Whether it was loaded before."""
    is_leaving: bool
    """Whether it serves no further job, and ends with the last that it has."""
    start_seconds: float
    """How long its start took; 0 where that is not known yet."""
    loading_seconds: float
    """How long it has been loading; 0 unless it does."""
    replica_of: str = ""
    """The engine beside which it answers, by id. So it may end at any time."""

    @property
    def is_replica(self) -> bool:
        """Whether another engine answers for its jobs, too."""
        return bool(self.replica_of)

    @property
    def is_idle(self) -> bool:
        """Whether no job is lost by its end."""
        return (self.is_replica or not self.users) and not self.is_leaving
