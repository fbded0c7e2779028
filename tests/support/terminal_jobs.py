"""A server with something to show for every command: the usual, the long, the wide and the hostile."""

from typing import Any

from fake_server import JOB_ID, FakeService, job_at
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from terminal_program import NOW_SECONDS

from evalrpc.v1.comparison_pb2 import (
    CompareJobsResponse,
    Flip,
    FlipDirection,
    JobComparison,
    MetricComparison,
    MetricPlan,
    TestMethod,
    Verdict,
)
from evalrpc.v1.history_pb2 import FallAlarm, GetHistoryResponse, HistoryPoint, MetricTrend
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobError, JobEventType, JobInfo, JobStatus, Progress
from evalrpc.v1.results_pb2 import Metric, ModelMetric, ModelResult, TaskResult
from evalrpc.v1.suites_pb2 import (
    Assessment,
    Suite,
    SuiteDecision,
    SuiteEntry,
    SuiteFinding,
    SuiteOutcome,
    SuiteRun,
    SuiteRunEvent,
)

RUNNING, COMPLETED, FAILED, QUEUED, CANCELLED, FOREIGN = (
    JOB_ID,
    *(f"{number}c2f{number}a40-3d1b-4c8e-9f6a-2b7d9e0f4a1{number}" for number in range(1, 6)),
)

SUITE_RUN, GO_RUN, BASELINE_RUN = (f"{n}a2f{n}b40-3d1b-4c8e-9f6a-2b7d9e0f4b1{n}" for n in range(3))

HOSTILE = "\x1b[2J\x9b31m\x07a\u202eb\u200bc\u2028d\ne\rf\x7f\U000e0041"
"""Clears the screen, colours, beeps, turns the direction, hides, and breaks the line."""


def at(seconds_ago: int) -> Timestamp:
    return Timestamp(seconds=NOW_SECONDS - seconds_ago)


def fill(service: FakeService) -> None:
    """Put everything in."""
    service.page_size = 50
    for job in _jobs():
        service.change(job)
        if job.job_id == COMPLETED:
            metrics = [(model, metric) for model, result in job.results.items() for metric in result.metrics]
            service.metrics = [ModelMetric(model=model, metric=metric) for model, metric in metrics]
    service.log = f"\x1b[32mINFO\x1b[0m loading weights\r\n 50%|##  |\r100%|####|\nFileNotFoundError: 中文\n{HOSTILE}".encode()
    service.chunk_size = 7
    service.files = {"acme__lm/results.json": b"{}", "acme__lm/samples_mme.jsonl": b"[]"}
    service.samples = [{"doc_id": number, "answer": text} for number, text in enumerate(("yes", "中文 🙂", HOSTILE))]
    service.history = history()
    service.comparison = comparison()
    service.plan.metrics.extend(plans())
    service.flips = flips()
    service.suites = suites()
    go = decision(SuiteOutcome.SUITE_OUTCOME_GO)
    service.suite_runs[SUITE_RUN] = suite_run(SUITE_RUN, "/ckpt/500", decision())
    service.suite_runs[GO_RUN] = suite_run(GO_RUN, "/ckpt/600", go)
    service.suite_run_events = suite_run_events()
    service.decisions["release"] = go
    service.queue.max_queued = 1000
    service.queue.queued_job_ids.extend([QUEUED, *(f"{number:08d}-3d1b-4c8e-9f6a-000000000000" for number in range(25))])
    service.queue.status_counts.add(status=JobStatus.JOB_STATUS_FAILED, count=2)
    service.queue.free_gpu_count = 0
    for owner, queued, running, gpus in (("", 3, 0, 0), ("alice", 20, 1, 2), ("中文", 3, 1, 1)):
        counts = {"queued_count": queued, "running_count": running, "held_gpu_count": gpus}
        service.queue.owners.add(owner=owner, weight=1.0 + gpus, used_gpu_seconds=gpus * 36_000, **counts)
    service.queue.owners[1].max_gpus = 2
    service.queue.owners[1].max_queued = 100
    service.queue.gpus[1].quarantine_reason = "71 GiB of its memory stay in use although no job holds it"


