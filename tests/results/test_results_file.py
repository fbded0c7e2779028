"""The file with the complete results: whole or not there, and never trusted."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from example_count import example_count
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.results import results_file
from evalrpc.results.results_file import read_heads, read_metrics, write_results
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

RESULTS = {
    name: ModelResult(
        results=f"/{name}.json",
        samples=[f"/{name}.jsonl"],
        metrics=[Metric(task=f"t{number}", metric="acc", value=number) for number in range(3)],
        tasks=[TaskResult(task=f"t{number}") for number in range(3)],
        metric_count=3,
    )
    for name in ("b", "a")
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "complete-results"
    write_results(path, RESULTS)
    return path


def test_it_gives_back_what_was_written_sorted_by_model(path: Path) -> None:
    heads = read_heads(path)
    for name, result in RESULTS.items():
        assert not heads[name].metrics
        heads[name].metrics.extend(result.metrics)
    assert heads == RESULTS
    metrics = [(row.metric.model, row.metric.metric) for row in read_metrics(path)]
    assert metrics == [(name, metric) for name in ("a", "b") for metric in RESULTS[name].metrics]


def test_it_can_be_read_on_from_any_metric(path: Path) -> None:
    rows = list(read_metrics(path))
    for number, row in enumerate(rows, start=1):
        assert list(read_metrics(path, row.end)) == rows[number:]


def test_it_is_private_and_nothing_else_is_left(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_a_crash_has_left_is_no_file_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "complete-results"
    path.with_name(f"{path.name}.new").write_bytes(b"half of a fi")
    with pytest.raises(FileNotFoundError):
        read_heads(path)
    write_results(path, RESULTS)
    assert read_heads(path).keys() == RESULTS.keys()


def test_whoever_is_reading_goes_on_with_what_there_was(path: Path) -> None:
    rows = read_metrics(path)
    first = next(rows)
    write_results(path, {"c": ModelResult()})
    assert len([first, *rows]) == 6
    assert list(read_heads(path)) == ["c"]


def test_a_file_that_can_not_be_written_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(results_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_results(path, {"c": ModelResult()})
    assert read_heads(path).keys() == RESULTS.keys()


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir], ids=["fifo", "link", "folder"]
)
def test_what_a_program_has_put_in_its_place_is_no_file(tmp_path: Path, make: object) -> None:
    path = tmp_path / "complete-results"
    make(path)  # type: ignore[operator]
    for read in (read_heads, lambda path: list(read_metrics(path))):
        with pytest.raises(OSError, match=r"it is a (FIFO|symbolic link|folder), not a regular file"):
            read(path)


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "complete-results", tmp_path / "other"
    other.write_text("mine")
    path.with_name(f"{path.name}.new").symlink_to(other)
    write_results(path, RESULTS)
    assert other.read_text() == "mine"
    assert read_heads(path).keys() == RESULTS.keys()


@pytest.mark.parametrize(("size_bytes", "problem"), [(4 * 1024**4, "larger than any"), (100 * 1024**2, "is empty")])
def test_a_sparse_file_is_refused_at_once(path: Path, size_bytes: int, problem: str) -> None:
    os.truncate(path, size_bytes)
    with pytest.raises(ValueError, match=problem):
        list(read_metrics(path))


@settings(deadline=None, max_examples=example_count(200))
@given(data=st.data())
def test_whatever_is_in_it_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("x") / "complete-results"
    write_results(path, RESULTS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content)))
    content[at:] = data.draw(st.binary(max_size=30)) + (content[at:] if data.draw(st.booleans()) else b"")
    path.write_bytes(content)
    for read in (read_heads, lambda path: list(read_metrics(path)), lambda path: list(read_metrics(path, 7))):
        with suppress(ValueError):
            read(path)
