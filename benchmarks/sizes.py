"""How processor time grows with the size of one input: at 1, 10 and 100 times the size. Linear growth has a slope of 1."""

import asyncio
import json
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any, Final, NamedTuple, TypeVar, cast

from benchmarks.processes import workplace
from benchmarks.report import Row, at_most, compare, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.analysis.comparison import compare as compare_jobs
from evalrpc.analysis.history import MAX_POINTS, History, HistoryPlaces
from evalrpc.analysis.sample_values import MetricKey, read_samples
from evalrpc.config import HarnessSettings, Settings
from evalrpc.files.opening import list_files
from evalrpc.files.read_budget import UNLIMITED, ReadBudget
from evalrpc.files.trees import remove_tree
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.jobs.paths import attempt_dir, results_path
from evalrpc.jobs.size_limits import results_room
from evalrpc.reading.artifacts import ArtifactReader
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.metrics import MetricLister
from evalrpc.reading.sample_files import SampleRows, read_lines
from evalrpc.results.bounding import add_artifact_names, bounded
from evalrpc.results.merging import MergedResults
from evalrpc.results.metrics import model_result
from evalrpc.results.results_file import write_results
from evalrpc.server import validation
from evalrpc.store.base import ListedJob, Store
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, MetricThreshold
from evalrpc.v1.files_pb2 import ListArtifactsRequest, ListArtifactsResponse
from evalrpc.v1.history_pb2 import GetHistoryRequest
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, EvaluateRequest, JobAttempt, JobFilter, JobInfo, SubmitJobRequest
from evalrpc.v1.results_pb2 import ListMetricsRequest, ListMetricsResponse, Metric, MetricSelector, ModelResult, TaskResult
from evalrpc.watching.feed import Feed

_STEPS: Final = (1, 10, 100)
_MAX_STEP_RATIO: Final = 15.0  # above 10, since larger inputs outgrow the caches; quadratic is 100
_MAX_SLOPE: Final = 1.15
_SAMPLES: Final = 10
_METRICS_PAGE: Final = 1000
_FILES_PAGE: Final = 1000
_ACCURACY: Final = MetricKey("acc", "none")

_PageT = TypeVar("_PageT", ListMetricsResponse, ListArtifactsResponse)


class _Case(NamedTuple):
    """One kind of input, and its smallest size."""

    figure: str
    size: int
    prepare: Callable[[Path, int], Callable[[], object]]
    """Creates an input of a given size, in a folder, and returns the function to measure."""


def growth(scale: Scale) -> Iterator[Row]:
    """Processor time at each size against a tenth of that size, and the slope over all sizes."""
    for case in _CASES:
        with workplace() as folder:
            works = {case.size * step: case.prepare(folder, case.size * step) for step in _STEPS}
            rounds = [{size: _milliseconds(work) for size, work in works.items()} for _ in range(scale.rounds)]
        small, middle, large = works
        for size, before in ((middle, small), (large, middle)):
            figure = f"{case.figure}, {size:,} against {before:,}"
            times, times_before = ([each[at] for each in rounds] for at in (size, before))
            yield compare(figure, "ms", (times, times_before), ratio_at_most(_MAX_STEP_RATIO), "processor time")
        slope = statistics.median(math.log(each[large] / each[small], large / small) for each in rounds)
        yield Row(f"{case.figure}: slope", "", slope, aim=at_most(_MAX_SLOPE), note=f"from {small:,} to {large:,}; linear: 1")


def _milliseconds(work: Callable[[], object]) -> float:
    """Measure one run, without garbage collection, as `timeit` does."""
    return 1e3 * timeit(work, timer=time.process_time, number=1)


def _metrics_of_one_task(_: Path, count: int) -> Callable[[], object]:
    document: Mapping[str, object] = {"results": {"t": {f"metric {number},none": 0.5 for number in range(count)}}}
    return partial(model_result, document)


def _compared_tasks(folder: Path, count: int) -> Callable[[], object]:
    baseline, candidate = (_job(folder / f"{name}-{count}", count) for name in ("a", "b"))
    return partial(compare_jobs, CompareJobsRequest(), baseline, [candidate], {}, Path(), ReadBudget(UNLIMITED))