def _jobs() -> list[JobInfo]:
    return [
        _job(
            RUNNING,
            JobStatus.JOB_STATUS_RUNNING,
            created_at=at(4000),
            started_at=at(3900),
            labels={"run": "sft-large", "step": "500"},
            attempt=1,
            max_attempts=1,
            gpus=["0"],
            progress=Progress(
                phase=Progress.Phase.PHASE_EVALUATING,
                done=120,
                total=900,
                unit="requests",
                rate_per_second=3.25,
                time_left=Duration(seconds=240),
                elapsed=Duration(seconds=3900),
            ),
        ),
        _job(
            COMPLETED,
            JobStatus.JOB_STATUS_COMPLETED,
            created_at=at(9000),
            started_at=at(8000),
            completed_at=at(7875),
            labels={"run": "sft-large", "step": "1000"},
            attempt=1,
            max_attempts=2,
            results={"acme__lm-7b-instruct": result()},
        ),
        _job(
            FAILED,
            JobStatus.JOB_STATUS_FAILED,
            created_at=at(90000),
            started_at=at(89999),
            completed_at=at(89940),
            labels={"run": "sft-large", "step": "1500"},
            error=JobError(
                reason="HARNESS_FAILED",
                message="FileNotFoundError: [Errno 2] No such file or directory: '/ckpt/sft-large/1500/model.safetensors'",
                log_tail=[
                    "Traceback (most recent call last):",
                    '  File "eval.py", line 12, in <module>',
                    "FileNotFoundError: [Errno 2] No such file or directory: '/ckpt/sft-large/1500/model.safetensors'",
                ],
            ),
        ),
        _job(
            QUEUED,
            JobStatus.JOB_STATUS_QUEUED,
            created_at=at(60),
            labels={"run": "ablation without a warm-up and with a long name", "step": "2000"},
            position_in_queue=2,
            wait_reason="needs 1 GPU, 0 free",
        ),
        _job(
            CANCELLED,
            JobStatus.JOB_STATUS_CANCELLED,
            created_at=at(500),
            completed_at=at(400),
            error=JobError(reason="CANCELLED", message="cancelled on request"),
        ),
        hostile_job(),
    ]


def hostile_job(**fields: Any) -> JobInfo:
    """Build a job, every text of which is hostile or takes two cells a character."""
    error = JobError(reason="HARNESS_FAILED", message=f"ValueError: {HOSTILE}", log_tail=[HOSTILE, f"x{HOSTILE}"])
    metric = Metric(task=HOSTILE, metric=HOSTILE, filter=HOSTILE, value=float("nan"))
    return job_at(
        **{
            "status": JobStatus.JOB_STATUS_FAILED,
            "job_id": FOREIGN,
            "created_at": at(700),
            "started_at": at(650),
            "completed_at": at(600),
            "request": EvaluateRequest(
                harness="lmms-eval", model="通义千问-视觉语言模型", tasks=["中文测试🙂", "e\u0301tude", HOSTILE]
            ),
            "labels": {"run": HOSTILE, "step": "10", "note": "日本語 👍"},
            "error": error,
            "warnings": [HOSTILE],
            "results": {HOSTILE: ModelResult(results=f"/srv/{HOSTILE}", metrics=[metric], harness_versions={HOSTILE: HOSTILE})},
            **fields,
        },
    )


def _job(job_id: str, status: "JobStatus.ValueType", **fields: Any) -> JobInfo:
    request = EvaluateRequest(harness="lmms-eval", model="llava_hf", tasks=["mme", "mmmu_val", "demo_colour_naming"])
    return job_at(status, job_id=job_id, request=request, **fields)


def result() -> ModelResult:
    """Build results with a group, a NaN and a very large value."""
    metrics = [
        Metric(
            task="demo_colour_naming",
            metric="exact_match",
            filter="strict-match",
            value=0.75,
            standard_error=0.0125,
            higher_is_better=True,
            sample_count=1200,
        ),
        Metric(task="demo_colour_naming", metric="perplexity", value=12_345_678_901.5, higher_is_better=False),
        Metric(task="mme", metric="wer", filter="none", value=float("nan"), sample_count=8),
        Metric(task="all", metric="exact_match", filter="none", value=0.5, is_group=True),
    ]
    tasks = [
        TaskResult(task="demo_colour_naming", version="1.0"),
        TaskResult(task="all", is_group=True, subtasks=["mme", "demo_colour_naming"]),
    ]
    return ModelResult(
        results="/srv/evalrpc/jobs/1c2f1a40/attempt-1/output/acme__lm-7b-instruct/20260214_results.json",
        metrics=metrics,
        tasks=tasks,
        harness_versions={"lm_eval": "0.4.13", "transformers": "5.1"},
        total_evaluation_time=Duration(seconds=125),
    )


