"""Which store a server has, as the settings say."""

from evalrpc import extras
from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import FollowedStore
from evalrpc.store.sqlite.store import SqliteStore


def open_store(settings: Settings, clock: Clock, entitlements: Entitlements) -> FollowedStore:
    """Open the store. The driver of PostgreSQL is loaded only for that. Raises DataDirectoryInUseError, ConfigurationError."""
    if not settings.store:
        return SqliteStore(settings.data_dir, clock, settings.max_queued, entitlements)
    try:
        from evalrpc.store.postgres.store import PostgresStore
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"setting store: {extras.missing(error)}") from error
    return PostgresStore(settings.store, settings.data_dir, clock, settings.max_queued, entitlements)
