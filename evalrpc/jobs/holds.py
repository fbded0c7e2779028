"""What operators keep from being used by hand."""

from collections.abc import Iterable
from typing import Final, NamedTuple

QUEUE: Final = "queue"
"""The hold that keeps queued jobs from starting."""

_GPU: Final = "gpu "


class Holds(NamedTuple):
    """What is held back. Never changes: another one takes its place."""

    is_paused: bool = False
    """Whether no queued job starts."""
    cordoned: frozenset[str] = frozenset()
    """The ids of the GPUs that no further job gets."""


NO_HOLDS: Final = Holds()


def gpu_hold(gpu_id: str) -> str:
    """Return the name of the hold of a GPU."""
    return f"{_GPU}{gpu_id}"


def holds_named(names: Iterable[str]) -> Holds:
    """Return what holds of these names keep."""
    known = set(names)
    return Holds(QUEUE in known, frozenset(name.removeprefix(_GPU) for name in known if name.startswith(_GPU)))


def names_of(holds: Holds) -> list[str]:
    """Return the names of what is held back."""
    return [*([QUEUE] if holds.is_paused else []), *map(gpu_hold, sorted(holds.cordoned))]
