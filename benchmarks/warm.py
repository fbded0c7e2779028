"""Small evaluations by the real harnesses, forked from a process that has the harness in memory, beside ones that load it."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.processes import REPOSITORY, evalrpc_server, workplace
from benchmarks.report import Aim, Row, Sides, compare, in_turn, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest

HARNESSES: Final = {"lmms-eval": "lmms", "lm-eval": "lm-eval", "inspect-ai": "inspect"}
"""The environments of the harnesses, below `.envs`."""

_REQUESTS: Final = {
    "lmms-eval": ("dummy", "demo_colour"),
    "lm-eval": ("dummy", "sums"),
    "inspect-ai": ("mockllm/model", "sums"),
}
_AIMS: Final = {"lmms-eval": ratio_at_most(0.1), "lm-eval": ratio_at_most(1 / 7), "inspect-ai": None}
_DOCUMENTS: Final = 8
_IN_A_ROW: Final = 5
_WARM_SECONDS: Final = 600.0
_LM_EVAL_TASK: Final = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
# mockllm counts tokens with a vocabulary that is downloaded, so that counter is replaced.
_INSPECT_TASK: Final = """
import inspect_ai.model._model as model
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

model.count_text_tokens = len

@task
def sums():
    return Task(dataset=MemoryDataset([Sample(input=f"{n} + 1?", target=str(n + 1), id=n) for n in range(8)]),
                solver=generate(), scorer=match())
"""


def python_of(harness: str) -> Path:
    """Return the interpreter of a harness's environment."""
    return REPOSITORY / ".envs" / HARNESSES[harness] / "bin" / "python"


def missing() -> str:
    """Return what is missing; empty: nothing."""
    names = [harness for harness in HARNESSES if not python_of(harness).exists()]
    return f"{', '.join(names)} is not installed: `make envs envs-more` installs it" if names else ""


def small_jobs(scale: Scale) -> Iterator[Row]:
    """The time from SubmitJob to COMPLETED of a job with 8 documents: warm, beside the same job where that is turned off."""
    with workplace() as folder:
        (folder / "evalrpc.toml").write_text("".join(_tables(folder)))
        with evalrpc_server(folder, gpus=0) as server, EvalClient(server.address) as client:
            for harness in HARNESSES:
                first = _seconds(client, harness)
                _wait_until_warm(client, harness)
                sides = in_turn(
                    scale.rounds,
                    lambda harness=harness: _seconds(client, harness),  # type: ignore[misc]
                    lambda harness=harness: _seconds(client, f"{harness}-cold"),  # type: ignore[misc]
                )
                yield _row(f"a small job of {harness}, warm", sides, _AIMS[harness])
                cold = sum(sides[1]) / len(sides[1])
                yield Row(f"the first job of {harness}, for which it is loaded", "s", first, cold, first / cold)
    yield from _five_in_a_row()


def _five_in_a_row() -> Iterator[Row]:
    """Five jobs that follow each other at once, on a server that has just started; yardstick: a cold one."""
    with workplace() as folder:
        (folder / "evalrpc.toml").write_text("".join(_tables(folder)))
        with evalrpc_server(folder, gpus=0) as server, EvalClient(server.address) as client:
            all_seconds = [_seconds(client, "lmms-eval") for _ in range(_IN_A_ROW)]
            cold = _seconds(client, "lmms-eval-cold")
    for number, seconds in enumerate(all_seconds, 1):
        figure, aim = f"job {number} of {_IN_A_ROW} in a row, lmms-eval", _AIMS["lmms-eval"] if number > 1 else None
        yield Row(figure, "s", seconds, cold, seconds / cold, aim=aim)


def _row(figure: str, sides: Sides[float], aim: Aim | None) -> Row:
    return compare(figure, "s", sides, aim=aim, note=f"{_DOCUMENTS} documents, dummy model; yardstick: cold")


def _seconds(client: EvalClient, harness: str) -> float:
    model, task = _REQUESTS[harness.removesuffix("-cold")]
    job = client.submit(EvaluateRequest(harness=harness, model=model, tasks=[task], limit=_DOCUMENTS, num_gpus=0))
    job = client.wait_for_job(job.job_id)
    return seconds_of(job.completed_at) - seconds_of(job.created_at)


def _wait_until_warm(client: EvalClient, harness: str) -> None:
    deadline = time.monotonic() + _WARM_SECONDS
    while not (info := next(each for each in client.list_harnesses() if each.name == harness)).warm:
        if info.cold_reason or time.monotonic() > deadline:
            raise RuntimeError(f"{harness} does not get warm: {info.cold_reason}")
        time.sleep(0.1)


def _tables(folder: Path) -> Iterator[str]:
    rows = ({"question": f"{n} + 1?", "choices": ["1", "2", "3"], "gold": n % 3} for n in range(_DOCUMENTS))
    return harness_tables(folder, rows, _LM_EVAL_TASK, _INSPECT_TASK)


def harness_tables(
    folder: Path, rows: Iterable[Mapping[str, object]], lm_eval_task: str, inspect_task: str, more: str = ""
) -> Iterator[str]:
    """Yield tables of each harness, warm and cold, with tasks of these rows. `more` is TOML, with `NAME` for the harness."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {name: folder / name for name in ("lm-eval", "inspect-ai")} | {"lmms-eval": REPOSITORY / "demo" / "tasks"}
    for name in ("lm-eval", "inspect-ai"):
        tasks[name].mkdir()
    (tasks["lm-eval"] / "sums.yaml").write_text(lm_eval_task.replace("DATA", str(data)))
    (tasks["inspect-ai"] / "sums.py").write_text(inspect_task)
    for harness in HARNESSES:
        for name, warm in ((harness, "auto"), (f"{harness}-cold", "off")):
            yield (
                f'[harnesses.{name}]\nkind = "{harness}"\npython = "{python_of(harness)}"\nwarm = "{warm}"\n'
                f'include_path = ["{tasks[harness]}"]\nworking_dir = "{REPOSITORY / "demo"}"\n'
                f"env = {{ {environment_of(folder)} }}\n{more.replace('NAME', name)}"
            )


def environment_of(folder: Path) -> str:
    """Return the inside of a TOML table with the variables with which a program fetches nothing."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    return ", ".join(f'{name} = "{value}"' for name, value in variables.items())
