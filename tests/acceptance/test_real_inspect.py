"""The real inspect-ai, through the real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_stub import ChatStub, chat_stub
from server_process import ServerProcess

from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, JobCancelledError, JobFailedError
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import TestMethod, Verdict

pytestmark = pytest.mark.slow

# mockllm counts tokens with a vocabulary that is downloaded, so that counter is replaced.
TASKS = """
import asyncio
import inspect_ai.model._model as model
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate, solver

model.count_text_tokens = len


def sums(count=10):
    targets = ["output" if n % 2 else str(n + 1) for n in range(count)]
    return MemoryDataset([Sample(input=f"What is {n} + 1?", target=target, id=n) for n, target in enumerate(targets)])


@solver
def sleeping():
    async def solve(state, generate):
        await asyncio.sleep(3)
        return state
    return solve


@solver
def failing():
    async def solve(state, generate):
        raise RuntimeError(f"gave up on sample {state.sample_id}")
    return solve


@task
def sums_a(count=10):
    return Task(dataset=sums(count), solver=generate(), scorer=[includes(), match()])


@task(name="sums-b")
def other():
    return Task(dataset=sums(), solver=generate(), scorer=includes(), epochs=2)


@task
def sums_fail():
    return Task(dataset=sums(1), solver=failing(), scorer=match())


@task
def sums_slow():
    return Task(dataset=sums(1000), solver=sleeping(), scorer=match())
