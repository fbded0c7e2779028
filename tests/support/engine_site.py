"""An engine of a test, and a harness that asks it, on a server's site."""

import json
import sys
from pathlib import Path
from typing import Any

from processes_of_tests import kill_all
from serving import CANCELLED, COMPLETED, FAILED, Api, Site

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import engines_pb2
from evalrpc.v1 import jobs_pb2 as pb

READY = engines_pb2.ENGINE_STATE_READY
ENDED = engines_pb2.ENGINE_STATE_ENDED


class Models:
    """Folders with models, which say what became of the engines that loaded them."""

    def __init__(self, site: Site) -> None:
        self._folder = site.folder / "models"

    def make(self, name: str = "tiny") -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        (folder / "weights").write_text("1")
        return folder

    def hold(self, model: Path, question: str = "") -> Path:
        """Let all questions wait, or just one, until the file is removed."""
        notes_of(model).mkdir(exist_ok=True)
        hold = notes_of(model) / "hold"
        hold.write_text(question)
        return hold

    def starts(self, model: Path) -> list[str]:
        return lines_of(notes_of(model) / "starts")

    def questions(self, model: Path) -> list[str]:
        return lines_of(notes_of(model) / "questions")

    def pids(self, model: Path) -> list[int]:
        """Return the processes that were started, in this order."""
        return [int(line.split()[0]) for line in self.starts(model)]

    def askers(self, model: Path) -> list[int]:
        """Return the process that was asked, for each question."""
        return [int(line) for line in lines_of(notes_of(model) / "askers")]


def notes_of(model: Path) -> Path:
    return Path(f"{model}.notes")


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


_HERE = Path(__file__).parent
ENGINE = [sys.executable, str(_HERE / "engine_program.py"), "--port", "{port}", "--model", "{model}"]
"""The command line of an engine."""


def add_engine(site: Site) -> None:
    """Configure the engine `stub`, and the harness `asking`, which asks as many questions as its task says."""
    asking = [sys.executable, str(_HERE / "asking_program.py"), "{output_dir}", "{tasks}"]
    with site.config.open("a") as config:
        config.write(f'[harnesses.asking]\nkind = "command"\ncommand = {json.dumps(asking)}\n')
        config.write(f"[engines.stub]\ncommand = {json.dumps(ENGINE)}\nidle_seconds = 300\nstart_timeout_seconds = 3600\n")
        config.write('args = { behave = "--behave", size = "--size" }\n')


def end_engines(data_dir: Path) -> None:
    """End what is left of a server's engines and their gateway."""
    folders = (data_dir / "engines", *data_dir.glob("engines/hosts/*"))
    names = [found.name for each in folders for found in (*each.glob("engine-*"), *each.glob("gateway/*"))]
    kill_all(lambda: [pid for name in names for pid in processes_of_job(name)])


def submit(
    api: Api,
    model: Path | str,
    count: int | str = 3,
    num_gpus: int = 0,
    args: dict[str, Any] | None = None,
    max_replicas: int | None = None,
    revision: str = "",
    **fields: Any,
) -> str:
    served = pb.ServedModel(engine="stub", model=str(model), num_gpus=num_gpus, max_replicas=max_replicas, revision=revision)
    served.args.update(args or {})
    request = pb.EvaluateRequest(harness="asking", tasks=[str(count)], served_model=served)
    return str(api.SubmitJob(request=request, **fields).job_id)


def ended(api: Api, job_id: str) -> pb.JobInfo:
    return api.wait_for(job_id, COMPLETED, FAILED, CANCELLED)


def completed(api: Api, job_id: str) -> pb.JobInfo:
    job = ended(api, job_id)
    assert job.status == COMPLETED, job.error
    return job
