"""The cost of a comparison: each part is looked at once, however many tasks and selectors there are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evalrpc.analysis import job_samples
from evalrpc.analysis.comparison import compare
from evalrpc.errors import DefinitionsDifferError, MetricNotFoundError
from evalrpc.files.read_budget import UNLIMITED, ReadBudget
from evalrpc.results.layout import read_results, samples_by_task
from evalrpc.testing.recorded_runs import request_of
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_UNPAIRED_Z,
    VERDICT_INCONCLUSIVE,
    CompareJobsRequest,
    CompareJobsResponse,
    MetricThreshold,
)
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobInfo
from evalrpc.v1.results_pb2 import MetricSelector

TASKS = [f"t{number}" for number in range(30)]


def job(folder: Path) -> JobInfo:
    """A job of many tasks, each with a file of samples."""
    (folder / "m").mkdir(parents=True)
    rows = {task: {"acc,none": 0.5} for task in TASKS}
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps({"results": rows}))
    for task in TASKS:
        lines = "".join(json.dumps({"doc_id": number, "acc": number % 2}) + "\n" for number in range(2))
        (folder / "m" / f"20260101_000000_samples_{task}.jsonl").write_text(lines)
    job = JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, results=read_results(folder, "m"))
    job.attempts.add(number=1, output_dir=str(folder))
    return job


@pytest.fixture
def jobs(tmp_path: Path) -> list[JobInfo]:
    return [job(tmp_path / name) for name in ("a", "b", "c")]


def compared(call: CompareJobsRequest, jobs: list[JobInfo]) -> CompareJobsResponse:
    return compare(call, jobs[0], jobs[1:], {}, Path(), ReadBudget(UNLIMITED))


def selectors(*tasks: str) -> list[MetricSelector]:
    return [MetricSelector(task=task) for task in tasks]


def test_the_files_of_a_job_are_looked_up_once_and_each_is_opened_once(
    jobs: list[JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, opened = [], []
    open_samples = job_samples.open_samples
    monkeypatch.setattr(job_samples, "samples_by_task", lambda result: looked_up.append(1) or samples_by_task(result))
    monkeypatch.setattr(
        job_samples, "open_samples", lambda *call, **more: opened.append(call[2]) or open_samples(*call, **more)
    )
    answer = compared(CompareJobsRequest(), jobs)
    assert [metric.paired_sample_count for candidate in answer.candidates for metric in candidate.metrics] == [2] * 60
    assert len(looked_up) == len(jobs)
    assert sorted(opened) == sorted(path for job in jobs for path in job.results["m"].samples)


def test_the_first_selector_that_takes_nothing_is_named(jobs: list[JobInfo]) -> None:
    call = CompareJobsRequest(metrics=selectors("t1", "typo", "t2", "worse"))
    with pytest.raises(MetricNotFoundError, match="none of the jobs has a metric of the task typo;"):
        compared(call, jobs)
    thresholds = [MetricThreshold(selector=selector, tolerance=1) for selector in selectors("t1", "odd")]
    with pytest.raises(MetricNotFoundError, match="none of the jobs has a metric of the task odd;"):
        compared(CompareJobsRequest(metric_thresholds=thresholds), jobs)


def defined_job(
    folder: Path,
    version: str,
    shots: int,
    prompt: str,
    documents: str,
    more: Mapping[str, Any] | None = None,
    **metrics: float,
) -> JobInfo:
    """A job of one task by this definition."""
    (folder / "m").mkdir(parents=True)
    table = {
        **(more or {}),
        "results": {"t": metrics or {"acc,none": 0.5, "acc_stderr,none": 0.05}},
        "versions": {"t": version},
        "n-shot": {"t": shots},
        "configs": {"t": {"doc_to_text": prompt}},
    }
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps(table))
    rows = ({"doc_id": number, "acc": number % 2, "doc_hash": f"{documents}{number}"} for number in range(20))
    (folder / "m" / "20260101_000000_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, results=read_results(folder, "m"))
    job.attempts.add(number=1, output_dir=str(folder))
    return job


def test_in_what_two_jobs_answered_different_questions_is_named(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / "a", "1.0", 5, "Q:", "x"), defined_job(tmp_path / "b", "3.0", 0, "Question:", "y")]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(), jobs).candidates)
    assert list(metric.definition_differences) == [
        "version 1.0 and 3.0",
        "num_fewshot 5 and 0",
        "another configuration (config_hash)",
        "another document under 20 of 20 ids",
    ]
    assert (metric.paired_sample_count, metric.method) == (0, TEST_METHOD_UNPAIRED_Z)


def test_other_arguments_of_the_tasks_are_named(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x") for name in "ab"]
    jobs[0].request.task_args.update({"seed": 1, "epochs": 2, "same": [{"a": None}]})
    jobs[1].request.task_args.update(
        {"seed": 1, "system_instruction": "s", "same": [{"a": None}], **{f"x{n}": n for n in range(5)}}
    )
    call = CompareJobsRequest()
    ((metric,),) = (candidate.metrics for candidate in compared(call, jobs).candidates)
    assert list(metric.definition_differences) == ["other task_args: epochs, system_instruction, x0, x1, x2 and 2 more"]
    with pytest.raises(DefinitionsDifferError, match="other task_args: epochs"):
        compared(CompareJobsRequest(strict=True), jobs)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"num_fewshot": 0}, {"num_fewshot": 5}, "num_fewshot 0 and 5 asked for"),
        ({}, {"num_fewshot": 5}, "num_fewshot none and 5 asked for"),
        ({"gen_kwargs": {"temperature": 0}}, {"gen_kwargs": {"temperature": 1}}, "other gen_kwargs: temperature"),
        ({}, {"gen_kwargs": {"until": ["Q:"], "max_gen_toks": 8}}, "other gen_kwargs: max_gen_toks, until"),
        ({}, {"judge_model": {"engine": "e", "model": "acme/j"}}, "judge_model none and acme/j"),
    ],
)
def test_what_two_jobs_asked_for_differently_is_named_where_no_harness_says_what_it_did(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], expected: str
) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x") for name in "ab"]
    for job, asked in zip(jobs, (ours, theirs), strict=True):
        job.request.MergeFrom(request_of(**asked))
        for field in ("num_fewshot", "config_hash"):
            job.results["m"].tasks[0].ClearField(field)
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(), jobs).candidates)
    assert list(metric.definition_differences) == [expected]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"system_instruction_sha": "a"}, {"system_instruction_sha": "b"}, ["another system instruction"]),
        ({"system_instruction_sha": None}, {"system_instruction_sha": "b"}, ["another system instruction"]),
        ({"chat_template_sha": "a"}, {"chat_template_sha": None}, ["a chat template in one of the two only"]),
        ({"chat_template_sha": "a"}, {"chat_template_sha": "b"}, []),
        ({"system_instruction_sha": None}, {}, []),
    ],
)
def test_how_a_harness_asked_every_task_is_named_whoever_wanted_it(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], expected: list[str]
) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x", more=more) for name, more in (("a", ours), ("b", theirs))]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(), jobs).candidates)
    assert list(metric.definition_differences) == expected


@pytest.mark.parametrize(
    ("shots", "template", "expected"),
    [(5, None, ["another prompt for 20 of 20 documents"]), (5, "a", []), (0, None, ["num_fewshot 5 and 0"])],
    ids=["nothing else tells", "each model has its own words", "told already"],
)
def test_other_prompts_are_named_where_nothing_else_tells_why(
    tmp_path: Path, shots: int, template: str | None, expected: list[str]
) -> None:
    jobs = [
        defined_job(tmp_path / name, "1.0", asked, "Q:", "x", more={"chat_template_sha": template})
        for name, asked in (("a", 5), ("b", shots))
    ]
    for name in "ab":
        samples = tmp_path / name / "m" / "20260101_000000_samples_t.jsonl"
        rows = (json.loads(line) for line in samples.read_text().splitlines())
        samples.write_text("".join(json.dumps({**row, "prompt_hash": f"{name}{row['doc_id']}"}) + "\n" for row in rows))
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(), jobs).candidates)
    assert list(metric.definition_differences) == expected
    assert metric.paired_sample_count == 20


def test_gen_kwargs_are_not_named_where_the_configuration_says_that_they_did_not_count(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x") for name in "ab"]
    jobs[1].request.gen_kwargs["temperature"] = 1
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(strict=True), jobs).candidates)
    assert not metric.definition_differences


def test_how_many_examples_were_shown_counts_and_not_how_many_were_asked_for(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x") for name in "ab"]
    jobs[1].request.num_fewshot = 2
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(strict=True), jobs).candidates)
    assert not metric.definition_differences


def test_equal_values_are_not_the_same_if_only_one_job_has_the_samples_that_they_are_means_of(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x", acc=0.5) for name in "ab"]
    del jobs[1].results["m"].samples[:]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(tolerance=0.1), jobs).candidates)
    assert (metric.verdict, metric.baseline_sample_count) == (VERDICT_INCONCLUSIVE, 20)
    assert not metric.HasField("candidate_sample_count")


def test_other_documents_are_named_whatever_the_samples_say_of_the_metric(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / documents, "1.0", 5, "Q:", documents, acc=0.9, perplexity=7) for documents in "xy"]
    (candidate,) = compared(CompareJobsRequest(), jobs).candidates
    assert [(metric.metric, metric.note) for metric in candidate.metrics] == [
        ("acc", "the baseline's value is not the mean of its samples"),
        ("perplexity", "the baseline has no value of any sample"),
    ]
    assert [list(metric.definition_differences) for metric in candidate.metrics] == [
        ["another document under 20 of 20 ids"]
    ] * 2


def test_the_same_question_has_no_differences(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / name, "1.0", 5, "Q:", "x") for name in "ab"]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(strict=True), jobs).candidates)
    assert not metric.definition_differences
    assert metric.paired_sample_count == 20


def test_a_version_may_be_a_fraction_or_not(tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / version, version, 5, "Q:", "x") for version in ("1", "1.0")]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(strict=True), jobs).candidates)
    assert not metric.definition_differences


def test_a_dataset_of_another_size_is_another(jobs: list[JobInfo]) -> None:
    for job, size in zip(jobs, (10, 12, 10), strict=True):
        for task in job.results["m"].tasks:
            task.original_sample_count = size
    found = [candidate.metrics[0].definition_differences for candidate in compared(CompareJobsRequest(), jobs).candidates]
    assert found == [["10 and 12 documents in the dataset"], []]


@pytest.mark.parametrize(
    "other", [("3.0", 5, "Q:", "x"), ("1.0", 0, "Q:", "x"), ("1.0", 5, "Question:", "x"), ("1.0", 5, "Q:", "y")]
)
def test_a_strict_comparison_of_different_questions_is_refused(other: tuple[str, int, str, str], tmp_path: Path) -> None:
    jobs = [defined_job(tmp_path / "a", "1.0", 5, "Q:", "x"), defined_job(tmp_path / "b", *other)]
    with pytest.raises(DefinitionsDifferError, match=r"1 of the metrics are of different questions, such as t/acc: "):
        compared(CompareJobsRequest(strict=True), jobs)


def grouped_job(folder: Path, shots: Mapping[str, int], groups: Mapping[str, list[str]]) -> JobInfo:
    """A job of groups of tasks."""
    (folder / "m").mkdir(parents=True)
    row = {"acc,none": 0.5, "acc_stderr,none": 0.05}
    table = {"results": {**dict.fromkeys(shots, row), **dict.fromkeys(groups, row)}, "n-shot": shots, "group_subtasks": groups}
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps(table))
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, results=read_results(folder, "m"))


def differences_of_groups(jobs: list[JobInfo]) -> dict[str, list[str]]:
    (candidate,) = compared(CompareJobsRequest(), jobs).candidates
    return {metric.task: list(metric.definition_differences) for metric in candidate.metrics if metric.definition_differences}


def test_other_questions_in_a_group_are_named_for_the_group_and_those_around_it(tmp_path: Path) -> None:
    groups = {"mmlu": ["stem", "law"], "stem": ["maths"], "other": ["history"]}
    shots = {"law": 5, "maths": 5, "history": 5}
    jobs = [
        grouped_job(tmp_path / "a", shots, groups),
        grouped_job(tmp_path / "b", {**shots, "maths": 0}, groups),
        grouped_job(tmp_path / "c", shots, {**groups, "other": ["history", "law"], "mmlu": ["stem", "law", "mmlu"]}),
    ]
    assert differences_of_groups(jobs[:2]) == {
        "maths": ["num_fewshot 5 and 0"],
        "stem": ["maths: num_fewshot 5 and 0"],
        "mmlu": ["maths: num_fewshot 5 and 0"],
    }
    assert differences_of_groups([jobs[0], jobs[2]]) == {
        "other": ["other tasks in the group"],
        "mmlu": ["other tasks in the group"],
    }
    with pytest.raises(DefinitionsDifferError, match="such as mmlu/acc: maths: num_fewshot"):
        compared(CompareJobsRequest(strict=True, metrics=selectors("mmlu")), jobs[:2])


def limited_job(folder: Path, limit: float | None, count: int, samples: bool, **metrics: float) -> JobInfo:
    """A job of the first documents of a task."""
    job = defined_job(folder, "1.0", 5, "Q:", "x", **metrics)
    if limit is not None:
        job.request.limit = limit
    for metric in job.results["m"].metrics:
        metric.sample_count = count
    if not samples:
        del job.results["m"].samples[:]
    return job


@pytest.mark.parametrize(
    ("limit", "count", "samples", "expected"),
    [
        (20, 20, False, ["limit 20 and none"]),
        (20, 20, True, []),
        (1000, 100, False, []),
        (None, 99, False, []),
    ],
    ids=["others", "paired", "limit beyond the dataset", "no limit"],
)
def test_another_limit_is_named_where_the_documents_of_both_are_not_known(
    tmp_path: Path, limit: float | None, count: int, samples: bool, expected: list[str]
) -> None:
    jobs = [limited_job(tmp_path / "a", limit, count, samples), limited_job(tmp_path / "b", None, 100, samples)]
    ((metric,),) = (candidate.metrics for candidate in compared(CompareJobsRequest(), jobs).candidates)
    assert list(metric.definition_differences) == expected