def history() -> GetHistoryResponse:
    """Build two runs of four steps, one of which has a NaN."""
    values = {"sft-large": (0.41, 0.48, float("nan"), 0.6), "ablation": (0.4, 0.45, 0.5, 0.52)}
    points = [
        HistoryPoint(
            job_id=f"{step:08d}-3d1b-4c8e-9f6a-{index:012d}",
            created_at=at(10000 - step),
            labels={"run": run, "step": str(step)},
            step=step,
            model="acme__lm",
            metrics=[
                Metric(
                    task="gsm8k",
                    metric="exact_match",
                    filter="strict-match",
                    value=values[run][place],
                    standard_error=0.02,
                    higher_is_better=True,
                    sample_count=1319,
                ),
                Metric(task="wikitext", metric="perplexity", value=123_456.5 + place, higher_is_better=False),
            ],
        )
        for place, step in enumerate((500, 1000, 1500, 2000))
        for index, run in enumerate(values)
    ]
    fallen = FallAlarm(job_id=points[-1].job_id, step=2000, before=0.5, after=0.41, after_count=2)
    name = {"task": "gsm8k", "metric": "exact_match", "filter": "strict-match", "higher_is_better": True}
    steps = {"first_step": 500, "last_step": 2000}
    trends = [
        MetricTrend(run="ablation", point_count=4, **name, **steps),
        MetricTrend(
            run="sft-large",
            point_count=9,
            slope=-6e-5,
            slope_lower=-1e-4,
            slope_upper=2e-5,
            noise=0.012,
            alarm_p_value=0.004,
            alarm=fallen,
            **name,
            **steps,
        ),
    ]
    return GetHistoryResponse(points=points, trends=trends)


def plans() -> list[MetricPlan]:
    """Build one plan, and one that is none."""
    return [
        MetricPlan(
            model="base",
            task="gsm8k",
            metric="exact_match",
            filter="strict-match",
            sample_count=1319,
            detectable_difference=0.0241,
            required_sample_count=7847,
            required_task_count=6,
        ),
        MetricPlan(model="base", task="mme", metric="score", note="no sample differs, so nothing is known of how they vary"),
    ]


def flips() -> list[Flip]:
    """Build a change for the worse, with a hostile answer, and one for the better."""
    worse = Flip(doc_id="17", direction=FlipDirection.FLIP_DIRECTION_WORSE, baseline_value=1, candidate_value=0)
    worse.baseline_sample.update({"doc_id": 17, "resps": [["The answer is 42, as the text says in its second paragraph."]]})
    worse.candidate_sample.update({"doc_id": 17, "resps": [[HOSTILE]]})
    better = Flip(doc_id="abc/3", direction=FlipDirection.FLIP_DIRECTION_BETTER, baseline_value=0.25, candidate_value=1)
    better.baseline_sample.update({"answer": "left"})
    better.candidate_sample.update({"answer": "right"})
    return [worse, better]


def comparison() -> CompareJobsResponse:
    """Build one metric that is worse, one that is the same, and one that is NaN."""
    worse = MetricComparison(
        baseline_model="base",
        candidate_model="acme__lm",
        task="gsm8k",
        metric="exact_match",
        filter="strict-match",
        baseline_value=0.5,
        candidate_value=0.375,
        difference=-0.125,
        interval_lower=-0.2,
        interval_upper=-0.05,
        p_value=0.0021,
        method=TestMethod.TEST_METHOD_MCNEMAR,
        paired_sample_count=1319,
        detectable_difference=0.0241,
        verdict=Verdict.VERDICT_WORSE,
    )
    same = MetricComparison(
        baseline_model="base",
        candidate_model="acme__lm",
        task="mme",
        metric="score",
        baseline_value=0.5,
        candidate_value=0.5,
        difference=0.0,
        method=TestMethod.TEST_METHOD_NONE,
        verdict=Verdict.VERDICT_SAME,
        note="neither job has samples",
    )
    nan = MetricComparison(
        baseline_model="base",
        candidate_model="acme__lm",
        task="demo_colour_naming",
        metric="acc",
        filter="none",
        baseline_value=0.5,
        candidate_value=float("nan"),
        method=TestMethod.TEST_METHOD_NONE,
        verdict=Verdict.VERDICT_INCONCLUSIVE,
    )
    return CompareJobsResponse(
        candidates=[JobComparison(candidate_job_id=COMPLETED, metrics=[nan, worse, same])], confidence_level=0.95
    )


