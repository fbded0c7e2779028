"""Fills a store before a server starts on it, through the store's own API: a million jobs take minutes, not hours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import messages
from benchmarks.load import Link, in_process
from evalrpc import transitions
from evalrpc.clock import Clock, SystemClock
from evalrpc.store.base import Submission
from evalrpc.store.sqlite import SqliteStore
from evalrpc.v1 import job_pb2 as pb

_BATCH: Final = 1000
_MODELS: Final = 10


def fill(data_dir: Path, finished: int = 0, queued: int = 0) -> list[str]:
    """Put jobs into the store of a data folder, the cancelled ones first; return the ids of the queued ones in order."""
    ids: list[str] = in_process(_fill, data_dir, finished, queued)
    return ids


def _fill(link: Link, data_dir: Path, finished: int, queued: int) -> list[str]:
    link.meet()
    clock = SystemClock()
    store = SqliteStore(data_dir, clock, max_queued=10_000_000)
    try:
        for batch in _batches(finished):
            _cancel(store, clock, _submit(store, batch))
        return [job_id for batch in _batches(queued) for job_id in _submit(store, batch)]
    finally:
        store.close()


def _batches(count: int) -> Iterator[list[pb.JobInfo]]:
    for begin in range(0, count, _BATCH):
        yield [_job(number) for number in range(begin, min(count, begin + _BATCH))]


def _job(number: int) -> pb.JobInfo:
    """One in ten jobs has the same model and task; all have the label `team`, one in ten with the value `red`."""
    kind = number % _MODELS
    return messages.new_job(f"model_{kind}", f"task_{kind}", "blue" if kind else "red")


def _submit(store: SqliteStore, jobs: list[pb.JobInfo]) -> list[str]:
    futures = [store.submit(Submission(job)) for job in jobs]
    return [future.result().job_id for future in futures]


def _cancel(store: SqliteStore, clock: Clock, job_ids: list[str]) -> None:
    now = clock.now()
    for future in [store.update(job_id, lambda job: transitions.request_cancel(job, "", now)) for job_id in job_ids]:
        future.result()
