"""How messages look at a prompt and in a notebook, and their rows, also in pandas."""

import html.parser
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_server import JOB_ID, job_at

import evalrpc
from evalrpc.client import views
from evalrpc.client.views import rows_of
from evalrpc.v1.comparison_pb2 import (
    AnswerCounts,
    CompareJobsResponse,
    Flip,
    FlipDirection,
    JobComparison,
    MetricComparison,
    MetricPlan,
    TestMethod,
    Verdict,
)
from evalrpc.v1.history_pb2 import GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobError, JobInfo, JobStatus, Progress
from evalrpc.v1.results_pb2 import ListMetricsResponse, Metric, ModelMetric, ModelResult
from evalrpc.v1.samples_pb2 import ListSamplesResponse
from evalrpc.v1.suites_pb2 import Assessment, SuiteDecision, SuiteFinding, SuiteJob, SuiteOutcome, SuiteRun

SCORE = Metric(
    task="mme", metric="score", filter="none", value=0.75, standard_error=0.01, higher_is_better=True, sample_count=8
)
RATE = Metric(task="mme", metric="wer", value=math.nan)
EVIL = "<script>alert(1)</script>\x1b[2J\u202e\x9b\u2028&\n"


def job(**fields: Any) -> JobInfo:
    request = EvaluateRequest(model="llava_hf", tasks=["mme", "mmmu"])
    results = {"acme/model": ModelResult(metrics=[SCORE, RATE])}
    status = JobStatus.JOB_STATUS_COMPLETED
    return job_at(**{"status": status, "request": request, "results": results, "labels": {"run": "x"}, **fields})


def history() -> GetHistoryResponse:
    point = HistoryPoint(job_id=JOB_ID, labels={"run": "x", "step": "500"}, step=500, model="m", metrics=[SCORE, RATE])
    point.created_at.FromDatetime(datetime(2026, 2, 14, 10, 30, tzinfo=UTC))
    return GetHistoryResponse(points=[point])


def comparison() -> CompareJobsResponse:
    metric = MetricComparison(
        baseline_model="m", candidate_model="n", task="mme", metric="score", filter="none", baseline_value=0.75,
        candidate_value=0.5, difference=-0.25, interval_lower=-0.3, interval_upper=-0.2, p_value=0.0001,
        method=TestMethod.TEST_METHOD_PAIRED_BOOTSTRAP, verdict=Verdict.VERDICT_WORSE, paired_sample_count=8,
    )  # fmt: skip
    missing = MetricComparison(task="mme", metric="wer", baseline_value=1, verdict=Verdict.VERDICT_INCONCLUSIVE)
    return CompareJobsResponse(candidates=[JobComparison(candidate_job_id=JOB_ID, metrics=[metric, missing])])


def test_the_answers_of_a_comparison_a_plan_and_a_flip_are_rows_of_plain_values() -> None:
    response = comparison()
    response.candidates[0].metrics[0].baseline_answers.CopyFrom(AnswerCounts(total_count=8, empty_count=1))
    first, second = rows_of(response)
    assert first["baseline_answers"] == {"total_count": 8, "failed_count": None, "empty_count": 1, "truncated_count": None}
    assert first["candidate_answers"] is None
    assert second["detectable_difference"] is None
    plan = MetricPlan(task="mme", metric="score", required_sample_count=7847)
    assert repr(plan) == "<MetricPlan mme/score: 7847 samples>"
    flip = Flip(doc_id="7", direction=FlipDirection.FLIP_DIRECTION_WORSE, baseline_value=1, candidate_value=0)
    flip.baseline_sample.update({"doc_id": 7})
    assert repr(flip) == "<Flip 7: 1.0000 -> 0.0000, WORSE>"
    (row,) = rows_of(flip)
    assert (row["direction"], row["baseline_sample"], row["candidate_sample"]) == ("WORSE", {"doc_id": 7}, {})


def decided_run() -> SuiteRun:
    metric = comparison().candidates[0].metrics[0]
    worse = SuiteFinding(
        entry="a", tier=1, required=True, assessment=Assessment.ASSESSMENT_FAILED, reason="WORSE", metric=metric
    )
    broken = SuiteFinding(entry="b", assessment=Assessment.ASSESSMENT_NO_NUMBERS, reason="the job is FAILED")
    outcome = SuiteOutcome.SUITE_OUTCOME_NO_GO
    decision = SuiteDecision(outcome=outcome, reasons=["a FAILED"], findings=[worse, broken])
    run = SuiteRun(suite_run_id=JOB_ID, status=JobStatus.JOB_STATUS_COMPLETED, decision=decision)
    run.suite.name = "release"
    return run


