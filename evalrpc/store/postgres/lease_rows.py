"""The table of leases: one per machine, for the server that sees to its runs, and one for the scheduler.

| what happens | who may | lease before | lease after |
|---|---|---|---|
| take | any server; the scheduler's: one that has its machine's | absent or expired | another fence, until `seconds` later |
| renew | its holder | with the holder's fence, even expired | the same fence, until `seconds` later |
| give back | its holder | held | expired; a machine without runs: absent |
| lose (`evalrpc node lost`) | an operator | expired | absent |

Whatever gives a lease another holder, or none, locks the head, as commits do, and moves `head.fence`. So a commit that has the
head locked knows who holds what, once it has read the leases of that `fence`. A renewal locks only its lease.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from psycopg import Connection

from evalrpc.store.postgres.listening import CHANNEL, LEASES_CHANGED

SCHEDULER: Final = ""
"""The name of the lease of the scheduler."""

_READ: Final = """
SELECT head.fence, name, server, leases.fence, extract(epoch FROM expires_at - clock_timestamp())::float8, description
FROM head LEFT JOIN leases ON true ORDER BY name
"""
_UNTIL: Final = "clock_timestamp() + %(seconds)s * interval '1 second'"
_RENEW: Final = f"UPDATE leases SET expires_at = {_UNTIL} WHERE server = %(server)s RETURNING name, fence"
_LOCK: Final = "SELECT FROM head FOR UPDATE"
_TAKE: Final = f"""
INSERT INTO leases SELECT %(name)s, %(server)s, head.fence + 1, {_UNTIL}, %(description)s FROM head
ON CONFLICT (name) DO UPDATE SET server = EXCLUDED.server, fence = EXCLUDED.fence, expires_at = EXCLUDED.expires_at,
    description = EXCLUDED.description
WHERE leases.expires_at <= clock_timestamp() RETURNING fence
"""
_GIVE_BACK: Final = "UPDATE leases SET expires_at = clock_timestamp() WHERE server = %s"
_FORGET: Final = "DELETE FROM leases WHERE name = %s AND server = %s"
_LOSE: Final = "DELETE FROM leases WHERE name = %s AND expires_at <= clock_timestamp() RETURNING name"
_DESCRIBE: Final = "UPDATE leases SET description = %s WHERE name = %s AND server = %s"
_CHANGED: Final = "UPDATE head SET fence = fence + 1"
_NOTIFY: Final = "SELECT pg_notify(%s, %s)"


class LeaseRow(NamedTuple):
    """A lease as it stands."""

    name: str
    server: str
    fence: int
    remaining_seconds: float
    """Until it expires; negative: since it has."""
    description: str


class LeaseTable(NamedTuple):
    """All leases, as of a state of the head."""

    number: int
    """`head.fence`."""
    rows: Mapping[str, LeaseRow]

    def is_scheduler(self, server: str) -> bool:
        """Return whether a server has the lease of the scheduler."""
        row = self.rows.get(SCHEDULER)
        return row is not None and row.server == server and row.remaining_seconds > 0


NO_LEASES: Final = LeaseTable(-1, {})


def read_leases(connection: "Connection[Any]") -> LeaseTable:
    """Return all leases. Raises psycopg.Error."""
    found = connection.execute(_READ).fetchall()
    return LeaseTable(found[0][0], {row.name: row for row in (LeaseRow(*each[1:]) for each in found) if row.name is not None})


def renew(connection: "Connection[Any]", server: str, seconds: float) -> dict[str, int]:
    """Renew the leases of a server, and return their fences by name. Raises psycopg.Error."""
    return dict(connection.execute(_RENEW, {"server": server, "seconds": seconds}).fetchall())


def take(connection: "Connection[Any]", name: str, server: str, seconds: float, description: str) -> int | None:
    """Take a lease, and return its fence; None if another server has it. Raises psycopg.Error."""
    given = {"name": name, "server": server, "seconds": seconds, "description": description}
    with connection.transaction():
        connection.execute(_LOCK)
        row = connection.execute(_TAKE, given).fetchone()
        if row is not None:
            _note_change(connection)
    return int(row[0]) if row is not None else None


def give_back(connection: "Connection[Any]", server: str, unused_hosts: Iterable[str]) -> None:
    """Let others take the leases of a server, and forget machines that have no runs. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute(_LOCK)
        connection.execute(_GIVE_BACK, (server,))
        for host in unused_hosts:
            connection.execute(_FORGET, (host, server))
        _note_change(connection)


def lose(connection: "Connection[Any]", host: str) -> bool:
    """Forget a machine whose lease has expired. Return whether there was one. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute(_LOCK)
        is_lost = connection.execute(_LOSE, (host,)).fetchone() is not None
        if is_lost:
            _note_change(connection)
    return is_lost


def describe(connection: "Connection[Any]", host: str, server: str, description: str) -> None:
    """Say what a machine has, within a transaction that has locked the head. Raises psycopg.Error."""
    connection.execute(_DESCRIBE, (description, host, server))
    _note_change(connection)


def describe_now(connection: "Connection[Any]", host: str, server: str, description: str) -> None:
    """Do so in a transaction of its own. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute(_LOCK)
        describe(connection, host, server, description)


def _note_change(connection: "Connection[Any]") -> None:
    connection.execute(_CHANGED)
    connection.execute(_NOTIFY, (CHANNEL, LEASES_CHANGED))
