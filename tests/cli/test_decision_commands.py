"""`evalrpc plan` and `evalrpc flips`, and what `evalrpc compare` says of clusters, repeats and bad answers."""

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from fake_server import JOB_ID, FakeService
from google.protobuf import json_format

from evalrpc.v1.comparison_pb2 import (
    CompareJobsResponse,
    Flip,
    FlipDirection,
    JobComparison,
    MetricComparison,
    MetricPlan,
    NoiseSource,
    PlanComparisonResponse,
    TestMethod,
    Verdict,
)

Run = Callable[..., Result]
OTHER_IDS = ["00000000-6f1e-4f0e-9d51-0d5fb3a1c001"]
WORSE, BETTER = FlipDirection.FLIP_DIRECTION_WORSE, FlipDirection.FLIP_DIRECTION_BETTER


def flip(doc_id: str, answer: object, direction: "FlipDirection.ValueType" = WORSE) -> Flip:
    found = Flip(doc_id=doc_id, direction=direction, baseline_value=1, candidate_value=0)
    found.baseline_sample.update({"resps": [["42"]]})
    found.candidate_sample.update({"filtered_resps": answer})
    return found


def test_flips_print_both_answers(run: Run, service: FakeService) -> None:
    service.flips = [flip("17", ["43"]), flip("x", ["a", "b"], BETTER), flip("y", "", 99)]  # type: ignore[arg-type]
    result = run("flips", OTHER_IDS[0], JOB_ID, "--metric", "t/acc", "--only", "worse", "--direction", "higher")
    assert result.exit_code == 0
    assert [line.split("\t") for line in result.stdout.splitlines()[1:]] == [
        ["WORSE", "17", "1.0000", "0.0000", "42", "43"],
        ["BETTER", "x", "1.0000", "0.0000", "42", "['a', 'b']"],
        ["99", "y", "1.0000", "0.0000", "42", ""],
    ]
    request = service.received["ListFlips"][0]
    assert (request.baseline_job_id, request.candidate_job_id) == (OTHER_IDS[0], JOB_ID)
    assert (request.metric.task, request.metric.metric, request.direction) == ("t", "acc", WORSE)
    assert request.higher_is_better


def test_no_flips_are_said_to_be_none(run: Run, service: FakeService) -> None:
    result = run("flips", OTHER_IDS[0], JOB_ID, "-o", "jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "none changed" in result.stderr


def test_flips_stop_at_their_limit_and_say_what_was_cut(run: Run, service: FakeService) -> None:
    service.page_size = 2
    service.flips = [flip(str(number), "a") for number in range(9)]
    service.truncated_fields = ["flips[0].baseline_sample.resps"]
    result = run("flips", OTHER_IDS[0], JOB_ID, "--limit", "3", "-o", "jsonl")
    assert [json_format.Parse(line, Flip()).doc_id for line in result.stdout.splitlines()] == ["0", "1", "2"]
    assert "rows over 1 MiB are cut" in result.stderr


def test_a_plan_is_printed_by_metric(run: Run, service: FakeService) -> None:
    plan = MetricPlan(task="t", metric="acc", model="m", required_sample_count=7847, required_task_count=79, sample_count=100)
    service.plan.metrics.append(plan)
    result = run("plan", "0.01", OTHER_IDS[0], JOB_ID, "--power", "0.9", "--cluster-by", "passage", "--metric", "t/")
    assert result.stdout.splitlines()[1].split("\t") == ["t/acc", "7847", "", "79", "", "100", "", "", "m"]
    (request,) = service.received["PlanComparison"]
    assert (request.baseline_job_id, request.candidate_job_id, request.power) == (OTHER_IDS[0], JOB_ID, 0.9)
    assert (request.cluster_by, request.metrics[0].task) == ("passage", "t")
    assert not request.HasField("differing_ratio")


def test_a_plan_needs_no_job(run: Run, service: FakeService) -> None:
    service.plan.metrics.append(MetricPlan(required_sample_count=7847))
    result = run("plan", "0.01", "--differing", "0.1", "--json")
    assert json_format.Parse(result.stdout, PlanComparisonResponse()) == service.plan
    (request,) = service.received["PlanComparison"]
    assert (request.differing_ratio, request.baseline_job_id) == (0.1, "")


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "much"], ["plan", "0.1", JOB_ID, JOB_ID, JOB_ID], ["flips", JOB_ID]])
def test_a_wrong_call_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_plan_of_nothing_says_what_to_give(run: Run) -> None:
    result = run("plan", "0.01")

    assert result.exit_code == 2
    assert "give a JOB or two, or --differing" in result.stderr


def compared(**fields: object) -> CompareJobsResponse:
    metric = MetricComparison(task="t", metric="acc", baseline_value=0.5, candidate_value=0.5, **fields)  # type: ignore[arg-type]
    return CompareJobsResponse(candidates=[JobComparison(candidate_job_id=JOB_ID, metrics=[metric])], confidence_level=0.95)


def test_compare_says_the_clusters_what_it_could_see_and_what_would_help(run: Run, service: FakeService) -> None:
    service.comparison = compared(
        method=TestMethod.TEST_METHOD_CLUSTERED_T,
        verdict=Verdict.VERDICT_NOT_WORSE,
        cluster_field="passage",
        cluster_count=57,
        paired_sample_count=4000,
        detectable_difference=0.0125,
        larger_noise=NoiseSource.NOISE_SOURCE_ANSWERS,
    )
    result = run("compare", OTHER_IDS[0], JOB_ID, "--cluster-by", "passage", "--max-bad-answers", "0.1", "--gate", "no-worse")
    assert result.exit_code == 0
    row = result.stdout.splitlines()[1].split("\t")
    assert row[0] == "NOT_WORSE"
    assert row[7:9] == ["0.0125", "clustered t-test, 4000 pairs, 57 clusters by passage, noise mostly of the answers"]
    (request,) = service.received["CompareJobs"]
    assert (request.cluster_by, request.max_bad_answer_ratio) == ("passage", 0.1)


def test_compare_counts_the_bad_answers_of_what_is_void(run: Run, service: FakeService) -> None:
    service.comparison = compared(verdict=Verdict.VERDICT_VOID)
    metric = service.comparison.candidates[0].metrics[0]
    metric.baseline_answers.total_count = metric.candidate_answers.total_count = 100
    metric.candidate_answers.truncated_count = 12
    result = run("compare", OTHER_IDS[0], JOB_ID)
    assert result.exit_code == 1
    assert "12 truncated of 100 answers in the candidate" in result.stdout
    assert "evalrpc:   t/acc is VOID: 12 truncated of 100 answers in the candidate" in result.stderr
    assert json.loads(run("compare", OTHER_IDS[0], JOB_ID, "--json").stdout)["candidates"]
