"""When an attempt that has asked an engine counts, by what the gateway knows at its end; and what it says of each task."""

from pathlib import Path
from typing import Any, cast

import pytest

from evalrpc.clock import SystemClock
from evalrpc.config import HarnessSettings
from evalrpc.engines.gateway.contract import Counters, PartCounters
from evalrpc.errors import GatewayUnavailableError, RunFailedError
from evalrpc.harnesses.base import Harness, Run
from evalrpc.harnesses.registry import build_harness
from evalrpc.harnesses.steps import steps_of
from evalrpc.scheduling.lending import Lending
from evalrpc.scheduling.serving import ServedRun, Serving
from evalrpc.v1 import jobs_pb2 as pb


class Gateway:
    """Says what a test wants."""

    known: Counters | Exception | None = Counters()

    def url(self, token: str) -> str:
        return ""

    def open_url(self) -> str:
        return "http://127.0.0.1:1/v1"

    def instance(self) -> str:
        return ""

    def counters(self, token: str) -> Counters | None:
        if isinstance(self.known, Exception):
            raise self.known
        return self.known


class Pool:
    def __init__(self) -> None:
        self.gateway = Gateway()

    def find(self, served: pb.ServedModel, engine_id: str) -> None:
        """Return none."""

    def source(self, served: pb.ServedModel) -> str:
        return served.model

    def api_of(self, served: pb.ServedModel) -> tuple[str, ...]:
        return ("chat",)

    def require_there(self, engine: object) -> None:
        """Raise nothing."""


@pytest.fixture
def run(tmp_path: Path) -> ServedRun:
    job = pb.JobInfo(job_id="j", attempt=1)
    job.request.served_model.model = "/m"
    serving = Serving(cast("Any", Pool()), SystemClock(), tmp_path, Lending(tmp_path))
    return ServedRun(serving, job, lambda _: None)


HARNESS = cast("Harness", object())


def test_an_attempt_counts_whose_questions_were_all_answered(run: ServedRun) -> None:
    run._serving.pool.gateway.known = Counters(answered=3)  # type: ignore[attr-defined]
    run.require_sound(HARNESS)


@pytest.mark.parametrize(
    "last",
    [
        None,
        GatewayUnavailableError("it does not answer"),
        Counters(answered=2, failed=1, unavailable=1),
        Counters(answered=2, failed=1, gateway_failures=1),
    ],
    ids=["the route is gone", "the gateway is away", "no engine was there", "a fault of the gateway"],
)
def test_an_attempt_is_made_anew_whatever_was_known_before(run: ServedRun, last: Counters | Exception | None) -> None:
    gateway = cast("Any", run._serving.pool.gateway)
    gateway.known = Counters(answered=1)
    run._runs[0]._count()
    gateway.known = last
    with pytest.raises(RunFailedError) as caught:
        run.require_sound(HARNESS)
    assert caught.value.job_error.reason == "ENGINE_LOST"


def test_tasks_that_run_one_by_one_ask_below_addresses_of_their_own_and_have_their_counts(
    run: ServedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run._runs[0], "_url", "http://127.0.0.1:1/j/TOKEN/v1")
    harness = build_harness(HarnessSettings("lm-eval", "lm-eval"))
    request = pb.EvaluateRequest(tasks=["t", "u", "v"], tasks_separately=True)
    request.served_model.CopyFrom(pb.ServedModel(engine="e", model="/m"))
    steps = run.pointed(harness, steps_of(Run("j", 1, request, Path("/attempt"), Path("/output"), 0)))
    urls = [step.request.model_args.fields["base_url"].string_value for step in steps]
    assert urls == [f"http://127.0.0.1:1/j/TOKEN/t/{part}/v1/chat/completions" for part in (1, 2, 3)]
    parts = (PartCounters("1", answered=3, prompt_tokens=7), PartCounters("2", answered=1, failed=2))
    cast("Any", run._serving.pool.gateway).known = Counters(answered=4, parts=parts)
    run._runs[0]._count()
    job = pb.JobInfo()
    for task in ("t", "u", "v"):
        job.results["m"].tasks.add(task=task)
    run.note_task_usage(job)
    first, second, third = job.results["m"].tasks
    assert (first.usage.answered_count, first.usage.prompt_token_count, first.usage.failed_count) == (3, 7, 0)
    assert (second.usage.answered_count, second.usage.failed_count) == (1, 2)
    assert not first.usage.HasField("retried_count")
    assert not third.HasField("usage")


@pytest.mark.parametrize(
    ("status", "known", "warnings"),
    [
        (pb.JOB_STATUS_COMPLETED, Counters(failed=4), ["4 of 4 answers of the judge failed: "]),
        (
            pb.JOB_STATUS_COMPLETED,
            Counters(answered=3, empty=1, failed=1),
            ["1 of 4 answers of the judge failed, and 1 more are"],
        ),
        (pb.JOB_STATUS_COMPLETED, Counters(answered=3), []),
        (pb.JOB_STATUS_FAILED, Counters(failed=4), []),
    ],
)
def test_a_judge_that_did_not_judge_is_told(
    tmp_path: Path, status: pb.JobStatus.ValueType, known: Counters, warnings: list[str]
) -> None:
    job = pb.JobInfo(job_id="j", attempt=1, status=status)
    job.request.judge_model.model = "/judge"
    run = ServedRun(Serving(cast("Any", Pool()), SystemClock(), tmp_path, Lending(tmp_path)), job, lambda _: None)
    cast("Any", run._serving.pool.gateway).known = known
    run._runs[0]._count()
    run.note_judge(job)
    assert len(job.warnings) == len(warnings)
    assert all(said.startswith(expected) for said, expected in zip(job.warnings, warnings, strict=True))


@pytest.mark.parametrize(
    ("asked", "found", "counts"),
    [
        (["t"], ["t"], [3]),
        (["t"], ["t", "t_part"], [3, 0]),
        (["t"], ["of its own name"], [3]),
        (["t", "u"], ["t", "u"], [0, 0]),
    ],
    ids=["the only one", "a group", "another name", "two together"],
)
def test_what_a_job_has_asked_is_what_its_only_task_has(
    run: ServedRun, asked: list[str], found: list[str], counts: list[int]
) -> None:
    run._job.request.tasks.extend(asked)
    cast("Any", run._serving.pool.gateway).known = Counters(answered=3)
    run._runs[0]._count()
    job = pb.JobInfo()
    for task in found:
        job.results["m"].tasks.add(task=task)
    run.note_task_usage(job)
    assert [task.usage.answered_count for task in job.results["m"].tasks] == counts


def test_tasks_that_run_together_have_one_address(run: ServedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run._runs[0], "_url", "http://127.0.0.1:1/j/TOKEN/v1")
    harness = build_harness(HarnessSettings("lmms-eval", "lmms-eval"))
    request = pb.EvaluateRequest(tasks=["t", "u"])
    request.served_model.CopyFrom(pb.ServedModel(engine="e", model="/m"))
    (step,) = run.pointed(harness, steps_of(Run("j", 1, request, Path("/attempt"), Path("/output"), 0)))
    assert step.request.model_args.fields["base_url"].string_value == "http://127.0.0.1:1/j/TOKEN/v1"
