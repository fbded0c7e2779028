"""Commits of one server, one after the other, among those of the others.

A commit locks the head first. So it comes after all commits before it, and reads what others have committed since its last one,
before it decides anything. It gives the lock back when it is on the disk. So revisions have the order of the commits, and what
a server knows in memory is right while it holds the lock.

Where the connection is cut after a commit was sent, nobody has said what has come of it: then that is looked up, by a number
that the commit would have left.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg

from evalrpc.clock import Clock
from evalrpc.errors import EvalrpcError, StoreUnavailableError
from evalrpc.jobs.holds import Holds, holds_named, names_of
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import Submission
from evalrpc.store.cache import JobCache
from evalrpc.store.change_log import ChangeLog
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer, is_cut, shown, unavailable, unreachable
from evalrpc.store.postgres.following import Missed, read_missed
from evalrpc.store.postgres.head import Head, begin_at_head, move_head, read_head
from evalrpc.store.postgres.lease_rows import LeaseTable, describe, read_leases
from evalrpc.store.postgres.listening import CHANNEL
from evalrpc.store.postgres.rows import add_counts, write_rows
from evalrpc.store.postgres.state import State
from evalrpc.store.postgres.tables import PostgresTables
from evalrpc.store.transaction import Transaction
from evalrpc.store.writes import Operation

_LOOK_UP_SECONDS: Final = 15.0
"""How long it is tried to look up what has come of a commit, before its callers hear that it is not known."""
_RETRY_SECONDS: Final = 0.5

_NOTE_COMMIT: Final = """
INSERT INTO commits VALUES (%s, %s, now())
ON CONFLICT (server_id) DO UPDATE SET commit_id = EXCLUDED.commit_id, committed_at = EXCLUDED.committed_at
"""
_COMMITTED: Final = "SELECT commit_id FROM commits WHERE server_id = %s"

_log = logging.getLogger(__name__)


class Write(NamedTuple):
    """What a caller wants to be committed."""

    operation: Operation
    """May be called again, with another transaction, where a connection was cut."""
    future: "Future[Any]"
    submissions: Sequence[Submission] = ()
    """Those of the operation, so that what they ask for is read together."""


@dataclass
class _Prepared:
    """A transaction before its commit."""

    transaction: Transaction
    outcomes: list[Any]
    commit_id: int


class _CutWhileCommittingError(Exception):
    """The connection was cut after a commit was sent."""

    def __init__(self, prepared: _Prepared) -> None:
        super().__init__()
        self.prepared = prepared


class Writer:
    """Writes for one server. Used by one thread, but for what is a property."""

    def __init__(
        self,
        conninfo: str,
        clock: Clock,
        max_queued: int,
        entitlements: Entitlements,
        cache: JobCache,
        server_id: str,
        see_leases: Callable[[LeaseTable], None],
    ) -> None:
        self._conninfo = conninfo
        self._see_leases = see_leases
        self._clock = clock
        self._max_queued = max_queued
        self._entitlements = entitlements
        self._cache = cache
        self._server_id = server_id
        self._commit_id = 0
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._untold: list[Missed] = []
        connection = self._connected()
        head = begin_at_head(connection)
        self.state = State.read(connection, head)
        connection.execute("ROLLBACK")
        see_leases(self.state.leases)
        self.changes = ChangeLog(head.number)
        """Who follows the changes."""
        self.head_revision = head.revision
        """The newest revision of which the listeners were notified."""
        self.oldest_revision = head.oldest_revision
        """The oldest revision that one can resume after."""
        self.holds: Holds = holds_named(head.holds)
        """What is held back."""

    def commit(self, batch: Sequence[Write]) -> bool:
        """Commit what can be, and answer everyone. Return whether anything was committed. What is raised is a bug, or
        ChangesMissedError."""
        outcomes: list[Any]
        is_committed = True
        try:
            outcomes = self._commit(batch)
        except StoreUnavailableError as error:
            _log.error("could not commit %d writes: %s", len(batch), error)
            outcomes, is_committed = [error] * len(batch), False
        finally:
            self._tell()
        for write, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, EvalrpcError):
                write.future.set_exception(outcome)
            else:
                write.future.set_result(outcome)
        return is_committed

    def catch_up(self) -> None:
        """Read and pass on what others have committed. Raises StoreUnavailableError, ChangesMissedError."""
        try:
            connection = self._connected()
            self._read_missed(connection, read_head(connection))
        except psycopg.Error as error:
            self._disconnect()
            raise unavailable(f"{shown(self._conninfo)} can't be read: {brief(error)}; try again") from error
        finally:
            self._tell()

    def stop(self) -> None:
        """Wait for nothing any more. Called by another thread."""
        self._stopping.set()

    def close(self) -> None:
        """Let go of the connection, and of what the database keeps for this server."""
        with suppress(psycopg.Error, EvalrpcError):
            self._connected().execute("DELETE FROM commits WHERE server_id = %s", (self._server_id,))
        self._disconnect()

    def require_leases(self, held: Mapping[str, int], host: str, description: str) -> None:
        """Check within an operation that these leases, by name with their fences, are held still, and say what the machine has,
        unless that is known. Raises StoreUnavailableError."""
        rows = self.state.leases.rows
        if not held or any(name not in rows or rows[name].fence != fence for name, fence in held.items()):
            raise unavailable("another server sees to this job now")
        if rows[host].description != description:
            describe(self._connected(), host, self._server_id, description)

    def _commit(self, batch: Sequence[Write]) -> list[Any]:
        """Return what the operations have returned, or refused. Raises StoreUnavailableError where nothing was committed, or
        nobody knows."""
        for tries_left in (1, 0):
            try:
                prepared = self._try(batch)
            except _CutWhileCommittingError as cut:
                prepared = cut.prepared
                if not self._is_committed(prepared.commit_id):
                    if not tries_left:
                        raise unavailable(f"{shown(self._conninfo)} was cut off while it committed; try again") from cut
                    continue
            except psycopg.Error as error:
                self._disconnect()
                if not (tries_left and is_cut(error)):
                    raise unavailable(f"{shown(self._conninfo)} can't write: {brief(error)}; try again") from error
                continue
            self._publish(prepared.transaction)
            return prepared.outcomes
        raise AssertionError

    def _try(self, batch: Sequence[Write]) -> _Prepared:
        """Commit once. Raises psycopg.Error where nothing was committed, _CutWhileCommittingError, StoreUnavailableError."""
        connection = self._connected()
        self._read_missed(connection, begin_at_head(connection))
        submissions = [submission for write in batch for submission in write.submissions]
        transaction = self._transaction(PostgresTables(connection, submissions))
        outcomes: list[Any] = []
        for write in batch:
            try:
                outcomes.append(write.operation(transaction))
            except EvalrpcError as refusal:
                outcomes.append(refusal)
        self._commit_id += 1
        prepared = _Prepared(transaction, outcomes, self._commit_id)
        try:
            self._send(connection, prepared)
        except psycopg.Error as error:
            if not is_cut(error):
                raise
            self._disconnect()
            raise _CutWhileCommittingError(prepared) from error
        return prepared

    def _send(self, connection: Connection, prepared: _Prepared) -> None:
        """Write everything and commit, without a wait in between."""
        transaction, head = prepared.transaction, self._head_after(prepared.transaction)
        with connection.pipeline():
            write_rows(connection, transaction.take_rows())
            add_counts(connection, transaction.count_changes, head.number)
            move_head(connection, head)
            connection.execute(_NOTE_COMMIT, (self._server_id, prepared.commit_id))
            if head.number > self.state.head.number:
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(head.number)))
            connection.execute("COMMIT")

    def _transaction(self, tables: PostgresTables) -> Transaction:
        state = self.state
        return Transaction(
            tables,
            self._clock,
            self._max_queued,
            state.head.revision,
            state.head.sequence,
            state.head.created_ns,
            state.head.number,
            state.counts,
            state.queued_by_owner,
            self._entitlements,
            self._cache.get,
            state.followed,
            state.head.journal_bytes,
        )

    def _head_after(self, transaction: Transaction) -> Head:
        return self.state.head._replace(
            revision=transaction.head,
            number=transaction.last_number,
            sequence=transaction.last_sequence,
            created_ns=transaction.last_created_ns,
            journal_bytes=transaction.journal_end_bytes,
        )

    def _is_committed(self, commit_id: int) -> bool:
        """Look up whether a commit is in the database. Whoever has the head locked knows that no other is under way.

        Raises StoreUnavailableError if that can't be found out.
        """
        give_up_seconds = self._clock.monotonic() + _LOOK_UP_SECONDS
        while True:
            try:
                connection = self._connected()
                begin_at_head(connection)
                row = connection.execute(_COMMITTED, (self._server_id,)).fetchone()
                connection.execute("ROLLBACK")
            except (psycopg.Error, EvalrpcError) as error:
                self._disconnect()
                if self._clock.monotonic() >= give_up_seconds or self._stopping.wait(_RETRY_SECONDS):
                    raise unavailable(
                        f"{shown(self._conninfo)} was cut off while it committed, and is not back yet, so nobody knows whether "
                        "the change was made: ask again, with the same request_id"
                    ) from error
            else:
                return bool(row and row[0] == commit_id)

    def _read_missed(self, connection: Connection, head: Head) -> None:
        """Take what others have committed. The listeners are still to be notified."""
        state = self.state
        if head.fence != state.leases.number:
            state.leases = read_leases(connection)
            self._see_leases(state.leases)
        if head.number > state.head.number:
            state.read_counts(connection)
            before = state.head
            for missed in read_missed(connection, before.revision, before.number, head, self._cache.get):
                state.take(missed, self._cache)
                self._untold.append(missed)
        state.head = head

    def _publish(self, transaction: Transaction) -> None:
        """Take what was committed, and pass it on, behind what others have committed before."""
        self._tell()
        state = self.state
        state.head = self._head_after(transaction)
        state.take_own(transaction, self._cache)
        if transaction.oldest is not None:
            state.head = state.head._replace(oldest_revision=transaction.oldest)
        if transaction.holds is not None:
            self.holds = transaction.holds
            state.head = state.head._replace(holds=names_of(transaction.holds))
        self.oldest_revision = state.head.oldest_revision
        self.head_revision = transaction.head
        if transaction.last_number > self.changes.position:
            self.changes.pass_on([change for change, _ in transaction.changes], transaction.last_number)

    def _tell(self) -> None:
        """Pass on what others have committed."""
        self.oldest_revision = self.state.head.oldest_revision
        holds = holds_named(self.state.head.holds)
        if holds != self.holds:
            self.holds = holds
        untold, self._untold = self._untold, []
        for missed in untold:
            self.head_revision = missed.revision
            self.changes.pass_on([change for change, _ in missed.changes], missed.number)

    def _connected(self) -> Connection:
        """Return the connection, made anew where it was cut. Raises StoreUnavailableError."""
        if self._connection is None or self._connection.closed:
            try:
                self._connection = connect_writer(self._conninfo)
            except psycopg.Error as error:
                raise unreachable(self._conninfo, error) from error
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
