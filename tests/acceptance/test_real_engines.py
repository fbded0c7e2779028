"""The real harnesses ask one real engine, `transformers serve`, for a real model that none of them loads."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_of_tests import kill_all
from test_real_warm_runs import Site

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"
TASKS = {"lm-eval": ["sums_answer"], "inspect-ai": ["sums_a", "sums-b"], "lmms-eval": ["sums_exact"]}


class ServedSite(Site):
    """A server with the three harnesses, and an engine."""

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

    def ask(self, harness: str) -> pb.JobInfo:
        """Run a job whose model the engine serves."""
        request = pb.EvaluateRequest(harness=harness, tasks=TASKS[harness], limit=3, tasks_separately=True)
        request.served_model.MergeFrom(pb.ServedModel(engine="transformers", model=self.model))
        return self.client.wait_for_job(self.client.submit(request).job_id, raise_on_failure=False)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, lmms_python: Path, lm_eval_python: Path, inspect_python: Path
) -> Iterator[ServedSite]:
    if not lmms_python.with_name("uvicorn").exists():
        pytest.skip("there is no engine, which is `transformers serve`: `make test-all` has it")
    folder = tmp_path_factory.mktemp("engines")
    (folder / "hf" / "hub").mkdir(parents=True)
    site = ServedSite(folder, folder, {"lmms-eval": lmms_python, "lm-eval": lm_eval_python, "inspect-ai": inspect_python})
    site.model = str(folder / "models" / "tiny")
    subprocess.run((lmms_python, SUPPORT / "make_tiny_llama.py", site.model), check=True, capture_output=True)
    yield site
    engines = folder / "data" / "engines"
    names = [path.name for path in (*engines.glob("engine-*"), *engines.glob("gateway/*"))]
    site.close()
    kill_all(lambda: [pid for name in names for pid in processes_of_job(name)])


def test_all_harnesses_ask_one_engine_which_is_started_once(site: ServedSite) -> None:
    jobs = [site.ask(harness) for harness in TASKS]
    assert [job.status for job in jobs] == [pb.JOB_STATUS_COMPLETED] * 3, [job.error for job in jobs]
    (engine,) = site.client.list_engines().engines
    assert {job.attempts[-1].engine_id for job in jobs} == {engine.engine_id}
    assert all(job.usage.answered_count >= 3 and not job.usage.failed_count for job in jobs), [job.usage for job in jobs]
    (found,) = jobs[1].results.values()
    assert {task.task: task.usage.answered_count for task in found.tasks} == {"sums_a": 3, "sums-b": 6}  # in two epochs
    assert all(result.metrics for job in jobs for result in job.results.values())
