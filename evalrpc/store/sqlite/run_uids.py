"""Which owner's runs have which account."""

import sqlite3
from collections.abc import Mapping

from evalrpc.errors import RunFailedError


def run_uids(connection: sqlite3.Connection) -> Mapping[int, str]:
    """Return the owner of each account. Raises sqlite3.Error."""
    return dict(connection.execute("SELECT uid, owner FROM run_uids").fetchall())


def assign(connection: sqlite3.Connection, owner: str, uids: range) -> int:
    """Return the account of an owner, or else give it one. Raises RunFailedError if there is none left, sqlite3.Error."""
    taken = run_uids(connection)
    own = (uid for uid in taken if taken[uid] == owner and uid in uids)
    free = (uid for uid in uids if uid not in taken)
    uid = next(own, None) or next(free, None)
    if uid is None:
        raise RunFailedError("START_FAILED", f"all {len(uids)} accounts for runs have been given away (setting run_as_uids)")
    connection.execute("INSERT OR IGNORE INTO run_uids VALUES (?, ?)", (uid, owner))
    return uid
