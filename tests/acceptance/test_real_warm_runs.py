"""Warm runs of the real harnesses: as cold ones in all but the time that they take."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_stub import chat_stub
from processes_of_tests import is_alive
from server_process import ServerProcess
from small_disk import small_disk
from test_real_inspect import TASKS as INSPECT_TASKS
from test_real_lm_eval import ANSWERING, CHOOSING, DATA
from test_real_lmms_eval import UTILS, lmms_task
from waiting import eventually, in_background

from evalrpc.config import HarnessSettings
from evalrpc.harnesses.base import Run
from evalrpc.harnesses.registry import build_harness
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import TestMethod, Verdict

pytestmark = pytest.mark.slow

LIMIT_BYTES = 12 * 1024**3
"""How much memory a run may have: more than the harnesses reserve, and less than the machines of these tests have."""

SCORES = f"""{UTILS}
import os, signal

def crash(doc, results):
    raise RuntimeError("the scorer gave up")

def kill(doc, results):
    os.kill(os.getpid(), signal.SIGKILL)

def memory(doc, results):
    raise MemoryError()

def limit(doc, results):
    return dict(exact=float(bool(bytearray({LIMIT_BYTES}))))

def interrupt(doc, results):
    os.kill(os.getpid(), signal.SIGINT)

def fill(doc, results):
    with open(os.path.join(os.environ["SMALL_DISK"], "fill"), "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return dict(exact=1.0)
"""
"""Each of several processes may be the first to crash, so here it does not say at which document."""
FAILING = ("crash", "kill", "memory", "limit", "interrupt")
"""The other ways in which a process ends are no matter of the harness: tests/executors/test_warm_parents.py has them."""
SCORERS = ("exact", "slow", "fill", *FAILING)
INTERRUPTED = """

@solver
def interrupting():
    async def solve(state, generate):
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(1000)
    return solve


@task
def sums_interrupt():
    return Task(dataset=sums(1), solver=interrupting(), scorer=match())
"""
MODELS = {"lmms-eval": "dummy", "lm-eval": "dummy", "inspect-ai": "mockllm/model"}
GOOD = {"lmms-eval": "sums_exact", "lm-eval": "sums_choice", "inspect-ai": "sums_a"}
DIFFERS = re.compile(
    r"time|date|working_start|^changes$|_at$|path|dir|hash|id$|started|completed|location|created|uuid|config_source|"
    r"name_sanitized"
)
"""The keys of what differs between any two runs: times, dates, paths, ids."""


class Site:
    """A server on which each harness is configured twice: `lmms-eval`, which may be warm, and `lmms-eval-cold`."""

    def __init__(self, folder: Path, small_disk: Path, pythons: Mapping[str, Path]) -> None:
        self.folder = folder
        self.small_disk = small_disk
        self.package = folder / "packages" / "sitecustomize.py"
        """A module that all harnesses import, which a test may change."""
        self.package.parent.mkdir()
        self.package.touch()
        self.settings = {
            name: HarnessSettings(name, name, python, (self._tasks(name),), self._environment(), working_dir=folder)
            for name, python in pythons.items()
        }
        self.server = ServerProcess(folder / "data", self._config()).start()
        self.client = self.server.client()

    def close(self) -> None:
        self.client.close()
        self.server.clean_up()

    def run(self, harness: str, *tasks: str, **fields: Any) -> pb.JobInfo:
        job = self.submit(harness, *tasks, **fields)
        return self.client.wait_for_job(job.job_id, raise_on_failure=False)

    def submit(self, harness: str, *tasks: str, **fields: Any) -> pb.JobInfo:
        kind = harness.removesuffix("-cold")
        request = pb.EvaluateRequest(model=MODELS[kind], tasks=tasks or [GOOD[kind]], harness=harness, num_gpus=0, limit=5)
        request.MergeFrom(pb.EvaluateRequest(**fields))
        return self.client.submit(request)

    def heat(self, harness: str) -> None:
        """Have the harness in memory, of the dummy model's type."""
        while not self.run(harness).attempts[-1].warm:
            assert not self.harness(harness).cold_reason

    def harness(self, name: str) -> Any:
        return next(info for info in self.client.list_harnesses() if info.name == name)

    def files(self, job: pb.JobInfo) -> Path:
        return Path(job.attempts[-1].output_dir)

    def _config(self) -> str:
        return f'gpus = "0"\nmax_running = 4\noutput_root = "{self.small_disk}"\n' + "".join(
            f"""
            [harnesses.{name}{suffix}]
            kind = "{name}"
            python = "{settings.python}"
            include_path = ["{settings.include_path[0]}"]
            warm = "{"off" if suffix else "auto"}"
            max_run_memory_bytes = {LIMIT_BYTES}
            env = {json.dumps(dict(settings.env)).replace(":", "=")}
            [harnesses.{name}{suffix}.policy]
            arguments_refused = []
            """
            for name, settings in self.settings.items()
            for suffix in ("", "-cold")
        )

    def _environment(self) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        places = {"HF_HOME": self.folder / "hf", "XDG_DATA_HOME": self.folder / "xdg", "SMALL_DISK": self.small_disk}
        return {
            **offline,
            **{name: str(folder) for name, folder in places.items()},
            "PYTHONPATH": str(self.package.parent),
            "OPENAI_API_KEY": "x",
        }

    def _tasks(self, kind: str) -> Path:
        folder = self.folder / kind
        folder.mkdir()
        rows = [
            {"id": n, "question": f"{n} + 1?", "answer": str(n + 1), "choices": ["1", "2", "3"], "gold": n % 3}
            for n in range(40)
        ]
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if kind == "lmms-eval":
            (folder / "utils.py").write_text(SCORES)
            for score in SCORERS:
                (folder / f"{score}.yaml").write_text(lmms_task(f"sums_{score}", data, score))
        elif kind == "lm-eval":
            for name, text in (("choice", CHOOSING), ("answer", ANSWERING)):
                (folder / f"{name}.yaml").write_text(text + DATA.replace("DATA_PATH", str(data)))
        else:
            (folder / "sums.py").write_text(INSPECT_TASKS + INTERRUPTED)
        return folder


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, lmms_python: Path, lm_eval_python: Path, inspect_python: Path
) -> Iterator[Site]:
    pythons = {"lmms-eval": lmms_python, "lm-eval": lm_eval_python, "inspect-ai": inspect_python}
    folder = tmp_path_factory.mktemp("warm")
    with small_disk(folder / "disk", "1m") as disk:
        site = Site(folder, disk, pythons)
        yield site
        site.close()


