"""Fills a store before a server starts on it, with the store's own transactions, which don't wait for the disk here."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks import messages
from benchmarks.load import Link, in_process
from evalrpc.clock import SystemClock
from evalrpc.config import Settings
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.store.sqlite.tables import SqliteTables
from evalrpc.store.transaction import Transaction
from evalrpc.v1 import jobs_pb2 as pb

_BATCH: Final = 1000
_MODELS: Final = 10
_MAX_QUEUED: Final = 10_000_000
_IN_HASTE: Final = "PRAGMA synchronous = OFF; PRAGMA cache_size = -400000; PRAGMA wal_autocheckpoint = 20000"


def fill(data_dir: Path, finished: int = 0, queued: int = 0) -> list[str]:
    """Put jobs into the new store of a data folder, the cancelled ones first; return the ids of the queued ones in order."""
    ids: list[str] = in_process(_fill, data_dir, finished, queued)
    return ids


def _fill(link: Link, data_dir: Path, finished: int, queued: int) -> list[str]:
    link.meet()
    _store(data_dir).close()  # this makes the database
    with closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as connection:
        connection.executescript(_IN_HASTE)
        transaction = Transaction(
            SqliteTables(connection),
            SystemClock(),
            _MAX_QUEUED,
            head=0,
            last_sequence=0,
            last_created_ns=0,
            last_number=0,
            counts=Counter(),
            queued_by_owner=Counter(),
            entitlements=Entitlements(),
            followed=frozenset(),
            journal_end_bytes=0,
            cached_job=lambda _: None,
        )
        for batch in _batches(finished):
            transaction = _write(connection, transaction, batch, cancel=True)
        ids = []
        for batch in _batches(queued):
            transaction = _write(connection, transaction, batch, cancel=False)
            ids += [job.job_id for job in batch]
    _compact(data_dir)
    return ids


def _write(connection: sqlite3.Connection, last: Transaction, jobs: list[pb.JobInfo], cancel: bool) -> Transaction:
    """Commit new jobs in a transaction that follows the last one, and return it."""
    transaction = replace(last)
    connection.execute("BEGIN")
    for job in jobs:
        transaction.submit(Submission(job))
        if cancel:
            transaction.update(job.job_id, lambda job: transitions.request_cancel(job, "", transaction.clock.now()))
    transaction.flush()
    connection.execute("COMMIT")
    return transaction


def _batches(count: int) -> Iterator[list[pb.JobInfo]]:
    for begin in range(0, count, _BATCH):
        yield [_job(number) for number in range(begin, min(count, begin + _BATCH))]


def _job(number: int) -> pb.JobInfo:
    """Return a job: one in ten has the same model and task; all have the label `team`, one in ten with the value `red`; and one
    in ten has the label `draft`."""
    kind = number % _MODELS
    labels = {"draft": "yes"} if kind == 1 else {}
    return messages.new_job(f"model_{kind}", f"task_{kind}", "blue" if kind else "red", **labels)


def _compact(data_dir: Path) -> None:
    """Drop the events that a server would have dropped while the jobs came in."""
    settings = Settings()
    with closing(_store(data_dir)) as store:
        before = -1
        while before != store.oldest_revision:
            before = store.oldest_revision
            store.compact(settings.journal_max_events, Timestamp(), settings.journal_max_bytes).result()


def _store(data_dir: Path) -> SqliteStore:
    return SqliteStore(data_dir, SystemClock(), _MAX_QUEUED)
