"""Checksums of files: only when asked for, within bounds, and what is wrong with one file concerns that file alone."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import COMPLETED, Api, ServerHere, Site
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.client import EvalClient
from evalrpc.files.read_budget import ReadLimits
from evalrpc.reading import artifacts
from evalrpc.v1.files_pb2 import Artifact

LIMITS = artifacts.CHECKSUM_LIMITS


@contextmanager
def kept_busy(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Hold all threads of a pool, as a disk that hangs does."""
    release = threading.Event()
    held = [pool.submit(release.wait) for _ in range(pool._max_workers)]
    eventually(lambda: all(each.running() for each in held))
    try:
        yield
    finally:
        release.set()
        for each in held:
            each.result(DEADLINE_SECONDS)


def output_of(api: Api, **files: bytes) -> tuple[str, Path]:
    """Run a job and put these files beside its own."""
    job = api.run("good")
    folder = Path(job.attempts[-1].output_dir)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return job.job_id, folder


def checksums_of(api: Api, job_id: str) -> dict[str, str]:
    listed: list[Artifact] = []
    token = ""
    while True:
        page = api.ListArtifacts(job_id=job_id, checksums=True, page_token=token)
        assert page.artifacts
        listed += page.artifacts
        token = page.next_page_token
        if not token:
            return {file.name: file.sha256 for file in listed if not file.name.startswith("toy/")}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_checksums_come_only_where_they_are_asked_for_and_of_a_job_that_has_ended(api: Api, site: Site) -> None:
    job_id, _ = output_of(api, a=b"1")
    assert not any(file.sha256 for file in api.ListArtifacts(job_id=job_id).artifacts)
    assert checksums_of(api, job_id) == {"a": sha256(b"1")}
    running = api.submit("slow")
    site.wait_for_log(running.job_id)
    Path(api.get(running.job_id).attempts[0].output_dir, "a").touch()
    assert checksums_of(api, running.job_id) == {"a": ""}
    site.release()
    api.wait_for(running.job_id, COMPLETED)


def test_a_file_of_terabytes_has_none_and_costs_no_time(api: Api) -> None:
    job_id, folder = output_of(api, a=b"1", c=b"3")
    with (folder / "b").open("wb") as file:
        file.truncate(4 * 1024**4)
    assert checksums_of(api, job_id) == {"a": sha256(b"1"), "b": "", "c": sha256(b"3")}


@pytest.mark.parametrize(("limits", "is_set"), [(ReadLimits(700, 3600), True), (ReadLimits(1 << 40, -1), False)])
def test_a_page_ends_where_the_budget_does_and_the_next_one_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch, limits: ReadLimits, is_set: bool
) -> None:
    job_id, _ = output_of(api, a=b"1" * 600, b=b"2" * 500, c=b"3" * 800, d=b"4" * 100)
    monkeypatch.setattr(artifacts, "CHECKSUM_LIMITS", limits)
    (first,) = api.ListArtifacts(job_id=job_id, checksums=True).artifacts
    assert first.name == "a"
    expected = {"a": sha256(b"1" * 600), "b": sha256(b"2" * 500), "c": "", "d": sha256(b"4" * 100)}
    assert checksums_of(api, job_id) == (expected if is_set else dict.fromkeys(expected, ""))


def test_a_file_that_is_changed_replaced_or_removed_meanwhile_concerns_no_other(server: ServerHere) -> None:
    api = server.api
    job_id, folder = output_of(api, a=b"1", b=b"2", c=b"3", d=b"4", e=b"5")
    with ThreadPoolExecutor() as caller:
        with kept_busy(server.server._pools.hashers):
            listing = caller.submit(checksums_of, api, job_id)
            eventually(lambda: server.server._pools.hashers._work_queue.qsize(), "for the listing to wait for its checksums")
            (folder / "a").write_bytes(b"longer")
            (folder / "b").unlink()
            (folder / "c").unlink()
            (folder / "c").symlink_to("/etc/passwd")
            (folder / "d").unlink()
            (folder / "d").mkdir()
        assert listing.result(DEADLINE_SECONDS) == {"a": "", "b": "", "c": "", "d": "", "e": sha256(b"5")}
    assert checksums_of(api, job_id) == {"a": sha256(b"longer"), "e": sha256(b"5")}


def test_a_file_of_the_same_size_and_time_is_read_again(api: Api) -> None:
    job_id, folder = output_of(api, a=b"1")
    before = (folder / "a").stat()
    assert checksums_of(api, job_id) == {"a": sha256(b"1")}
    (folder / "a").write_bytes(b"2")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checksums_of(api, job_id) == {"a": sha256(b"2")}


def test_a_file_of_any_time_has_one(api: Api) -> None:
    job_id, folder = output_of(api, early=b"early", late=b"late")
    os.utime(folder / "early", ns=(0, -(10**18)))
    os.utime(folder / "late", (0, 2**34))  # more nanoseconds than 64 bits hold
    for _ in range(2):  # computed, and known
        assert checksums_of(api, job_id) == {"early": sha256(b"early"), "late": sha256(b"late")}


def test_checksums_that_hang_hold_up_nothing_else(server: ServerHere, site: Site) -> None:
    api = server.api
    jobs = [api.run("good") for _ in range(2)]
    with kept_busy(server.server._pools.hashers):
        api.CompareJobs(baseline_job_id=jobs[0].job_id, candidate_job_ids=[jobs[1].job_id])
        assert api.ListArtifacts(job_id=jobs[0].job_id).artifacts
        assert api.ListSamples(job_id=jobs[0].job_id).samples
        assert api.GetHistory().points
        assert api.ListHarnesses().harnesses
        api.DeleteJob(job_id=jobs[1].job_id)
        eventually(lambda: not (site.folder / "data" / "jobs" / jobs[1].job_id).exists(), "for its files to be removed")


@pytest.mark.parametrize("kind", ["listers", "parsers", "hashers", "comparers", "catalogers", "removers", "measurers"])
def test_long_work_of_any_kind_holds_up_no_short_read(server: ServerHere, kind: str) -> None:
    api = server.api
    job = api.run("good")
    with kept_busy(getattr(server.server._pools, kind)):
        server.server._store._cache.remove(job.job_id)
        assert api.get(job.job_id).status == COMPLETED
        assert api.ListJobs().jobs
        assert b"".join(chunk.data for chunk in api.ReadLog(job_id=job.job_id))
        name = "toy/20260101_000000_results.json"
        assert b"".join(chunk.data for chunk in api.ReadArtifact(job_id=job.job_id, name=name))


def test_a_download_is_verified(server: ServerHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, _ = output_of(server.api, a=b"1")
    asked: list[bool] = []
    list_artifacts: Callable[..., list[Artifact]] = EvalClient.list_artifacts

    def spy(client: EvalClient, *args: object, **fields: bool) -> list[Artifact]:
        asked.append(fields["checksums"])
        return list_artifacts(client, *args, **fields)

    monkeypatch.setattr(EvalClient, "list_artifacts", spy)
    with EvalClient(server.address) as client:
        assert (tmp_path / "a") in client.download(job_id, tmp_path)
    assert asked == [True]
