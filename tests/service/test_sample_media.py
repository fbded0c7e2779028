"""What samples refer to, of real jobs: sent, or with the reason why not, whatever a run has left."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from http_calls import http_of
from serving import NOWHERE, Api, ServerHere, Site, fields_of, reason_of
from waiting import eventually

from evalrpc.client import EvalClient
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.samples_pb2 import ReadSampleMediaResponse

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
OUTSIDE = "outside of the job's folder"


class Samples:
    """A job whose samples a test has written."""

    def __init__(self, server: ServerHere) -> None:
        self.server = server
        self.job: pb.JobInfo = server.api.run()
        self.folder = Path(server.api.get(self.job.job_id).attempts[0].output_dir)

    def write(self, *rows: Mapping[str, object]) -> None:
        path = self.folder / "toy" / "20260101_000000_samples_t.jsonl"
        path.write_text("".join(json.dumps({"doc_id": number, **row}) + "\n" for number, row in enumerate(rows)))

    def read(self, sample_id: str = "0", **fields: Any) -> Sequence[ReadSampleMediaResponse]:
        if "sample_token" not in fields:
            fields["sample_id"] = sample_id
        return list(self.server.api.ReadSampleMedia(job_id=self.job.job_id, **fields))

    def of(self, *references: str) -> Sequence[ReadSampleMediaResponse]:
        """Write a sample that refers to these, and read them."""
        self.write({"input_media": references})
        return self.read()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the operator's, to which a link leads."""
    folder = tmp_path_factory.mktemp("roots")
    (folder / "real").mkdir()
    (folder / "root").symlink_to(folder / "real")
    return folder / "root"


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHere]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.set_up(media_roots=[str(root)])
    server = ServerHere(site.settings(http_listen="127.0.0.1:0"))
    yield server
    eventually(lambda: server.idle, "for the runs to end")
    server.stop()


@pytest.fixture
def samples(server: ServerHere) -> Samples:
    return Samples(server)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def problem_of(media: Sequence[ReadSampleMediaResponse]) -> str:
    (medium,) = media
    assert not medium.data
    return medium.problem


def test_data_of_any_size_comes_as_its_bytes_with_the_type_that_these_tell(samples: Samples) -> None:
    large = PNG + os.urandom(3 * 1024 * 1024)
    samples.write({"a": url(large, "image/svg+xml"), "b": url(SVG, "image/svg+xml"), "c": "data:image/png,%3Chtml%3E"}, {})
    media = samples.read()
    assert [each.index for each in media] == [0, 0, 0, 0, 1, 2]
    assert b"".join(each.data for each in media[:4]) == large
    assert [each.offset for each in media[:4]] == [place * 1024 * 1024 for place in range(4)]
    assert [(each.source, each.media_type, each.size_bytes) for each in (media[0], *media[4:])] == [
        ("a", "image/png", len(large)),
        ("b", "application/octet-stream", len(SVG)),
        ("c", "application/octet-stream", 6),
    ]
    assert not samples.read("1")
    assert [each.index for each in samples.read(start_index=1)] == [1, 2]
    assert [each.index for each in samples.read(start_index=1, max_media=1)] == [1]
    assert not samples.read(start_index=3)


def test_files_come_from_the_jobs_folder_and_the_roots(samples: Samples, root: Path) -> None:
    (samples.folder / "toy" / "a.png").write_bytes(PNG)
    (root / "set").mkdir()
    (root / "set" / "b.png").write_bytes(PNG + b"b")
    (samples.folder / "empty.png").touch()
    paths = ("toy/a.png", str(samples.folder / "toy" / "a.png"), f"file://{root}/set/b.png", "set/b.png", "empty.png")
    media = samples.of(*paths)
    assert [each.problem for each in media] == [""] * 5
    assert [each.data for each in media] == [PNG, PNG, PNG + b"b", PNG + b"b", b""]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../log", "toy/../../log", "/proc/self/environ", "file:///etc/passwd", "//etc/passwd"]
)
def test_a_path_that_leads_elsewhere_is_not_followed(samples: Samples, path: str) -> None:
    assert "it can't be read" in (problem := problem_of(samples.of(path))) or OUTSIDE in problem


def test_another_jobs_files_are_not_given(samples: Samples) -> None:
    other = samples.server.api.run("also_good")
    results = samples.server.api.get(other.job_id).results["toy"].results
    assert OUTSIDE in problem_of(samples.of(results))