def _job(folder: Path, count: int) -> JobInfo:
    """Return a job of `count` tasks, each with a file of samples."""
    folder.mkdir()
    lines = "".join(json.dumps({"doc_id": number, "acc": number % 2}) + "\n" for number in range(_SAMPLES))
    paths = [folder / f"20260101_000000_samples_t{number}.jsonl" for number in range(count)]
    for path in paths:
        path.write_text(lines)
    result = ModelResult(
        metrics=[Metric(task=f"t{number}", metric="acc", filter="none", value=0.5) for number in range(count)],
        tasks=[TaskResult(task=f"t{number}") for number in range(count)],
        samples=map(str, paths),
    )
    attempts = [JobAttempt(number=1, output_dir=str(folder))]
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, attempts=attempts, results={"m": result})


def _compared_by_selectors(_: Path, count: int) -> Callable[[], object]:
    metrics = [Metric(task=f"t{number}", metric="acc", value=0.5) for number in range(count)]
    jobs = [JobInfo(job_id=name, status=JOB_STATUS_COMPLETED, results={"m": ModelResult(metrics=metrics)}) for name in "ab"]
    selectors = [MetricSelector(task=f"t{number}") for number in range(count)]
    thresholds = [MetricThreshold(selector=selector, tolerance=0.1) for selector in selectors]
    call = CompareJobsRequest(metrics=selectors, metric_thresholds=thresholds)
    return partial(compare_jobs, call, jobs[0], jobs[1:], {}, Path(), ReadBudget(UNLIMITED))


def _merged_tasks(_: Path, count: int) -> Callable[[], object]:
    parts = [
        ModelResult(
            results=f"/task-{number}/results.json",
            samples=[f"/task-{number}/samples.jsonl"],
            metrics=[Metric(task=f"t{number}", metric="acc", value=0.5)],
            tasks=[TaskResult(task=f"t{number}")],
        )
        for number in range(count)
    ]
    return partial(_merge, parts)


def _merge(parts: list[ModelResult]) -> object:
    together = MergedResults()
    for part in parts:
        together.add({"m": part})
    return together.results()


def _bad_fields(_: Path, count: int) -> Callable[[], object]:
    harnesses = build_harnesses(Settings(harnesses={"x": HarnessSettings("x", "lmms-eval", python=Path("/none/bin/python"))}))
    call = SubmitJobRequest(request=EvaluateRequest(harness="x", model="m", tasks=["t"], num_gpus=0))
    call.request.model_args.update({f"a{number}": "\x01, true" for number in range(count)})
    return lambda: list(validation.submission(call, harnesses, [], None))


def _taken_over_metrics(folder: Path, count: int) -> Callable[[], object]:
    results = {"m": _many_metrics(count)}

    def take_over() -> None:
        add_artifact_names(results, folder)
        bounded(results, results_room(0))
        write_results(folder / "complete-results", results)

    return take_over


def _listed_metrics(folder: Path, count: int) -> Callable[[], object]:
    """All pages of ListMetrics of a job whose metrics are in a file."""
    data_dir = folder / f"metrics-{count}"
    path = results_path(attempt_dir(data_dir, "j", 1))
    path.parent.mkdir(parents=True)
    write_results(path, {"m": _many_metrics(count)})
    job = JobInfo(job_id="j", attempt=1, results={"m": ModelResult(metrics_truncated=True)})

    async def listed(readers: ThreadPoolExecutor) -> int:
        lister = MetricLister(cast(Feed, _OneJob(job)), JobResults(data_dir), readers)
        call = ListMetricsRequest(job_id="j")
        return await _count(call, lambda: lister.list_metrics("j", call, _METRICS_PAGE), lambda page: page.metrics)

    return partial(_on_a_loop, listed, count)


def _listed_files(folder: Path, count: int) -> Callable[[], object]:
    """All pages of ListArtifacts, with the checksums of small files."""
    output_dir = folder / f"files-{count}"
    output_dir.mkdir()
    for number in range(count):
        (output_dir / f"image-{number:06}.png").write_text("x")
    attempts = [JobAttempt(number=1, output_dir=str(output_dir))]
    job = JobInfo(job_id="j", attempt=1, status=JOB_STATUS_COMPLETED, attempts=attempts)

    async def listed(readers: ThreadPoolExecutor) -> int:
        reader = ArtifactReader(cast(Feed, _OneJob(job)), folder, readers, readers, readers)
        call = ListArtifactsRequest(job_id="j", checksums=True)
        return await _count(call, lambda: reader.list_artifacts("j", call, _FILES_PAGE), lambda page: page.artifacts)

    return partial(_on_a_loop, listed, count)