@pytest.fixture(params=MODELS)
def harness(site: Site, request: pytest.FixtureRequest) -> str:
    site.heat(request.param)
    return str(request.param)


def outcome(job: pb.JobInfo) -> dict[str, Any]:
    """Return how a job ended, and its metrics."""
    error = pb.JobError()
    error.CopyFrom(job.error)
    error.ClearField("log_tail")
    metrics = {
        (model, metric.task, metric.metric, metric.filter): metric.value
        for model, result in job.results.items()
        for metric in result.metrics
    }
    return {"status": job.status, "error": re.sub(r"0x[0-9a-f]+|/\S+|\d{8}_\d{6}", "", str(error)), "metrics": metrics}


def samples(job: pb.JobInfo) -> list[bytes]:
    return [Path(path).read_bytes() for result in job.results.values() for path in sorted(result.samples)]


def constant(document: Any) -> Any:
    """Leave out of a document what differs between any two runs."""
    if isinstance(document, dict):
        return {key: constant(value) for key, value in document.items() if not DIFFERS.search(key.lower())}
    if isinstance(document, list):
        return [constant(value) for value in document]
    return re.sub(r"0x[0-9a-f]+|/\S+", "", document) if isinstance(document, str) else document


def test_its_samples_and_results_are_those_of_a_cold_run(site: Site, harness: str) -> None:
    cold, warm = site.run(f"{harness}-cold"), site.run(harness)
    assert (cold.attempts[-1].warm, warm.attempts[-1].warm) == (False, True)
    assert outcome(warm) == outcome(cold)
    assert warm.status == pb.JOB_STATUS_COMPLETED
    if harness != "inspect-ai":  # whose log has the samples, and times among them
        assert samples(warm)
        assert samples(warm) == samples(cold)
    documents = [json.loads(Path(result.results).read_text()) for job in (cold, warm) for result in job.results.values()]
    assert constant(documents[1]) == constant(documents[0])


