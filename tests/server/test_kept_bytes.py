"""How much of the disk the jobs of each owner take."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_jobs import CLOCK, SECONDS, submit

from evalrpc.config import QuotaSettings
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.server.job_files import JobFiles
from evalrpc.server.kept_bytes import KeptBytes
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1 import jobs_pb2 as pb

KIB = 1024
LIMITED = SharePolicy(quotas={"default": QuotaSettings(max_bytes=1)})


class Site:
    """A store, and jobs with files."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.store = SqliteStore(data_dir, CLOCK, 100)
        self.entitlements = Entitlements(LIMITED)
        self.is_stopping = False
        self.kept = KeptBytes(JobFiles(self.store, data_dir, lambda: self.is_stopping), self.entitlements)

    def run(self, owner: str, size_bytes: int, output_dir: str = "") -> str:
        """Start a job that has left so much."""
        job = submit(self.store, owner=owner, request={"output_dir": output_dir})
        folder = Path(output_dir or self.data_dir / "jobs") / job.job_id / "attempt-1"
        (self.data_dir / "jobs" / job.job_id).mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(b"x" * size_bytes)
        begin = lambda job: transitions.begin_attempt(job, (), str(folder), CLOCK.now())  # noqa: E731
        self.store.update(job.job_id, begin).result(SECONDS)
        return job.job_id

    def end(self, job_id: str) -> None:
        self.store.update(job_id, lambda job: transitions.complete(job, {}, CLOCK.now())).result(SECONDS)

    def file(self, job_id: str) -> Path:
        return self.data_dir / "jobs" / job_id / "attempt-1" / "file"

    def measured(self, owner: str) -> int:
        self.kept.measure()
        return self.entitlements.kept_bytes.get(owner, 0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "data")
    yield site
    site.store.close()


def test_each_owner_has_the_sum_of_what_is_below_the_folders_of_their_jobs(site: Site, tmp_path: Path) -> None:
    site.run("alice", 64 * KIB)
    site.run("alice", 64 * KIB, str(tmp_path / "out"))
    site.run("bob", 256 * KIB)
    assert 128 * KIB <= site.measured("alice") < 160 * KIB
    assert 256 * KIB <= site.measured("bob") < 288 * KIB
    assert site.measured("carol") == 0


def test_a_job_is_measured_anew_while_it_runs_and_once_after_its_end(site: Site) -> None:
    job_id = site.run("alice", 4 * KIB)
    assert site.measured("alice") < 32 * KIB
    site.file(job_id).write_bytes(b"x" * 256 * KIB)
    grown = site.measured("alice")
    assert grown >= 256 * KIB
    site.end(job_id)
    assert site.measured("alice") == grown
    site.file(job_id).write_bytes(b"")
    assert site.measured("alice") == grown, "what has ended does not change, so it is not looked at again"


def test_what_was_removed_counts_no_more_and_what_belongs_to_no_job_counts_for_nobody(site: Site) -> None:
    job_id = site.run("alice", 64 * KIB)
    site.end(job_id)
    assert site.measured("alice")
    site.store.delete(job_id).result(SECONDS)
    assert site.measured("alice"), "its files are still there"
    site.file(job_id).unlink()
    (site.file(job_id).parent).rmdir()
    site.file(job_id).parent.parent.rmdir()
    (site.data_dir / "jobs" / "stranger").mkdir()
    assert site.measured("alice") == 0


def test_a_link_to_much_counts_nothing_and_a_sparse_file_what_it_takes(site: Site, tmp_path: Path) -> None:
    job_id = site.run("alice", 0)
    (tmp_path / "big").write_bytes(b"x" * 1024 * KIB)
    (site.file(job_id).parent / "link").symlink_to(tmp_path)
    with (site.file(job_id).parent / "sparse").open("wb") as file:
        file.truncate(10**12)
    assert site.measured("alice") < 64 * KIB


def test_nothing_is_measured_where_no_quota_asks_for_it(site: Site) -> None:
    site.entitlements.policy = SharePolicy(quotas={"alice": QuotaSettings(max_gpus=1)})
    site.run("alice", 64 * KIB)
    assert site.measured("alice") == 0


def test_a_stop_leaves_the_sums_as_they_were(site: Site) -> None:
    site.run("alice", 64 * KIB)
    before = site.measured("alice")
    site.run("alice", 64 * KIB)
    site.is_stopping = True
    assert site.measured("alice") == before


def test_a_job_without_attempts_takes_what_its_folder_does(site: Site) -> None:
    job = submit(site.store, owner="alice", request={"output_dir": "/elsewhere"})
    assert job.status == pb.JOB_STATUS_QUEUED
    (site.data_dir / "jobs" / job.job_id).mkdir(parents=True)
    assert 0 < site.measured("alice") < 32 * KIB
