"""Jobs whose model an engine has loaded already, beside jobs that load it themselves."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.loading_engine import ASKED, STARTED
from benchmarks.processes import REPOSITORY, evalrpc_server, workplace
from benchmarks.report import Aim, Row, Sides, at_most, compare, in_turn, ratio_at_most
from benchmarks.scale import Scale
from benchmarks.warm import HARNESSES, environment_of, harness_tables, python_of
from evalrpc.client import EvalClient
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.engines_pb2 import ENGINE_STATE_ENDED
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, ServedModel

_JOBS: Final = 20
_LOADING_SECONDS: Final = 60.0
_DOCUMENTS: Final = 8
_IDLE_SECONDS: Final = 120
_AIMS: Final = {"lmms-eval": ratio_at_most(0.1), "lm-eval": ratio_at_most(1 / 7), "inspect-ai": None}
_TINY_LLAVA: Final = REPOSITORY / ".demo" / "models" / "tiny-llava"
_ASKING: Final = """
import os, sys, urllib.request
body = b'{"model": "m", "messages": [{"role": "user", "content": "2 + 2"}]}'
address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
urllib.request.urlopen(urllib.request.Request(address, body, {"Content-Type": "application/json"})).read()
open(os.path.join(sys.argv[1], "20260214_103045_results.json"), "w").write('{"results": {"t": {"acc,none": 1.0}}}')
"""
_LM_EVAL_TASK: Final = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
_INSPECT_TASK: Final = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate

@task
def sums():
    return Task(dataset=MemoryDataset([Sample(input=f"{n} + 1?", target=str(n + 1), id=n) for n in range(8)]),
                solver=generate(), scorer=match(), config=GenerateConfig(max_tokens=4, temperature=0))
"""


def missing() -> str:
    """Return what is missing; empty: nothing."""
    names = [harness for harness in HARNESSES if not python_of(harness).exists()]
    if names or not python_of("lmms-eval").with_name("uvicorn").exists() or not _TINY_LLAVA.exists():
        return "not all harnesses, the engine and tiny-llava are installed: `make envs envs-more` and `make demo` install them"
    return ""