"""


@pytest.fixture
def inspect_server(tmp_path: Path, inspect_python: Path, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.py").write_text(TASKS)
    (tmp_path / "key").write_text("x-123")
    return serve(f"""
        gpus = "0"
        [harnesses.inspect-ai]
        python = "{inspect_python}"
        warm = "off"
        include_path = ["tasks"]
        env = {{ XDG_DATA_HOME = "{tmp_path / "xdg"}" }}
        policy = {{ arguments_refused = ["trust_remote_code"] }}

        [secrets.OPENAI_API_KEY]
        owners = ["*"]
        file = "{tmp_path / "key"}"
    """)


@pytest.fixture
def client(inspect_server: ServerProcess) -> Iterator[EvalClient]:
    with inspect_server.client() as client:
        yield client


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub("3") as server:
        yield server


def values_in_the_logs(output: Path, *tasks: str) -> dict[tuple[str, str, str], float]:
    logs = [json.loads(path.read_text()) for path in output.glob("*T*.json")]
    logs = [log for log in logs if not tasks or log["eval"]["task"] in tasks]
    return {
        (log["eval"]["task"], "accuracy", "/".join(filter(None, (score["name"], score.get("reducer"))))): score["metrics"][
            "accuracy"
        ]["value"]
        for log in logs
        for score in log["results"]["scores"]
    }


def test_two_runs_are_compared_sample_by_sample_whatever_their_epochs(client: EvalClient) -> None:
    jobs = [client.evaluate("mockllm/model", ["sums_a", "sums-b"], harness="inspect-ai", num_gpus=0) for _ in range(2)]
    baseline, candidate = (client.wait_for_job(job.job_id) for job in jobs)
    metrics = client.compare(baseline.job_id, candidate.job_id, higher_is_better=True).candidates[0].metrics
    assert {(m.task, m.metric, m.filter.partition("/")[0]) for m in metrics} == {
        ("sums_a", "accuracy", "includes"),
        ("sums_a", "accuracy", "match"),
        ("sums-b", "accuracy", "includes"),
    }
    assert {(m.method, m.paired_sample_count, m.verdict) for m in metrics} == {
        (TestMethod.TEST_METHOD_MCNEMAR, 10, Verdict.VERDICT_SAME)
    }


def test_two_tasks_complete_with_the_metrics_and_samples_that_inspect_wrote(client: EvalClient, tmp_path: Path) -> None:
    job = client.evaluate("mockllm/model", ["sums_a", "sums-b"], harness="inspect-ai", num_gpus=0, limit=6)
    job = client.wait_for_job(job.job_id)

    ((name, result),) = job.results.items()
    assert name == "mockllm/model"
    values = {(m.task, m.metric, m.filter): m.value for m in result.metrics}
    assert values == values_in_the_logs(Path(result.results).parent)
    assert values["sums_a", "accuracy", "includes"] == 0.5
    assert {(metric.task, metric.sample_count) for metric in result.metrics} == {("sums_a", 6), ("sums-b", 6)}
    assert {(task.task, task.original_sample_count, len(task.config_hash)) for task in result.tasks} == {
        ("sums_a", 10, 64),
        ("sums-b", 10, 64),
    }
    (installed,) = client.list_harnesses()
    assert result.harness_versions["inspect_ai"] == installed.version
    assert [row["doc_id"] for row in client.samples(job.job_id, task="sums_a")] == list(range(6))
    assert len(list(client.samples(job.job_id, model="mockllm/model", task="sums-b"))) == 12
    assert (job.progress.done, job.progress.total, job.progress.unit) == (18, 18, "samples")
    downloaded = client.download(job.job_id, tmp_path / "copy")
    assert {path.name for path in downloaded} == {Path(path).name for path in result.samples}


def test_the_arguments_of_tasks_and_their_epochs_are_those_of_the_request(client: EvalClient) -> None:
    task_args = {"count": 4, "epochs": 3, "epochs_reducer": ["mean", "at_least_2"]}
    options: dict[str, Any] = {"task_args": task_args, "harness": "inspect-ai", "num_gpus": 0}
    job = client.evaluate("mockllm/model", ["sums_a", "sums-b"], **options)
    job = client.wait_for_job(job.job_id)
    ((_, result),) = job.results.items()
    logs = {log["eval"]["task"]: log["eval"] for path in result.samples if (log := json.loads(Path(path).read_text()))}
    assert (logs["sums_a"]["task_args"], logs["sums-b"]["task_args"]) == ({"count": 4}, {})
    assert {(log["config"]["epochs"], tuple(log["config"]["epochs_reducer"])) for log in logs.values()} == {
        (3, ("mean", "at_least_2"))
    }
    assert {(metric.task, metric.sample_count) for metric in result.metrics} == {("sums_a", 4), ("sums-b", 10)}
    assert {metric.filter for metric in result.metrics if metric.task == "sums-b"} == {"includes/mean", "includes/at_least_2"}
    assert len(list(client.samples(job.job_id, task="sums_a"))) == 12, "a row for each epoch"
    assert (job.progress.done, job.progress.total) == (42, 42)
    assert "task_args: count was not taken by: sums-b" in job.warnings
    with pytest.raises(InvalidRequestError, match=r"no task of the request takes it; .*; the tasks take: count"):
        client.evaluate("mockllm/model", ["sums_a"], task_args={"cuont": 4}, harness="inspect-ai", num_gpus=0)


def test_a_failed_task_fails_the_job_with_its_exception(client: EvalClient) -> None:
    job = client.evaluate("mockllm/model", ["sums_fail"], harness="inspect-ai", num_gpus=0)
    with pytest.raises(JobFailedError) as failure:
        client.wait_for_job(job.job_id)
    error = failure.value.job.error
    assert (error.reason, error.message) == ("HARNESS_FAILED", "RuntimeError: gave up on sample 0")
    assert error.exit_code == 0, "inspect-ai says 0 here; if it does so no more, the facts have changed"


def test_a_task_is_known_as_it_finishes_and_kept_through_a_cancel(client: EvalClient) -> None:
    job = client.evaluate("mockllm/model", ["sums_a", "sums_slow"], harness="inspect-ai", num_gpus=0, limit=100)

    def cancel_once_a_task_has_finished(event: pb.JobEvent) -> None:
        if event.job.results and not event.terminal:
            client.cancel_job(job.job_id, "seen enough")

    with pytest.raises(JobCancelledError) as cancelled:
        client.wait_for_job(job.job_id, on_event=cancel_once_a_task_has_finished)
    ((_, result),) = cancelled.value.job.results.items()
    assert {(m.task, m.metric, m.filter): m.value for m in result.metrics} == values_in_the_logs(
        Path(result.results).parent, "sums_a"
    )
    assert [row["doc_id"] for row in client.samples(job.job_id)] == list(range(10))


def test_a_task_is_kept_with_its_samples_if_another_fails(client: EvalClient) -> None:
    job = client.evaluate("mockllm/model", ["sums_a", "sums_fail"], harness="inspect-ai", num_gpus=0)
    with pytest.raises(JobFailedError, match="gave up on sample 0"):
        client.wait_for_job(job.job_id)
    ((_, result),) = client.get_job(job.job_id).results.items()
    assert [task.task for task in result.tasks] == ["sums_a"]
    assert len(list(client.samples(job.job_id))) == 10


def test_a_task_that_no_file_has_fails_the_job_at_once(client: EvalClient) -> None:
    job = client.evaluate("mockllm/model", ["tasks"], harness="inspect-ai", num_gpus=0)
    with pytest.raises(JobFailedError) as failure:
        client.wait_for_job(job.job_id)
    assert failure.value.job.error.reason == "TASKS_MISSING"
    assert failure.value.job.error.message.endswith("has no task tasks; it has: sums-b, sums_a, sums_fail, sums_slow")


def test_a_model_behind_an_api_is_asked_with_the_arguments_given(client: EvalClient, stub: ChatStub) -> None:
    model_args = {"base_url": stub.base_url, "responses_api": False}
    gen_kwargs = {"max_tokens": 16, "stop_seqs": ["STOP, now", "\n"]}
    options = {
        "secrets": "OPENAI_API_KEY",
        "gen_kwargs": gen_kwargs,
        "harness": "inspect-ai",
        "num_gpus": 0,
        "limit": 4,
        "batch_size": 2,
    }
    job = client.evaluate("openai/stub", ["sums_a"], model_args, **options)
    job = client.wait_for_job(job.job_id)
    assert {(m.metric, m.filter): m.value for m in job.results["openai/stub"].metrics}["accuracy", "includes"] == 0.25
    asked = [(request["model"], request["max_completion_tokens"], request["stop"]) for request in stub.requests]
    assert asked == [("stub", 16, ["STOP, now", "\n"])] * 4


def test_a_cancel_in_the_middle_leaves_no_process_behind(client: EvalClient, inspect_server: ServerProcess) -> None:
    job = client.evaluate("mockllm/model", ["sums_slow"], harness="inspect-ai", num_gpus=0)

    def cancel_once_it_evaluates(event: pb.JobEvent) -> None:
        if event.job.progress.phase >= pb.Progress.PHASE_LOADING and not event.terminal:
            client.cancel_job(job.job_id, "seen enough")

    with pytest.raises(JobCancelledError, match="seen enough"):
        client.wait_for_job(job.job_id, on_event=cancel_once_it_evaluates)
    assert inspect_server.processes_of_jobs() == []


def test_tasks_and_models_are_those_of_inspect(client: EvalClient) -> None:
    assert list(client.list_tasks(harness="inspect-ai")) == ["sums-b", "sums_a", "sums_fail", "sums_slow"]
    assert "mockllm" in client.list_models(harness="inspect-ai")