def suites() -> list[Suite]:
    """Build a suite with two entries, one of them hostile."""
    first = SuiteEntry(name="gsm8k", tier=1, required=True, tolerance=0.01, threshold=0.6)
    first.request.MergeFrom(EvaluateRequest(harness="lm-eval", tasks=["gsm8k"], num_fewshot=5))
    first.metrics.add(metric="exact_match", filter="strict-match")
    second = SuiteEntry(name=HOSTILE, tier=2, tolerance=0)
    second.request.MergeFrom(EvaluateRequest(harness="lmms-eval", tasks=["mme", "mmmu_val"], limit=100))
    return [Suite(name="release", description="What a release has to pass.", entries=[first, second])]


def suite_run(suite_run_id: str, pretrained: str, decision: SuiteDecision) -> SuiteRun:
    """Build a run of that suite that has ended."""
    run = SuiteRun(suite_run_id=suite_run_id, status=JobStatus.JOB_STATUS_COMPLETED, decision=decision)
    run.suite.CopyFrom(suites()[0])
    run.submission.request.model = "hf"
    run.submission.request.model_args.update({"pretrained": pretrained})
    run.created_at.CopyFrom(at(600))
    for entry, job_id in zip(run.suite.entries, (COMPLETED, FOREIGN), strict=True):
        run.jobs.add(entry=entry.name, job_id=job_id, status=JobStatus.JOB_STATUS_COMPLETED)
    return run


def decision(outcome: SuiteOutcome.ValueType = SuiteOutcome.SUITE_OUTCOME_NO_GO) -> SuiteDecision:
    """Build a decision with a finding of each kind; one of GO has only what passes."""
    worse, passed = SuiteFinding(), SuiteFinding()
    worse.metric.CopyFrom(comparison().candidates[0].metrics[1])
    worse.metric.candidate_sample_count = 1319
    worse.metric.adjusted_p_value = 0.0042
    worse.MergeFrom(
        SuiteFinding(
            entry="gsm8k",
            tier=1,
            required=True,
            job_id=COMPLETED,
            baseline_job_id=RUNNING,
            assessment=Assessment.ASSESSMENT_FAILED,
            reason="WORSE: 0.3750 against the baseline's 0.5000",
            threshold=0.3,
            value_lower=0.349,
            value_upper=0.401,
            value_method=TestMethod.TEST_METHOD_ONE_SAMPLE_Z,
            threshold_p_value=0.001,
            threshold_adjusted_p_value=0.003,
        )
    )
    passed.metric.CopyFrom(comparison().candidates[0].metrics[2])
    passed.MergeFrom(
        SuiteFinding(
            entry="mme",
            tier=2,
            job_id=COMPLETED,
            assessment=Assessment.ASSESSMENT_PASSED,
            reason="SAME: 0.5000 against the baseline's 0.5000",
        )
    )
    broken = SuiteFinding(
        entry=HOSTILE,
        tier=1,
        required=True,
        job_id=FOREIGN,
        assessment=Assessment.ASSESSMENT_NO_NUMBERS,
        reason=f"the job is FAILED: {HOSTILE}",
    )
    skipped = SuiteFinding(
        entry="mmmu", tier=2, job_id=FOREIGN, assessment=Assessment.ASSESSMENT_UNDECIDED, reason="INCONCLUSIVE"
    )
    is_go = outcome == SuiteOutcome.SUITE_OUTCOME_GO
    return SuiteDecision(
        outcome=outcome,
        reasons=[] if is_go else [f"gsm8k gsm8k/exact_match (tier 1) FAILED: {worse.reason}", f"broken: {HOSTILE}"],
        findings=[passed] if is_go else [worse, broken, skipped, passed],
        finding_count=1 if is_go else 4,
        baseline_suite_run_id=BASELINE_RUN,
        confidence_level=0.95,
    )


def suite_run_events() -> list[SuiteRunEvent]:
    """Build what comes before the end of a run."""
    running = SuiteRun(suite_run_id=SUITE_RUN, status=JobStatus.JOB_STATUS_RUNNING)
    for entry, job_id in (("gsm8k", COMPLETED), (HOSTILE, FOREIGN)):
        running.jobs.add(entry=entry, job_id=job_id, status=JobStatus.JOB_STATUS_QUEUED)
    snapshot = SuiteRunEvent(type=JobEventType.JOB_EVENT_TYPE_SNAPSHOT, revision=1, run=running)
    running.jobs[0].status = JobStatus.JOB_STATUS_RUNNING
    job = JobInfo(job_id=COMPLETED, status=JobStatus.JOB_STATUS_RUNNING, progress=Progress(done=3, total=8, unit="samples"))
    return [snapshot, SuiteRunEvent(type=JobEventType.JOB_EVENT_TYPE_PROGRESS, revision=2, run=running, job=job)]
