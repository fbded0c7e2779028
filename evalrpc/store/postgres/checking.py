"""Whether a database can be the store of a server."""

import psycopg

from evalrpc.store.postgres.connecting import brief, connect_reader, require_valid, shown

_MIN_VERSION = 13_00_00
_DURABLE = ("fsync", "full_page_writes")


def check_database(conninfo: str) -> tuple[bool, str]:
    """Return whether it can be, and what was found, or what is wrong and what to do. Raises ConfigurationError for what says of
    no database where it is."""
    require_valid(conninfo)
    name = shown(conninfo)
    try:
        with connect_reader(conninfo) as connection:
            version = connection.info.server_version
            lacking = [each for each in _DURABLE if connection.execute(f"SHOW {each}").fetchone() != ("on",)]
            (can_create,) = connection.execute(
                "SELECT has_schema_privilege(current_schema(), 'CREATE') AND NOT pg_is_in_recovery()"
            ).fetchall()
    except psycopg.Error as error:
        return False, f"{name} can't be reached: {brief(error)}; see that it runs and lets this account in"
    if version < _MIN_VERSION:
        return False, f"{name} has version {version // 10_000}, and 13 or newer is needed"
    if lacking:
        return False, f"{name} loses what it has acknowledged when its machine stops: turn on {' and '.join(lacking)}"
    if not can_create[0]:
        return False, f"{name} is a standby, or this user may create no tables there: connect to the primary, as its owner"
    return True, f"{name}, version {version // 10_000}"