def test_a_suite_run_is_its_decision_and_a_row_per_finding() -> None:
    run = decided_run()
    first, second = rows_of(run)
    assert (first["suite_run_id"], first["entry"], first["assessment"], first["required"]) == (JOB_ID, "a", "FAILED", True)
    assert (first["metric"], first["difference"], first["verdict"]) == ("score", -0.25, "WORSE")
    assert (second["reason"], "metric" in second) == ("the job is FAILED", False)
    assert repr(run).splitlines()[0] == f"<SuiteRun {JOB_ID} COMPLETED, release, NO_GO>"
    assert repr(run.decision).splitlines()[0] == "<SuiteDecision NO_GO; a FAILED>"
    assert repr(run.decision.findings) == (
        "[<SuiteFinding a mme/score,none: FAILED, WORSE>, <SuiteFinding b: NO_NUMBERS, the job is FAILED>]"
    )
    run.decision.outcome = 99  # type: ignore[assignment]  # of a newer server
    assert repr(run).splitlines()[0].endswith("release, 99>")


def test_a_suite_run_that_was_not_decided_over_has_its_jobs() -> None:
    run = SuiteRun(jobs=[SuiteJob(entry="a", job_id=JOB_ID, status=JobStatus.JOB_STATUS_RUNNING)])
    (row,) = rows_of(run)
    assert (row["entry"], row["job_id"], row["status"]) == ("a", JOB_ID, "RUNNING")


def samples() -> ListSamplesResponse:
    page = ListSamplesResponse()
    page.samples.add().update({"doc_id": 1, "resps": ["a", "b"]})
    page.samples.add().update({"doc_id": 2, "score": 0.5})
    return page


# At a prompt


def test_a_job_is_one_line_at_a_prompt() -> None:
    assert repr(job()) == f"<JobInfo {JOB_ID} COMPLETED, llava_hf on mme, mmmu, run=x>"
    running = job_at(JobStatus.JOB_STATUS_RUNNING, progress=Progress(done=0, total=80, unit="requests"))
    assert repr(running) == f"<JobInfo {JOB_ID} RUNNING,  on , 0/80 requests>"
    failed = job(status=JobStatus.JOB_STATUS_FAILED, error=JobError(reason="TIMED_OUT", message="too slow"))
    assert repr([failed]) == f"[<JobInfo {JOB_ID} FAILED, llava_hf on mme, mmmu, run=x, TIMED_OUT: too slow>]"
    assert repr(job(status=99)).startswith(f"<JobInfo {JOB_ID} 99, ")  # of a newer server


def test_metrics_are_one_line_each_at_a_prompt() -> None:
    metrics = job().results["acme/model"].metrics

    assert repr(metrics) == "[<Metric mme/score,none = 0.7500 ± 0.0100>, <Metric mme/wer = nan>]"
    assert repr(ModelMetric(model="m", metric=SCORE)) == "<ModelMetric m mme/score,none = 0.7500 ± 0.0100>"
    assert repr(comparison().candidates[0].metrics) == (
        "[<MetricComparison mme/score,none: 0.7500 -> 0.5000, WORSE>, <MetricComparison mme/wer: 1.0000 -> none, INCONCLUSIVE>]"
    )
    assert repr(history().points[0]) == (
        f"<HistoryPoint {JOB_ID} run=x, step=500, m, mme/score,none = 0.7500 ± 0.0100, mme/wer = nan>"
    )


def test_an_answer_is_a_table_at_a_prompt() -> None:
    assert repr(job().results["acme/model"]) == (
        "<ModelResult 2 metrics>\n"
        "task  metric  filter  value   standard_error  higher_is_better  sample_count\n"
        "mme   score   none    0.7500  0.0100          True              8\n"
        "mme   wer             nan"
    )
    first, columns, row, _ = repr(history()).split("\n")
    assert first == "<GetHistoryResponse 2 metrics>"
    assert columns.split()[:4] == ["job_id", "created_at", "step", "model"]
    assert row.split()[:5] == [JOB_ID, "2026-02-14", "10:30:00", "500", "m"]
    assert repr(samples()).split("\n")[1:] == ["doc_id  resps       score", '1       ["a", "b"]', "2                   0.5000"]
    assert "WORSE" in repr(comparison()).split("\n")[2]
    assert repr(GetHistoryResponse()) == "<GetHistoryResponse 0 metrics>"


def test_the_text_of_a_message_is_still_whole() -> None:
    assert JobInfo.FromString(job().SerializeToString()) == job()
    assert 'metric: "wer"' in str(job())


# In a notebook


