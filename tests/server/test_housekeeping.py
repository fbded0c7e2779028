"""Housekeeping goes on, whatever fails in one of its steps."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from store_jobs import ORPHAN, SECONDS, finish, submit
from waiting import DEADLINE_SECONDS

from evalrpc.config import Settings
from evalrpc.errors import StoreUnavailableError
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.preparations.prepared_models import PreparedModels
from evalrpc.server import housekeeping, job_files
from evalrpc.server.housekeeping import Housekeeper
from evalrpc.server.memory import Memory
from evalrpc.server.removals import Removals
from evalrpc.store.sqlite.store import SqliteStore


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(data_dir, ManualClock(1000.0), 1000)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.001)


def keep_house(store: SqliteStore, data_dir: Path, is_done: Callable[[], bool], **settings: Any) -> None:
    """Let a housekeeper work until a condition holds."""

    async def work() -> None:
        with ThreadPoolExecutor(1) as remover:
            configured = Settings(data_dir=data_dir, **settings)
            clock, models = ManualClock(1000.0), PreparedModels(data_dir / "preparations", ManualClock(1000.0))
            house = Housekeeper(store, clock, data_dir, configured, remover, Entitlements(), models, Memory())
            working = asyncio.create_task(house.run())
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not is_done():
                    assert not working.done(), "it has ended"
                    await asyncio.sleep(0.001)
            working.cancel()
            house.stop()

    asyncio.run(work())


def fail(error: Exception) -> Callable[..., Any]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def test_it_drops_old_events_erases_deleted_jobs_and_removes_what_no_job_refers_to(store: SqliteStore, data_dir: Path) -> None:
    for name in (ORPHAN, "lost+found"):
        (data_dir / "jobs" / name).mkdir(parents=True)
    jobs = [submit(store, request={"model": "m" * 1000}) for _ in range(10)]
    finish(store, jobs[0].job_id)
    store.delete(jobs[0].job_id).result(SECONDS)

    def is_done() -> bool:
        return not (data_dir / "jobs" / ORPHAN).exists() and store.oldest_revision > 0 and not store._unerased

    keep_house(store, data_dir, is_done, journal_max_bytes=5000)
    kept = store.events_after(store.oldest_revision, 100)
    assert 2000 < sum(len(event.event) for event in kept) <= 5000
    assert (data_dir / "jobs" / "lost+found").exists(), "it is no job's"


@pytest.mark.parametrize("error", [StoreUnavailableError("disk full"), OSError(5, "I/O error"), ValueError("a bug")])
@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("compact", "compact the journal"),
        ("erase", "erase deleted jobs"),
        ("remove_orphans", "remove folders of no job"),
        ("pending_removals", "remove the rest of deleted jobs"),
        ("expired_jobs", "delete old jobs"),
        ("listdir", "delete jobs that are too large together"),
    ],
)
def test_a_step_that_fails_is_said_once_and_stops_no_other(
    store: SqliteStore,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    step: str,
    error: Exception,
) -> None:
    caplog.set_level(logging.INFO)
    (data_dir / "jobs" / ORPHAN).mkdir(parents=True)
    calls = dict.fromkeys(("compact", "erase", "remove_orphans", "pending_removals", "expired_jobs", "listdir"), 0)

    def count(name: str, target: Any) -> None:
        original = getattr(target, name)

        def counted(*arguments: Any) -> Any:
            calls[name] += 1
            if name == where and calls[name] <= 3:
                return failed(error) if name in ("compact", "erase") else fail(error)()
            return original(*arguments)

        monkeypatch.setattr(target, name, counted)

    for name in calls:
        count(name, {"listdir": job_files.os, "remove_orphans": Removals}.get(name, store))

    def is_done() -> bool:
        others = [number for name, number in calls.items() if name != "remove_orphans"]
        return min(others) > 5 and not (data_dir / "jobs" / ORPHAN).exists()

    keep_house(store, data_dir, is_done, retention_max_jobs=1000, retention_max_bytes=10**9)
    logged = [record for record in caplog.records if record.name == "evalrpc.server.housekeeping"]
    said = repr(error) if isinstance(error, ValueError) else str(error)
    assert [record.getMessage() for record in logged] == [
        f"can't do a step of housekeeping: {said}",
        "can now do a step of housekeeping",
    ]
    assert [record.__dict__["step"] for record in logged] == [step, step]
    assert bool(logged[0].exc_info) == isinstance(error, ValueError)


def test_it_gives_memory_back_in_every_round(store: SqliteStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[None] = []
    monkeypatch.setattr(housekeeping.Memory, "give_back", lambda _: rounds.append(None))
    keep_house(store, data_dir, lambda: len(rounds) > 2)
