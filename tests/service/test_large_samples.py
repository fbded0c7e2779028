"""Samples that are dear to read: a page, a comparison and their callers get a bounded answer, and the server serves others."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from processes_of_tests import readers_of
from serving import Api, ServerHere, detail, reason_of
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.analysis import comparer
from evalrpc.client import EvalClient
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.reading import samples
from evalrpc.reading.turns import Turns
from evalrpc.server.threads import MAX_LONG_COMPARISONS
from evalrpc.v1.comparison_pb2 import TEST_METHOD_MCNEMAR, CompareJobsRequest
from evalrpc.v1.samples_pb2 import ListSamplesRequest

SAMPLES = "toy/20260101_000000_samples_t.jsonl"
LARGE = 600 * 1024


def job_with(api: Api, data: bytes, size_bytes: int = 0) -> str:
    """Run a job, and replace its samples."""
    job = api.run("good")
    path = Path(job.attempts[-1].output_dir, SAMPLES)
    path.write_bytes(data)
    if size_bytes:
        os.truncate(path, size_bytes)
    return job.job_id


def row(number: int, **values: Any) -> bytes:
    return json.dumps({"doc_id": number, "acc": number % 2, **values}).encode() + b"\n"


def pages(api: Api, job_id: str) -> Iterator[Any]:
    token = ""
    while True:
        page = api.ListSamples(job_id=job_id, page_token=token)
        yield page
        token = page.next_page_token
        if not token:
            return


def ids(found: list[Any]) -> list[int]:
    return [int(sample["doc_id"]) for page in found for sample in page.samples]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reading take as long as it does on a busy machine."""
    for module, limits in ((samples, "PROCESS_LIMITS"), (comparer, "READ_LIMITS")):
        monkeypatch.setattr(module, limits, getattr(module, limits)._replace(max_seconds=3600.0))
    for module, use in ((samples, "PROCESS_USE"), (comparer, "PROCESS_USE"), (comparer, "QUICK_USE")):
        monkeypatch.setattr(module, use, getattr(module, use)._replace(processor_seconds=3600))
    monkeypatch.setattr(comparer, "QUICK_SECONDS", 3600.0)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the limits of a process that reads a page."""

    def set_up(**limits: int) -> None:
        monkeypatch.setattr(samples, "PROCESS_LIMITS", samples.PROCESS_LIMITS._replace(**limits))

    return set_up


def refusal(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == "READ_LIMIT_REACHED"
    return caught.value


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_large_row_comes_like_others_wherever_it_is(api: Api, place: int) -> None:
    rows = [row(number, text="x" * (LARGE if number == place else 10)) for number in range(3)]
    found = list(pages(api, job_with(api, b"".join(rows))))
    assert ids(found) == [0, 1, 2]
    assert [len(sample["text"]) for page in found for sample in page.samples][place] == LARGE
    assert not any(page.truncated_fields for page in found)


@pytest.mark.parametrize("values", ["[]," * 3_000_000, "0.25," * 2_000_000, '{"a":1},' * 1_000_000])
def test_a_row_of_millions_of_values_is_cut(api: Api, values: str) -> None:
    job_id = job_with(api, b'{"doc_id": 7, "list": [' + values.encode() + b'1], "short": "s"}\n' + row(8))
    found = list(pages(api, job_id))
    assert ids(found) == [7, 8]
    assert list(found[0].truncated_fields) == ["samples[0].list"]
    assert found[0].samples[0]["short"] == "s"
    assert 50_000 < len(found[0].samples[0]["list"]) <= 256 * 1024


def test_a_sparse_file_gives_empty_pages_that_go_on(api: Api, limit: Callable[..., None]) -> None:
    limit(max_bytes=100 * 1024**2)
    job_id = job_with(api, row(1), 4 * 1024**4)
    some = pages(api, job_id)
    assert [len(next(some).samples) for _ in range(3)] == [1, 0, 0]


def test_rows_after_a_hole_are_found(api: Api, limit: Callable[..., None]) -> None:
    limit(max_bytes=100 * 1024**2)
    job_id = job_with(api, row(1), 200 * 1024**2)
    path = Path(api.get(job_id).attempts[-1].output_dir, SAMPLES)
    with path.open("ab") as file:
        file.write(b'{"doc_id": 99}\n' + row(2) + row(3))
    assert ids(list(pages(api, job_id))) == [1, 2, 3], "what follows the hole in its line is no row"


def test_a_row_that_is_larger_than_any_that_is_read_is_empty_and_named(api: Api) -> None:
    job_id = job_with(api, row(1) + b'{"doc_id": 2, "text": "' + b"x" * 65 * 1024**2 + b'"}\n' + row(3))
    found = list(pages(api, job_id))
    assert [dict(sample).get("doc_id") for page in found for sample in page.samples] == [1, None, 3]
    assert [path for page in found for path in page.truncated_fields] == ["samples[0]"]
    with EvalClient(api.address) as client:
        assert len(list(client.samples(job_id))) == 3


def test_a_page_that_takes_more_memory_than_a_process_may_have_is_refused_with_the_limit(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PROCESS_USE", samples.PROCESS_USE._replace(memory_bytes=300 * 1024**2))
    job_id = job_with(api, b'{"list": [' + b"[]," * 8_000_000 + b"1]}\n")
    error = refusal(lambda: api.ListSamples(job_id=job_id))
    assert "more than 300 MiB of memory" in str(error.details())
    assert dict(detail(error, error_details_pb2.ErrorInfo).metadata)["limit_memory_bytes"] == str(300 * 1024**2)


def test_a_comparison_of_large_rows_is_the_same_as_of_small_ones(api: Api) -> None:
    def compared(text: str) -> Any:
        jobs = [job_with(api, b"".join(row(number + shift, text=text) for number in range(12))) for shift in (0, 1)]
        for job_id in jobs:
            path = Path(api.get(job_id).attempts[-1].output_dir, SAMPLES)
            assert path.read_bytes()
        (candidate,) = api.CompareJobs(baseline_job_id=jobs[0], candidate_job_ids=jobs[1:]).candidates
        return candidate.metrics

    small, large = compared(""), compared("x" * LARGE)
    assert small == large
    assert small[0].method == TEST_METHOD_MCNEMAR


def test_a_comparison_past_its_limits_is_refused_with_the_limit(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparer, "READ_LIMITS", ReadLimits(max_bytes=200 * 1024**2, max_seconds=3600))
    good, sparse = job_with(api, row(1)), job_with(api, row(1), 4 * 1024**4)
    error = refusal(lambda: api.CompareJobs(baseline_job_id=good, candidate_job_ids=[sparse]))
    assert dict(detail(error, error_details_pb2.ErrorInfo).metadata) == {"limit_bytes": str(200 * 1024**2)}


def test_a_comparison_of_a_sparse_file_is_refused_at_once(api: Api) -> None:
    good, sparse = job_with(api, row(1)), job_with(api, row(1), 4 * 1024**4)
    for jobs in ((good, sparse), (sparse, good)):
        error = refusal(lambda jobs=jobs: api.CompareJobs(baseline_job_id=jobs[0], candidate_job_ids=[jobs[1]]))
        assert "were never written: it is sparse, and not read" in str(error.details())
        assert dict(detail(error, error_details_pb2.ErrorInfo).metadata) == {"limit_bytes": str(1024**2)}


@contextmanager
def all_taken(server: ServerHere, turns: Turns, count: int) -> Iterator[None]:
    """Take all turns, as others do."""
    release = asyncio.Event()

    async def take() -> None:
        async with turns.turn("others"):
            await release.wait()

    held = [asyncio.run_coroutine_threadsafe(take(), server._loop) for _ in range(count)]
    eventually(lambda: not turns._free, "for the turns to be taken")
    try:
        yield
    finally:
        server._loop.call_soon_threadsafe(release.set)
        for each in held:
            each.result(DEADLINE_SECONDS)


def test_what_is_quick_is_done_while_long_comparisons_wait_for_their_turn(
    server: ServerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, turns = server.api, server.server._service.comparer._long_turns
    monkeypatch.setattr(comparer, "QUICK_BYTES", 4096)
    small = [job_with(api, row(1) + row(2)) for _ in range(2)]
    large = [job_with(api, b"".join(row(number, text="x" * 100) for number in range(40))) for _ in range(2)]
    with all_taken(server, turns, MAX_LONG_COMPARISONS):
        asked = CompareJobsRequest(baseline_job_id=large[0], candidate_job_ids=large[1:])
        waiting = [api.stub.CompareJobs.future(asked) for _ in range(4)]
        eventually(lambda: sum(map(len, turns._waiting.values())) == 4, "for them to wait")
        assert api.CompareJobs(baseline_job_id=small[0], candidate_job_ids=small[1:]).candidates
        assert api.ListFlips(baseline_job_id=small[0], candidate_job_id=small[1]).paired_sample_count == 2
        assert api.PlanComparison(difference=0.1, baseline_job_id=small[0]).metrics
        assert not any(each.done() for each in waiting)
        waiting[0].cancel()
    for each in waiting[1:]:
        ((metric,),) = (candidate.metrics for candidate in each.result(DEADLINE_SECONDS).candidates)
        assert metric.paired_sample_count == 40
    eventually(lambda: turns._free == MAX_LONG_COMPARISONS, "for all turns to be given back")


@pytest.mark.parametrize("method", ["ListSamples", "CompareJobs"])
def test_a_process_that_reads_ends_soon_after_its_caller_has_gone(
    api: Api, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparer, "READ_LIMITS", comparer.READ_LIMITS._replace(max_hole_bytes=None))
    good, sparse = job_with(api, row(1)), job_with(api, b"", 4 * 1024**4)
    requests: dict[str, Any] = {
        "ListSamples": ListSamplesRequest(job_id=sparse),
        "CompareJobs": CompareJobsRequest(baseline_job_id=good, candidate_job_ids=[sparse]),
    }
    calling = getattr(api.stub, method).future(requests[method])
    eventually(lambda: readers_of(os.getpid()), "for a process to read")
    calling.cancel()
    eventually(lambda: not readers_of(os.getpid()), "for it to end")


def test_a_reading_in_the_server_stops_when_its_caller_has_gone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = job_with(api, row(1) * 1000)
    reading, stopped = threading.Event(), threading.Event()
    outcome: list[Exception] = []

    class Budget(ReadBudget):
        def begin_row(self) -> None:
            reading.set()
            stopped.wait()
            super().begin_row()

        def spend(self, size_bytes: int = 0) -> None:
            try:
                super().spend(size_bytes)
            except CancelledError as error:
                outcome.append(error)
                raise

        def stop(self) -> None:
            super().stop()
            stopped.set()

    monkeypatch.setattr(samples, "ReadBudget", Budget)
    calling = api.stub.ListSamples.future(ListSamplesRequest(job_id=job_id, page_size=1000))
    assert reading.wait(DEADLINE_SECONDS)
    calling.cancel()
    eventually(lambda: outcome, "for the reading to end")
