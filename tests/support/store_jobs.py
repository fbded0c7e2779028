"""Shorthands for what the store tests do over and over."""

import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from postgres_cluster import shared_cluster
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.clock import Clock, SystemClock
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import Change, Store, Submission
from evalrpc.store.postgres.store import PostgresStore
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.testing.shared_store import REVISION_STEP, Database, SharedStore, SoleSharedStore
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

ORPHAN = "3f0c7d52-6a94-4d0e-8a57-1b9c2f6e0d11"
"""The id of no job."""

CLOCK = SystemClock()

Opener = Callable[..., Store]


def open_sqlite(data_dir: Path, max_queued: int, clock: Clock = CLOCK, entitlements: Entitlements | None = None) -> Store:
    return SqliteStore(data_dir, clock, max_queued, entitlements)


def open_shared_store(data_dir: Path, max_queued: int, clock: Clock = CLOCK, entitlements: Entitlements | None = None) -> Store:
    return SoleSharedStore(Database(data_dir, clock, max_queued, entitlements))


def open_postgres(data_dir: Path, max_queued: int, clock: Clock = CLOCK, entitlements: Entitlements | None = None) -> Store:
    conninfo = shared_cluster().schema_for(data_dir)
    return PostgresStore(conninfo, data_dir, clock, max_queued, entitlements)


OPENERS: dict[str, Callable[..., Store]] = {
    "postgres": open_postgres,
    "shared": open_shared_store,
    "sqlite": open_sqlite,
}
"""The contract suite runs on every store in this table."""


def nth(store: Store, number: int) -> int:
    """Return the n-th revision of an empty store, or how far one lies from the n-th after it: some stores leave gaps."""
    return number * (REVISION_STEP if isinstance(store, SharedStore) else 1)


def new_job(**fields: Any) -> pb.JobInfo:
    request = {"harness": "h", "model": "m", "tasks": ["t"]} | fields.pop("request", {})
    job_id = fields.pop("job_id", str(uuid.uuid4()))
    return pb.JobInfo(job_id=job_id, request=pb.EvaluateRequest(**request), **{"max_attempts": 1} | fields)


def submit(store: Store, request_id: str = "", fingerprint: bytes = b"f", cache_key: bytes = b"", **fields: Any) -> pb.JobInfo:
    return store.submit(Submission(new_job(**fields), request_id, fingerprint, cache_key)).result(SECONDS)


def begin(job: pb.JobInfo) -> None:
    transitions.begin_attempt(job, (), "/out", CLOCK.now())


def complete(job: pb.JobInfo) -> None:
    transitions.complete(job, {}, CLOCK.now())


def run(store: Store, job_id: str) -> pb.JobInfo:
    return store.update(job_id, begin).result(SECONDS)


def finish(store: Store, job_id: str) -> pb.JobInfo:
    run(store, job_id)
    return store.update(job_id, complete).result(SECONDS)


def read(store: Store, job_id: str) -> pb.JobInfo:
    return store.job(job_id).parse()


def listed(store: Store, before: int | None = None, limit: int = 1000, **conditions: Any) -> list[str]:
    return [job.job_id for _, job in store.list_jobs(JobFilter(**conditions), before, limit)]


def events(store: Store, after: int = 0, limit: int = 10_000, job_id: str | None = None) -> list[pb.JobEvent]:
    return [pb.JobEvent.FromString(event.event) for event in store.events_after(after, limit, job_id)]


class Recorder:
    """A listener that keeps what it is notified of."""

    def __init__(self) -> None:
        self.commits: list[list[Change]] = []

    def __call__(self, changes: Sequence[Change]) -> None:
        self.commits.append(list(changes))

    @property
    def changes(self) -> list[Change]:
        return [change for commit in self.commits for change in commit]


class Gate:
    """Holds up the writer thread within a write, so that a test can pile up others behind it."""

    def __init__(self, store: Store) -> None:
        self._entered, self._opened = threading.Event(), threading.Event()
        job = submit(store)
        self._future = store.update(job.job_id, self._hold)
        assert self._entered.wait(SECONDS)

    def open(self) -> None:
        self._opened.set()
        self._future.result(SECONDS)

    def _hold(self, job: pb.JobInfo) -> None:
        self._entered.set()
        assert self._opened.wait(SECONDS)
