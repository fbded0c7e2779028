"""The way of jobs from SQLite into PostgreSQL: all of them, as they are, or none."""

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from postgres_cluster import shared_cluster
from store_jobs import CLOCK, SECONDS, events, finish, listed, open_sqlite, read, run, submit

from evalrpc.cli import main
from evalrpc.errors import ConfigurationError, RevisionCompactedError
from evalrpc.jobs.holds import QUEUE
from evalrpc.store import migrating
from evalrpc.store.base import Store
from evalrpc.store.postgres.store import PostgresStore
from evalrpc.store.sqlite.store import DATABASE_NAME


@pytest.fixture
def conninfo(tmp_path: Path) -> str:
    return shared_cluster().schema_for(tmp_path)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def fill(data_dir: Path) -> dict[str, object]:
    """Make a store of jobs in every state; return what it says."""
    with closing(open_sqlite(data_dir, 1000)) as store:
        done = finish(store, submit(store, "r1", owner="alice", cache_key=b"k", labels={"a": "ü"}).job_id)
        run(store, submit(store, owner="bob", cache_key=b"l").job_id)
        submit(store, cache_key=b"l")
        gone = submit(store)
        finish(store, gone.job_id)
        store.delete(gone.job_id).result(SECONDS)
        store.set_hold(QUEUE, is_held=True).result(SECONDS)
        assert store.find_identical(b"k") == done
        return state_of(store)


def state_of(store: Store) -> dict[str, object]:
    return {
        "jobs": [read(store, job_id).SerializeToString(deterministic=True) for job_id in listed(store)],
        "events": store.events_after(0, 1000),
        "labelled": listed(store, labels={"a": "ü"}),
        "queued": store.queued_rows(),
        "running": store.running_jobs(),
        "counts": {status: count for status, count in store.status_counts().items() if count},
        "head": store.head_revision,
        "holds": store.holds,
        "uses": list(store.attempt_uses(0)),
    }


def migrate(data_dir: Path, conninfo: str) -> Result:
    return CliRunner().invoke(main, ["migrate", "--data-dir", str(data_dir), "--store", conninfo])


def test_all_is_there_afterwards_and_goes_on(data_dir: Path, conninfo: str) -> None:
    before = fill(data_dir)
    done = migrate(data_dir, conninfo)
    assert (done.exit_code, "migrated 3 jobs" in done.output) == (0, True), done.output
    with closing(PostgresStore(conninfo, data_dir, CLOCK, 1000)) as store:
        assert state_of(store) == before
        assert submit(store, "r1", owner="alice").job_id == listed(store)[-1]
        assert submit(store).revision == before["head"] + 1  # type: ignore[operator]
    assert len(events_of(conninfo, data_dir)) == len(before["events"]) + 1  # type: ignore[arg-type]


def events_of(conninfo: str, data_dir: Path) -> list[object]:
    with closing(PostgresStore(conninfo, data_dir, CLOCK, 1000)) as store:
        return list(events(store))


def test_it_can_be_repeated_and_the_old_database_is_used_no_more(data_dir: Path, conninfo: str) -> None:
    fill(data_dir)
    assert migrate(data_dir, conninfo).exit_code == 0
    again = migrate(data_dir, conninfo)
    assert (again.exit_code, "were migrated before" in again.output) == (0, True), again.output
    with pytest.raises(ConfigurationError, match="were migrated to PostgreSQL"):
        open_sqlite(data_dir, 10)
    backup = CliRunner().invoke(main, ["backup", "--data-dir", str(data_dir), str(data_dir.parent / "backup")])
    assert (backup.exit_code, "pg_dump" in backup.output) == (2, True), backup.output


def test_what_was_stopped_before_its_end_is_finished(data_dir: Path, conninfo: str) -> None:
    fill(data_dir)
    assert migrate(data_dir, conninfo).exit_code == 0
    (data_dir / f"{DATABASE_NAME}.migrated").rename(data_dir / DATABASE_NAME)
    assert "were migrated before" in migrate(data_dir, conninfo).output
    assert not (data_dir / DATABASE_NAME).exists()


def test_a_copy_that_fails_leaves_nothing(data_dir: Path, conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fill(data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(migrating, "_rows", lambda *_: iter(()))
        failed = migrate(data_dir, conninfo)
        assert (failed.exit_code, "0 of 3 rows have arrived" in failed.output) == (2, True), failed.output
    with closing(open_sqlite(data_dir, 1000)) as store:
        assert state_of(store) == before
    assert migrate(data_dir, conninfo).exit_code == 0


@pytest.mark.parametrize("has_jobs", [True, False])
def test_a_database_with_jobs_and_a_folder_without_any_are_refused(data_dir: Path, conninfo: str, has_jobs: bool) -> None:
    if has_jobs:
        with closing(PostgresStore(conninfo, data_dir, CLOCK, 10)) as store:
            submit(store)
        fill(data_dir)
    refused = migrate(data_dir, conninfo)
    assert (refused.exit_code, ("take an empty one" if has_jobs else "nothing to migrate") in refused.output) == (2, True)


def test_after_a_restore_as_the_page_says_revisions_begin_anew(data_dir: Path, conninfo: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    statements = page.partition("```sql\n")[2].partition("```")[0]
    with closing(PostgresStore(conninfo, data_dir, CLOCK, 10)) as store:
        known = submit(store)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(statements)
    with closing(PostgresStore(conninfo, data_dir, CLOCK, 10)) as store:
        with pytest.raises(RevisionCompactedError):
            store.events_after(known.revision, 10)
        later = submit(store)
        assert later.revision > 10**15
        assert [event.revision for event in store.events_after(store.oldest_revision, 10)] == [later.revision]
