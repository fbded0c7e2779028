"""The examples of docs/http.md work: every line of curl in it, and there is one for every call."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from callers import add_token
from http_calls import HttpApi, http_of
from serving import COMPLETED, SECONDS, Api, ServerHere, Site
from waiting import eventually

from evalrpc.server.app import SERVICE

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
SCRIPT = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
HARNESS = """
import json, pathlib, sys, time
model, output_dir, job_id, tasks, release = sys.argv[1:]
while model == "waits" and not pathlib.Path(release).exists():
    time.sleep(0.01)
folder = pathlib.Path(output_dir, "m")
folder.mkdir(parents=True)
rows = [{"doc_id": number, "acc": float(number % 2), "filter": "none", "image": "data:image/png,x"} for number in range(8)]
results = {"results": {tasks: {"alias": tasks, "acc,none": 0.5}}, "higher_is_better": {tasks: {"acc": True}}}
(folder / "20260101_000000_results.json").write_text(json.dumps(results))
(folder / f"20260101_000000_samples_{tasks}.jsonl").write_text("\\n".join(map(json.dumps, rows)))
print("done")
"""
REFUSED = {"StopEngine": "ENGINE_NOT_FOUND", "ListTasks": "CATALOG_UNAVAILABLE", "ListModels": "CATALOG_UNAVAILABLE"}
"""What a server can't do that has no engine, and a harness that lists nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHere]:
    site = Site(tmp_path)
    program, release = tmp_path / "harness.py", tmp_path / "release"
    program.write_text(HARNESS)
    command = [sys.executable, "-S", str(program), "{model}", "{output_dir}", "{job_id}", "{tasks}", str(release)]
    site.config.write_text(
        f'data_dir = "data"\nlisten = "127.0.0.1:0"\nhttp_listen = "127.0.0.1:0"\ngpus = "1"\ncgroups = "off"\n'
        f'[harnesses.lmms-eval]\nkind = "command"\ncommand = {json.dumps(command)}\n'
        '[suites.release]\n[[suites.release.entries]]\nharness = "lmms-eval"\ntasks = ["mme"]\n'
    )
    here = ServerHere(site.settings())
    yield here
    release.touch()
    eventually(lambda: here.idle)
    here.stop()


def test_there_is_an_example_of_every_call() -> None:
    named = set(re.findall(r"(?:EvaluationService/|\b(?:call|stream) )([A-Z]\w+)", SCRIPT))
    assert {method.name for method in SERVICE.methods} <= named


def test_every_line_works(server: ServerHere, tmp_path: Path) -> None:
    http = http_of(server)
    operator = add_token(tmp_path / "data", "olga", "operator")
    eventually(lambda: HttpApi(http.url, token=operator).call("GetCaller").json.get("role") == "CALLER_ROLE_OPERATOR")
    job, other = (completed(server.api) for _ in range(2))
    variables = {
        "JOB": job,
        "OTHER": other,
        "WAITING": submit(server.api, "waits", num_gpus=0),
        "NAME": http.call("ListArtifacts", {"jobId": job}).json["artifacts"][0]["name"],
        "RUN": suite_run(http, "qwen2_5_vl"),
        "RUNNING": suite_run(http, "waits"),
        "TOKEN": operator,
        "ENGINE": str(uuid.uuid4()),
    }
    lines = SCRIPT.replace("http://127.0.0.1:8080", http.url).splitlines()
    script = "\n".join(["set -eo pipefail", *map(with_its_refusal, lines)])
    curl = 'curl() { echo "--- $*"; command curl --silent --show-error --fail-with-body "$@"; }\n'

    result = subprocess.run(
        ("bash", "-c", curl + script),
        cwd=tmp_path,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
    )

    assert result.returncode == 0, result.stdout.decode(errors="replace")[-3000:]
    assert (tmp_path / "20260101_000000_results.json").exists()
    assert b'"terminal": true' in result.stdout


def with_its_refusal(line: str) -> str:
    """Return a line of the script such that it is expected to be refused, if it has to be."""
    call = line.split()[1] if line.startswith("call ") else ""
    return f"({line} || true) | grep {REFUSED[call]}" if call in REFUSED else line


def suite_run(http: HttpApi, model: str) -> str:
    submission = {"suite": "release", "request": {"model": model, "numGpus": 0}}
    return str(http.call("SubmitSuite", submission).json["suiteRunId"])


def submit(api: Api, model: str, **fields: object) -> str:
    return api.submit(model, request={"harness": "lmms-eval", "tasks": ["mme"], **fields}).job_id


def completed(api: Api) -> str:
    job_id = submit(api, "qwen2_5_vl")
    api.wait_for(job_id, COMPLETED)
    return job_id
