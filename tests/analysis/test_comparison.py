"""The cost of a comparison: each part is looked at once, however many tasks and selectors there are."""

import json
from pathlib import Path
from threading import Event

import pytest

from evalrpc.analysis import comparison
from evalrpc.analysis.comparison import compare
from evalrpc.errors import MetricNotFoundError
from evalrpc.reading.job_results import JobResults
from evalrpc.results.layout import read_results, samples_by_task
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, MetricThreshold
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobAttempt, JobInfo
from evalrpc.v1.results_pb2 import MetricSelector

RESULTS = JobResults(Path("/none"))
TASKS = [f"t{number}" for number in range(30)]


def job(folder: Path) -> JobInfo:
    """A job of many tasks, each with a file of samples."""
    (folder / "m").mkdir(parents=True)
    rows = {task: {"acc,none": 0.5} for task in TASKS}
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps({"results": rows}))
    for task in TASKS:
        lines = "".join(json.dumps({"doc_id": number, "acc": number % 2}) + "\n" for number in range(2))
        (folder / "m" / f"20260101_000000_samples_{task}.jsonl").write_text(lines)
    attempts = [JobAttempt(output_dir=str(folder))]
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempts=attempts, results=read_results(folder, "m"))


@pytest.fixture
def jobs(tmp_path: Path) -> list[JobInfo]:
    return [job(tmp_path / name) for name in ("a", "b", "c")]


def selectors(*tasks: str) -> list[MetricSelector]:
    return [MetricSelector(task=task) for task in tasks]


def test_the_files_of_a_job_are_looked_up_once_and_each_is_opened_once(
    jobs: list[JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, opened = [], []
    open_samples = comparison.open_samples
    monkeypatch.setattr(comparison, "samples_by_task", lambda result: looked_up.append(1) or samples_by_task(result))
    monkeypatch.setattr(
        comparison, "open_samples", lambda job, path, known: opened.append(path) or open_samples(job, path, known)
    )
    answer = compare(CompareJobsRequest(), jobs[0], jobs[1:], {}, RESULTS, Event())
    assert [metric.paired_sample_count for candidate in answer.candidates for metric in candidate.metrics] == [2] * 60
    assert len(looked_up) == len(jobs)
    assert sorted(opened) == sorted(path for job in jobs for path in job.results["m"].samples)


def test_the_first_selector_that_takes_nothing_is_named(jobs: list[JobInfo]) -> None:
    call = CompareJobsRequest(metrics=selectors("t1", "typo", "t2", "worse"))
    with pytest.raises(MetricNotFoundError, match="none of the jobs has a metric typo/"):
        compare(call, jobs[0], jobs[1:], {}, RESULTS, Event())
    thresholds = [MetricThreshold(selector=selector, tolerance=1) for selector in selectors("t1", "odd")]
    with pytest.raises(MetricNotFoundError, match="none of the jobs has a metric odd/"):
        compare(CompareJobsRequest(metric_thresholds=thresholds), jobs[0], jobs[1:], {}, RESULTS, Event())
