"""Samples that a harness reads in place from inspect-ai logs, through a real server, and comparisons of them."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from serving import COMPLETED, FAILED, TERMINAL, Api, ServerHere, Site, reason_of

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import TEST_METHOD_MCNEMAR, TEST_METHOD_UNPAIRED_Z, VERDICT_BETTER
from evalrpc.v1.files_pb2 import ListArtifactsResponse

# A stand-in with inspect-ai's command line: it copies the logs of the requested tasks from a folder named by the model.
INSPECT = """#!{python} -S
import pathlib, shutil, sys
options = dict(argument.partition("=")[::2] for argument in sys.argv)
tasks = [argument.rpartition("@")[2] for argument in sys.argv if "@" in argument]
for task in tasks:
    for path in (pathlib.Path({logs!r}) / options["--model"]).glob(f"*_{{task}}_x.json"):
        shutil.copy(path, options["--log-dir"])
"""

HALF = "CI" * 20
MOST = "C" * 30 + "CI" * 5


class Bench:
    """Creates jobs from logs."""

    def __init__(self, api: Api, site: Site) -> None:
        self.api = api
        self._logs = site.folder / "logs"

    def job(self, name: str, *logs: str, tasks: Sequence[str] = ("t",), **fields: Any) -> pb.JobInfo:
        """Run a job of tasks that leave these logs."""
        folder = self._logs / "mockllm" / name
        folder.mkdir(parents=True)
        for task, log in zip(tasks, logs, strict=True):
            (folder / f"2026-02-14T10-30-45-00-00_{task}_x.json").write_text(log)
        request = {"harness": "inspect", "model": f"mockllm/{name}", "tasks": tasks, **fields}
        return self.api.wait_for(self.api.submit(request=request).job_id, *TERMINAL)

    def ids(self, job: pb.JobInfo, task: str = "", page_size: int = 0) -> list[int]:
        """The ids of all samples, page by page."""
        token, found = "", []
        while True:
            page = self.api.ListSamples(job_id=job.job_id, task=task, page_size=page_size, page_token=token)
            assert not page_size or len(page.samples) <= page_size
            found += [int(row["doc_id"]) for row in page.samples]
            token = page.next_page_token
            if not token:
                return found

    def files(self, job: pb.JobInfo) -> ListArtifactsResponse:
        return self.api.ListArtifacts(job_id=job.job_id)


@pytest.fixture
def bench(site: Site, serve: Callable[..., ServerHere]) -> Bench:
    add_inspect(site)
    return Bench(serve().api, site)


def add_inspect(site: Site) -> None:
    program, tasks = site.folder / "inspect", site.folder / "tasks"
    program.write_text(INSPECT.format(python=sys.executable, logs=str(site.folder / "logs")))
    program.chmod(0o755)
    tasks.mkdir()
    (tasks / "tasks.py").write_text("@task\ndef t(): ...\n@task\ndef u(): ...\n")
    with site.config.open("a") as config:
        config.write(f'[harnesses.inspect]\nkind = "inspect-ai"\npython = "{program}"\ninclude_path = ["{tasks}"]\n')


def log(letters: str = "CI", task: str = "t", status: str = "success") -> str:
    """A log as inspect-ai writes it: the score of each sample is a letter."""
    metrics = {"accuracy": {"value": letters.count("C") / len(letters)}, "stderr": {"value": 0.05}}
    samples = [{"id": n, "scores": {"match": {"value": letter}}, "events": ["é" * n] * n} for n, letter in enumerate(letters)]
    document = {
        "status": status,
        "eval": {"task": task, "dataset": {"sample_ids": list(range(len(letters)))}},
        "results": {"completed_samples": len(letters), "scores": [{"name": "match", "metrics": metrics}]},
        "samples": samples,
    }
    return json.dumps(document, ensure_ascii=False, indent=2)


@pytest.mark.parametrize("page_size", [1, 7, 40, 0])
def test_samples_come_in_pages_and_no_file_is_written_for_them(bench: Bench, page_size: int) -> None:
    job = bench.job("m", log(HALF))
    assert job.status == COMPLETED, job.error
    before = bench.files(job)
    assert bench.ids(job, page_size=page_size) == list(range(40))
    assert bench.files(job) == before
    assert [file.name for file in before.artifacts] == [Path(job.results["mockllm/m"].samples[0]).name]


def test_a_sample_has_its_metrics_and_none_of_its_events(bench: Bench) -> None:
    job = bench.job("m", log("CI"))
    first, second = (dict(row) for row in bench.api.ListSamples(job_id=job.job_id).samples)
    assert [dict(row["metrics"]) for row in (first, second)] == [{"accuracy,match": 1}, {"accuracy,match": 0}]
    assert "events" not in first


@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_large_sample_comes_like_others_though_it_is_read_in_a_process(bench: Bench, place: int) -> None:
    document = json.loads(log("CICICI"))
    document["samples"][place]["events"] = ["x" * 1000] * 3000
    document["samples"][place]["input"] = "y" * 3_000_000
    job = bench.job("m", json.dumps(document))
    found: list[tuple[int, int]] = []
    token, cut = "", []
    while True:
        page = bench.api.ListSamples(job_id=job.job_id, page_token=token)
        found += [(int(row["doc_id"]), len(row["input"]) if "input" in row else 0) for row in page.samples]
        cut += page.truncated_fields
        token = page.next_page_token
        if not token:
            break
    assert [number for number, _ in found] == list(range(6))
    assert 2_000_000 < found[place][1] < 2_100_000
    assert [path.rpartition(".")[2] for path in cut] == ["input"]


def test_a_task_that_finished_has_its_samples_though_another_failed(bench: Bench) -> None:
    job = bench.job("m", log("CII"), log(task="u", status="error"), tasks=("t", "u"))
    assert job.status == FAILED
    assert bench.ids(job) == [0, 1, 2]


def test_tasks_that_are_run_one_by_one_have_each_its_own_samples(bench: Bench) -> None:
    job = bench.job("m", log("CII"), log("CC", task="u"), tasks=("t", "u"), tasks_separately=True)
    assert job.status == COMPLETED, job.error
    assert (bench.ids(job, "t"), bench.ids(job, "u")) == ([0, 1, 2], [0, 1])


def test_a_log_that_ends_in_the_middle_is_reported_by_whoever_needs_its_samples(bench: Bench) -> None:
    content = log(HALF)
    cut = bench.job("cut", content[: content.index('"id": 20')].rpartition(",")[0])
    whole = bench.job("whole", log(MOST))
    assert cut.status == COMPLETED
    with pytest.raises(grpc.RpcError, match="can't be read to their end") as error:
        bench.ids(cut)
    assert reason_of(error.value) == "SAMPLES_NOT_FOUND"
    (comparison,) = bench.api.CompareJobs(baseline_job_id=cut.job_id, candidate_job_ids=[whole.job_id]).candidates
    (metric,) = comparison.metrics
    assert (metric.method, metric.note) == (TEST_METHOD_UNPAIRED_Z, "the baseline has no value of any sample")


def test_a_server_that_has_lost_the_harness_says_what_it_would_need(serve: Callable[..., ServerHere], site: Site) -> None:
    config = site.config.read_text()
    add_inspect(site)
    before = serve()
    job = Bench(before.api, site).job("m", log())
    before.stop()
    site.config.write_text(config)
    api = serve().api
    assert api.get(job.job_id).results["mockllm/m"].metrics
    with pytest.raises(grpc.RpcError, match="in the format of the harness inspect, which this server does not have") as error:
        api.ListSamples(job_id=job.job_id)
    assert reason_of(error.value) == "SAMPLES_NOT_FOUND"


def test_samples_read_in_place_are_compared_one_by_one(bench: Bench) -> None:
    baseline, candidate = bench.job("a", log(HALF)), bench.job("b", log(MOST))
    (comparison,) = bench.api.CompareJobs(
        baseline_job_id=baseline.job_id, candidate_job_ids=[candidate.job_id], higher_is_better=True
    ).candidates
    (metric,) = comparison.metrics
    assert (metric.task, metric.metric, metric.filter) == ("t", "accuracy", "match")
    assert (metric.method, metric.verdict) == (TEST_METHOD_MCNEMAR, VERDICT_BETTER)
    assert (metric.baseline_value, metric.candidate_value, metric.paired_sample_count) == (0.5, 0.875, 40)
