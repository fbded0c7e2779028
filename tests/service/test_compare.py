"""Jobs compared on a real server: result files of all layouts, and files with missing, broken or incomparable contents."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from copier import add_copier, run_copier
from google.rpc import error_details_pb2
from serving import COMPLETED, NOWHERE, Api, ServerHere, Site, detail, reason_of

from evalrpc.client import EvalClient
from evalrpc.errors import MetricNotFoundError, NoResultsError
from evalrpc.v1.comparison_pb2 import (
    CORRECTION_HOLM,
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    TEST_METHOD_PAIRED_BOOTSTRAP,
    TEST_METHOD_UNPAIRED_Z,
    VERDICT_BETTER,
    VERDICT_INCONCLUSIVE,
    VERDICT_SAME,
    VERDICT_WORSE,
    CompareJobsResponse,
    MetricComparison,
)

BETTER, WORSE = VERDICT_BETTER, VERDICT_WORSE
SAME, INCONCLUSIVE = VERDICT_SAME, VERDICT_INCONCLUSIVE
MCNEMAR, BOOTSTRAP = TEST_METHOD_MCNEMAR, TEST_METHOD_PAIRED_BOOTSTRAP
UNPAIRED_Z, UNTESTED = TEST_METHOD_UNPAIRED_Z, TEST_METHOD_NONE

Scores = Mapping[str, Sequence[Any]]
"""The score of each sample of a task, by metric name."""


class Bench:
    """Creates jobs from result files, and compares them."""

    def __init__(self, api: Api, site: Site) -> None:
        self.api = api
        self._trees = site.folder / "trees"

    def job(self, name: str, files: Mapping[str, str]) -> str:
        """Run a job that leaves these files, and return its id."""
        for path, text in files.items():
            file = self._trees / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return run_copier(self.api, self._trees / name)

    def compare(self, baseline: str, *candidates: str, **fields: Any) -> CompareJobsResponse:
        return self.api.CompareJobs(baseline_job_id=baseline, candidate_job_ids=candidates, **fields)

    def metrics(self, baseline: str, candidate: str, **fields: Any) -> dict[str, MetricComparison]:
        """Compare two jobs, and return the comparisons by task and metric."""
        (comparison,) = self.compare(baseline, candidate, **fields).candidates
        return {f"{metric.task}/{metric.metric}": metric for metric in comparison.metrics}

    def metric(self, baseline: str, candidate: str, **fields: Any) -> MetricComparison:
        (metric,) = self.metrics(baseline, candidate, **fields).values()
        return metric


@pytest.fixture
def bench(site: Site, serve: Callable[..., ServerHere]) -> Bench:
    add_copier(site)
    return Bench(serve().api, site)


def results_of(row: Mapping[str, Any], **document: Any) -> str:
    return json.dumps({"results": {"t": row}, "higher_is_better": {"t": {"acc": True, "loss": False}}, **document})


def rows_of(scores: Scores, **more: Any) -> str:
    count = max(map(len, scores.values()))
    rows = ({"doc_id": n, **more, **{metric: values[n] for metric, values in scores.items()}} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def lmms_eval(scores: Scores, model: str = "m") -> dict[str, str]:
    """Files as lmms-eval writes them."""
    row = {f"{metric},none": mean(values) for metric, values in scores.items()}
    stem = f"{model}/20260214_103045"
    return {f"{stem}_results.json": results_of(row), f"{stem}_samples_t.jsonl": rows_of(scores, doc_hash="same for all")}


def lm_eval(scores: Scores, model: str = "m") -> dict[str, str]:
    """Files as lm-eval writes them, with two filters."""
    row = {f"{metric},{f}": mean(values) for metric, values in scores.items() for f in ("none", "strict")}
    samples = "".join(rows_of(scores, filter=f, metrics=list(scores)) for f in ("none", "strict"))
    stamp = "2026-02-14T10-30-45.274536"
    return {f"{model}/results_{stamp}.json": results_of(row), f"{model}/samples_t_{stamp}.jsonl": samples}


def aggregate(row: Mapping[str, Any], model: str = "m", **document: Any) -> dict[str, str]:
    """A results file without samples."""
    return {f"{model}/20260214_103045_results.json": results_of(row, **document)}


HALF = [1, 0] * 20
BETTER_HALF = [1] * 10 + HALF[10:]  # five wrong answers become right
MOST = [1] * 30 + HALF[30:]  # fifteen wrong answers become right


# Paired samples.


@pytest.mark.parametrize("layout", [lmms_eval, lm_eval])
def test_samples_of_every_layout_are_paired_by_their_id(bench: Bench, layout: Callable[..., dict[str, str]]) -> None:
    baseline, candidate = bench.job("a", layout({"acc": HALF}, "step-1")), bench.job("b", layout({"acc": MOST}, "step-2"))
    response = bench.compare(baseline, candidate)
    assert response.confidence_level == 0.95
    (comparison,) = response.candidates
    assert comparison.candidate_job_id == candidate
    assert len(comparison.metrics) == (2 if layout is lm_eval else 1)
    for metric in comparison.metrics:
        assert (metric.baseline_model, metric.candidate_model) == ("step-1", "step-2")
        assert (metric.task, metric.metric, metric.method, metric.verdict) == ("t", "acc", MCNEMAR, BETTER)
        assert (metric.baseline_value, metric.candidate_value) == (0.5, 0.875)
        assert metric.difference == 0.375
        assert metric.p_value == pytest.approx(2 / 2**15)
        assert 0 < metric.interval_lower < 0.375 < metric.interval_upper
        assert (metric.paired_sample_count, metric.differing_sample_count, metric.unpaired_sample_count) == (40, 15, 0)
        assert metric.note == ""


def test_the_other_way_round_it_is_worse_and_of_a_loss_it_is_better(bench: Bench) -> None:
    scores = {"acc": HALF, "loss": HALF, "other": HALF}
    good, bad = dict.fromkeys(scores, MOST), scores
    verdicts = {
        name: metric.verdict
        for name, metric in bench.metrics(bench.job("a", lmms_eval(good)), bench.job("b", lmms_eval(bad))).items()
    }
    assert verdicts == {"t/acc": WORSE, "t/loss": BETTER, "t/other": INCONCLUSIVE}


def test_numbers_that_are_not_only_0_and_1_are_bootstrapped_and_the_answer_is_always_the_same(bench: Bench) -> None:
    shares = [(n % 7) / 7 for n in range(100)]
    shifted = [share + 0.1 + 0.05 * (n % 3) for n, share in enumerate(shares)]
    baseline, candidate = bench.job("a", lmms_eval({"acc": shares})), bench.job("b", lmms_eval({"acc": shifted}))
    metric = bench.metric(baseline, candidate)
    assert (metric.method, metric.verdict, metric.paired_sample_count) == (BOOTSTRAP, BETTER, 100)
    assert metric.difference == pytest.approx(0.1495)
    assert metric.interval_lower < metric.difference < metric.interval_upper
    assert bench.metric(baseline, candidate) == metric


def test_equal_samples_are_the_same_and_few_changes_are_inconclusive(bench: Bench) -> None:
    baseline = bench.job("a", lmms_eval({"acc": HALF}))
    assert bench.metric(baseline, bench.job("b", lmms_eval({"acc": HALF}))).verdict == SAME
    little = bench.metric(baseline, candidate := bench.job("c", lmms_eval({"acc": BETTER_HALF})))
    assert (little.verdict, little.p_value) == (INCONCLUSIVE, pytest.approx(2 / 2**5))
    assert bench.metric(baseline, candidate, tolerance=0.3).verdict == SAME
    assert bench.metric(baseline, candidate, alpha=0.07).verdict == BETTER


def test_a_job_of_fewer_samples_is_compared_on_those_that_both_have(bench: Bench) -> None:
    baseline, candidate = bench.job("a", lmms_eval({"acc": HALF})), bench.job("b", lmms_eval({"acc": MOST[:10]}))
    metric = bench.metric(baseline, candidate)
    assert (metric.paired_sample_count, metric.unpaired_sample_count, metric.method) == (10, 30, MCNEMAR)
    assert (metric.baseline_value, metric.candidate_value, metric.difference) == (0.5, 1.0, 0.5)


def test_several_candidates_are_each_held_against_the_baseline(bench: Bench) -> None:
    baseline, *candidates = (bench.job(name, lmms_eval({"acc": s})) for name, s in zip("abc", (HALF, MOST, HALF), strict=True))
    response = bench.compare(baseline.upper(), *candidates)
    assert [comparison.candidate_job_id for comparison in response.candidates] == candidates
    assert [comparison.metrics[0].verdict for comparison in response.candidates] == [BETTER, SAME]


# Missing data, and fallbacks.


def test_without_samples_the_standard_errors_count(bench: Bench) -> None:
    sizes = {"n-samples": {"t": {"effective": 100}}}
    baseline = bench.job("a", aggregate({"acc,none": 0.5, "acc_stderr,none": 0.03}, **sizes))
    metric = bench.metric(baseline, bench.job("b", aggregate({"acc,none": 0.62, "acc_stderr,none": 0.04}, **sizes)))
    assert (metric.method, metric.verdict, metric.paired_sample_count) == (UNPAIRED_Z, BETTER, 0)
    assert (metric.interval_lower, metric.interval_upper) == pytest.approx((0.12 - 1.959964 * 0.05, 0.12 + 1.959964 * 0.05))
    assert (metric.baseline_sample_count, metric.candidate_sample_count) == (100, 100)
    assert metric.note == "the baseline has no value of any sample"


@pytest.mark.parametrize(
    ("row", "sample_count"),
    [
        ({"acc,none": 0.9}, 100),
        ({"acc,none": 0.9, "acc_stderr,none": "N/A"}, 100),
        ({"acc,none": 0.9, "acc_stderr,none": math.nan}, 100),
        ({"acc,none": 0.9, "acc_stderr,none": math.inf}, 100),
        ({"acc,none": 0.9, "acc_stderr,none": 0.0}, 100),
        ({"acc,none": 0.9, "acc_stderr,none": 0.1}, 5),
    ],
)
def test_without_a_standard_error_that_says_something_nothing_is_concluded(
    bench: Bench, row: dict[str, Any], sample_count: int
) -> None:
    sizes = {"n-samples": {"t": {"effective": sample_count}}}
    baseline = bench.job("a", aggregate({**row, "acc,none": 0.5}, **sizes))
    candidate = bench.job("b", aggregate(row, **sizes))
    metric = bench.metric(baseline, candidate)
    assert (metric.method, metric.verdict, metric.HasField("p_value")) == (UNTESTED, INCONCLUSIVE, False)
    assert bench.metric(baseline, candidate, tolerance=0.5).verdict == INCONCLUSIVE, "nobody knows how large the noise is"


def test_values_of_which_nobody_says_that_they_have_noise_are_taken_as_they_are(bench: Bench) -> None:
    baseline, candidate = (bench.job(name, aggregate({"acc,none": value})) for name, value in (("a", 0.5), ("b", 0.9)))
    verdicts = [bench.metric(baseline, candidate, tolerance=tolerance).verdict for tolerance in (0.3, 0.5)]
    assert verdicts == [INCONCLUSIVE, SAME]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_values_that_are_not_finite_are_inconclusive(bench: Bench, value: float) -> None:
    baseline, candidate = bench.job("a", aggregate({"acc,none": -value})), bench.job("b", aggregate({"acc,none": value}))
    metric = bench.metric(baseline, candidate, tolerance=1)
    assert (metric.verdict, metric.HasField("difference")) == (INCONCLUSIVE, False)
    assert metric.note == "the values are not finite"


def test_metrics_and_models_that_only_one_job_has_are_listed(bench: Bench) -> None:
    baseline = bench.job("a", lmms_eval({"acc": HALF, "old": HALF}))
    found = bench.metrics(baseline, bench.job("b", lmms_eval({"acc": HALF, "new": HALF})))
    assert {name: (m.HasField("baseline_value"), m.HasField("candidate_value"), m.verdict) for name, m in found.items()} == {
        "t/acc": (True, True, SAME),
        "t/new": (False, True, INCONCLUSIVE),
        "t/old": (True, False, INCONCLUSIVE),
    }
    two_models = bench.job("c", lmms_eval({"acc": MOST}, "m") | lmms_eval({"acc": HALF}, "n"))
    (comparison,) = bench.compare(baseline, two_models, metrics=[{"metric": "acc"}]).candidates
    assert [(m.baseline_model, m.candidate_model, m.verdict) for m in comparison.metrics] == [
        ("m", "m", BETTER),
        ("", "n", INCONCLUSIVE),
    ]


def test_a_value_that_is_no_mean_of_the_samples_is_not_tested_as_one(bench: Bench) -> None:
    files = lmms_eval({"acc": HALF})
    files["m/20260214_103045_results.json"] = results_of({"acc,none": 12.5, "acc_stderr,none": 0.5})
    metric = bench.metric(bench.job("a", files), bench.job("b", lmms_eval({"acc": HALF})))
    assert (metric.method, metric.note) == (UNTESTED, "the baseline's value is not the mean of its samples")


def test_too_few_samples_are_not_bootstrapped(bench: Bench) -> None:
    metric = bench.metric(bench.job("a", lmms_eval({"acc": [0.1] * 9})), bench.job("b", lmms_eval({"acc": [0.2] * 9})))
    assert (metric.method, metric.verdict) == (UNTESTED, INCONCLUSIVE)
    assert metric.note == "too few samples are in both jobs: 9"


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "link"])
def test_samples_that_are_damaged_or_gone_break_nothing(bench: Bench, tmp_path: Path, damage: str) -> None:
    baseline, candidate = bench.job("a", lmms_eval({"acc": HALF})), bench.job("b", lmms_eval({"acc": MOST}))
    samples = Path(bench.api.get(candidate).results["m"].samples[0])
    text = samples.read_text()
    samples.unlink()
    if damage == "truncated":
        samples.write_text(text[: len(text) // 2])
    elif damage == "empty":
        samples.touch()
    elif damage == "link":
        (tmp_path / "elsewhere").write_text(text)
        samples.symlink_to(tmp_path / "elsewhere")
    metric = bench.metric(baseline, candidate)
    assert (metric.method, metric.verdict, metric.difference) == (UNTESTED, INCONCLUSIVE, 0.375)
    assert metric.note.startswith("the candidate")


# Selection and thresholds.


def test_only_what_is_asked_for_is_compared_and_by_its_own_thresholds(bench: Bench) -> None:
    scores = {"acc": HALF, "loss": HALF, "other": HALF}
    baseline = bench.job("a", lmms_eval(scores))
    candidate = bench.job("b", lmms_eval(dict.fromkeys(scores, MOST)))
    found = bench.metrics(
        baseline,
        candidate,
        metrics=[{"metric": "acc"}, {"task": "t", "metric": "other", "filter": "none"}],
        metric_thresholds=[
            {"selector": {"metric": "other"}, "higher_is_better": False},
            {"selector": {"metric": "acc"}, "tolerance": 1.0},
        ],
    )
    assert {name: metric.verdict for name, metric in found.items()} == {"t/acc": SAME, "t/other": WORSE}


def test_holm_makes_many_metrics_as_sure_as_one(bench: Bench) -> None:
    changed, flips = [0] * 6 + HALF[6:], [1] * 12 + HALF[12:]  # three lost; six gained: p = 1/32
    baseline = bench.job("a", lmms_eval({"acc": HALF, "loss": HALF}))
    candidate = bench.job("b", lmms_eval({"acc": flips, "loss": changed}))
    assert bench.metrics(baseline, candidate)["t/acc"].verdict == BETTER
    corrected = bench.metrics(baseline, candidate, correction=CORRECTION_HOLM)["t/acc"]
    assert (corrected.p_value, corrected.adjusted_p_value) == (pytest.approx(1 / 32), pytest.approx(1 / 16))
    assert corrected.verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": [{"metric": "acc"}, {"task": "t", "metric": "acd"}]},
        {"metric_thresholds": [{"selector": {"task": "t", "metric": "acd"}, "tolerance": 1}]},
    ],
)
def test_a_metric_that_no_job_has_is_an_error_that_says_what_there_is(bench: Bench, fields: dict[str, Any]) -> None:
    baseline, candidate = bench.job("a", lmms_eval({"acc": HALF})), bench.job("b", lmms_eval({"acc": HALF}))
    with pytest.raises(grpc.RpcError, match="none of the jobs has a metric t/acd; they have: t/acc") as error:
        bench.compare(baseline, candidate, **fields)
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.NOT_FOUND, "METRIC_NOT_FOUND")
    assert detail(error.value, error_details_pb2.ResourceInfo).resource_name == "t/acd"


# Jobs that can't be compared.


def test_jobs_without_results_are_named(bench: Bench, site: Site) -> None:
    good, failed, slow = bench.api.run("good"), bench.api.run("fails"), bench.api.submit("slow")
    for baseline, candidate, bad in ((good, failed, failed), (failed, good, failed), (good, slow, slow)):
        with pytest.raises(grpc.RpcError, match=f"job {bad.job_id} is .* no results to compare") as error:
            bench.compare(baseline.job_id, candidate.job_id)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(error.value) == "NO_RESULTS"
        assert detail(error.value, error_details_pb2.PreconditionFailure).violations[0].subject == bad.job_id
    site.release()
    bench.api.wait_for(slow.job_id, COMPLETED)


def test_jobs_that_do_not_exist_are_not_found(bench: Bench) -> None:
    job_id = bench.api.run("good").job_id
    for baseline, candidate in ((NOWHERE, job_id), (job_id, NOWHERE)):
        with pytest.raises(grpc.RpcError) as error:
            bench.compare(baseline, candidate)
        assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


# The clients, and the cost to the server.


def test_the_clients_compare_jobs_by_plain_values(bench: Bench) -> None:
    baseline = bench.job("a", lmms_eval({"acc": HALF, "other": HALF}))
    candidate = bench.job("b", lmms_eval({"acc": MOST, "other": MOST}))
    with EvalClient(bench.api.address) as client:
        response = client.compare(baseline, candidate, metrics=["t/"], tolerances={"acc": 1.0}, directions={"t/other": False})
        assert [metric.verdict for metric in response.candidates[0].metrics] == [SAME, WORSE]
        with pytest.raises(MetricNotFoundError):
            client.compare(baseline, [candidate], metrics=["u/acc"])
        with pytest.raises(NoResultsError):
            client.compare(baseline, bench.api.run("fails").job_id)


def test_a_server_that_compares_nothing_loads_no_statistics() -> None:
    code = "import sys, evalrpc.server; print([name for name in ('numpy', 'scipy') if name in sys.modules])"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
