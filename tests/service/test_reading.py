"""What a remote client reads: logs, files, samples. Never a byte from outside the job's own folder."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from serving import CANCELLED, COMPLETED, NOWHERE, Api, Launch, ServerHere, Site, fields_of, reason_of
from waiting import eventually

from evalrpc.client import EvalClient
from evalrpc.files.opening import list_files
from evalrpc.reading.sample_files import SampleRows, read_lines
from evalrpc.reading.sample_pages import read_page


def read(api: Api, job_id: str, name: str, **fields: int) -> bytes:
    return b"".join(chunk.data for chunk in api.ReadArtifact(job_id=job_id, name=name, **fields))


def output_dir(api: Api, job_id: str) -> Path:
    return Path(api.get(job_id).attempts[-1].output_dir)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def submit_until_refused(api: Api) -> None:
    while True:
        api.submit("good")


def test_a_log_comes_whole_or_from_an_offset_and_names_its_attempt(api: Api, site: Site) -> None:
    job = api.run("fails")
    whole = b"".join(chunk.data for chunk in api.ReadLog(job_id=job.job_id))
    assert whole.decode() == site.log_of(job.job_id)
    chunks = list(api.ReadLog(job_id=job.job_id, offset=6))
    assert (chunks[0].offset, chunks[0].attempt, chunks[0].data) == (6, 1, whole[6:])
    assert list(api.ReadLog(job_id=job.job_id, offset=len(whole))) == []


def test_following_a_log_gives_every_byte_once_and_ends_with_the_job(api: Api, site: Site) -> None:
    job = api.submit("slow")
    received = b""
    for chunk in api.ReadLog(job_id=job.job_id, follow=True):
        assert chunk.offset == len(received)
        received += chunk.data
        if b"ready" in received:
            site.release()
    assert received.decode() == site.log_of(job.job_id)
    assert received.endswith(b"Evaluating: 4/4\n")
    assert api.get(job.job_id).status == COMPLETED


def test_following_the_log_of_a_queued_job_waits_for_it_and_ends_when_it_is_cancelled(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    api = serve(gpus="1").api
    first = api.submit("slow", request={"num_gpus": 1})
    second = api.submit("good", request={"num_gpus": 1})
    third = api.submit("good", request={"num_gpus": 1})
    follow_second = api.ReadLog(job_id=second.job_id, follow=True)
    follow_third = api.ReadLog(job_id=third.job_id, follow=True)
    api.CancelJob(job_id=third.job_id)
    with pytest.raises(grpc.RpcError) as error:
        list(follow_third)
    assert reason_of(error.value) == "ATTEMPT_NOT_FOUND"
    site.wait_for_log(first.job_id)
    site.release()
    assert b"".join(chunk.data for chunk in follow_second) == b"4/4\n"


def test_each_attempt_has_a_log_of_its_own(api: Api, site: Site) -> None:
    job = api.run("flaky", max_attempts=2)
    assert job.status == COMPLETED
    assert b"".join(chunk.data for chunk in api.ReadLog(job_id=job.job_id, attempt=1)) == b""
    assert b"".join(chunk.data for chunk in api.ReadLog(job_id=job.job_id)) == b"4/4\n"


def test_each_attempt_has_files_of_its_own(api: Api) -> None:
    job = api.run("flaky", max_attempts=2)
    name = "toy/20260101_000000_results.json"

    def value(attempt: int) -> float:
        chunks = api.ReadArtifact(job_id=job.job_id, name=name, attempt=attempt)
        return json.loads(b"".join(chunk.data for chunk in chunks))["results"]["t"]["acc,none"]

    assert [value(attempt) for attempt in (1, 2, 0)] == [0.1, 0.5, 0.5]
    listed = [api.ListArtifacts(job_id=job.job_id, attempt=attempt).artifacts for attempt in (1, 2, 0)]
    assert [artifact.name for artifact in listed[0]] == [artifact.name for artifact in listed[1]]
    assert listed[0] != listed[1] == listed[2]
    for call in (api.ListArtifacts, lambda **fields: list(api.ReadArtifact(name=name, **fields))):
        for attempt, reason in ((3, "ATTEMPT_NOT_FOUND"), (-1, "INVALID_REQUEST")):
            with pytest.raises(grpc.RpcError) as error:
                call(job_id=job.job_id, attempt=attempt)
            assert reason_of(error.value) == reason


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"offset": 1 << 40}, "OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE"),
        ({"attempt": 2}, "NOT_FOUND", "ATTEMPT_NOT_FOUND"),
        ({"offset": -1}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"attempt": -1}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"job_id": NOWHERE}, "NOT_FOUND", "JOB_NOT_FOUND"),
    ],
)
def test_a_log_that_is_not_there_is_a_clear_error(api: Api, fields: dict[str, object], code: str, reason: str) -> None:
    job = api.run("good")
    with pytest.raises(grpc.RpcError) as error:
        list(api.ReadLog(**{"job_id": job.job_id, **fields}))
    assert error.value.code().name == code
    assert reason_of(error.value) == reason


def test_artifacts_are_listed_with_size_and_checksum_and_come_back_byte_by_byte(api: Api) -> None:
    job = api.run("good")
    listed = api.ListArtifacts(job_id=job.job_id, checksums=True).artifacts
    assert [artifact.name for artifact in listed] == sorted(artifact.name for artifact in listed)
    assert len(listed) == 2
    for artifact in listed:
        data = read(api, job.job_id, artifact.name)
        assert len(data) == artifact.size_bytes
        assert hashlib.sha256(data).hexdigest() == artifact.sha256
        assert read(api, job.job_id, artifact.name, offset=3, limit=5) == data[3:8]
        assert read(api, job.job_id, artifact.name, offset=len(data)) == b""


def test_a_file_of_many_chunks_comes_whole_and_resumes_at_any_offset(api: Api) -> None:
    job = api.run("good")
    data = os.urandom(3 * 1024 * 1024 + 17)
    (output_dir(api, job.job_id) / "large.bin").write_bytes(data)
    assert read(api, job.job_id, "large.bin") == data
    assert read(api, job.job_id, "large.bin", offset=1024 * 1024 + 1) == data[1024 * 1024 + 1 :]
    sizes = {chunk.size_bytes for chunk in api.ReadArtifact(job_id=job.job_id, name="large.bin")}
    assert sizes == {len(data)}


@pytest.mark.parametrize("name", ["", "..", "../log", "a/../../log", "/etc/passwd", "./toy", "toy//x", "toy/", "a\0b", "/"])
def test_a_name_that_leaves_the_folder_is_refused(api: Api, name: str) -> None:
    job = api.run("good")
    with pytest.raises(grpc.RpcError) as error:
        read(api, job.job_id, name)
    assert fields_of(error.value) == ["name"]


def test_links_are_neither_listed_nor_followed(api: Api, tmp_path: Path) -> None:
    job = api.run("good")
    folder = output_dir(api, job.job_id)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the operator's")
    (folder / "file-link").symlink_to(secret / "key")
    (folder / "folder-link").symlink_to(secret)
    (folder / "hole").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    names = [artifact.name for artifact in api.ListArtifacts(job_id=job.job_id).artifacts]
    assert all(name.startswith("toy/") for name in names)
    for name in ("file-link", "folder-link/key", "hole", "pipe", "toy", "toy/20260101_000000_results.json/x"):
        with pytest.raises(grpc.RpcError) as error:
            read(api, job.job_id, name)
        assert reason_of(error.value) == "ARTIFACT_NOT_FOUND"


def test_a_folder_that_becomes_a_link_under_the_reader_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "file").write_text("mine")
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "out")
    assert [file.name for file in list_files(tmp_path / "out")] == ["sub/file"]


def test_a_client_downloads_every_file_whatever_its_name(server: ServerHere, tmp_path: Path) -> None:
    job = server.api.run("good")
    names = {
        *(
            b"back\\slash",
            "字".encode() * 80,
            b"x" * 255,
            b"Name",
            b"name",
            b"caf\xe9/\xff\xfe",
            b"new\nline",
            b"\x1b[2J",
            b"-rf *",
        ),
        *("größe.json".encode(), b"%ff", b"..."),
    }
    for name in names:
        path = output_dir(server.api, job.job_id) / "odd" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)

    with EvalClient(server.address) as client:
        paths = client.download(job.job_id, tmp_path / "here")

    odd = {os.fsencode(path.relative_to(tmp_path / "here" / "odd")): path for path in paths if "odd" in path.parts}
    assert odd.keys() == names
    assert all(path.read_bytes() == name for name, path in odd.items())


def test_samples_come_in_pages_in_the_order_of_the_file(api: Api) -> None:
    job = api.run("good")
    token, rows = "", []
    while True:
        page = api.ListSamples(job_id=job.job_id, task="t", page_size=3, page_token=token)
        rows += [int(sample["doc_id"]) for sample in page.samples]
        token = page.next_page_token
        if not token:
            break
    assert rows == [0, 1, 2, 3]


def test_samples_that_do_not_exist_are_a_clear_error_that_says_what_there_is(api: Api) -> None:
    job = api.run("good")
    for fields in ({"task": "other"}, {"model": "other"}):
        with pytest.raises(grpc.RpcError, match="it has: t") as error:
            api.ListSamples(job_id=job.job_id, **fields)
        assert reason_of(error.value) == "SAMPLES_NOT_FOUND"
    failed = api.run("fails")
    with pytest.raises(grpc.RpcError, match=f"job {failed.job_id} has no samples"):
        api.ListSamples(job_id=failed.job_id)


def test_one_of_several_tasks_is_required_and_named_with_what_there_is(api: Api) -> None:
    job = api.run("good", request={"tasks": ["t", "u"]})
    with pytest.raises(grpc.RpcError, match="has samples of several tasks: t, u") as error:
        api.ListSamples(job_id=job.job_id)
    assert (error.value.code(), fields_of(error.value)) == (grpc.StatusCode.INVALID_ARGUMENT, ["task"])
    assert api.ListSamples(job_id=job.job_id, task="u").samples


def test_a_page_token_of_another_listing_is_refused(api: Api) -> None:
    job, other = api.run("good"), api.run("good")
    token = api.ListSamples(job_id=job.job_id, page_size=1).next_page_token
    for fields in ({"job_id": other.job_id, "page_token": token}, {"job_id": job.job_id, "page_token": "nonsense"}):
        with pytest.raises(grpc.RpcError) as error:
            api.ListSamples(**fields)
        assert fields_of(error.value) == ["page_token"]


def test_any_jsonl_file_can_be_paged_whatever_is_in_it(tmp_path: Path) -> None:
    lines = [
        json.dumps({"n": float("nan"), "big": 2**60, "nested": {"list": [1, None, {"x": "ü"}]}}),
        "no json",
        "[1, 2]",
        "",
        '{"half": "\\ud83d"}',
        "[" * 100_000,
        json.dumps({"long": "x" * 600_000}),
        '{"cr": "a\\r"}\r',
        '{"last": true}',
    ]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    offset: int | None = 0
    keys = []
    while offset is not None:
        with (tmp_path / "s.jsonl").open("rb") as file:
            page = read_page(SampleRows(read_lines(file, offset), offset), 1)
        keys += [min(row.fields) for row in page.rows]
        offset = page.next_offset
    assert keys == ["big", "half", "long", "cr", "last"]


def test_deleting_a_job_takes_its_files_along_and_leaves_those_of_others(api: Api, site: Site) -> None:
    job, other = api.run("good"), api.run("good")
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: names_in(site.folder / "data" / "jobs") == {other.job_id}, "for the files to be removed")
    with pytest.raises(grpc.RpcError) as error:
        api.get(job.job_id)
    assert reason_of(error.value) == "JOB_NOT_FOUND"


def test_a_job_that_is_not_over_is_not_deleted(api: Api, site: Site) -> None:
    job = api.submit("slow")
    with pytest.raises(grpc.RpcError) as error:
        api.DeleteJob(job_id=job.job_id)
    assert reason_of(error.value) == "JOB_NOT_FINISHED"
    site.release()
    api.wait_for(job.job_id, COMPLETED)


def test_deleting_takes_only_the_jobs_own_part_of_a_chosen_output_folder(serve: Callable[..., ServerHere], site: Site) -> None:
    root = site.folder / "results"
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "notes").write_text("keep me")
    api = serve(output_root=root).api
    job = api.run("good", request={"output_dir": "mine"})
    assert Path(job.attempts[0].output_dir).is_relative_to(root / "mine" / job.job_id)
    assert api.ListArtifacts(job_id=job.job_id).artifacts
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: names_in(root / "mine") == {"notes"}, "for the files to be removed")


def test_old_jobs_are_removed_with_their_files_and_live_ones_never(launch: Launch, site: Site) -> None:
    site.config.write_text("retention_max_jobs = 1\n" + site.config.read_text())
    server = launch()
    slow = server.api.submit("slow")
    old, last = server.api.run("good"), server.api.run("good")
    site.wait_for_log(slow.job_id)
    server.kill()
    (site.folder / "data" / "jobs" / NOWHERE).mkdir()
    api = launch().api  # housekeeping runs at start
    kept = {slow.job_id, last.job_id}
    eventually(lambda: names_in(site.folder / "data" / "jobs") == kept, "for what is old and what is nobody's to go")
    with pytest.raises(grpc.RpcError) as error:
        api.get(old.job_id)
    assert reason_of(error.value) == "JOB_NOT_FOUND"
    site.release()
    api.wait_for(slow.job_id, COMPLETED)


def test_a_drain_waits_for_what_runs_and_starts_nothing_more(launch: Launch, site: Site) -> None:
    server = launch("--drain", "--gpus", "1")
    running = server.api.submit("slow", request={"num_gpus": 1})
    waiting = server.api.submit("good", request={"num_gpus": 1})
    events = server.api.watch(running.job_id)
    site.wait_for_log(running.job_id)
    server.process.terminate()
    with pytest.raises(grpc.RpcError) as error:
        submit_until_refused(server.api)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    site.release(running.job_id)
    assert list(events)[-1].job.status == COMPLETED, "its watcher is served to the end"
    assert server._end() == 0
    after = launch().api
    assert after.get(running.job_id).status == COMPLETED
    assert after.wait_for(waiting.job_id, COMPLETED, CANCELLED).attempt == 1
