"""Sample files, opened as the server opens them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.errors import ArtifactNotFoundError, InvalidRequestError, ReadLimitError, SamplesNotFoundError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.base import Harness, SampleRow
from evalrpc.harnesses.command import CommandHarness
from evalrpc.reading import sample_files
from evalrpc.reading.sample_files import SampleRows, open_samples, read_lines
from evalrpc.reading.sample_pages import read_page
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


def lines_from(data: bytes, offset: int = 0) -> SampleRows:
    return SampleRows(read_lines(io.BytesIO(data), offset), offset)


def test_the_position_is_past_what_was_read_also_past_lines_that_are_no_rows() -> None:
    data = b'{"doc_id": 1}\nnoise\n[2]\n{"doc_id": 3}\n'
    found = lines_from(data)
    positions = [found.position for _ in found]
    assert positions == [14, len(data)]
    assert lines_from(data, 20).position == 20
    assert [row.values for row in lines_from(data, 20)] == [{"doc_id": 3}]


def test_whoever_begins_within_a_line_gets_the_next_one() -> None:
    data = b'noise {"doc_id": 1}\n{"doc_id": 2}\n'
    for offset in range(1, 20):
        assert [row.values for row in lines_from(data, offset)] == [{"doc_id": 2}]
    assert [row.values for row in lines_from(data, 20)] == [{"doc_id": 2}]


def test_a_row_larger_than_any_that_is_read_has_no_values_and_its_rest_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_files, "MAX_LINE_BYTES", 20)
    long = b'{"doc_id": 2, "t": "' + b"x" * 50 + b'{"doc_id": 9}\n'
    data = b'{"doc_id": 1}\n' + long + b"-" * 30 + b'\n{"doc_id": 3}\n'
    found = [(dict(row.values), row.is_too_large) for row in lines_from(data)]
    assert found == [({"doc_id": 1}, False), ({}, True), ({"doc_id": 3}, False)]
    places = [row.end for row in lines_from(data)]
    assert [dict(row.values) for row in lines_from(data, places[1])] == [{"doc_id": 3}]


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf", b"  \t "])
def test_what_may_stand_before_a_row_is_passed_over(head: bytes) -> None:
    assert [row.values for row in lines_from(head + b'{"doc_id": 1}\n')] == [{"doc_id": 1}]


@pytest.mark.parametrize("name", [LINES, "pairs"])
def test_rows_are_read_within_a_budget_and_what_was_read_can_be_gone_on_from(name: str, tmp_path: Path) -> None:
    line = b'{"doc_id": 1}\n' if name == LINES else b"a:1\n"
    (tmp_path / name).write_bytes(line * 100_000)
    job = JobInfo(job_id="job-1")
    job.request.harness = "mine"
    counts, offset = [0], 0
    while True:
        budget = ReadBudget(ReadLimits(200 * 1024, 3600))
        with open_samples(job, tmp_path, str(tmp_path / name), {"mine": PAIRS}, offset, budget) as found:
            try:
                for _ in found:
                    counts[-1] += 1
            except ReadLimitError:
                assert found.position > offset
                offset = found.position
                counts.append(0)
            else:
                break
    assert sum(counts) == 100_000


def test_a_page_without_any_progress_is_refused(tmp_path: Path) -> None:
    (tmp_path / LINES).write_bytes(b'{"doc_id": "' + b"x" * 500_000 + b'"}\n')
    budget = ReadBudget(ReadLimits(1 << 40, 3600, max_row_bytes=100_000))
    with (
        open_samples(JobInfo(), tmp_path, str(tmp_path / LINES), {}, 0, budget) as found,
        pytest.raises(ReadLimitError, match="for one row"),
    ):
        read_page(found, 10)
