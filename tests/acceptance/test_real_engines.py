"""The real harnesses ask one real engine, `transformers serve`, for a real model that sees images and none of them loads."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pictures import noise
from processes_of_tests import kill_all
from test_real_lmms_eval import lmms_task
from test_real_warm_runs import Site

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

SIDES = (24, 256, 24)
"""Of the images. A question with the second one has more than 64 kB, so that it is recorded by its bytes."""

UTILS = """

def images(doc):
    from PIL import Image
    return [Image.open(doc["image"])]
"""
# With `stop`, `transformers serve` gives no answer of a model that sees images.
LM_EVAL_TASK = """
task: {name}
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 4, do_sample: false, stop: null}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
INSPECT_TASK = """
import json
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText


@task
def images():
    rows = map(json.loads, open("{data}"))
    samples = [
        Sample(input=[ChatMessageUser(content=[ContentText(text=row["question"]), ContentImage(image=row["image"])])],
               target=row["answer"], id=row["id"])
        for row in rows
    ]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match())
"""


class ServedSite(Site):
    """A server with the three harnesses, tasks with texts and with images, and an engine."""

    model = ""

    def _config(self) -> str:
        transformers = self.settings["lmms-eval"].python.with_name("transformers")
        return f"""{super()._config()}
            [engines.transformers]
            command = ["{transformers}", "serve", "{{model}}", "--host", "127.0.0.1", "--port", "{{port}}", "--device", "cpu"]
            model_name = "{{model}}"
            env = {{ HF_HUB_OFFLINE = "1", HF_HOME = "{self.folder / "hf"}" }}
            start_timeout_seconds = 300
            """

    def _tasks(self, kind: str) -> Path:
        folder = super()._tasks(kind)
        data = write_images(folder)
        with (folder / "utils.py").open("a") as utils:
            utils.write(UTILS)
        if kind == "lmms-eval":
            (folder / "images.yaml").write_text(lmms_task("images", data, images="images"))
        elif kind == "lm-eval":
            (folder / "texts.yaml").write_text(LM_EVAL_TASK.format(name="texts", data=data))
            with_images = LM_EVAL_TASK.format(name="images", data=data) + "doc_to_image: !function utils.images\n"
            (folder / "images.yaml").write_text(with_images)
        else:
            (folder / "utils.py").unlink()
            with (folder / "sums.py").open("a") as tasks:
                tasks.write(INSPECT_TASK.format(data=data))
        return folder

    def ask(self, harness: str, tasks: Sequence[str], limit: int, *, separately: bool = True) -> pb.JobInfo:
        """Have the engine asked by a job, which has to end well."""
        request = pb.EvaluateRequest(harness=harness, tasks=tasks, limit=limit, tasks_separately=separately)
        request.served_model.MergeFrom(pb.ServedModel(engine="transformers", model=self.model))
        if harness == "inspect-ai":  # which else leaves these to the engine
            request.gen_kwargs.update({"temperature": 0, "max_tokens": 4})
        job = self.client.submit(request, cache=pb.CACHE_MODE_ALLOW)
        job = self.client.wait_for_job(job.job_id, raise_on_failure=False)
        assert job.status == pb.JOB_STATUS_COMPLETED, job.error
        assert not job.usage.failed_count, job.usage
        assert all(result.metrics for result in job.results.values())
        return job

    def answers(self, job: pb.JobInfo, task: str) -> list[str]:
        """Return the answers of a task, by the numbers of its samples."""
        rows = self.client.samples(job.job_id, task=task)
        return [str(row.get("resps") or row["filtered_resps"]) for row in rows]


def write_images(folder: Path) -> Path:
    """Write images, and documents that ask the same of each. Return the path of these."""
    rows = []
    for number, side in enumerate(SIDES):
        image = folder / f"{number}.png"
        image.write_bytes(noise(side, number))
        rows.append({"id": number, "question": "Which colour?", "answer": "red", "image": str(image)})
    data = folder / "images.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def counts(job: pb.JobInfo) -> dict[str, int]:
    """Return how many questions of each task were answered."""
    return {task.task: task.usage.answered_count for result in job.results.values() for task in result.tasks}


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, lmms_python: Path, lm_eval_python: Path, inspect_python: Path
) -> Iterator[ServedSite]:
    model = os.environ.get("EVALRPC_TEST_TINY_LLAVA")
    if not model or not lmms_python.with_name("uvicorn").exists():
        pytest.skip("there is no engine, which is `transformers serve`, or no model for it: `make test-all` has both")
    folder = tmp_path_factory.mktemp("engines")
    (folder / "hf" / "hub").mkdir(parents=True)
    site = ServedSite(folder, folder, {"lmms-eval": lmms_python, "lm-eval": lm_eval_python, "inspect-ai": inspect_python})
    site.model = model
    yield site
    engines = folder / "data" / "engines"
    names = [path.name for path in (*engines.glob("engine-*"), *engines.glob("gateway/*"))]
    site.close()
    kill_all(lambda: [pid for name in names for pid in processes_of_job(name)])


def test_all_harnesses_ask_one_engine_which_is_started_once_with_texts_and_images(site: ServedSite) -> None:
    jobs = {
        "lmms-eval": site.ask("lmms-eval", ["images"], 2),
        "lm-eval": site.ask("lm-eval", ["texts", "images"], 2),  # together, it would leave out the images
        "inspect-ai": site.ask("inspect-ai", ["sums-b", "images"], 2),
    }
    assert {name: counts(job) for name, job in jobs.items()} == {
        "lmms-eval": {"images": 2},
        "lm-eval": {"texts": 2, "images": 2},
        "inspect-ai": {"sums-b": 4, "images": 2},  # the first in two epochs
    }
    for harness, job in jobs.items():
        first, second = site.answers(job, "images")
        assert first != second, f"the question of {harness} is the same but for the image"
    more = site.ask("lmms-eval", ["sums_exact", "images"], 3, separately=False)
    assert (more.usage.answered_count, more.usage.replayed_count) == (6, 2)
    assert site.answers(more, "images")[:2] == site.answers(jobs["lmms-eval"], "images")
    (engine,) = site.client.list_engines().engines
    assert {job.attempts[-1].engine_id for job in (*jobs.values(), more)} == {engine.engine_id}