def test_neither_links_nor_what_is_no_regular_file_is_read(samples: Samples, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    for folder in (samples.folder, root):
        (folder / "link.png").symlink_to(secret)
        (folder / "there").symlink_to(tmp_path)
        os.mkfifo(folder / "fifo.png")
        (folder / "folder.png").mkdir()
    names = ("link.png", "there/secret.png", "fifo.png", "folder.png", "vanished.png")
    for media in samples.of(*names, *(str(root / name) for name in names)):
        assert "it can't be read" in media.problem
        assert not media.data


def test_links_below_a_root_are_followed_as_in_a_cache_of_hugging_face(samples: Samples, root: Path) -> None:
    snapshot, blobs = root / "datasets--a" / "snapshots" / "1f3", root / "datasets--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5d41").write_bytes(PNG)
    (snapshot / "a.png").symlink_to("../../blobs/5d41")
    media = samples.of(str(snapshot / "a.png"), "datasets--a/snapshots/1f3/a.png")
    assert [(each.data, each.problem) for each in media] == [(PNG, "")] * 2
    (samples.folder / "a.png").symlink_to("b.png")
    (samples.folder / "b.png").write_bytes(PNG)
    assert "it can't be read" in problem_of(samples.of(str(samples.folder / "a.png"))), "a run has made that one"


def test_a_folder_of_the_job_that_became_a_link_leads_nowhere(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    samples.write({"image": "toy/a.png"})
    token = samples.server.api.ListSamples(job_id=samples.job.job_id).sample_tokens[0]
    (samples.folder / "toy").rename(samples.folder / "old")
    (samples.folder / "toy").symlink_to(tmp_path)
    with pytest.raises(grpc.RpcError) as caught:
        samples.read(sample_token=token)
    assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


def test_what_can_not_be_sent_holds_up_nothing_else(samples: Samples) -> None:
    media = samples.of("https://example.org/a.png", "data:image/png;base64,?", "a\0b.png", "x" * 4096, url(PNG))
    assert [bool(each.problem) for each in media] == [True, True, True, False]
    assert "another server" in media[0].problem
    assert media[3].data == PNG


def test_a_token_finds_what_an_id_does_and_only_in_its_own_job(samples: Samples) -> None:
    samples.write(*({"image": url(PNG + bytes([number]))} for number in range(5)))
    api, job_id = samples.server.api, samples.job.job_id
    listed = api.ListSamples(job_id=job_id, page_size=2)
    rest = api.ListSamples(job_id=job_id, page_token=listed.next_page_token)
    tokens = [*listed.sample_tokens, *rest.sample_tokens]
    for number, token in enumerate(tokens):
        (by_token,), (by_id,) = samples.read(sample_token=token), samples.read(str(number))
        assert by_token == by_id
        assert by_id.data == PNG + bytes([number])
    other = api.run("also_good")
    with pytest.raises(grpc.RpcError) as caught:
        list(api.ReadSampleMedia(job_id=other.job_id, sample_token=tokens[0]))
    assert fields_of(caught.value) == ["page_token"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["sample_id"]),
        ({"sample_id": "1", "sample_token": "x"}, ["sample_id"]),
        ({"sample_id": "1", "start_index": -1, "max_media": -1}, ["start_index", "max_media"]),
        ({"sample_id": "x" * 1025}, ["sample_id"]),
        ({"sample_token": "x"}, ["page_token"]),
    ],
)
def test_bad_fields_are_named(samples: Samples, fields: Mapping[str, Any], named: Sequence[str]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(samples.server.api.ReadSampleMedia(job_id=samples.job.job_id, **fields))
    assert fields_of(caught.value) == named


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"job_id": NOWHERE, "sample_id": "0"}, "JOB_NOT_FOUND"),
        ({"sample_id": "99"}, "SAMPLES_NOT_FOUND"),
        ({"sample_id": "0", "task": "u"}, "SAMPLES_NOT_FOUND"),
        ({"sample_id": "0", "model": "no"}, "SAMPLES_NOT_FOUND"),
    ],
)
def test_what_is_not_there_is_said(samples: Samples, fields: Mapping[str, Any], reason: str) -> None:
    samples.write({})
    with pytest.raises(grpc.RpcError) as caught:
        list(samples.server.api.ReadSampleMedia(**{"job_id": samples.job.job_id, **fields}))
    assert reason_of(caught.value) == reason


