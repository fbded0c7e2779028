"""A backup of a server at work has all that was acknowledged before, and no client of the restored server misses a change."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers import add_token
from click.testing import CliRunner, Result
from google.rpc import error_details_pb2
from serving import COMPLETED, FAILED, TERMINAL, Api, Launch, ServerHere, Site, detail, reason_of
from small_disk import small_disk
from test_message_bounds import prepare, table
from waiting import eventually

from evalrpc.cli import main
from evalrpc.clock import SystemClock
from evalrpc.errors import ConfigurationError
from evalrpc.files.trees import remove_tree
from evalrpc.server import backup
from evalrpc.server.backup import make_backup, restore_backup
from evalrpc.store.sqlite.opening import BACKUP_MARKER
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.v1 import jobs_pb2 as pb

CLOCK = SystemClock()
RESULTS = "toy/20260101_000000_results.json"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def back_up(site: Site, target: Path) -> None:
    done = command("backup", target, "--config", site.config)
    assert done.exit_code == 0, done.output


def restore(target: Path, new: Path) -> None:
    done = command("restore", target, "--data-dir", new)
    assert done.exit_code == 0, done.output


@contextmanager
def load(api: Api) -> Iterator[list[str]]:
    """Submit jobs on and on. Yields the ids that were acknowledged so far."""
    acknowledged: list[str] = []
    enough = threading.Event()

    def submit() -> None:
        while not enough.is_set():
            acknowledged.append(api.submit("good").job_id)

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(acknowledged) > 20)
        yield acknowledged
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def all_jobs(api: Api) -> dict[str, pb.JobInfo]:
    jobs: dict[str, pb.JobInfo] = {}
    token = ""
    while True:
        page = api.ListJobs(page_token=token, page_size=1000)
        jobs |= {job.job_id: job for job in page.jobs}
        token = page.next_page_token
        if not token:
            return jobs


def content(chunks: Iterator[Any]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def refusal(stream: Iterator[Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    return caught.value


def test_under_load_all_that_was_acknowledged_is_there_with_its_files_and_results(
    launch: Launch, site: Site, target: Path, new: Path
) -> None:
    site.set_up(max_running=8)
    server = launch()
    api = server.api
    running = api.submit("slow", max_attempts=2)
    last_try = api.submit("slow", max_attempts=1)
    for job in (running, last_try):
        site.wait_for_log(job.job_id)
    done = api.run("good")
    shared = api.run("good", cache=pb.CACHE_MODE_ALLOW)
    with load(api) as acknowledged:
        before = list(acknowledged)
        ended = {job_id: job for job_id, job in all_jobs(api).items() if job.status == COMPLETED}
        back_up(site, target)
    logs = {job_id: content(api.ReadLog(job_id=job_id)) for job_id in ended}
    server.kill()
    site.kill_runs()
    restore(target, new)

    api = launch("--data-dir", str(new)).api
    jobs = all_jobs(api)
    assert {*before, running.job_id, last_try.job_id, done.job_id, shared.job_id} <= set(jobs)
    assert {done.job_id, shared.job_id} <= set(ended)
    for job_id, before_it in ended.items():
        job = jobs[job_id]
        assert (job.status, job.revision) == (COMPLETED, before_it.revision)
        (result,), (result_before,) = job.results.values(), before_it.results.values()
        assert list(result.metrics) == list(result_before.metrics) != []
        assert all(path.startswith(f"{new}/") and Path(path).exists() for path in (result.results, *result.samples))
        assert content(api.ReadLog(job_id=job_id)) == logs[job_id] != b""
        assert b"acc,none" in content(api.ReadArtifact(job_id=job_id, name=RESULTS))
        assert len(api.ListSamples(job_id=job_id).samples) == 4
        assert all(attempt.output_dir.startswith(str(new)) for attempt in job.attempts)
    lost = api.wait_for(last_try.job_id, *TERMINAL)
    assert (lost.status, lost.error.reason) == (FAILED, "RUN_LOST")
    site.release()
    again = api.wait_for(running.job_id, *TERMINAL)
    assert (again.status, again.attempt, again.attempts[0].error.reason) == (COMPLETED, 2, "RUN_LOST")
    for job_id in before:
        job = api.wait_for(job_id, *TERMINAL)
        assert job.status == COMPLETED or job.error.reason == "RUN_LOST", job.error


def test_a_run_that_ends_during_the_backup_is_lost_and_no_success_with_half_of_its_files(
    serve: Callable[..., ServerHere], site: Site, target: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    copy = backup._copy_files

    def after_its_end(*arguments: Any) -> list[str]:
        site.release()
        assert server.api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
        return copy(*arguments)

    monkeypatch.setattr(backup, "_copy_files", after_its_end)
    make_backup(site.folder / "data", target, CLOCK)
    server.stop()
    restore_backup(target, new, CLOCK)
    lost = serve(data_dir=str(new)).api.wait_for(job.job_id, *TERMINAL)
    assert (lost.status, lost.error.reason) == (FAILED, "RUN_LOST")
    assert site.starts(job.job_id) == ["1"]


@pytest.mark.slow
def test_results_that_no_message_holds_are_restored_whole(
    serve: Callable[..., ServerHere], site: Site, target: Path, new: Path
) -> None:
    server = serve()
    prepare(site, table(30_000), {f"{number:04}{'t' * 90}": '{"doc_id": 7}\n' for number in range(4000)})
    job_id = server.api.run("prepared").job_id
    back_up(site, target)
    server.stop()
    restore(target, new)
    api = serve(data_dir=str(new)).api
    (result,) = api.get(job_id).results.values()
    assert (result.metric_count, result.metrics_truncated) == (30_000, True)
    assert len(api.ListMetrics(job_id=job_id, page_size=1000).metrics) == 1000
    assert len(result.samples) < 4000
    (sample,) = api.ListSamples(job_id=job_id, task=f"3999{'t' * 90}").samples
    assert sample["doc_id"] == 7
    with (new / "jobs" / job_id / "attempt-1" / "complete-results").open("rb") as file:
        assert str(site.folder / "data").encode() not in file.read()


def test_who_resumes_after_a_revision_that_was_lost_is_told_and_begins_anew(
    launch: Launch, site: Site, target: Path, new: Path
) -> None:
    server = launch()
    kept = server.api.run("good")
    back_up(site, target)
    saved = server.api.head()
    server.api.run("good")
    lost = server.api.head()
    assert lost > saved
    server.kill()
    restore(target, new)
    api = launch("--data-dir", str(new)).api
    for revision in range(1, lost + 1):
        for stream in (api.WatchJobs(after_revision=revision), api.WatchJob(job_id=kept.job_id, after_revision=revision)):
            error = refusal(stream)
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
            assert int(detail(error, error_details_pb2.ErrorInfo).metadata["oldest_revision"]) > lost
    anew = api.WatchJobs()
    assert next(anew).job.job_id == kept.job_id
    bookmark = next(anew)
    assert bookmark.revision == api.head() > lost
    later = api.submit("good")
    assert next(anew).job.job_id == later.job_id
    anew.cancel()
    api.WatchJobs(after_revision=bookmark.revision).cancel()


def test_a_backup_that_is_restored_twice_never_has_the_same_revision_again(
    serve: Callable[..., ServerHere], site: Site, target: Path, tmp_path: Path
) -> None:
    first = serve()
    first.api.run("good")
    back_up(site, target)
    first.stop()
    handed_out = 0
    for number in range(3):
        restore(target, tmp_path / f"new-{number}")
        server = serve(data_dir=str(tmp_path / f"new-{number}"))
        assert server.api.head() > handed_out
        server.api.run("good")
        handed_out = server.api.head()
        server.stop()


def test_a_clock_that_is_behind_the_revisions_is_an_error(site: Site, server: ServerHere, target: Path, new: Path) -> None:
    server.api.run("good")
    back_up(site, target)
    restore(target, new)
    again, newer = target.with_name("again"), target.with_name("newer")
    make_backup(new, again, CLOCK)

    class OldClock(SystemClock):
        def now(self) -> Any:
            now = super().now()
            now.seconds -= 3600
            return now

    with pytest.raises(ConfigurationError, match="set the clock"):
        restore_backup(again, newer, OldClock())
    with pytest.raises(ConfigurationError, match="empty or gone"):
        SqliteStore(newer, CLOCK, 1)


DIE = """
import os, signal, sys
from evalrpc.cli import main
from evalrpc.files.trees import remove_tree
from evalrpc.server import backup
setattr(backup, sys.argv[1], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[2:])
"""


def die_at(step: str, *arguments: object) -> None:
    """Run a command that is killed as it comes to a step."""
    died = subprocess.run([sys.executable, "-c", DIE, step, *map(str, arguments)], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.mark.parametrize("step", ["copy_database", "_copy_files", "copy_tree", "_delete_gone", "_write_marker"])
def test_a_killed_backup_leaves_nothing_that_restore_takes(site: Site, api: Api, target: Path, new: Path, step: str) -> None:
    api.run("good")
    die_at(step, "backup", target, "--config", site.config)
    refused = command("restore", target, "--data-dir", new)
    assert (refused.exit_code, new.exists()) == (2, False)
    assert "written last" in refused.output


@pytest.mark.parametrize("step", ["copy_database", "raise_revision", "_move_jobs", "copy_tree", "_copy_tokens"])
def test_no_server_starts_on_a_folder_whose_restoring_was_killed(
    site: Site, api: Api, target: Path, new: Path, step: str
) -> None:
    api.run("good")
    back_up(site, target)
    die_at(step, "restore", target, "--data-dir", new)
    with pytest.raises(ConfigurationError, match="empty or gone"):
        SqliteStore(new, CLOCK, 1)
    assert "not empty" in command("restore", target, "--data-dir", new).output


def test_what_is_in_the_way_is_refused_and_left_as_it_is(site: Site, api: Api, target: Path, new: Path) -> None:
    api.run("good")
    back_up(site, target)
    for arguments, said in (
        (("backup", target, "--config", site.config), "is not empty"),
        (("backup", site.folder / "data" / "b", "--config", site.config), "lies in"),
        (("backup", new, "--data-dir", site.folder / "none"), "nothing to back up"),
        (("restore", target, "--config", site.config), "is not empty"),  # it is in use
        (("restore", target, "--data-dir", target / "new"), "lies in"),
        (("restore", site.folder / "data", "--data-dir", new), "written last"),
        (("serve", "--data-dir", target, "--listen", "127.0.0.1:0"), "is a backup"),
    ):
        refused = command(*arguments)
        assert refused.exit_code == 2, refused.output
        assert said in refused.output.replace("\n", " ")
    assert not new.exists()
    assert api.run("good").status == COMPLETED
    restore(target, new)


@pytest.mark.parametrize(
    ("marker", "said"),
    [(b"{", "damaged"), (b"[]", "no backup that"), (b'{"format": 2}', "no backup that"), (b"\xff", "damaged")],
)
def test_a_marker_that_is_damaged_or_newer_is_refused(
    site: Site, server: ServerHere, target: Path, new: Path, marker: bytes, said: str
) -> None:
    del server
    back_up(site, target)
    (target / BACKUP_MARKER).write_bytes(marker)
    refused = command("restore", target, "--data-dir", new)
    assert (refused.exit_code, new.exists()) == (2, False)
    assert said in refused.output


def test_a_database_with_a_damaged_page_is_no_backup(serve: Callable[..., ServerHere], site: Site, target: Path) -> None:
    server = serve()
    for _ in range(30):
        server.api.submit("good", request={"tasks": ["t" * 100]})
    server.start_no_more()
    eventually(lambda: server.idle)
    server.stop()
    path = site.folder / "data" / DATABASE_NAME
    intact = path.read_bytes()
    for page in range(0, len(intact), 4096):
        path.write_bytes(intact[:page] + b"\xff" * 4096 + intact[page + 4096 :])
        damaged = command("backup", target / str(page), "--config", site.config)
        assert damaged.exit_code == 2, f"the page at {page}: {damaged.output}"
        assert not (target / str(page) / BACKUP_MARKER).exists()


def test_a_job_that_is_deleted_meanwhile_is_not_there_without_its_files(
    api: Api, site: Site, target: Path, new: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., ServerHere]
) -> None:
    gone, kept = api.run("good"), api.run("good")
    copy = backup._copy_files

    def deleting(*arguments: Any) -> list[str]:
        api.DeleteJob(job_id=gone.job_id)
        eventually(lambda: not (site.folder / "data" / "jobs" / gone.job_id).exists())
        return copy(*arguments)

    monkeypatch.setattr(backup, "_copy_files", deleting)
    assert make_backup(site.folder / "data", target, CLOCK) == (1, [])
    restore_backup(target, new, CLOCK)
    assert set(all_jobs(serve(data_dir=str(new)).api)) == {kept.job_id}


def test_only_files_of_jobs_that_have_ended_are_shared_with_the_server(api: Api, site: Site, target: Path) -> None:
    done, running = api.run("good"), api.submit("slow")
    site.wait_for_log(running.job_id)
    back_up(site, target)
    logs = [Path("jobs") / job.job_id / "attempt-1" / "log" for job in (done, running)]
    assert [(target / log).samefile(site.folder / "data" / log) for log in logs] == [True, False]
    before = (target / logs[1]).read_bytes()
    site.release()
    api.wait_for(running.job_id, *TERMINAL)
    assert (target / logs[1]).read_bytes() == before != b""


def test_on_another_disk_files_are_copied_and_all_is_private(api: Api, site: Site, tmp_path: Path) -> None:
    job = api.run("litters")
    with small_disk(tmp_path / "disk", "64m") as disk:
        back_up(site, disk / "backup")
        modes = {path.stat().st_mode & 0o077 for path in (disk / "backup", *(disk / "backup").iterdir())}
        assert modes == {0}
        restore(disk / "backup", tmp_path / "new")
    assert (tmp_path / "new" / "jobs" / job.job_id / "attempt-1" / "output" / RESULTS).exists()
    for data_dir in (tmp_path / "new", site.folder / "data"):  # they are too deep for others to remove
        assert remove_tree(data_dir / "jobs") is None


def test_a_disk_that_is_too_small_makes_no_backup(api: Api, site: Site, tmp_path: Path) -> None:
    api.run("loud")
    with small_disk(tmp_path / "disk", "2m") as disk:
        refused = command("backup", disk / "backup", "--config", site.config)
        assert refused.exit_code == 2
        assert not (disk / "backup" / BACKUP_MARKER).exists()


def test_a_backup_that_is_restored_stays_as_it_is(api: Api, site: Site, target: Path, new: Path) -> None:
    add_token(site.folder / "data", "alice", "submitter")
    api.run("good")
    back_up(site, target)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    before = files()
    restore(target, new)
    assert files() == before


def test_tokens_come_along(api: Api, site: Site, target: Path, new: Path) -> None:
    api.run("good")
    with closing(sqlite3.connect(site.folder / "data" / "tokens.sqlite3")) as tokens:
        tokens.execute("CREATE TABLE tokens (token_id TEXT)")
        tokens.execute("INSERT INTO tokens VALUES ('abc')")
        tokens.commit()
    back_up(site, target)
    restore(target, new)
    with closing(sqlite3.connect(new / "tokens.sqlite3")) as tokens:
        assert tokens.execute("SELECT * FROM tokens").fetchall() == [("abc",)]


def test_programs_read_json(api: Api, site: Site, target: Path, new: Path) -> None:
    api.run("good")
    for arguments, folder in (
        (("backup", target, "--config", site.config), target),
        (("restore", target, "--data-dir", new), new),
    ):
        done = command(*arguments, "--json")
        assert json.loads(done.stdout) == {"folder": str(folder), "job_count": 1, "problems": []}


def test_files_that_can_not_be_read_are_said(
    api: Api, site: Site, target: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.run("good")
    monkeypatch.setattr(backup, "copy_tree", lambda *_, **__: ["a: Permission denied", "b: Permission denied"])
    done = command("backup", target, "--config", site.config)
    assert done.exit_code == 1
    assert f"job {job.job_id}: 2 files can't be read, such as a: Permission denied" in done.output
    monkeypatch.undo()
    restore(target, new)
