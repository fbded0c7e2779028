"""The real lmms-eval, through the real server."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess
from slurm_cluster import SlurmCluster, needs_slurm

from evalrpc.client import EvalClient
from evalrpc.errors import JobCancelledError, JobFailedError
from evalrpc.v1 import jobs_pb2 as pb

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{images}
doc_to_text: "question"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 4
process_results: !function utils.{score}
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""

UTILS = """
import time

def one_image(doc):
    from PIL import Image

    return [Image.new("RGB", (112, 112))]

def exact(doc, results):
    return {"exact": float(results[0].strip() == doc["answer"])}

def slow(doc, results):
    time.sleep(0.5)
    return exact(doc, results)

def crash(doc, results):
    raise RuntimeError("the scorer gave up on document %d" % doc["id"])
"""


def lmms_task(name: str, data: Path, score: str = "exact", images: str = "one_image") -> str:
    """Return the YAML of a task of lmms-eval; `score` and `images` name functions of its `utils.py`."""
    return TASK.format(name=name, data=data, score=score, images=images)


@pytest.fixture
def lmms_server(lmms_config: str, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    return serve(lmms_config)


@pytest.fixture
def lmms_config(tmp_path: Path, lmms_python: Path) -> str:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"id": number, "question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "utils.py").write_text(UTILS)
    for name, score in (("sums_a", "exact"), ("sums_b", "exact"), ("sums_slow", "slow"), ("sums_crash", "crash")):
        (tasks / f"{name}.yaml").write_text(lmms_task(name, tmp_path / "data.jsonl", score))
    return f"""
        gpus = "0"
        [harnesses.lmms-eval]
        python = "{lmms_python}"
        warm = "off"
        include_path = ["tasks"]
        env = {{ HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{tmp_path / "hf"}" }}
    """


@pytest.fixture
def client(lmms_server: ServerProcess) -> EvalClient:
    with lmms_server.client() as client:
        yield client


def test_two_tasks_complete_with_the_metrics_samples_and_files_that_lmms_eval_wrote(client: EvalClient, tmp_path: Path) -> None:
    task_args = {"system_instruction": "Count: a,b", "force_simple": True, "seed": 7}
    options: dict[str, Any] = {"task_args": task_args, "num_gpus": 0, "limit": 5}
    job = client.evaluate("dummy", ["sums_a", "sums_b"], {"pretrained": "acme/model"}, **options)
    statuses = [event.job.status for event in client.watch(job.job_id) if event.type != pb.JOB_EVENT_TYPE_PROGRESS]
    job = client.get_job(job.job_id)

    assert statuses[-2:] == [pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED]
    assert statuses[:-2] in ([], [pb.JOB_STATUS_QUEUED]), "it may have started before the watch did"
    (result,) = job.results.values()
    document = json.loads(Path(result.results).read_text())
    written = document["results"]
    assert {(m.task, m.metric): m.value for m in result.metrics} == {
        (task, "exact"): written[task]["exact,none"] for task in ("sums_a", "sums_b")
    }
    assert {metric.sample_count for metric in result.metrics} == {5}
    asked = [row["input"] for row in client.samples(job.job_id, task="sums_b")]
    assert asked == [f"Count: a,bWhat is {number} + 1?" for number in range(5)]
    assert {document["config"][f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")} == {7}
    downloaded = client.download(job.job_id, tmp_path / "copy")
    assert Path(result.results).name in {path.name for path in downloaded}
    times = [time.ToNanoseconds() for time in (job.created_at, job.started_at, job.completed_at)]
    assert times == sorted(times)


@pytest.mark.slow
def test_tasks_one_by_one_are_known_one_by_one_and_kept_if_a_later_one_fails(client: EvalClient) -> None:
    tasks = ["sums_a", "sums_crash", "sums_b"]
    job = client.evaluate("dummy", tasks, {"pretrained": "acme/model"}, num_gpus=0, limit=2, tasks_separately=True)
    finished = [sorted(task_files(event.job)) for event in client.watch(job.job_id)]
    job = client.get_job(job.job_id)

    assert ["sums_a"] in finished
    assert finished == sorted(finished)
    assert job.error.message.startswith("sums_crash: RuntimeError: the scorer gave up on document")
    for task, path in task_files(job).items():
        assert metrics_of(job, task) == {"exact": json.loads(path.read_text())["results"][task]["exact,none"]}
        assert len(list(client.samples(job.job_id, task=task))) == 2
    assert sorted(task_files(job)) == ["sums_a", "sums_b"]
    (installed,) = client.list_harnesses()
    assert job.results["acme__model"].harness_versions["lmms_eval"] == installed.version


def task_files(job: pb.JobInfo) -> dict[str, Path]:
    """The aggregate file of every task that has finished."""
    return {task.task: Path(task.results or result.results) for result in job.results.values() for task in result.tasks}


def metrics_of(job: pb.JobInfo, task: str) -> dict[str, float]:
    return {m.metric: m.value for result in job.results.values() for m in result.metrics if m.task == task}


def test_a_failed_run_says_why_in_one_line(client: EvalClient) -> None:
    job = client.evaluate("dummy", ["no_such_task"], num_gpus=0, limit=1)
    with pytest.raises(JobFailedError) as failure:
        client.wait_for_job(job.job_id)
    error = failure.value.job.error
    assert error.message.startswith("ValueError: Tasks not found: no_such_task")
    assert "\n" not in error.message
    assert error.reason == "HARNESS_FAILED"
    assert error.exit_code == 0, "lmms-eval says 0 here; if it does so no more, the facts have changed"
    assert error.log_tail


@pytest.mark.slow
def test_a_cancel_in_the_middle_leaves_no_process_behind(client: EvalClient, lmms_server: ServerProcess) -> None:
    job = client.evaluate("dummy", ["sums_slow"], num_gpus=0)

    def cancel_once_it_scores(event: pb.JobEvent) -> None:
        if event.job.progress.phase == pb.Progress.PHASE_SCORING and not event.terminal:
            client.cancel_job(job.job_id, "seen enough")

    with pytest.raises(JobCancelledError) as cancelled:
        client.wait_for_job(job.job_id, on_event=cancel_once_it_scores)
    assert cancelled.value.job.error.message == "seen enough"
    assert lmms_server.processes_of_jobs() == []


@pytest.mark.slow
def test_a_tiny_llava_evaluates_images(client: EvalClient) -> None:
    model = os.environ.get("EVALRPC_TEST_TINY_LLAVA")
    if not model:
        pytest.skip("EVALRPC_TEST_TINY_LLAVA names no model: `make test` makes one")
    model_args = {"pretrained": model, "device": "cpu", "device_map": "cpu"}
    job = client.evaluate("llava_hf", ["sums_a"], model_args, num_gpus=0, limit=2)
    events = list(client.watch(job.job_id))
    assert events[-1].job.status == pb.JOB_STATUS_COMPLETED, events[-1].job.error
    progress = events[-1].job.progress
    assert (progress.done, progress.total, progress.unit) == (2, 2, "requests")


@pytest.mark.slow
@pytest.mark.parametrize("warm", ["off", "auto"])
def test_images_that_lmms_eval_leaves_out_of_its_samples_are_those_of_the_documents(
    lmms_python: Path, serve: Callable[[str], ServerProcess], tmp_path: Path, warm: str
) -> None:
    model = os.environ.get("EVALRPC_TEST_TINY_LLAVA")
    if not model:
        pytest.skip("EVALRPC_TEST_TINY_LLAVA names no model: `make test` makes one")
    demo = Path(__file__).parents[2] / "demo"
    table = f'python = "{lmms_python}"\nwarm = "{warm}"\nworking_dir = "{demo}"\ninclude_path = ["{demo / "tasks"}"]\n'
    server = serve(f'gpus = "0"\n[harnesses.lmms-eval]\n{table}env = {{ HF_HOME = "{tmp_path / "hf"}" }}\n')
    with server.client() as client:
        model_args = {"pretrained": model, "device": "cpu", "device_map": "cpu"}
        job = client.evaluate("llava_hf", ["demo_colour"], model_args, num_gpus=0, limit=3)
        client.wait_for_job(job.job_id)
        assert "input_media" not in next(iter(client.samples(job.job_id)))
        shown = [list(client.sample_media(job.job_id, number)) for number in range(2)]
    for (medium,) in shown:
        assert (medium.problem, medium.source, medium.media_type) == ("", "document[0]", "image/png")
        assert medium.data[16:24] == (112).to_bytes(4) * 2, "its width and height"
    assert shown[0][0].data != shown[1][0].data


@needs_slurm
@pytest.mark.slow
def test_through_a_slurm_cluster_it_comes_to_its_metrics(
    lmms_config: str, serve: Callable[[str], ServerProcess], slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    cluster = '[executors.cluster]\nkind = "slurm"\nmax_gpus = 1\n'
    with serve(f"{textwrap.dedent(lmms_config)}\n{cluster}").client() as client:
        request = {"model_args": {"pretrained": "acme/model"}, "num_gpus": 0, "limit": 5, "executor": "cluster"}
        job = client.wait_for_job(client.evaluate("dummy", ["sums_a"], **request).job_id)
        assert job.attempts[0].node == "cluster"
        written = json.loads(Path(job.results["acme__model"].results).read_text())["results"]
        assert metrics_of(job, "sums_a") == {"exact": written["sums_a"]["exact,none"]}
        assert len(list(client.samples(job.job_id, task="sums_a"))) == 5
