"""What stays on the disk is bounded, and what is deleted is gone, whatever runs leave."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from serving import COMPLETED, FAILED, TERMINAL, Api, Launch, ServerHere, Site, nothing_left_of
from used_folders import contents_below
from waiting import eventually

from evalrpc.server import housekeeping

MIB = 1024 * 1024


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the housekeeping of servers in this process come again and again."""
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.05)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def read(chunks: Iterator[Any]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


@pytest.mark.slow
def test_a_run_whose_log_grows_past_the_bound_is_ended_and_its_log_can_be_read(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    api = serve(max_log_bytes=MIB // 4).api
    good = api.submit("slow")
    loud = api.submit("chatter", max_attempts=3)  # on and on, until it is released
    job = api.wait_for(loud.job_id, *TERMINAL)
    assert (job.status, job.error.reason, job.attempt) == (FAILED, "LOG_TOO_LARGE", 1)
    assert str(MIB // 4) in job.error.message
    assert list(job.error.log_tail)
    assert nothing_left_of(job.job_id)
    assert len(read(api.ReadLog(job_id=job.job_id))) >= MIB // 4
    site.release()
    assert api.wait_for(good.job_id, *TERMINAL).status == COMPLETED


def test_a_run_whose_output_grows_past_the_bound_is_ended_and_its_files_can_be_read(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    api = serve(max_output_bytes=2 * MIB).api
    job = api.wait_for(api.submit("hoards", max_attempts=3).job_id, *TERMINAL)
    assert (job.status, job.error.reason, job.attempt) == (FAILED, "OUTPUT_TOO_LARGE", 1)
    assert str(2 * MIB) in job.error.message
    assert nothing_left_of(job.job_id)
    assert len(read(api.ReadArtifact(job_id=job.job_id, name="deep/er/large"))) == 4 * MIB


def test_a_run_that_ends_before_it_was_measured_is_held_to_its_bounds_too(serve: Callable[..., ServerHere]) -> None:
    api = serve(max_log_bytes=MIB, max_output_bytes=MIB).api
    assert api.run("loud").error.reason == "LOG_TOO_LARGE"
    assert api.run("large").error.reason == ""
    assert api.run("good").status == COMPLETED


@pytest.mark.usefixtures("short_pauses")
def test_after_a_deletion_no_file_of_the_server_has_any_text_of_the_job(server: ServerHere, site: Site) -> None:
    api, mark = server.api, "UNIQUE-7f3a"
    arguments = Struct()
    arguments["text"] = mark + "x" * 100_000
    request = {"model_args": arguments, "tasks": [f"t{mark}"]}
    job = api.run("good", request=request, labels={"l": mark}, request_id=mark, supersede_key=mark)
    kept = api.run("good", labels={"l": "KEPT-7f3a"})
    api.UpdateJob(job_id=job.job_id, labels={"l": f"{mark}2"}, update_mask={"paths": ["labels"]})
    data_dir = site.folder / "data"
    assert contents(data_dir).count(mark.encode()) > 3
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: mark.encode() not in contents(data_dir), "for the text to be gone")
    assert b"KEPT-7f3a" in contents(data_dir)
    assert names_in(data_dir / "jobs") == {kept.job_id}


def contents(folder: Path) -> bytes:
    """Return what all files have but the audit, which keeps the ids of jobs and of requests."""
    return b"".join(content for path, content in contents_below(folder).items() if path.name != "audit.jsonl")


def test_whatever_a_run_has_left_its_deletion_is_answered_at_once_and_all_of_it_goes(api: Api, site: Site) -> None:
    job = api.run("litters")
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: not names_in(site.folder / "data" / "jobs"), "for the files to be removed")


@pytest.mark.usefixtures("short_pauses")
def test_what_can_not_be_removed_is_said_and_goes_as_soon_as_it_can(
    api: Api, site: Site, caplog: pytest.LogCaptureFixture, immutable: Callable[[Path], Callable[[], None]]
) -> None:
    stuck, other = api.run("good"), api.run("good")
    folder = site.folder / "data" / "jobs" / stuck.job_id
    release = immutable(folder / "attempt-1" / "log")
    for job in (stuck, other):
        api.DeleteJob(job_id=job.job_id)
    eventually(lambda: names_in(site.folder / "data" / "jobs") == {stuck.job_id}, "for the other to be removed")
    assert names_in(folder) == {"attempt-1"}
    eventually(lambda: "can't remove all files of a deleted job" in caplog.text, "for the problem to be said")
    said = [record for record in caplog.records if "can't remove all files" in record.getMessage()]
    assert [record.__dict__["job_id"] for record in said] == [stuck.job_id]
    release()
    eventually(lambda: not folder.exists(), "for it to be removed after all")


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """Make a file such that not even root can remove it, until what is returned is called."""
    done: list[Path] = []

    def make(path: Path) -> Callable[[], None]:
        if os.system(f"chattr +i '{path}' 2>/dev/null"):
            pytest.skip("only root, on some file systems, can make a file immutable")
        done.append(path)
        return lambda: release(path)

    def release(path: Path) -> None:
        os.system(f"chattr -i '{path}'")
        done.remove(path)

    yield make
    while done:
        release(done[-1])


def test_what_a_kill_between_deletion_and_removal_left_is_removed_by_the_next_server(launch: Launch, site: Site) -> None:
    root = site.folder / "root"
    site.set_up(output_root=str(root))
    server = launch()
    jobs = [server.api.run("litters", request={"output_dir": name}) for name in ("mine", "")]
    assert names_in(root / "mine") == {jobs[0].job_id}
    for job in jobs:
        server.api.DeleteJob(job_id=job.job_id)
    server.kill()
    launch()
    eventually(lambda: not names_in(site.folder / "data" / "jobs") | names_in(root / "mine"), "for the files to be removed")


@pytest.mark.usefixtures("short_pauses")
def test_finished_jobs_are_deleted_until_their_files_are_small_enough(serve: Callable[..., ServerHere], site: Site) -> None:
    api = serve(retention_max_bytes=12 * MIB, journal_max_bytes=1000).api
    jobs = [api.run("loud").job_id for _ in range(4)]  # 5 MB each
    eventually(lambda: names_in(site.folder / "data" / "jobs") == set(jobs[2:]), "for the first to be deleted")
    assert [job.job_id for job in api.ListJobs().jobs] == jobs[:1:-1]
    eventually(lambda: api.GetServerInfo().oldest_revision > 0, "for the journal to be compacted")
