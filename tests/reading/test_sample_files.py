"""Sample files, opened as the server opens them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.errors import ArtifactNotFoundError, InvalidRequestError, SamplesNotFoundError
from evalrpc.harnesses.base import Harness, SampleRow
from evalrpc.harnesses.command import CommandHarness
from evalrpc.reading.sample_files import open_samples
from evalrpc.v1.jobs_pb2 import JobInfo

LINES = "20260214_103045_samples_t.jsonl"
HARNESS = CommandHarness(HarnessSettings("mine", "command", command=("program",)))


class PairsHarness(CommandHarness):
    """Has its own sample format: an id and a value per line, separated by a colon."""

    def read_samples(self, file: BinaryIO, offset: int) -> Iterator[SampleRow]:
        file.seek(offset)
        for line in iter(file.readline, b""):
            name, value = line.decode().split(":")
            yield SampleRow({"doc_id": name, "acc": float(value)}, file.tell())


PAIRS = PairsHarness(HarnessSettings("mine", "command", command=("program",)))


def rows(folder: Path, name: str, harness: Harness | None = HARNESS, offset: int = 0) -> list[SampleRow]:
    job = JobInfo(job_id="job-1")
    job.request.harness = "mine"
    with open_samples(job, folder, str(folder / name), {"mine": harness} if harness else {}, offset) as found:
        return list(found)


@pytest.mark.parametrize("harness", [HARNESS, PAIRS, None])
def test_a_json_object_on_every_line_needs_no_harness(harness: Harness | None, tmp_path: Path) -> None:
    (tmp_path / LINES).write_text('{"doc_id": 1}\n[2]\n{"doc_id": 3}')
    found = rows(tmp_path, LINES, harness)
    assert found == [SampleRow({"doc_id": 1}, 14), SampleRow({"doc_id": 3}, 31)]
    assert rows(tmp_path, LINES, harness, found[0].end) == found[1:]


def test_any_other_file_is_read_by_the_harness_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("a:1\nb:0\n")
    found = rows(tmp_path, "pairs", PAIRS)
    assert [row.values for row in found] == [{"doc_id": "a", "acc": 1.0}, {"doc_id": "b", "acc": 0.0}]
    assert rows(tmp_path, "pairs", PAIRS, found[0].end) == found[1:]


@pytest.mark.parametrize("harness", [HARNESS, None])
def test_without_a_harness_that_reads_the_file_it_is_said_so(harness: Harness | None, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("a:1\n")
    message = r"job job-1: the samples in pairs are in the format of the harness mine, which this server does not have"
    with pytest.raises(SamplesNotFoundError, match=message):
        rows(tmp_path, "pairs", harness)


@pytest.mark.parametrize("content", [b"a:1\nb\n", b"a:1\n\xff:1\n"])
def test_what_the_harness_does_not_understand_is_reported_where_it_comes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_bytes(content)
    with pytest.raises(SamplesNotFoundError, match=r"the samples in pairs can't be read to their end: .+; ReadArtifact gives"):
        rows(tmp_path, "pairs", PAIRS)


@pytest.mark.parametrize("name", [LINES, "pairs"])
def test_a_file_that_is_gone_or_a_link_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError):
        rows(tmp_path, name, PAIRS)
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text(json.dumps({"doc_id": 0}))
    (tmp_path / "out" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactNotFoundError):
        rows(tmp_path / "out", name, PAIRS)


def test_an_offset_past_the_end_is_a_bad_page_token(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text("{}\n")
    assert rows(tmp_path, LINES, offset=3) == []
    with pytest.raises(InvalidRequestError, match="page_token: lies past the end"):
        rows(tmp_path, LINES, offset=4)
