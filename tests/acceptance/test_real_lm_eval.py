"""The real lm-eval, through the real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_stub import ChatStub, chat_stub
from server_process import ServerProcess

from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, JobFailedError
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

CHOOSING = """
task: sums_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWERING = """
task: sums_answer
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA_PATH}}
test_split: test
doc_to_text: "{{question}}"
"""
API = """
[harnesses.chat.policy]
models = ["local-chat-completions"]
arguments_refused = ["trust_remote_code"]
"""
GROUP = """
group: sums
task: [sums_choice, sums_answer]
"""


@pytest.fixture
def lm_eval_server(tmp_path: Path, lm_eval_python: Path, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    return serve(config(tmp_path, lm_eval_python))


def config(folder: Path, python: Path) -> str:
    tasks = folder / "tasks"
    tasks.mkdir()
    rows = [{"question": f"{n} + 1?", "choices": ["1", "2", "3"], "gold": n % 3, "answer": str(n + 1)} for n in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DATA.replace("DATA_PATH", str(folder / "data.jsonl"))
    for name, text in (("choice", CHOOSING + data), ("answer", ANSWERING + data), ("group", GROUP)):
        (tasks / f"{name}.yaml").write_text(text)
    offline = f'HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{folder / "hf"}"'
    table = f'kind = "lm-eval"\nwarm = "off"\npython = "{python}"\ninclude_path = ["tasks"]\nenv = {{ {offline} }}\n'
    return f'gpus = "0"\n[harnesses.lm-eval]\n{table}[harnesses.chat]\n{table}args = ["--apply_chat_template"]\n{API}'


@pytest.fixture
def client(lm_eval_server: ServerProcess) -> Iterator[EvalClient]:
    with lm_eval_server.client() as client:
        yield client


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub("3") as server:
        yield server


def test_a_group_completes_with_the_metrics_samples_and_files_that_lm_eval_wrote(client: EvalClient, tmp_path: Path) -> None:
    model_args = {"pretrained": "acme/model", "none": None, "text": "1,tasks=x", "deep": [1, 0.5, {"a": "1e5"}], "small": 1e-7}
    job = client.evaluate("dummy", ["sums"], model_args, harness="lm-eval", num_gpus=0, limit=4)
    job = client.wait_for_job(job.job_id)

    ((name, result),) = job.results.items()
    written = json.loads(Path(result.results).read_text())
    assert name == "acme__model"
    assert written["config"]["model_args"] == model_args
    assert {(m.task, m.metric): m.value for m in result.metrics} == {
        ("sums_answer", "exact_match"): written["results"]["sums_answer"]["exact_match,none"],
        ("sums_choice", "acc"): written["results"]["sums_choice"]["acc,none"],
    }
    assert {metric.sample_count for metric in result.metrics} == {4}
    assert {(task.task, task.is_group, len(task.subtasks)) for task in result.tasks} == {
        ("sums", True, 2),
        ("sums_answer", False, 0),
        ("sums_choice", False, 0),
    }
    assert {task.task: task.samples_hash for task in result.tasks if not task.is_group} == written["task_hashes"]
    assert result.harness_versions["lm_eval"] == written["lm_eval_version"]
    assert result.total_evaluation_time.ToNanoseconds() == int(float(written["total_evaluation_time_seconds"]) * 1e9)
    assert [row["target"] for row in client.samples(job.job_id, task="sums_answer")] == ["1", "2", "3", "4"]
    assert (job.progress.done, job.progress.total, job.progress.unit) == (16, 16, "requests")
    downloaded = client.download(job.job_id, tmp_path / "copy")
    assert {Path(path).name for path in (result.results, *result.samples)} <= {path.name for path in downloaded}


def test_a_system_instruction_comes_before_what_is_asked(client: EvalClient) -> None:
    options: dict[str, Any] = {"harness": "lm-eval", "num_gpus": 0, "limit": 2}
    job = client.evaluate("dummy", ["sums_answer"], task_args={"system_instruction": "Count."}, **options)
    client.wait_for_job(job.job_id)
    asked = [row["arguments"]["gen_args_0"]["arg_0"] for row in client.samples(job.job_id)]
    assert [text.startswith("Count.") and text.endswith("1?") for text in asked] == [True, True], asked


def test_tasks_one_by_one_are_of_one_model_although_lm_eval_calls_it_by_chance(client: EvalClient) -> None:
    tasks = ["sums_choice", "sums_answer"]
    job = client.evaluate("dummy", tasks, harness="lm-eval", num_gpus=0, limit=2, tasks_separately=True)
    ((_, result),) = client.wait_for_job(job.job_id).results.items()
    assert [metric.task for metric in result.metrics] == sorted(tasks)


def test_the_name_of_a_folder_where_it_runs_is_no_task(client: EvalClient) -> None:
    job = client.evaluate("dummy", ["tasks"], harness="lm-eval", num_gpus=0, limit=1)
    with pytest.raises(JobFailedError) as failure:
        client.wait_for_job(job.job_id)
    error = failure.value.job.error
    assert error.message.startswith("ValueError: Tasks not found: tasks")
    assert (error.reason, error.exit_code) == ("HARNESS_FAILED", 1)
    assert error.log_tail


def test_a_model_behind_an_api_is_asked_with_the_arguments_given(client: EvalClient, stub: ChatStub) -> None:
    model_args = {"model": "stub", "base_url": f"{stub.base_url}/chat/completions", "num_concurrent": 2, "max_retries": 1}
    gen_kwargs = {"until": ["\n", "STOP, now"], "temperature": 0.5}
    task_args = {"system_instruction": "--limit=1\nCount: a, b", "seed": 7}
    options = {"gen_kwargs": gen_kwargs, "task_args": task_args, "harness": "chat", "num_gpus": 0, "limit": 5}
    job = client.evaluate("local-chat-completions", ["sums_answer"], model_args, **options)
    job = client.wait_for_job(job.job_id)
    assert [metric.value for metric in job.results["stub"].metrics] == [0.2]
    assert [(request["stop"], request["temperature"]) for request in stub.requests] == [(gen_kwargs["until"], 0.5)] * 5
    system = {"role": "system", "content": task_args["system_instruction"]}
    assert [request["messages"][0] for request in stub.requests] == [system] * 5
    written = json.loads(Path(job.results["stub"].results).read_text())
    assert written["system_instruction"] == task_args["system_instruction"]
    assert {written["config"][f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")} == {7}
    assert (job.progress.done, job.progress.total) == (5, 5)


def test_a_model_behind_an_api_that_fails_fails_the_job(client: EvalClient, stub: ChatStub) -> None:
    stub.status = 500
    model_args = {"model": "stub", "base_url": f"{stub.base_url}/chat/completions", "max_retries": 1}
    job = client.evaluate("local-chat-completions", ["sums_answer"], model_args, harness="chat", num_gpus=0, limit=1)
    with pytest.raises(JobFailedError, match="500 Server Error"):
        client.wait_for_job(job.job_id)


def test_tasks_and_models_are_those_of_lm_eval(
    tmp_path: Path, whole_lm_eval_python: Path, serve: Callable[[str], ServerProcess]
) -> None:
    with serve(config(tmp_path, whole_lm_eval_python)).client() as client:
        assert list(client.list_tasks("sums", harness="lm-eval")) == ["sums", "sums_answer", "sums_choice"]
        assert "mmlu" in client.list_tasks("mmlu", harness="lm-eval")
        assert "local-completions" in client.list_models("local", harness="lm-eval")
        job = client.evaluate("dummy", ["sum_choice"], harness="lm-eval", num_gpus=0)
        assert any("did you mean sums_choice" in warning for warning in job.warnings)
        client.cancel_job(job.job_id)


def test_lm_eval_is_there(client: EvalClient) -> None:
    harnesses = {harness.name: harness for harness in client.list_harnesses()}
    assert harnesses["lm-eval"].available
    assert harnesses["lm-eval"].version


def test_what_lm_eval_can_not_take_is_refused_at_once(client: EvalClient) -> None:
    request = pb.EvaluateRequest(harness="lm-eval", model="--tasks=x", tasks=["*"], num_gpus=0)
    with pytest.raises(InvalidRequestError, match=r"request\.model: .*; request\.tasks\[0\]: "):
        client.submit(request)