def require_alike(site: Site, name: str, *tasks: str, **fields: Any) -> pb.JobInfo:
    """Run a job cold and warm at once, and return the warm one."""
    cold, warm = (site.submit(each, *tasks, **fields) for each in (f"{name}-cold", name))
    cold, warm = (site.client.wait_for_job(job.job_id, raise_on_failure=False) for job in (cold, warm))
    assert (cold.attempts[-1].warm, warm.attempts[-1].warm) == (False, True)
    assert outcome(warm) == outcome(cold)
    return warm


@pytest.mark.parametrize("score", FAILING)
def test_lmms_eval_fails_alike(site: Site, score: str) -> None:
    job = require_alike(site, "lmms-eval", f"sums_{score}")
    assert job.status == pb.JOB_STATUS_FAILED
    if score in ("memory", "limit"):
        assert job.error.reason == "OUT_OF_MEMORY"
    if score == "crash":
        assert job.error.message.startswith("RuntimeError: the scorer gave up")


def test_on_a_full_disk_it_fails_alike(site: Site) -> None:
    ended = []
    for name in ("lmms-eval-cold", "lmms-eval"):
        ended.append(site.run(name, "sums_fill", output_dir="full"))
        (site.small_disk / "fill").unlink()
    assert [job.status for job in ended] == [pb.JOB_STATUS_FAILED] * 2
    assert outcome(ended[1]) == outcome(ended[0])


def test_lmms_eval_fails_alike_where_the_api_of_the_model_does(site: Site) -> None:
    with chat_stub("3") as stub:
        stub.status = 500
        model_args = {"model_version": "stub", "base_url": stub.base_url, "max_retries": 1}
        job = require_alike(site, "lmms-eval", model="openai", model_args=model_args, limit=1)
    assert job.status == pb.JOB_STATUS_FAILED


def test_lm_eval_fails_alike_where_the_api_of_the_model_does(site: Site) -> None:
    with chat_stub("3") as stub:
        stub.status = 500
        model_args = {
            "model": "stub",
            "base_url": f"{stub.base_url}/completions",
            "max_retries": 1,
            "tokenizer_backend": "none",
        }
        fields = {"model": "local-completions", "model_args": {**model_args, "tokenized_requests": False}, "limit": 1}
        job = require_alike(site, "lm-eval", "sums_answer", **fields)
    assert job.status == pb.JOB_STATUS_FAILED


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lmms-eval", {"tasks": ["no_such_task"]}, "ValueError: Tasks not found: no_such_task"),
        ("lmms-eval", {"limit": 1e-9}, ""),
        ("lmms-eval", {"model": "no_such_model"}, "ValueError: there is no model 'no_such_model'"),
        ("lm-eval", {"tasks": ["no_such_task"]}, "ValueError: Tasks not found: no_such_task"),
        ("lm-eval", {"num_fewshot": 3}, ""),
        ("lm-eval", {"model": "no_such_model"}, "ValueError: there is no model 'no_such_model'"),
        ("inspect-ai", {"tasks": ["sums_fail"]}, ""),
        ("inspect-ai", {"tasks": ["sums_interrupt"]}, ""),
        ("inspect-ai", {"model": "no_such/model"}, ""),
    ],
    ids=str,
)
def test_every_harness_fails_alike_and_says_why(site: Site, name: str, fields: dict[str, Any], message: str) -> None:
    job = require_alike(site, name, **fields)
    assert job.error.message.startswith(message)
    assert "\n" not in job.error.message


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("lmms-eval", pb.Progress.PHASE_LOADING),
        ("inspect-ai", pb.Progress.PHASE_EVALUATING),
        ("lmms-eval", pb.Progress.PHASE_SCORING),
    ],
)
def test_it_can_be_cancelled_at_any_time(site: Site, name: str, phase: pb.Progress.Phase.ValueType) -> None:
    site.heat(name)
    job = site.submit(name, "sums_slow", limit=40)
    for event in site.client.watch(job.job_id):
        if event.job.progress.phase >= phase:
            site.client.cancel_job(job.job_id)
    job = site.client.get_job(job.job_id)
    assert (job.status, job.attempts[-1].warm) == (pb.JOB_STATUS_CANCELLED, True)
    assert site.server.processes_of_jobs() == []


