"""A run that puts a link, a FIFO, a socket, a folder or a device in the place of what it leaves: nothing hangs, nothing outside
is read, the error says what was found, and other jobs notice nothing."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from serving import CANCELLED, COMPLETED, FAILED, TERMINAL, Api, Launch, Site, nothing_left_of, reason_of
from special_files import KINDS, put
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

RESULTS, SAMPLES = "toy/20260101_000000_results.json", "toy/20260101_000000_samples_t.jsonl"
READERS = 4


def calls_of(api: Api, job_id: str) -> dict[str, Callable[[], object]]:
    return {
        "log": lambda: list(api.ReadLog(job_id=job_id)),
        "list": lambda: api.ListArtifacts(job_id=job_id),
        "results": lambda: list(api.ReadArtifact(job_id=job_id, name=RESULTS)),
        "samples file": lambda: list(api.ReadArtifact(job_id=job_id, name=SAMPLES)),
        "samples": lambda: api.ListSamples(job_id=job_id),
    }


def refusals(api: Api, job_id: str) -> dict[str, tuple[str, str]]:
    """Return the reason and the text of each call that was refused. If a call hung, so many at once would hold all readers."""
    with ThreadPoolExecutor(READERS + 1) as callers:
        errors = {
            name: [callers.submit(refusal, call) for _ in range(READERS + 1)] for name, call in calls_of(api, job_id).items()
        }
        return {name: error for name, futures in errors.items() for future in futures if (error := future.result(SECONDS))}


def refusal(call: Callable[[], object]) -> tuple[str, str] | None:
    try:
        call()
    except grpc.RpcError as error:
        return reason_of(error), str(error.details())
    return None


def outcome_of(api: Api, site: Site, place: str, kind: str) -> tuple[int, str, str]:
    """Let a run put something in the place of a file. Return its status, the reason of its failure, and the message."""
    (site.toy_dir / "replace").write_text(f"{place} {kind}")
    job = api.run("replaces", request={"num_gpus": 2})
    return job.status, job.error.reason, job.error.message


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_the_place_of_a_file_is_said_and_not_served(api: Api, site: Site, kind: str) -> None:
    good, job = api.run("good"), api.run("good")
    attempt = site.folder / "data" / "jobs" / job.job_id / "attempt-1"
    found = f"it is {KINDS[kind]}, not a regular file"
    expected = {
        "log": {"log": "FILE_UNREADABLE"},
        f"output/{RESULTS}": {"results": "ARTIFACT_NOT_FOUND"},
        f"output/{SAMPLES}": {"samples file": "ARTIFACT_NOT_FOUND", "samples": "ARTIFACT_NOT_FOUND"},
    }
    for place, reasons in expected.items():
        shutil.move(attempt / place, attempt / "kept")
        put(kind, attempt / place)
        refused = refusals(api, job.job_id)
        assert {name: reason for name, (reason, _) in refused.items()} == reasons, place
        assert all(found in text and str(site.folder) not in text for _, text in refused.values()), refused
        listed = [artifact.name for artifact in api.ListArtifacts(job_id=job.job_id).artifacts]
        assert listed == [name for name in (RESULTS, SAMPLES) if place != f"output/{name}"]
        assert refusals(api, good.job_id) == {}
        (shutil.rmtree if kind == "folder" else Path.unlink)(attempt / place)
        shutil.move(attempt / "kept", attempt / place)
    assert refusals(api, job.job_id) == {}


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "folder"), "file"])
def test_what_is_in_the_place_of_an_output_folder_is_said_and_not_served(
    api: Api, site: Site, tmp_path: Path, kind: str
) -> None:
    job = api.run("good")
    outside = tmp_path / "outside"
    shutil.copytree(api_output(api, job.job_id), outside)
    for place in (".", "output"):
        attempt = site.folder / "data" / "jobs" / job.job_id / "attempt-1"
        path = attempt / place
        shutil.move(path, tmp_path / "kept")
        put(kind, path, outside if place == "output" else tmp_path / "kept")
        refused = refusals(api, job.job_id)
        assert set(refused) >= {"list", "results", "samples file", "samples"}
        assert {reason for reason, _ in refused.values()} == {"FILE_UNREADABLE"}
        assert all(f"it is {KINDS.get(kind, 'a regular file')}, not a folder" in text for _, text in refused.values())
        path.unlink()
        shutil.move(tmp_path / "kept", path)
    assert refusals(api, job.job_id) == {}


def api_output(api: Api, job_id: str) -> Path:
    return Path(api.get(job_id).attempts[-1].output_dir)


@pytest.mark.parametrize("kind", ["link", "device", "fifo", "socket", "folder"])
def test_a_run_that_replaces_its_files_ends_with_its_gpus_free_and_the_server_goes_on(api: Api, site: Site, kind: str) -> None:
    assert outcome_of(api, site, "log", kind)[0] == COMPLETED
    assert outcome_of(api, site, "run/pid", kind)[0] == COMPLETED
    assert outcome_of(api, site, "run/exit", kind)[:2] == (FAILED, "RUN_LOST")
    assert outcome_of(api, site, f"output/{SAMPLES}", kind)[0] == COMPLETED
    status, reason, _ = outcome_of(api, site, f"output/{RESULTS}", kind)
    assert (status, reason) == (FAILED, "RESULTS_MISSING")
    status, reason, _ = outcome_of(api, site, "output/toy", kind)
    assert (status, reason) == (FAILED, "RESULTS_MISSING")
    status, reason, message = outcome_of(api, site, "output", kind)
    if kind == "folder":
        assert (status, reason) == (FAILED, "RESULTS_MISSING")
    else:
        assert (status, reason) == (FAILED, "RESULTS_INVALID")
        assert "not a folder" in message
    assert api.GetQueue().free_gpu_count == 2
    assert api.run("good", request={"num_gpus": 2}).status == COMPLETED


def test_the_log_of_a_failed_run_says_what_is_in_its_place(api: Api, site: Site) -> None:
    job = api.submit("lingers")
    site.wait_for_log(job.job_id)
    log = site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "log"
    log.unlink()
    put("fifo", log)
    site.kill_runs()
    failed = api.wait_for(job.job_id, *TERMINAL)
    assert failed.status == FAILED
    assert list(failed.error.log_tail) == ["log can't be read: it is a FIFO, not a regular file (ENXIO)"]


def test_following_a_log_that_is_replaced_ends_with_what_was_found(api: Api, site: Site) -> None:
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    following = api.ReadLog(job_id=job.job_id, follow=True)
    assert next(following).data
    log = site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "log"
    log.unlink()
    put("link", log, Path("/etc/passwd"))
    with pytest.raises(grpc.RpcError, match="a symbolic link") as caught:
        list(following)
    assert reason_of(caught.value) == "FILE_UNREADABLE"
    site.release()
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED


@pytest.mark.parametrize("kind", ["fifo", "link", "socket"])
def test_traces_and_folders_that_are_replaced_hold_up_no_next_server(launch: Launch, site: Site, kind: str) -> None:
    server = launch()
    jobs = [server.api.submit("slow", request={"num_gpus": 1}) for _ in range(2)]
    for job in jobs:
        site.wait_for_log(job.job_id)
    server.kill()
    folder = site.folder / "data" / "jobs" / jobs[0].job_id / "attempt-1"
    for name in ("run/pid", "run/exit", "run/devices.json", "log", "output"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put(kind, path)
    api = launch().api
    api.CancelJob(job_id=jobs[0].job_id)
    assert api.wait_for(jobs[0].job_id, *TERMINAL).status == CANCELLED
    assert nothing_left_of(jobs[0].job_id)
    site.release()
    assert api.wait_for(jobs[1].job_id, *TERMINAL).status == COMPLETED
    eventually(lambda: api.GetQueue().free_gpu_count == 2)


@pytest.fixture
def output_root(site: Site) -> Path:
    root = site.folder / "root"
    root.mkdir()
    site.set_up(output_root=str(root))
    return root


def test_the_folder_of_an_attempt_below_the_output_root_is_not_followed_either(
    output_root: Path, api: Api, site: Site, tmp_path: Path
) -> None:
    job = api.run("good", request={"output_dir": "mine"})
    assert refusals(api, job.job_id) == {}
    for path in (output_root / "mine" / job.job_id / "attempt-1", output_root / "mine" / job.job_id, output_root / "mine"):
        shutil.move(path, tmp_path / "kept")
        put("link", path, tmp_path / "kept")
        refused = refusals(api, job.job_id)
        assert {reason for reason, _ in refused.values()} == {"FILE_UNREADABLE"}
        assert "list" in refused
        path.unlink()
        shutil.move(tmp_path / "kept", path)
