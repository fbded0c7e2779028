"""The one row that says where the store stands. Whoever commits locks it, so commits come one after the other."""

from typing import Any, Final, NamedTuple

from psycopg import Connection

_COLUMNS: Final = "revision, number, sequence, created_ns, journal_bytes, oldest_revision, holds, fence"


class Head(NamedTuple):
    """Where the store stands."""

    revision: int
    number: int
    """Of the latest change."""
    sequence: int
    """Of the latest job."""
    created_ns: int
    """When the latest job was created."""
    journal_bytes: int
    """The size of all events that there ever were."""
    oldest_revision: int
    """Every event after this revision is in the journal."""
    holds: list[str]
    """The names of what is held back."""
    fence: int
    """Grows with every change of a lease that the servers have to know of."""


def read_head(connection: "Connection[Any]") -> Head:
    """Return where the store stands. Raises psycopg.Error."""
    return _only(connection.execute(f"SELECT {_COLUMNS} FROM head"))


def begin_at_head(connection: "Connection[Any]") -> Head:
    """Begin a transaction, wait until nobody else commits, and return where the store stands then. Raises psycopg.Error."""
    cursor = connection.execute(f"BEGIN; SELECT {_COLUMNS} FROM head FOR UPDATE")
    cursor.nextset()
    return _only(cursor)


def move_head(connection: "Connection[Any]", head: Head) -> None:
    """Say where the store stands after a commit. What the transaction has changed by itself, as the holds, is left. Raises
    psycopg.Error."""
    connection.execute(
        "UPDATE head SET revision = %b, number = %b, sequence = %b, created_ns = %b, journal_bytes = %b",
        (head.revision, head.number, head.sequence, head.created_ns, head.journal_bytes),
    )


def _only(cursor: Any) -> Head:
    (row,) = cursor.fetchall()
    return Head(*row)
