"""The queued jobs of one owner."""

from collections.abc import Container, Iterable, Iterator

from sortedcontainers import SortedList

from evalrpc.jobs.share_policy import URGENT_PRIORITY, is_urgent
from evalrpc.scheduling.placement import QueuedJob

_Kind = tuple[int, str, str]
"""How many GPUs a job asks for, its engine, and its executor. All of a kind can start when one can."""


class OwnerQueue:
    """Jobs in the order of service, and the first of each width, and of each engine, both at once."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.order: SortedList[QueuedJob] = SortedList()
        """All jobs, also those that are not offered."""
        self._by_kind: dict[_Kind, SortedList[QueuedJob]] = {}

    def load(self, offered: Iterable[QueuedJob], delayed: Iterable[QueuedJob]) -> None:
        """Take many jobs at once into an empty queue."""
        by_kind: dict[_Kind, list[QueuedJob]] = {}
        for job in offered:
            by_kind.setdefault(_kind_of(job), []).append(job)
        self._by_kind = {kind: SortedList(jobs) for kind, jobs in by_kind.items()}
        self.order = SortedList([*delayed, *(job for jobs in by_kind.values() for job in jobs)])

    def offer(self, job: QueuedJob) -> None:
        """Let a job that is in the order be chosen."""
        self._by_kind.setdefault(_kind_of(job), SortedList()).add(job)

    def withdraw(self, job: QueuedJob) -> None:
        """Let a job that was offered be chosen no more."""
        kind = _kind_of(job)
        self._by_kind[kind].remove(job)
        if not self._by_kind[kind]:
            del self._by_kind[kind]

    def heads(self, passed: Container[str]) -> Iterator[QueuedJob]:
        """Yield the first offered job of each width, and of each engine, that is not among the passed ones."""
        for jobs in self._by_kind.values():
            head = next((job for job in jobs if job.job_id not in passed), None)
            if head is not None:
                yield head

    @property
    def may_need_no_gpus(self) -> bool:
        """Whether a job may be chosen that needs no GPU, at least where the engine that it names is up."""
        return any(not width or engine for width, engine, _ in self._by_kind)

    def has_offers_for(self, engine: str) -> bool:
        """Return whether a job may be chosen that needs an engine of this identity."""
        return any(engine in named for _, named, _ in self._by_kind)

    @property
    def has_offers(self) -> bool:
        """Whether any job may be chosen."""
        return bool(self._by_kind)

    @property
    def has_urgent(self) -> bool:
        """Whether any job is urgent. The queue is not empty."""
        return is_urgent(self._owner, -self.order[0].negated_priority)

    @property
    def urgent_count(self) -> int:
        """How many jobs are urgent. They come first."""
        return self.count_above(URGENT_PRIORITY) if self.order and self.has_urgent else 0

    def count_above(self, priority: int) -> int:
        """Return how many jobs have a higher priority."""
        return int(self.order.bisect_left(QueuedJob(-priority, -1, "", 0, 0.0)))

    def count_before_new(self, priority: int) -> int:
        """Return how many jobs come before a new one of this priority."""
        return self.count_above(priority - 1)


def _kind_of(job: QueuedJob) -> _Kind:
    return job.num_gpus, job.engine, job.executor
