"""A person who debugs with a generic client and has no schema at hand: `buf curl` here, and grpcurl is the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess

BUF = str(Path(sys.executable).with_name("buf"))

PROGRAM = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "m"
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.25}}}))
"""


@pytest.fixture
def server(tmp_path: Path, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    (tmp_path / "program.py").write_text(PROGRAM)
    return serve(f"""
        gpus = "0"
        [harnesses.small]
        kind = "command"
        command = ["{sys.executable}", "program.py", "{{output_dir}}"]
    """)


def curl(server: ServerProcess, *arguments: str, method: str = "") -> subprocess.CompletedProcess[str]:
    url = f"http://{server.address}" + (f"/{method}" if method else "")
    command = (BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect", *arguments, url)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def call(server: ServerProcess, name: str, message: dict[str, object]) -> list[dict[str, object]]:
    done = curl(server, "--data", json.dumps(message), method=f"evalrpc.v1.EvaluationService/{name}")
    assert done.returncode == 0, done.stderr
    decoder, text, messages = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        decoded, end = decoder.raw_decode(text)
        messages.append(decoded)
        text = text[end:].strip()
    return messages


def test_services_and_methods_are_listed_without_a_schema(server: ServerProcess) -> None:
    services = curl(server, "--list-services").stdout.split()
    methods = curl(server, "--list-methods").stdout.split()
    assert {"evalrpc.v1.EvaluationService", "grpc.health.v1.Health"} <= set(services)
    assert "evalrpc.v1.EvaluationService/WatchJob" in methods


def test_a_job_is_submitted_watched_and_read_without_a_schema(server: ServerProcess) -> None:
    request = {"harness": "small", "model": "m", "tasks": ["t"], "numGpus": 0}
    (job,) = call(server, "SubmitJob", {"request": request})
    events = call(server, "WatchJob", {"jobId": job["jobId"]})
    assert events[-1]["terminal"]
    (done,) = call(server, "GetJob", {"jobId": job["jobId"]})
    assert done["status"] == "JOB_STATUS_COMPLETED"
    assert done["results"]["m"]["metrics"][0]["value"] == 0.25


def test_a_wrong_field_is_named_to_a_generic_client(server: ServerProcess) -> None:
    message = json.dumps({"request": {"harness": "small", "model": "m", "numGpus": 0}})
    done = curl(server, "--data", message, method="evalrpc.v1.EvaluationService/SubmitJob")
    assert done.returncode != 0
    assert "invalid_argument" in done.stderr
    assert "request.tasks" in done.stderr


def test_health_is_reported_to_a_generic_client(server: ServerProcess) -> None:
    done = curl(server, "--data", "{}", method="grpc.health.v1.Health/Check")
    assert json.loads(done.stdout) == {"status": "SERVING"}, done.stderr
