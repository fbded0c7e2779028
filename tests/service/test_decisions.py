"""Comparisons that can be defended, on a real server: clusters, bad answers, repeats, plans and flips, from what runs leave."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from copier import add_copier, run_copier
from google.rpc import error_details_pb2
from processes_of_tests import readers_of
from server_process import ServerProcess
from serving import NOWHERE, Api, ServerHere, Site, detail, reason_of
from waiting import eventually

from evalrpc.analysis import flips
from evalrpc.analysis.flip_lists import Flips
from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, SamplesNotFoundError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.registry import build_harness
from evalrpc.reading import processes
from evalrpc.v1.comparison_pb2 import (
    FLIP_DIRECTION_BETTER,
    FLIP_DIRECTION_UNSPECIFIED,
    FLIP_DIRECTION_WORSE,
    NOISE_SOURCE_ANSWERS,
    NOISE_SOURCE_DOCUMENTS,
    NOISE_SOURCE_UNSPECIFIED,
    TEST_METHOD_CLUSTERED_T,
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    VERDICT_BETTER,
    VERDICT_INCONCLUSIVE,
    VERDICT_VOID,
    ListFlipsRequest,
    MetricComparison,
)

Row = Mapping[str, Any]


class Runs:
    """Creates jobs from the rows of their samples."""

    def __init__(self, api: Api, site: Site) -> None:
        self.api = api
        self._trees = site.folder / "trees"

    def job(self, name: str, rows: list[Row], metrics: tuple[str, ...] = ("acc",)) -> str:
        """Run a job of one task with these samples, and return its id."""
        folder = self._trees / name / "m"
        folder.mkdir(parents=True)
        means = {f"{metric},none": math.fsum(row[metric] for row in rows) / len(rows) for metric in metrics}
        document = {"results": {"t": means}, "higher_is_better": {"t": dict.fromkeys(metrics, True)}}
        (folder / "20260214_103045_results.json").write_text(json.dumps(document))
        (folder / "20260214_103045_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run_copier(self.api, self._trees / name)

    def metric(self, baseline: str, candidate: str, **fields: Any) -> MetricComparison:
        answer = self.api.CompareJobs(baseline_job_id=baseline, candidate_job_ids=[candidate], **fields)
        (metric,) = answer.candidates[0].metrics
        return metric


@pytest.fixture
def runs(site: Site, serve: Callable[..., ServerHere]) -> Runs:
    add_copier(site)
    return Runs(serve().api, site)


def rows_of(values: list[float], **more: Callable[[int], Any]) -> list[Row]:
    return [{"doc_id": n, "acc": value, **{k: of(n) for k, of in more.items()}} for n, value in enumerate(values)]


def violation(error: grpc.RpcError) -> tuple[str, str]:
    (found,) = detail(error, error_details_pb2.BadRequest).field_violations
    return found.field, found.description


def refused(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


# Clusters

PASSAGES = [0] * 60 + [1] * 40
"""Ten passages of ten questions each; the last four are answered."""
READ_BETTER = [0] * 50 + [1] * 50
"""One more is answered, as a whole."""


def of_passages(values: list[float]) -> list[Row]:
    return rows_of(values, doc=lambda n: {"passage": f"p{n // 10}", "source": {"book": n // 50}})


@pytest.mark.parametrize("field", ["passage", "doc.passage"])
def test_what_changes_in_one_cluster_alone_is_no_gain(runs: Runs, field: str) -> None:
    baseline, candidate = runs.job("a", of_passages(PASSAGES)), runs.job("b", of_passages(READ_BETTER))
    alone = runs.metric(baseline, candidate)
    assert (alone.method, alone.verdict, alone.cluster_field) == (TEST_METHOD_MCNEMAR, VERDICT_BETTER, "")
    assert not alone.HasField("cluster_count")
    clustered = runs.metric(baseline, candidate, cluster_by=field)
    assert (clustered.method, clustered.verdict) == (TEST_METHOD_CLUSTERED_T, VERDICT_INCONCLUSIVE)
    assert (clustered.cluster_field, clustered.cluster_count, clustered.paired_sample_count) == (field, 10, 100)
    assert clustered.design_effect == pytest.approx(
        9.9 * 10 / 9
    )  # all of a cluster changes together: (n - 1) / n * 10 * G / (G - 1)
    assert clustered.p_value == pytest.approx(0.3434, abs=1e-4)  # one of ten clusters: t = 1, 9 degrees of freedom
    assert clustered.detectable_difference > alone.detectable_difference > 0


def test_the_clusters_that_a_harness_names_are_used_unasked_and_can_be_taken_back(runs: Runs) -> None:
    with_clusters = [dict(row, cluster=row["doc"]["passage"]) for row in of_passages(PASSAGES)]
    baseline, candidate = runs.job("a", with_clusters), runs.job("b", of_passages(READ_BETTER))
    unasked = runs.metric(baseline, candidate)
    assert (unasked.method, unasked.cluster_field, unasked.cluster_count) == (TEST_METHOD_CLUSTERED_T, "cluster", 10)
    assert runs.metric(candidate, baseline).cluster_count == 10, "either job says it"
    alone = runs.metric(baseline, candidate, cluster_by="doc_id")
    assert (alone.cluster_count, alone.verdict) == (100, VERDICT_BETTER)
    assert alone.design_effect == pytest.approx(1)


def test_too_few_clusters_are_not_tested(runs: Runs) -> None:
    baseline, candidate = runs.job("a", of_passages(PASSAGES)), runs.job("b", of_passages(READ_BETTER))
    metric = runs.metric(baseline, candidate, cluster_by="source.book")
    assert (metric.method, metric.verdict, metric.cluster_count) == (TEST_METHOD_NONE, VERDICT_INCONCLUSIVE, 2)
    assert metric.note.startswith("too few clusters by the field 'source.book': 2, at least 5 are needed")
    assert not metric.HasField("detectable_difference")


def test_a_field_that_no_sample_has_is_refused_and_others_are_named(runs: Runs) -> None:
    baseline, candidate = runs.job("a", of_passages(PASSAGES)), runs.job("b", of_passages(READ_BETTER))
    error = refused(lambda: runs.metric(baseline, candidate, cluster_by="pasage"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    field, problem = violation(error)
    assert field == "cluster_by"
    assert problem == "no sample has a field 'pasage'; they have: doc.passage, doc_id, acc"
    error = refused(lambda: runs.api.PlanComparison(difference=0.1, baseline_job_id=baseline, cluster_by="pasage"))
    assert violation(error)[0] == "cluster_by"


def test_a_task_whose_samples_lack_the_field_says_so(runs: Runs) -> None:
    first = [dict(row, other=row["acc"]) for row in of_passages(PASSAGES)]
    baseline, candidate = runs.job("a", rows_of(PASSAGES)), runs.job("b", first)
    metric = runs.metric(baseline, candidate, cluster_by="passage")
    assert metric.cluster_count == 10, "one of the jobs suffices"


# Bad answers


@pytest.mark.parametrize(
    ("bad", "counts"),
    [
        ({"resps": [[" \n"]]}, (0, 1, 0)),
        ({"resps": [[]]}, (0, 1, 0)),
        ({"filtered_resps": [""]}, (0, 1, 0)),
        ({"answer": ""}, (0, 1, 0)),
        ({"filtered_resps": "None", "token_counts": [None]}, (0, 1, 0)),
        ({"resps": [["[LMMS_EVAL_REQUEST_FAILED] boom"]]}, (1, 0, 0)),
        ({"error": {"message": "boom"}}, (1, 0, 0)),
        ({"resps": [[["nan", "False"]], [["nan", "False"]]]}, (1, 0, 0)),
        ({"resps": "a", "stop_reason": "max_tokens"}, (0, 0, 1)),
        ({"resps": "a", "finish_reason": "length"}, (0, 0, 1)),
        ({"answer": "a", "output": {"choices": [{"stop_reason": "model_length"}]}}, (0, 0, 1)),
        ({"answer": "a", "limit": {"type": "time"}}, (0, 0, 1)),
        ({"resps": [["a", ""]]}, (0, 0, 0)),
        ({"resps": [[[-1.5, False]]]}, (0, 0, 0)),
        ({"resps": "a", "finish_reason": ["length"]}, (0, 0, 0)),
        ({"resps": "a", "error": 0.25}, (0, 0, 0)),
    ],
)
def test_answers_that_are_none_are_counted_by_kind(runs: Runs, bad: Row, counts: tuple[int, int, int]) -> None:
    good = rows_of([1, 0] * 20, resps=lambda n: [[f"answer {n}"]])
    first = {"doc_id": 0, "acc": 1, **bad}
    metric = runs.metric(runs.job("a", good), runs.job("b", [first, *good[1:]]))
    found = metric.candidate_answers
    assert (found.failed_count, found.empty_count, found.truncated_count, found.total_count) == (*counts, 40)
    assert metric.baseline_answers.total_count == 40
    assert (metric.verdict == VERDICT_VOID) == any(counts)
    assert runs.metric(*jobs_of(runs), max_bad_answer_ratio=0.025).verdict != VERDICT_VOID, "one of forty is 2.5 %"


def jobs_of(runs: Runs) -> tuple[str, str]:
    baseline, candidate = sorted(runs.api.ListJobs().jobs, key=lambda job: job.request.model)
    return baseline.job_id, candidate.job_id


def test_the_rows_of_one_filter_count_and_rows_without_answers_do_not(runs: Runs) -> None:
    rows = rows_of([1, 0] * 20, resps=lambda n: "", filter=lambda n: "none")
    others = [dict(row, filter="strict", resps="a") for row in rows]
    silent = runs.job("c", rows_of([1, 0] * 20))
    metric = runs.metric(silent, runs.job("d", rows + others))
    assert not metric.HasField("baseline_answers")
    assert (metric.candidate_answers.empty_count, metric.candidate_answers.total_count) == (40, 40)
    assert metric.verdict == VERDICT_VOID


# Repeats


@pytest.mark.parametrize(("spread", "larger"), [(0.5, NOISE_SOURCE_ANSWERS), (0.01, NOISE_SOURCE_DOCUMENTS)])
def test_the_noise_of_repeats_is_split(runs: Runs, spread: float, larger: int) -> None:
    def repeated(sign: int) -> list[Row]:
        return [
            {"doc_id": n, "epoch": epoch, "acc": sign * 0.1 * (-1) ** (n // 2) + spread * (-1) ** (epoch + sign * n)}
            for n in range(40)
            for epoch in range(2)
        ]

    metric = runs.metric(runs.job("a", repeated(1)), runs.job("b", repeated(-1)))
    assert (metric.paired_sample_count, metric.baseline_repeats, metric.candidate_repeats) == (40, 2, 2)
    assert metric.larger_noise == larger
    # Of each sample, the two values are 2 * spread apart, so their variance is 2 * spread ** 2, of both means twice the half.
    answers = math.sqrt(2 * spread**2 / 40)
    total = 0.2 / math.sqrt(39)
    assert metric.answer_standard_error == pytest.approx(min(answers, total))
    assert math.hypot(metric.answer_standard_error, metric.document_standard_error) == pytest.approx(total)


def test_without_repeats_nothing_is_said_of_their_noise(runs: Runs) -> None:
    metric = runs.metric(runs.job("a", rows_of([1, 0] * 20)), runs.job("b", rows_of([0, 1] * 20)))
    assert (metric.baseline_repeats, metric.candidate_repeats, metric.larger_noise) == (1, 1, NOISE_SOURCE_UNSPECIFIED)
    assert not metric.HasField("answer_standard_error")


# Plans


def test_a_share_of_differing_pairs_says_how_many_samples_a_difference_takes(runs: Runs) -> None:
    for difference, needed in ((0.01, 7847), (0.02, 1960)):
        (plan,) = runs.api.PlanComparison(difference=difference, differing_ratio=0.1).metrics
        assert plan.required_sample_count == needed
        assert not plan.HasField("sample_count")


def test_earlier_jobs_say_how_many_samples_tasks_and_repeats_a_difference_takes(runs: Runs) -> None:
    differing = [1 - n % 2 if n < 10 else n % 2 for n in range(100)]
    baseline = runs.job("a", rows_of([n % 2 for n in range(100)]))
    candidate = runs.job("b", rows_of(differing))
    (plan,) = runs.api.PlanComparison(difference=0.01, baseline_job_id=baseline, candidate_job_id=candidate).metrics
    assert (plan.model, plan.task, plan.metric, plan.filter) == ("m", "t", "acc", "none")
    assert (plan.required_sample_count, plan.required_task_count, plan.sample_count) == (7847, 79, 100)
    assert not plan.HasField("required_repeats")
    assert plan.note == ""
    compared = runs.metric(baseline, candidate)
    assert plan.detectable_difference == pytest.approx(compared.detectable_difference)
    (of_one,) = runs.api.PlanComparison(difference=0.01, baseline_job_id=baseline).metrics
    assert of_one.required_sample_count == pytest.approx(39_243, abs=10)  # half of the independent answers differ
    assert of_one.note.startswith("assumes that the other model's answers are independent")


def test_a_plan_says_why_there_is_none(runs: Runs) -> None:
    same = runs.job("a", rows_of([1, 0] * 20)), runs.job("b", rows_of([1, 0] * 20))
    few = runs.job("c", rows_of([1, 0, 1])), runs.job("d", rows_of([1, 0, 1]))
    notes = []
    for baseline, candidate in (same, few):
        (plan,) = runs.api.PlanComparison(difference=0.01, baseline_job_id=baseline, candidate_job_id=candidate).metrics
        assert not plan.HasField("required_sample_count")
        notes.append(plan.note)
    assert notes[0] == "no sample differs, so nothing is known of how they vary"
    assert notes[1].startswith("too few samples are in both jobs: 3")


def test_values_too_large_for_a_variance_are_no_bug_of_a_plan(runs: Runs) -> None:
    values = [(-1) ** n * 10.0 ** (300 + n % 8) for n in range(40)]
    large, small = runs.job("a", rows_of(values)), runs.job("b", rows_of([1, 0] * 20))
    for candidate in ("", small):
        (plan,) = runs.api.PlanComparison(difference=0.01, baseline_job_id=large, candidate_job_id=candidate).metrics
        assert not plan.HasField("required_sample_count")
        assert plan.note


def test_clusters_ask_for_more_samples_and_repeats_for_fewer_documents(runs: Runs) -> None:
    baseline, candidate = runs.job("a", of_passages(PASSAGES)), runs.job("b", of_passages(READ_BETTER))
    jobs = {"baseline_job_id": baseline, "candidate_job_id": candidate}
    (alone,), (clustered,) = (
        runs.api.PlanComparison(difference=0.05, cluster_by=field, **jobs).metrics for field in ("doc_id", "passage")
    )
    assert clustered.design_effect == pytest.approx(11)
    assert clustered.required_sample_count == pytest.approx(11 * alone.required_sample_count, abs=11)


def test_repeats_of_one_job_say_how_many_more_it_takes(runs: Runs) -> None:
    rows = [{"doc_id": n, "acc": 0.1 * (-1) ** n + 0.5 * (-1) ** epoch} for n in range(40) for epoch in range(2)]
    (plan,) = runs.api.PlanComparison(difference=0.1, baseline_job_id=runs.job("a", rows)).metrics
    # The variance of an answer is 0.5, of the difference of two 1; documents don't add to it.
    assert plan.required_repeats == math.ceil(1 / (40 * (0.1 / (1.959964 + 0.841621)) ** 2)) == 20


@pytest.mark.parametrize("difference", [1e-12, 1e12])
def test_the_smallest_and_the_largest_difference_are_planned_for(runs: Runs, difference: float) -> None:
    baseline, candidate = (runs.job(name, rows_of(values)) for name, values in (("a", [0, 1] * 10), ("b", [0.5, 1] * 10)))
    (plan,) = runs.api.PlanComparison(difference=difference, baseline_job_id=baseline, candidate_job_id=candidate).metrics
    assert 1 <= plan.required_sample_count <= 2**63 - 1


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, ["baseline_job_id", "difference"]),
        ({"difference": math.nan, "differing_ratio": 0.1}, ["difference"]),
        ({"difference": 1e308, "baseline_job_id": NOWHERE}, ["difference"]),
        ({"difference": 5e-321, "baseline_job_id": NOWHERE}, ["difference"]),
        ({"difference": 0.1, "differing_ratio": 0.05}, ["differing_ratio"]),
        ({"difference": 0.1, "differing_ratio": 1.5}, ["differing_ratio"]),
        ({"difference": 0.1, "differing_ratio": 0.5, "baseline_job_id": NOWHERE}, ["baseline_job_id"]),
        ({"difference": 0.1, "differing_ratio": 0.5, "cluster_by": "x", "metrics": [{"task": "t"}]}, ["cluster_by", "metrics"]),
        ({"difference": 0.1, "baseline_job_id": NOWHERE, "candidate_job_id": NOWHERE}, ["candidate_job_id"]),
        ({"difference": 0.1, "baseline_job_id": "x", "alpha": 0.9, "power": 0.2}, ["alpha", "baseline_job_id", "power"]),
        ({"difference": 0.1, "baseline_job_id": NOWHERE, "metrics": [{}], "cluster_by": "\0"}, ["cluster_by", "metrics[0]"]),
    ],
)
def test_every_bad_field_of_a_plan_is_named(api: Api, fields: dict[str, Any], bad: list[str]) -> None:
    error = refused(lambda: api.PlanComparison(**fields))
    assert sorted(each.field for each in detail(error, error_details_pb2.BadRequest).field_violations) == bad


# Flips


def shares() -> tuple[list[Row], list[Row]]:
    """Twelve samples whose values move by different amounts, three of them not at all, with their answers."""
    before = [0.5] * 12
    after = [0.5 + step / 16 for step in (1, -2, 3, 0, -5, 6, 0, 8, -2, 0, 4, -1)]
    return tuple(
        rows_of(values, resps=lambda n, word=word: f"{word} {n}") for values, word in ((before, "old"), (after, "new"))
    )  # type: ignore[misc]


ORDER = ["4", "1", "8", "11", "7", "5", "10", "2", "0"]
"""Those for the worse first, the largest first, and equal ones in the order of the file."""


@pytest.mark.parametrize("page_size", [0, 1, 4, 1000])
def test_flips_are_listed_by_direction_and_size_with_both_answers(runs: Runs, page_size: int) -> None:
    before, after = shares()
    baseline, candidate = runs.job("a", before), runs.job("b", after)
    pages = list(pages_of(runs.api, baseline_job_id=baseline, candidate_job_id=candidate, page_size=page_size))
    listed = [flip for page in pages for flip in page.flips]
    assert [flip.doc_id for flip in listed] == ORDER
    assert [flip.direction for flip in listed] == [FLIP_DIRECTION_WORSE] * 4 + [FLIP_DIRECTION_BETTER] * 5
    assert (listed[0].baseline_value, listed[0].candidate_value) == (0.5, 0.1875)
    assert (listed[0].baseline_sample["resps"], listed[0].candidate_sample["resps"]) == ("old 4", "new 4")
    assert len(pages) == (math.ceil(9 / page_size) if page_size else 1)
    for page in pages:
        assert (page.worse_count, page.better_count, page.paired_sample_count) == (4, 5, 12)


def pages_of(api: Api, **fields: Any) -> Iterator[Any]:
    token = ""
    while True:
        page = api.ListFlips(**fields, page_token=token)
        yield page
        if not (token := page.next_page_token):
            return


def test_one_direction_alone_and_what_is_better_are_for_the_caller_to_say(runs: Runs) -> None:
    before, after = shares()
    jobs = {"baseline_job_id": runs.job("a", before), "candidate_job_id": runs.job("b", after)}
    worse, better = (
        [flip.doc_id for page in pages_of(runs.api, **jobs, direction=way, page_size=2) for flip in page.flips]
        for way in (FLIP_DIRECTION_WORSE, FLIP_DIRECTION_BETTER)
    )
    assert worse + better == ORDER
    turned = runs.api.ListFlips(**jobs, higher_is_better=False)
    assert [flip.doc_id for flip in turned.flips] == better + worse


def test_of_very_many_flips_the_largest_of_each_direction_are_listed(
    runs: Runs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site.settings()
    harnesses = {"copier": build_harness(settings.harnesses["copier"])}
    jobs = [runs.api.GetJob(job_id=runs.job(name, rows)) for name, rows in zip("ab", shares(), strict=True)]

    def find() -> Flips:
        budget = ReadBudget(ReadLimits(max_bytes=2**20, max_seconds=60.0))
        return flips.find_flips(ListFlipsRequest(), jobs, harnesses, settings.data_dir, budget)

    places = find().part(range(len(ORDER))).places
    monkeypatch.setattr(flips, "MAX_LISTED", 3)
    found = find()
    assert found.part(found.range_of(FLIP_DIRECTION_UNSPECIFIED)).places == [*places[:3], *places[4:7]]
    assert found.range_of(FLIP_DIRECTION_BETTER) == range(3, 6)
    assert (found.summary.worse_count, found.summary.better_count) == (4, 5)


def test_all_comparisons_share_a_process_that_ends_when_it_is_idle(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [runs.job(name, rows) for name, rows in zip("ab", shares(), strict=True)]
    first = runs.metric(*jobs)
    (reader,) = readers_of(os.getpid())
    assert runs.metric(*jobs) == first
    assert readers_of(os.getpid()) == [reader]
    os.kill(reader, signal.SIGKILL)
    monkeypatch.setattr(processes, "IDLE_SECONDS", 0.01)
    assert runs.metric(*jobs) == first, "a process that was killed is replaced"
    eventually(lambda: not readers_of(os.getpid()), "for an idle process to end")


def test_a_server_that_compares_loads_no_statistics_itself(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "").start()
    try:
        with server.client() as client:
            assert client.plan_comparison(0.01, differing_ratio=0.1).metrics[0].required_sample_count == 7847
        (reader,) = readers_of(server.pid)
        loaded = [name in Path(f"/proc/{pid}/maps").read_text() for pid in (reader, server.pid) for name in ("numpy", "scipy")]
        assert loaded == [True, True, False, False]
        server.kill()
        eventually(lambda: not Path(f"/proc/{reader}").exists(), "for the process to end without its server")
    finally:
        server.clean_up()


def test_rows_of_a_flip_that_are_too_large_are_cut(runs: Runs) -> None:
    long = "x" * (3 * 1024 * 1024)
    rows = [{"doc_id": 0, "acc": 1, "resps": long}, {"doc_id": 1, "acc": 0, "resps": "a"}]
    changed = [dict(row, acc=1 - row["acc"]) for row in rows]
    jobs = {"baseline_job_id": runs.job("a", rows), "candidate_job_id": runs.job("b", changed)}
    pages = list(pages_of(runs.api, **jobs))
    assert [flip.doc_id for page in pages for flip in page.flips] == ["0", "1"]
    assert pages[0].ByteSize() < 3 * 1024 * 1024
    assert list(pages[0].truncated_fields) == ["flips[0].baseline_sample.resps", "flips[0].candidate_sample.resps"]


def test_flips_of_several_metrics_have_to_be_chosen_from(runs: Runs) -> None:
    rows = [dict(row, f1=row["acc"]) for row in rows_of([1, 0] * 5)]
    changed = [dict(row, f1=1 - row["f1"]) for row in rows]
    jobs = {"baseline_job_id": runs.job("a", rows, ("acc", "f1")), "candidate_job_id": runs.job("b", changed, ("acc", "f1"))}
    error = refused(lambda: runs.api.ListFlips(**jobs))
    assert violation(error) == ("metric", "must select one of several: t/acc,none, t/f1,none")
    assert len(runs.api.ListFlips(**jobs, metric={"metric": "f1"}).flips) == 10
    assert list(runs.api.ListFlips(**jobs, metric={"metric": "acc"}).flips) == []
    for fields, reason in (({"metric": {"metric": "f2"}}, "METRIC_NOT_FOUND"), ({"model": "n"}, "METRIC_NOT_FOUND")):
        assert reason_of(refused(lambda fields=fields: runs.api.ListFlips(**jobs, **fields))) == reason


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, ["baseline_job_id", "candidate_job_id"]),
        ({"baseline_job_id": NOWHERE, "candidate_job_id": NOWHERE.upper()}, ["candidate_job_id"]),
        ({"baseline_job_id": "x", "candidate_job_id": NOWHERE, "direction": 9}, ["baseline_job_id", "direction"]),
        ({"baseline_job_id": "x", "candidate_job_id": NOWHERE, "metric": {"filter": "f"}}, ["baseline_job_id", "metric"]),
        ({"baseline_job_id": "x", "candidate_job_id": NOWHERE, "model": "\0"}, ["baseline_job_id", "model"]),
    ],
)
def test_every_bad_field_of_flips_is_named(api: Api, fields: dict[str, Any], bad: list[str]) -> None:
    error = refused(lambda: api.ListFlips(**fields))
    assert sorted(each.field for each in detail(error, error_details_pb2.BadRequest).field_violations) == bad


def test_a_token_of_another_listing_of_flips_is_refused(runs: Runs) -> None:
    before, after = shares()
    jobs = {"baseline_job_id": runs.job("a", before), "candidate_job_id": runs.job("b", after)}
    token = runs.api.ListFlips(**jobs, page_size=1).next_page_token
    for fields in ({"page_token": "x"}, {"page_token": token, "direction": FLIP_DIRECTION_WORSE}):
        assert violation(refused(lambda fields=fields: runs.api.ListFlips(**jobs, **fields)))[0] == "page_token"


def test_samples_that_are_gone_have_no_flips(runs: Runs) -> None:
    before, after = shares()
    jobs = {"baseline_job_id": runs.job("a", before), "candidate_job_id": runs.job("b", after)}
    Path(runs.api.get(jobs["candidate_job_id"]).results["m"].samples[0]).unlink()
    assert reason_of(refused(lambda: runs.api.ListFlips(**jobs))) == "SAMPLES_NOT_FOUND"


# The clients


def test_the_client_plans_and_lists_flips_by_plain_values(runs: Runs) -> None:
    before, after = shares()
    baseline, candidate = runs.job("a", before), runs.job("b", after)
    with EvalClient(runs.api.address) as client:
        assert client.plan_comparison(0.01, differing_ratio=0.1).metrics[0].required_sample_count == 7847
        changed = client.flips(baseline, candidate, "t/acc", page_size=2)
        assert [flip.doc_id for flip in changed] == ORDER
        with pytest.raises(InvalidRequestError):
            client.compare(baseline, candidate, cluster_by="nothing")
        with pytest.raises(InvalidRequestError):
            client.plan_comparison(0.01)
        silent = runs.job("c", [{"acc": 1}])
        with pytest.raises(SamplesNotFoundError):
            list(client.flips(baseline, silent))
