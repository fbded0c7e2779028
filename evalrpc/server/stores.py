"""Which store a server has, as the settings say."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from evalrpc import extras
from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import ANY, Expected, FollowedStore, Store
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1.jobs_pb2 import JobInfo

if TYPE_CHECKING:
    from evalrpc.store.postgres.progress import JobProgress
    from evalrpc.store.postgres.store import PostgresStore


def store_of_runner(store: FollowedStore) -> Store:
    """Return the store for what runs jobs: what it changes is refused where another server runs them by now."""
    shared = shared_store(store)
    return store if shared is None else cast(Store, _StoreOfRunner(shared))


class _StoreOfRunner:
    """A Store, as the server that runs the jobs uses it."""

    def __init__(self, store: "PostgresStore") -> None:
        self._store = store

    def update(self, job_id: str, change: Callable[[JobInfo], None], expect: Expected = ANY) -> Future[JobInfo]:
        """See Store.update."""
        return self._store.update_as_runner(job_id, change, expect)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def shared_store(store: FollowedStore) -> "PostgresStore | None":
    """Return the store if several servers may share it."""
    return cast("PostgresStore", store) if hasattr(store, "update_as_runner") else None


def progress_of(job: JobInfo) -> "JobProgress":
    """Return what other servers are to know of a running job, with its progress."""
    from evalrpc.store.postgres.progress import JobProgress

    unstored = JobInfo(progress=job.progress, wait_reason=job.wait_reason)
    for field in ("usage", "judge_usage"):
        if job.HasField(field):
            getattr(unstored, field).CopyFrom(getattr(job, field))
    return JobProgress(job.job_id, job.attempt, unstored)


def open_store(settings: Settings, clock: Clock, entitlements: Entitlements) -> FollowedStore:
    """Open the store. The driver of PostgreSQL is loaded only for that. Raises DataDirectoryInUseError, ConfigurationError."""
    if not settings.store:
        return SqliteStore(settings.data_dir, clock, settings.max_queued, entitlements)
    try:
        from evalrpc.store.postgres.store import PostgresStore
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"setting store: {extras.missing(error)}") from error
    return PostgresStore(settings.store, settings.data_dir, clock, settings.max_queued, entitlements)