class Page(html.parser.HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        assert not attributes
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("message", [job(), job().results["acme/model"], history(), comparison(), samples(), SCORE])
def test_a_notebook_shows_a_table_with_all_that_a_prompt_shows(message: Any) -> None:
    page = Page(message._repr_html_())

    assert page.tags == {"b", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.texts[0] == views.describe(message)


@pytest.mark.parametrize(
    "message",
    [
        job(labels={"run": EVIL}, job_id=EVIL),
        job(results={EVIL: ModelResult(metrics=[Metric(task=EVIL, metric=EVIL, value=1)])}),
        job(error=JobError(reason="X", message=EVIL)),
        GetHistoryResponse(points=[HistoryPoint(labels={EVIL: EVIL}, model=EVIL, metrics=[SCORE])]),
        CompareJobsResponse(candidates=[JobComparison(metrics=[MetricComparison(task=EVIL, note=EVIL)])]),
    ],
)
def test_nothing_from_a_job_reaches_a_page_or_a_terminal_as_it_is(message: Any) -> None:
    page = message._repr_html_()

    assert Page(page).tags <= {"b", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script" not in page
    assert "\\x1b[2J\\u202e" in page
    for text in (page.replace("\n", ""), repr(message).replace("\n", "")):
        assert text.isprintable()


def test_a_sample_with_markup_is_escaped() -> None:
    page = ListSamplesResponse()
    page.samples.add().update({EVIL: EVIL, "nested": [EVIL]})

    assert Page(page._repr_html_()).tags == {"b", "table", "thead", "tbody", "tr", "th", "td"}
    assert repr(page).replace("\n", "").isprintable()


def test_a_long_table_is_cut_and_says_so() -> None:
    metrics = [Metric(task=f"t{number}", metric="m", value=number) for number in range(views.MAX_SHOWN_ROWS + 3)]
    result = ModelResult(metrics=metrics)

    assert repr(result).split("\n")[-1] == "… 3 more rows: to_pandas() has them all"
    assert result._repr_html_().count("<tr>") == 1 + views.MAX_SHOWN_ROWS
    assert "3 more rows" in result._repr_html_()
    assert len(list(rows_of(result))) == len(metrics)


# As rows


def test_rows_have_every_field_by_its_name() -> None:
    first, second = rows_of(job())

    assert first == {
        "job_id": JOB_ID, "model": "acme/model", "task": "mme", "metric": "score", "filter": "none", "value": 0.75,
        "standard_error": 0.01, "higher_is_better": True, "sample_count": 8, "is_group": False,
    }  # fmt: skip
    assert (second["filter"], second["standard_error"], second["higher_is_better"]) == ("", None, None)
    assert math.isnan(second["value"])


def test_the_rows_of_a_history_have_times_steps_and_labels() -> None:
    row = next(rows_of(history()))

    assert row["created_at"] == datetime(2026, 2, 14, 10, 30, tzinfo=UTC)
    assert (row["completed_at"], row["step"], row["labels.run"], row["labels.step"]) == (None, 500.0, "x", "500")


def test_the_rows_of_a_comparison_have_short_names_and_an_unknown_one_as_its_number() -> None:
    response = comparison()
    response.candidates[0].metrics[1].verdict = 99  # type: ignore[assignment] # of a newer server

    first, second = rows_of(response)

    assert (first["candidate_job_id"], first["verdict"], first["method"]) == (JOB_ID, "WORSE", "PAIRED_BOOTSTRAP")
    assert (second["verdict"], second["method"], second["candidate_value"]) == (99, "UNSPECIFIED", None)


def test_rows_are_of_anything_that_a_client_returns_and_of_many_of_it() -> None:
    entry = ModelMetric(model="acme/model", metric=SCORE)
    assert list(rows_of(ListMetricsResponse(metrics=[entry]))) == list(rows_of(entry)) == list(rows_of(iter([entry])))
    assert next(rows_of([SCORE, RATE])) == next(rows_of(SCORE))
    assert len(list(rows_of([job(), job()]))) == 4
    assert list(rows_of(samples())) == [{"doc_id": 1, "resps": ["a", "b"]}, {"doc_id": 2, "score": 0.5}]
    assert list(rows_of([{"a": 1}])) == [{"a": 1}]


@pytest.mark.parametrize("value", [5, "text", None, EvaluateRequest(), [1]])
def test_what_has_no_rows_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no rows"):
        list(rows_of(value))


# In pandas


def test_pandas_gets_all_rows_with_their_types() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed: the extra `pandas`")

    table = history().to_pandas()  # type: ignore[attr-defined]

    assert table["value"].iloc[0] == 0.75
    assert (str(table["step"].dtype), str(table["created_at"].dtype.tz)) == ("float64", "UTC")
    assert list(table["labels.run"]) == ["x", "x"]
    pd.testing.assert_frame_equal(evalrpc.to_pandas(history()), table)
    for message in (job(), job().results["acme/model"], comparison(), samples()):
        assert len(message.to_pandas()) == 2  # type: ignore[attr-defined]
    assert list(evalrpc.to_pandas([]).columns) == []