def test_it_can_be_cancelled_while_the_harness_is_loaded(site: Site) -> None:
    site.heat("lmms-eval")
    for pid in site.server.parents():
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: not is_alive(pid))
    site.run("lmms-eval", limit=1)  # finds that out, and is cold
    stopping = in_background(lambda: stop_loading(site.server))
    job = site.submit("lmms-eval")
    loading = stopping()
    eventually(lambda: site.client.get_job(job.job_id).progress.phase == pb.Progress.PHASE_STARTING)
    job = site.client.cancel_job(job.job_id)
    job = site.client.wait_for_job(job.job_id, raise_on_failure=False)
    assert job.status == pb.JOB_STATUS_CANCELLED
    assert site.server.processes_of_jobs() == []
    os.kill(loading, signal.SIGCONT)  # it is there: nobody has waited until it was given up


def stop_loading(server: ServerProcess) -> int:
    """Stop the process that loads a harness for runs to come, once there is one. Return its id."""
    (loading,) = eventually(server.loading_parents, "for a harness to be loaded")
    os.kill(loading, signal.SIGSTOP)
    return loading


def test_a_package_that_changes_while_jobs_wait_is_read_anew(site: Site) -> None:
    site.heat("lmms-eval")
    running = [site.submit("lmms-eval", "sums_slow", limit=4) for _ in range(4)]
    waiting = [site.submit("lmms-eval") for _ in range(3)]
    eventually(lambda: site.client.get_job(running[-1].job_id).progress.phase >= pb.Progress.PHASE_LOADING)
    site.package.write_text("# changed")
    ended = [site.client.wait_for_job(job.job_id) for job in (*running, *waiting)]
    assert all(job.attempts[-1].warm for job in ended[:4])
    assert not all(job.attempts[-1].warm for job in ended[4:])
    assert len({str(outcome(job)) for job in ended[4:]}) == 1
    site.heat("lmms-eval")


def test_four_at_once_are_warm_and_equal(site: Site, harness: str) -> None:
    jobs = [site.submit(harness) for _ in range(4)]
    ended = [site.client.wait_for_job(job.job_id) for job in jobs]
    assert all(job.attempts[-1].warm for job in ended)
    assert len({str(outcome(job)) for job in ended}) == 1


def test_two_runs_are_compared_sample_by_sample(site: Site) -> None:
    site.heat("lm-eval")
    baseline, candidate = (site.run("lm-eval") for _ in range(2))
    (metric,) = site.client.compare(baseline.job_id, candidate.job_id, tolerance=1.0).candidates[0].metrics
    assert (metric.task, metric.metric, metric.method) == ("sums_choice", "acc", TestMethod.TEST_METHOD_MCNEMAR)
    assert (metric.paired_sample_count, metric.unpaired_sample_count) == (5, 0)
    values = [next(iter(job.results.values())).metrics[0].value for job in (baseline, candidate)]
    assert metric.difference == pytest.approx(values[1] - values[0])
    assert metric.verdict == Verdict.VERDICT_SAME, "no difference is larger than 1"


