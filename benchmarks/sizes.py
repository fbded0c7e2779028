"""How processor time grows with the size of one input: at 1, 10 and 100 times the size. Linear growth has a slope of 1."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from timeit import timeit
from typing import Final, NamedTuple

from benchmarks.processes import workplace
from benchmarks.report import Row, at_most, compare, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.analysis.comparison import compare as compare_jobs
from evalrpc.config import HarnessSettings, Settings
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.reading.job_results import JobResults
from evalrpc.results.merging import MergedResults
from evalrpc.results.metrics import model_result
from evalrpc.server import validation
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, MetricThreshold
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, EvaluateRequest, JobAttempt, JobInfo, SubmitJobRequest
from evalrpc.v1.results_pb2 import Metric, MetricSelector, ModelResult, TaskResult

_STEPS: Final = (1, 10, 100)
_MAX_STEP_RATIO: Final = 15.0  # above 10, since larger inputs outgrow the caches; quadratic is 100
_MAX_SLOPE: Final = 1.15
_SAMPLES: Final = 10


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
            yield compare(figure, "ms", times, times_before, ratio_at_most(_MAX_STEP_RATIO), "processor time")
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
    return partial(compare_jobs, CompareJobsRequest(), baseline, [candidate], {}, JobResults(folder), Event())


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
    attempts = [JobAttempt(output_dir=str(folder))]
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempts=attempts, results={"m": result})


def _compared_by_selectors(folder: Path, count: int) -> Callable[[], object]:
    metrics = [Metric(task=f"t{number}", metric="acc", value=0.5) for number in range(count)]
    jobs = [JobInfo(job_id=name, status=JOB_STATUS_COMPLETED, results={"m": ModelResult(metrics=metrics)}) for name in "ab"]
    selectors = [MetricSelector(task=f"t{number}") for number in range(count)]
    thresholds = [MetricThreshold(selector=selector, tolerance=0.1) for selector in selectors]
    call = CompareJobsRequest(metrics=selectors, metric_thresholds=thresholds)
    return partial(compare_jobs, call, jobs[0], jobs[1:], {}, JobResults(folder), Event())


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
    harnesses = build_harnesses(Settings(harnesses={"x": HarnessSettings("x", "lmms-eval", python="/none/bin/python")}))
    call = SubmitJobRequest(request=EvaluateRequest(harness="x", model="m", tasks=["t"], num_gpus=0))
    call.request.model_args.update({f"a{number}": "\x01, true" for number in range(count)})
    return lambda: list(validation.submission(call, harnesses, (0,), None))


_CASES: Final = (
    _Case("metrics of one task in a results file", 160, _metrics_of_one_task),
    _Case("tasks of a comparison, with samples", 80, _compared_tasks),
    _Case("tasks and selectors of a comparison", 80, _compared_by_selectors),
    _Case("tasks run one by one, merged", 80, _merged_tasks),
    _Case("bad arguments of a request", 100, _bad_fields),
)
