"""What was deleted is gone from the files of a store, not only from what it answers."""

import random
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from store_jobs import CLOCK, SECONDS, begin, complete, submit

from evalrpc.jobs import transitions
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore

NEVER = Timestamp()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(data_dir, CLOCK, 1000)
    yield store
    store.close()


def submit_marked(store: SqliteStore, mark: str, size: int = 0, *, runs: bool = True) -> str:
    """Let a job with this text in every field end. Return its id."""
    arguments = Struct()
    arguments["secret"] = mark + "x" * size
    request = {"model": f"m{mark}", "tasks": [f"t{mark}"], "model_args": arguments, "num_gpus": 0}
    fields = {"labels": {"l": mark, f"k{mark}": "v"}, "supersede_key": f"s{mark}"}
    job_id = submit(store, f"r{mark}", mark.encode(), mark.encode(), request=request, **fields).job_id
    if runs:
        for change in (begin, partial(transitions.update, labels={"l": mark}, priority=None), complete):
            store.update(job_id, change).result(SECONDS)
    else:
        cancel = partial(transitions.request_cancel, reason=f"because of {mark}", now=CLOCK.now())
        store.update(job_id, cancel).result(SECONDS)
    return job_id


def traces(data_dir: Path, marks: list[str]) -> list[str]:
    """Return those of the texts that are in some file."""
    contents = b"".join(path.read_bytes() for path in data_dir.iterdir() if path.is_file())
    return [mark for mark in marks if mark.encode() in contents]


def test_of_deleted_jobs_of_any_size_no_text_is_left_in_any_file(store: SqliteStore, data_dir: Path) -> None:
    chance = random.Random(7)
    live, deleted = {}, []
    for number in range(400):
        mark = f"MARK{number:04}END"
        size = chance.choice([5, 300, 1500, 4000, 9000, 60_000])
        live[mark] = submit_marked(store, mark, size, runs=chance.random() < 0.7)
        if number % 50 == 0:
            store.compact(chance.choice([10, 100]), NEVER).result(SECONDS)
        while len(live) > chance.choice([5, 30, 100]):
            deleted.append(chance.choice(sorted(live)))
            store.delete(live.pop(deleted[-1])).result(SECONDS)
    assert store.erase().result(SECONDS)
    assert traces(data_dir, sorted(live)) == sorted(live)
    assert len(deleted) > 200
    assert traces(data_dir, deleted) == []


def test_what_a_killed_server_left_in_the_log_is_erased_by_the_next(store: SqliteStore, data_dir: Path, tmp_path: Path) -> None:
    store.delete(submit_marked(store, "SECRET-1")).result(SECONDS)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal"):
        (copy / name).write_bytes((data_dir / name).read_bytes())
    assert traces(copy, ["SECRET-1"]) == ["SECRET-1"]
    after = SqliteStore(copy, CLOCK, 1000)
    try:
        assert after.erase().result(SECONDS)
        assert traces(copy, ["SECRET-1"]) == []
    finally:
        after.close()


def test_a_reader_puts_the_erasing_off_and_holds_up_no_write(store: SqliteStore, data_dir: Path) -> None:
    job_id = submit_marked(store, "SECRET-2")
    reader = sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        store.delete(job_id).result(SECONDS)
        assert not store.erase().result(SECONDS)
        submit(store)
    finally:
        reader.close()
    assert traces(data_dir, ["SECRET-2"]) == ["SECRET-2"]
    assert store.erase().result(SECONDS)
    assert traces(data_dir, ["SECRET-2"]) == []


def test_where_nothing_was_deleted_there_is_nothing_to_erase(store: SqliteStore, data_dir: Path) -> None:
    assert store.erase().result(SECONDS)
    submit(store)
    log_bytes = (data_dir / f"{DATABASE_NAME}-wal").stat().st_size
    assert log_bytes
    assert store.erase().result(SECONDS)
    assert (data_dir / f"{DATABASE_NAME}-wal").stat().st_size == log_bytes