def test_a_killed_parent_loses_no_run(site: Site) -> None:
    site.heat("lmms-eval")
    running = site.submit("lmms-eval", "sums_slow", limit=6)
    eventually(lambda: site.client.get_job(running.job_id).progress.phase >= pb.Progress.PHASE_LOADING)
    python = bytes(site.settings["lmms-eval"].python)
    for pid in site.server.parents():
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(python):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not is_alive(pid))
    job, next_job = site.client.wait_for_job(running.job_id), site.run("lmms-eval")
    assert (job.status, job.attempts[-1].warm) == (pb.JOB_STATUS_COMPLETED, True)
    assert (next_job.status, next_job.attempts[-1].warm) == (pb.JOB_STATUS_COMPLETED, False)


def test_an_operators_task_is_read_anew(site: Site) -> None:
    site.heat("lmms-eval")
    utils = site.folder / "lmms-eval" / "utils.py"
    utils.write_text(SCORES.replace('{"exact": float(results[0].strip() == doc["answer"])}', '{"exact": 0.25}'))
    try:
        job = site.run("lmms-eval")
    finally:
        utils.write_text(SCORES)
    assert job.attempts[-1].warm
    assert {metric.value for metric in job.results["dummy"].metrics} == {0.25}


NOTED = """
import atexit as _atexit, os as _os, sys as _sys
def _note():
    names = [name for name, module in _sys.modules.items() if getattr(module, "__file__", None)]
    open(_os.environ["HF_HOME"] + ".modules", "w").write("\\n".join(names))
_atexit.register(_note)
"""
WANTED = """
import importlib, json, sys
import runpy
script = runpy.run_path(sys.argv[1]) if sys.argv[1] else {}
script.get("prepare", lambda: None)()
first, *names = sys.argv[2:]
for name in (first, *names):
    try: importlib.import_module(name)
    except ImportError: pass
if sys.argv[1]:
    script["preload"]()
print(json.dumps(list(sys.modules)))
"""


@pytest.mark.parametrize("harness", MODELS)
def test_what_is_preloaded_is_all_that_a_first_job_imports(site: Site, harness: str, tmp_path: Path) -> None:
    """Of packages. Modules of the standard library take no time."""
    settings = site.settings[harness]
    code = site.folder / harness / {"lmms-eval": "utils.py", "lm-eval": "noted.py", "inspect-ai": "sums.py"}[harness]
    before = code.read_text() if code.exists() else ""
    task = GOOD[harness]
    code.write_text(before + NOTED)
    if harness == "lm-eval":
        task = "sums_noted"
        text = (site.folder / harness / "choice.yaml").read_text().replace("sums_choice", task)
        (site.folder / harness / "noted.yaml").write_text(text + "\nprocess_docs: !function noted.same\n")
        code.write_text(NOTED + "\ndef same(docs):\n    return docs\n")
    try:
        assert site.run(f"{harness}-cold", task).status == pb.JOB_STATUS_COMPLETED
    finally:
        code.write_text(before)
    imported = set((site.folder / "hf.modules").read_text().split())
    request = pb.EvaluateRequest(model=MODELS[harness], tasks=[GOOD[harness]], harness=harness)
    run = Run("", 1, request, tmp_path, tmp_path, 0)
    preload = build_harness(settings).command(run).preload
    assert preload is not None
    argv = (str(settings.python), "-c", WANTED, str(preload.script or ""), *preload.modules)
    environment = {**os.environ, **settings.env}
    known = json.loads(
        subprocess.run(argv, capture_output=True, check=True, env=environment, cwd=site.folder).stdout.splitlines()[-1]
    )
    missing = {name for name in imported - set(known) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {
        name for name in missing if not name.startswith(("/", "utils", "noted", "sums", "__mp_main__", "rich._unicode_data."))
    } == set()