def test_over_http_nothing_is_ever_a_page(samples: Samples) -> None:
    http, job_id = http_of(samples.server), samples.job.job_id
    samples.write({"images": [url(PNG), url(SVG, "image/svg+xml"), "data:image/png,%3Cscript%3E", "/etc/passwd"]})
    types = ("image/png", "application/octet-stream", "application/octet-stream")
    for index, (kind, data) in enumerate(zip(types, (PNG, SVG, b"<script>"), strict=True)):
        answer = http.get(f"/v1/jobs/{job_id}/media/{index}?sample_id=0")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, data, kind)
        name = ("0.png", "1.bin", "2.bin")[index]
        assert answer.headers["content-disposition"] == f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    for index in (3, 4):
        refused = http.get(f"/v1/jobs/{job_id}/media/{index}?sample_id=0")
        assert (refused.status, refused.json["code"]) == (404, "not_found")
    assert http.get(f"/v1/jobs/{job_id}/media/0").status == 400
    with http.stream("ReadSampleMedia", {"jobId": job_id, "sampleId": "0", "maxMedia": 1}) as messages:
        first, end = messages
    assert base64.b64decode(first["data"]) == PNG
    assert end == {"end": {}}


def test_the_client_joins_what_comes_in_pieces(samples: Samples) -> None:
    large = PNG + os.urandom(2 * 1024 * 1024)
    samples.write({"images": [url(large), "/etc/passwd", url(PNG)]})
    with EvalClient(samples.server.api.address) as client:
        media = list(client.sample_media(samples.job.job_id, 0))
        bounded = list(client.sample_media(samples.job.job_id, 0, max_bytes=1000))
    assert [(each.index, each.data) for each in media] == [(0, large), (1, b""), (2, PNG)]
    assert OUTSIDE in media[1].problem
    assert ["max_bytes" in each.problem for each in bounded] == [True, False, False]


def test_the_command_writes_files(samples: Samples, tmp_path: Path) -> None:
    samples.write({"images": [url(PNG), url(SVG, "image/svg+xml"), "/etc/passwd"]})
    program = (sys.executable, "-m", "evalrpc", "--address", samples.server.api.address)
    result = subprocess.run(
        (*program, "media", samples.job.job_id, "0", str(tmp_path / "media")), check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.splitlines()) == (
        1,
        [str(tmp_path / "media" / name) for name in ("0.png", "1.bin")],
    )
    assert f"2 is missing: images[2]: it lies {OUTSIDE}" in result.stderr
    assert (tmp_path / "media" / "0.png").read_bytes() == PNG
    assert not (tmp_path / "media" / "2.bin").exists()


def test_samples_are_chosen_among_all_of_a_job(samples: Samples, tmp_path: Path) -> None:
    samples.write(*({"acc": number % 2, "resps": [[f"answer {number}"]]} for number in range(500)))
    api, job_id = samples.server.api, samples.job.job_id

    def listed(**wanted: Any) -> list[int]:
        rows: list[int] = []
        token = ""
        while True:
            page = api.ListSamples(job_id=job_id, page_size=40, page_token=token, filter=wanted)
            rows += [int(row["doc_id"]) for row in page.samples]
            assert len(page.sample_tokens) == len(page.samples)
            token = page.next_page_token
            if not token:
                return rows

    assert listed(metric="acc", min_value=1) == list(range(1, 500, 2))
    assert listed(text="ANSWER 49") == [49, *range(490, 500)]
    assert listed(sample_ids=["7", "499"]) == [7, 499]
    assert listed(text="no such text") == []
    with EvalClient(api.address) as client:
        assert [row["doc_id"] for row in client.samples(job_id, filter={"metric": "acc", "max_value": 0, "text": "499"})] == []
    first = api.ListSamples(job_id=job_id, page_size=1, filter={"text": "9"})
    with pytest.raises(grpc.RpcError) as caught:
        api.ListSamples(job_id=job_id, page_token=first.next_page_token, filter={"text": "8"})
    assert fields_of(caught.value) == ["page_token"]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"min_value": 1}, ["filter.metric"]),
        ({"metric": "acc", "max_value": float("nan")}, ["filter.max_value"]),
        ({"text": "x" * 1025, "sample_ids": ["", "x" * 1025]}, ["filter.text", "filter.sample_ids[1]"]),
        ({"sample_ids": ["x"] * 1001}, ["filter.sample_ids"]),
    ],
)
def test_a_bad_filter_is_named(api: Api, wanted: Mapping[str, Any], named: Sequence[str]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.ListSamples(job_id=NOWHERE, filter=wanted)
    assert fields_of(caught.value) == named
