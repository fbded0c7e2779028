"""The versions of harnesses that are said to work: the newest in all other tests, the oldest here, each in its environment."""

import json
import os
import re
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_stub import chat_stub
from few_tasks import remove_most_tasks
from server_process import ServerProcess

from evalrpc.harnesses import lm_eval
from evalrpc.harnesses.inspect_ai import harness as inspect_ai
from evalrpc.harnesses.installation import Package
from evalrpc.harnesses.lmms_eval import harness as lmms_eval
from evalrpc.v1 import jobs_pb2 as pb

ROOT = Path(__file__).parents[2]

FAMILY_TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA_PATH}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_new_tokens: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ONE_IMAGE = """
from PIL import Image

def one_image(doc):
    return [Image.new("RGB", (112, 112))]
"""
# mockllm counts tokens with a vocabulary that is downloaded, so that counter is replaced.
INSPECT_TASK = """
import inspect_ai.model._model as model
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

model.count_text_tokens = len

@task
def sums(count=10):
    samples = [Sample(input=f"{n} + 1?", target=str(n + 1), id=n) for n in range(count)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=includes())
"""


@pytest.mark.parametrize("package", [lmms_eval._PACKAGE, lm_eval._PACKAGE, inspect_ai._PACKAGE])
def test_the_documented_range_ends_with_the_version_that_is_required(package: Package) -> None:
    requirements = (ROOT / "scripts" / f"requirements-{package.title.removesuffix('-ai')}.txt").read_text()
    newest = re.search(rf"^{package.name.replace('_', '[_-]')}(?:\[.*\])?==(.*)$", requirements, re.MULTILINE)
    assert newest is not None
    assert documented_range(package) == (package.oldest, newest[1])


@pytest.mark.parametrize(
    ("package", "environment"),
    [(lmms_eval._PACKAGE, "lmms_python"), (lm_eval._PACKAGE, "lm_eval_python"), (inspect_ai._PACKAGE, "inspect_python")],
)
def test_the_documented_range_ends_with_the_version_that_all_other_tests_run(
    package: Package, environment: str, request: pytest.FixtureRequest
) -> None:
    python: Path = request.getfixturevalue(environment)
    (installed,) = python.parent.parent.glob(f"lib/python*/site-packages/{package.name}-*.dist-info")
    assert installed.name == f"{package.name}-{documented_range(package)[1]}.dist-info"


@pytest.mark.slow
def test_lmms_eval(tmp_path: Path, lmms_python: Path, serve: Callable[[str], ServerProcess]) -> None:
    model = os.environ.get("EVALRPC_TEST_TINY_LLAVA")
    if not model:
        pytest.skip("EVALRPC_TEST_TINY_LLAVA names no model: `make test` makes one")
    tasks = family_task(tmp_path, "doc_to_visual: !function utils.one_image\n")
    (tasks / "utils.py").write_text(ONE_IMAGE)
    python = oldest(lmms_eval._PACKAGE, lmms_python, tmp_path / "env")
    server = serve(config("lmms-eval", python, tasks))
    model_args = {"pretrained": model, "device": "cpu", "device_map": "cpu"}
    expect_metric(server, "llava_hf", "lmms-eval", "exact_match", model_args, {"force_simple": False, "seed": 7})


@pytest.mark.slow
def test_lm_eval(tmp_path: Path, lm_eval_python: Path, serve: Callable[[str], ServerProcess]) -> None:
    python = oldest(lm_eval._PACKAGE, lm_eval_python, tmp_path / "env")
    remove_most_tasks(tmp_path / "env", "lm_eval")
    policy = 'policy = { arguments_refused = ["trust_remote_code"] }\n'
    server = serve(config("lm-eval", python, family_task(tmp_path)) + 'args = ["--apply_chat_template"]\n' + policy)
    with chat_stub("3") as stub:
        model_args = {"model": "stub", "base_url": f"{stub.base_url}/chat/completions", "num_concurrent": "1"}
        task_args = {"system_instruction": "Count.", "fewshot_as_multiturn": False, "seed": 7, "metadata": {"a": [1]}}
        expect_metric(server, "local-chat-completions", "lm-eval", "exact_match", model_args, task_args)
        first = [asked["messages"][0] for asked in stub.requests]
        assert [(message["role"], message["content"]) for message in first] == [("system", "Count.")] * 2


@pytest.mark.slow
def test_inspect_ai(tmp_path: Path, inspect_python: Path, serve: Callable[[str], ServerProcess]) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.py").write_text(INSPECT_TASK)
    python = oldest(inspect_ai._PACKAGE, inspect_python, tmp_path / "env")
    server = serve(config("inspect-ai", python, tmp_path / "tasks"))
    task_args = {"count": 2, "epochs": 2, "epochs_reducer": "max"}
    rows = expect_metric(server, "mockllm/model", "inspect-ai", "accuracy", {}, task_args)
    assert sorted((row["doc_id"], row["epoch"]) for row in rows) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def oldest(package: Package, newest_python: Path, folder: Path) -> Path:
    """Make an environment with the oldest version of a package, which takes all else from that of the newest."""
    venv.create(folder, with_pip=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (newest,) = newest_python.parent.parent.glob("lib/python*/site-packages")
    (own / "newest.pth").write_text(f"{newest}\n")
    python = folder / "bin" / "python"
    subprocess.run((python, "-m", "pip", "install", "--quiet", "--no-deps", f"{package.name}=={package.oldest}"), check=True)
    return python


def documented_range(package: Package) -> tuple[str, str]:
    """Return the oldest and the newest version that the docs say are tested."""
    page = (ROOT / "docs" / "harnesses.md").read_text()
    (versions,) = re.findall(rf"^\| `{package.title}` \| (\S+) to (\S+) \|", page, re.MULTILINE)
    return versions


def family_task(folder: Path, more: str = "") -> Path:
    """Write a task as lm-eval and lmms-eval read them; return its folder."""
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(10)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "sums.yaml").write_text(FAMILY_TASK.replace("DATA_PATH", str(data)) + more)
    return tasks


def config(harness: str, python: Path, tasks: Path) -> str:
    offline = f'HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{tasks.parent / "hf"}"'
    table = f'python = "{python}"\nwarm = "off"\ninclude_path = ["{tasks}"]\nenv = {{ {offline} }}\n'
    return f'gpus = "0"\n[harnesses.{harness}]\n{table}'


def expect_metric(
    server: ServerProcess, model: str, harness: str, metric: str, model_args: dict[str, str], task_args: dict[str, Any]
) -> list[dict[str, Any]]:
    """Evaluate two samples, and return their rows."""
    with server.client() as client:
        (info,) = client.list_harnesses()
        assert info.available, info.unavailable_reason
        options: dict[str, Any] = {"task_args": task_args, "harness": harness, "limit": 2}
        job = client.wait_for_job(client.evaluate(model, ["sums"], model_args, **options).job_id)
        assert job.status == pb.JOB_STATUS_COMPLETED
        (result,) = job.results.values()
        assert result.harness_versions[info.kind.replace("-", "_")] == info.version
        assert (metric, 2) in [(found.metric, found.sample_count) for found in result.metrics]
        rows = list(client.samples(job.job_id))
        assert len({row["doc_id"] for row in rows}) == 2
        return rows
