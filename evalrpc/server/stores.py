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
    from evalrpc.store.postgres.store import PostgresStore


def store_of_runner(store: FollowedStore) -> Store:
    """Return the store for what runs jobs: what it changes is refused where another server runs them by now."""
    update = getattr(store, "update_as_runner", None)
    return store if update is None else cast(Store, _StoreOfRunner(cast("PostgresStore", store)))


class _StoreOfRunner:
    """A Store, as the server that runs the jobs uses it."""

    def __init__(self, store: "PostgresStore") -> None:
        self._store = store

    def update(self, job_id: str, change: Callable[[JobInfo], None], expect: Expected = ANY) -> Future[JobInfo]:
        """See Store.update."""
        return self._store.update_as_runner(job_id, change, expect)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def open_store(settings: Settings, clock: Clock, entitlements: Entitlements) -> FollowedStore:
    """Open the store. The driver of PostgreSQL is loaded only for that. Raises DataDirectoryInUseError, ConfigurationError."""
    if not settings.store:
        return SqliteStore(settings.data_dir, clock, settings.max_queued, entitlements)
    try:
        from evalrpc.store.postgres.store import PostgresStore
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"setting store: {extras.missing(error)}") from error
    return PostgresStore(settings.store, settings.data_dir, clock, settings.max_queued, entitlements)