def _listed_depth(folder: Path, count: int) -> Callable[[], object]:
    """All files of folders inside one another, one in each."""
    output_dir = folder / f"depth-{count}"
    inner = output_dir
    for _ in range(count):
        inner.mkdir()
        (inner / "f").touch()
        inner /= "d"
    return lambda: sum(1 for _ in list_files(output_dir))


def _removed_depth(folder: Path, count: int) -> Callable[[], object]:
    """The removal of folders inside one another."""
    top = folder / f"removed-{count}"

    def remove() -> None:
        top.mkdir()
        descriptor = os.open(top, os.O_RDONLY)
        for _ in range(count):
            os.mkdir("d", dir_fd=descriptor)
            inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        os.close(descriptor)
        assert not remove_tree(top)

    return remove


def _read_samples(folder: Path, count: int) -> Callable[[], object]:
    """The values of all samples of a file."""
    path = folder / f"samples-{count}.jsonl"
    path.write_text("".join(json.dumps({"doc_id": number, "acc": number % 2}) + "\n" for number in range(count)))

    def read() -> None:
        with path.open("rb") as file:
            found = read_samples((row.values for row in SampleRows(read_lines(file, 0))), [_ACCURACY])
        assert len(found.values[_ACCURACY].ids) == count

    return read


def _listed_history(_: Path, count: int) -> Callable[[], object]:
    """All pages of GetHistory over jobs with a step each."""
    results = {"m": ModelResult(metrics=[Metric(task="t", metric="acc", value=0.5)])}
    jobs = [JobInfo(job_id=str(number), labels={"step": str(number)}, results=results) for number in range(count)]

    def listed() -> None:
        store, places, call = cast(Store, _StoredJobs(jobs)), HistoryPlaces(), GetHistoryRequest()
        found = 0
        while True:
            history = History(store, JobResults(Path("/none")), places, call, MAX_POINTS)
            while history.scan():
                pass
            page = history.page()
            found += len(page.points)
            call.page_token = page.next_page_token
            if not call.page_token:
                break
        assert found == count

    return listed


def _many_metrics(count: int) -> ModelResult:
    return ModelResult(
        metrics=[Metric(task=f"t{number:06}", metric="acc", filter="none", value=0.5) for number in range(count)]
    )


async def _count(
    call: ListMetricsRequest | ListArtifactsRequest,
    read: Callable[[], Awaitable[_PageT]],
    entries_of: Callable[[_PageT], Sized],
) -> int:
    """Count the entries of all pages."""
    found = 0
    while True:
        page = await read()
        found += len(entries_of(page))
        call.page_token = page.next_page_token
        if not call.page_token:
            return found


def _on_a_loop(listed: Callable[[ThreadPoolExecutor], Coroutine[Any, Any, int]], count: int) -> None:
    with ThreadPoolExecutor(1) as readers:
        assert asyncio.run(listed(readers)) == count


class _OneJob:
    """A feed that has one job."""

    def __init__(self, job: JobInfo) -> None:
        self._job = job

    async def read_job(self, _: str) -> JobInfo:
        return self._job


class _StoredJobs:
    """A store that lists jobs from memory."""

    def __init__(self, jobs: Sequence[JobInfo]) -> None:
        self._jobs = jobs

    def list_jobs(self, _: JobFilter, before: int | None, limit: int, *, owner: str | None = None) -> list[ListedJob]:  # noqa: ARG002
        end = len(self._jobs) if before is None else min(before - 1, len(self._jobs))
        return [ListedJob(place + 1, self._jobs[place]) for place in range(end - 1, max(end - limit, 0) - 1, -1)]


_CASES: Final = (
    _Case("metrics of one task in a results file", 160, _metrics_of_one_task),
    _Case("metrics taken over at the end of a run, with their file", 160, _taken_over_metrics),
    _Case("metrics of a job, listed page by page", 160, _listed_metrics),
    _Case("files of a job, listed page by page", 160, _listed_files),
    _Case("folders inside one another, listed", 8, _listed_depth),
    _Case("folders inside one another, made and removed", 100, _removed_depth),
    _Case("samples of a comparison, read", 1000, _read_samples),
    _Case("jobs of a history, page by page", 80, _listed_history),
    _Case("tasks of a comparison, with samples", 80, _compared_tasks),
    _Case("tasks and selectors of a comparison", 80, _compared_by_selectors),
    _Case("tasks run one by one, merged", 80, _merged_tasks),
    _Case("bad arguments of a request", 100, _bad_fields),
)
