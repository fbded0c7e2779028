"""Whether a database can be the store of a server."""

import logging
from typing import Final

import psycopg

from evalrpc.clock import Clock, SystemClock
from evalrpc.errors import ConfigurationError
from evalrpc.store.postgres.connecting import Connection, brief, connect_reader, require_valid, shown

MAX_CLOCK_OFFSET_SECONDS: Final = 1.0
"""By how much the clocks of a server and of its database may differ without a word."""

_MIN_VERSION: Final = 13_00_00
_DURABLE: Final = ("fsync", "full_page_writes")
_NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_CLOCK_READINGS: Final = 3

_log = logging.getLogger(__name__)


def require_usable(connection: Connection, conninfo: str, clock: Clock) -> None:
    """Log a warning if the database's clock is not that of this machine. Raises ConfigurationError for a version that is too
    old, psycopg.Error."""
    if problem := _version_problem(connection, shown(conninfo)):
        raise ConfigurationError(f"setting store: {problem}")
    if problem := _clock_problem(connection, clock):
        _log.warning("%s", problem)


def check_clock(conninfo: str, clock: Clock | None = None) -> str:
    """Return what is wrong with this machine's clock and the database's, and what to do; empty if nothing is, or the database
    can't be reached."""
    try:
        with connect_reader(conninfo) as connection:
            return _clock_problem(connection, clock or SystemClock())
    except psycopg.Error:
        return ""


def _version_problem(connection: Connection, name: str) -> str:
    version = connection.info.server_version
    return f"{name} has version {version // 10_000}, and 13 or newer is needed" if version < _MIN_VERSION else ""


def _clock_problem(connection: Connection, clock: Clock) -> str:
    offset = min((_clock_offset_seconds(connection, clock) for _ in range(_CLOCK_READINGS)), key=abs)
    if abs(offset) <= MAX_CLOCK_OFFSET_SECONDS:
        return ""
    where = "ahead of" if offset > 0 else "behind"
    return (
        f"the clock of this machine is {abs(offset):.1f} seconds {where} that of the database: times of jobs of several "
        "servers would not agree; have NTP set both clocks"
    )


def _clock_offset_seconds(connection: Connection, clock: Clock) -> float:
    """Return by how much this machine's clock is ahead, give or take half of the time that the question takes."""
    before = clock.now().ToNanoseconds()
    (microseconds,) = connection.execute(_NOW).fetchone() or (0,)
    after = clock.now().ToNanoseconds()
    return (before + after) / 2e9 - microseconds / 1e6


def check_database(conninfo: str) -> tuple[bool, str]:
    """Return whether it can be, and what was found, or what is wrong and what to do. Raises ConfigurationError for what says of
    no database where it is."""
    require_valid(conninfo)
    name = shown(conninfo)
    try:
        with connect_reader(conninfo) as connection:
            version, version_problem = connection.info.server_version, _version_problem(connection, name)
            lacking = [each for each in _DURABLE if connection.execute(f"SHOW {each}").fetchone() != ("on",)]
            (can_create,) = connection.execute(
                "SELECT has_schema_privilege(current_schema(), 'CREATE') AND NOT pg_is_in_recovery()"
            ).fetchall()
    except psycopg.Error as error:
        return False, f"{name} can't be reached: {brief(error)}; see that it runs and lets this account in"
    if version_problem:
        return False, version_problem
    if lacking:
        return False, f"{name} loses what it has acknowledged when its machine stops: turn on {' and '.join(lacking)}"
    if not can_create[0]:
        return False, f"{name} is a standby, or this user may create no tables there: connect to the primary, as its owner"
    return True, f"{name}, version {version // 10_000}"