def one_start(scale: Scale) -> Iterator[Row]:
    """Jobs of an engine that takes a minute to load, at any scale; and how soon a job asks one that is up."""
    del scale
    with workplace() as folder:
        notes, model = folder / "notes", folder / "model"
        model.mkdir()
        (folder / "asking.py").write_text(_ASKING)
        engine = [sys.executable, "-m", "benchmarks.loading_engine", "{port}", str(_LOADING_SECONDS), str(notes)]
        (folder / "evalrpc.toml").write_text(
            'max_running = 4\n[harnesses.asking]\nkind = "command"\n'
            f'command = ["{sys.executable}", "{folder / "asking.py"}", "{{output_dir}}"]\n'
            f'[engines.loading]\ncommand = {json.dumps([*engine, "{model}"])}\nworking_dir = "{REPOSITORY}"\n'
            f"idle_seconds = {_IDLE_SECONDS}\n"
        )
        request = EvaluateRequest(harness="asking", tasks=["t"], served_model=ServedModel(engine="loading", model=str(model)))
        request.served_model.num_gpus = 0
        with evalrpc_server(folder, gpus=0) as server, EvalClient(server.address) as client:
            begin = time.monotonic()
            ids = [client.submit(request).job_id for _ in range(_JOBS)]
            for job_id in ids:
                client.wait_for_job(job_id)
            seconds = time.monotonic() - begin
            starts = _moments(notes, STARTED)
            waits = []
            for _ in range(_JOBS):
                job = client.wait_for_job(client.submit(request).job_id)
                waits.append((_moments(notes, ASKED)[-1] - job.created_at.ToNanoseconds()) / 1e9)
            _wait_for_end(client)
    note = f"of an engine that loads for {_LOADING_SECONDS:.0f} s; yardstick: each job loads it"
    yield Row(f"starts for {_JOBS} jobs", "", len(starts), float(_JOBS), aim=at_most(1.0), note=note)
    alone = _JOBS * _LOADING_SECONDS
    yield Row(f"{_JOBS} jobs with that engine", "s", seconds, alone, seconds / alone)
    waits.sort()
    note = f"{waits[0] * 1000:.0f} to {waits[-1] * 1000:.0f} ms; the harness is a Python program"
    yield Row("from SubmitJob to the first question, engine up", "s", waits[len(waits) // 2], aim=at_most(1.0), note=note)


def small_jobs(scale: Scale) -> Iterator[Row]:
    """Small jobs of the real harnesses that ask `transformers serve`, engine and warm parents up; yardstick: cold ones that
    load the same model. inspect-ai can load none in its environment, so its yardstick asks the engine too."""
    with workplace() as folder:
        (folder / "evalrpc.toml").write_text("".join(_tables(folder)))
        model = folder / "tiny"
        script = REPOSITORY / "tests" / "support" / "make_tiny_llama.py"
        subprocess.run((python_of("lmms-eval"), script, model), check=True, capture_output=True)
        with evalrpc_server(folder, gpus=0) as server, EvalClient(server.address) as client:
            for harness in HARNESSES:
                served, cold = _served(harness, model), _cold(harness, model)
                first = _job(client, served)
                while not _job(client, served).attempts[-1].warm:
                    pass
                sides = in_turn(
                    scale.rounds,
                    lambda served=served: _seconds(_job(client, served)),  # type: ignore[misc]
                    lambda cold=cold: _seconds(_job(client, cold)),  # type: ignore[misc]
                )
                yield from _rows(harness, sides, _seconds(first), _AIMS[harness])
            _wait_for_end(client)


def _rows(harness: str, sides: Sides[float], first: float, aim: Aim | None) -> Iterator[Row]:
    note = f"{_DOCUMENTS} documents, engine up, warm; yardstick: cold"
    row = compare(f"a small job of {harness}, served", "s", sides, aim=aim, note=note)
    yield row
    assert row.yardstick is not None
    whole, alone = first + (_JOBS - 1) * row.ours, _JOBS * row.yardstick
    pays_from = 1 if first <= row.yardstick else 1 + -(-(first - row.yardstick) // (row.yardstick - row.ours))
    note = f"the first takes {first:.1f} s, with the start of the engine; it pays from {pays_from:.0f} jobs on"
    yield Row(f"{_JOBS} jobs of {harness}, one after the other", "s", whole, alone, whole / alone, note=note)


def _served(harness: str, model: Path) -> EvaluateRequest:
    served = ServedModel(engine="transformers", model=str(_TINY_LLAVA if harness == "lmms-eval" else model), num_gpus=0)
    task = "demo_colour" if harness == "lmms-eval" else "sums"
    return EvaluateRequest(harness=harness, tasks=[task], limit=_DOCUMENTS, num_gpus=0, served_model=served)


def _cold(harness: str, model: Path) -> EvaluateRequest:
    request = _served(harness, model)
    request.harness = f"{harness}-cold"
    if harness != "inspect-ai":
        request.ClearField("served_model")
        request.model = "llava_hf" if harness == "lmms-eval" else "hf"
        request.model_args.update({"pretrained": str(_TINY_LLAVA if harness == "lmms-eval" else model)})
        request.device = "cpu"
        if harness == "lmms-eval":
            request.model_args.update({"device_map": "cpu"})
    return request


def _job(client: EvalClient, request: EvaluateRequest) -> JobInfo:
    return client.wait_for_job(client.submit(request).job_id)


def _seconds(job: JobInfo) -> float:
    return seconds_of(job.completed_at) - seconds_of(job.created_at)


def _moments(notes: Path, what: str) -> list[int]:
    lines = (line.split() for line in notes.read_text().splitlines())
    return [int(moment) for kind, moment in lines if kind == what]


def _wait_for_end(client: EvalClient) -> None:
    """Wait until the engines have ended, which outlive their server: without jobs they do so soon."""
    while any(engine.state != ENGINE_STATE_ENDED for engine in client.list_engines().engines):
        time.sleep(0.1)


def _tables(folder: Path) -> Iterator[str]:
    rows = ({"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(_DOCUMENTS))
    (folder / "hf" / "hub").mkdir(parents=True)
    policy = "[harnesses.NAME.policy]\narguments_refused = []\n"
    yield from harness_tables(folder, rows, _LM_EVAL_TASK, _INSPECT_TASK, policy)
    command = [str(python_of("lmms-eval").with_name("transformers")), "serve", "{model}", "--host", "127.0.0.1"]
    yield (
        f"[engines.transformers]\ncommand = {json.dumps([*command, '--port', '{port}', '--device', 'cpu'])}\n"
        f'model_name = "{{model}}"\nenv = {{ {environment_of(folder)} }}\nstart_timeout_seconds = 600\n'
        f"idle_seconds = {_IDLE_SECONDS}\n"
    )
