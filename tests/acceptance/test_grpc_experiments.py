"""What the server chooses of gRPC's experiments: the installed gRPC has it, an operator's choice stands, no run inherits it."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from server_process import ServerProcess

from evalrpc.cli.serve import GRPC_EXPERIMENTS
from evalrpc.client import EvalClient

CONFIG = """
gpus = "0"
[harnesses.reporter]
kind = "command"
command = ["sh", "-c", "echo it is ${GRPC_EXPERIMENTS-not set}, ${GRPC_VERBOSITY-not set}"]
"""


def log_of_a_run(server: ServerProcess) -> str:
    with EvalClient(server.address) as client:
        job = client.evaluate("m", ["t"], harness="reporter", num_gpus=0)
        client.wait_for_job(job.job_id, raise_on_failure=False)
        return b"".join(client.logs(job.job_id)).decode()


def test_the_installed_grpc_knows_what_is_chosen() -> None:
    environment = os.environ | {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS, "GRPC_VERBOSITY": "INFO"}
    done = subprocess.run((sys.executable, "-c", "import grpc"), env=environment, capture_output=True, text=True, check=True)
    assert "nknown experiment" not in done.stderr
    unknown = subprocess.run(
        (sys.executable, "-c", "import grpc"),
        env=environment | {"GRPC_EXPERIMENTS": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert "nknown experiment" in unknown.stderr


def test_no_run_inherits_what_the_server_has_chosen(serve: Callable[[str], ServerProcess]) -> None:
    assert "it is not set, not set" in log_of_a_run(serve(CONFIG))


def test_what_the_operator_has_chosen_stands(serve: Callable[[str], ServerProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", "-event_engine_client")
    server = serve('inherit_env = ["PATH", "GRPC_EXPERIMENTS"]' + CONFIG)
    assert "it is -event_engine_client" in log_of_a_run(server)
