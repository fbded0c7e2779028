"""The client beside the oldest and the newest protobuf that it says it takes, each in an environment of its own."""

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess
from source_copy import copy_source

pytestmark = pytest.mark.slow

CLIENT = """
import sys
import google.protobuf
from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, JobFailedError

with EvalClient(sys.argv[1]) as client:
    job = client.evaluate("m", ["t"], {"nested": {"list": [1, "two", None]}}, harness="failing", num_gpus=0)
    try:
        client.wait_for_job(job.job_id)
    except JobFailedError as error:
        assert error.job.error.exit_code == 3
        assert repr(error.job).startswith(f"<JobInfo {job.job_id} FAILED, m on t")
        assert "FAILED" in error.job._repr_html_()
    try:
        client.evaluate("m", ["t"], {"nested": {"set": {1}}})
    except TypeError as error:
        assert str(error).startswith("model_args['nested']['set']: a set has no order"), error
    try:
        client.evaluate("m", ["t"], num_fewshot="5")
    except TypeError as error:
        assert str(error) == "num_fewshot must be a whole number of 32 bits, not '5' (a str)", error
    try:
        client.evaluate("", [], num_gpus=-1)
    except InvalidRequestError as error:
        assert {"request.model", "request.tasks", "request.num_gpus"} <= {v.field for v in error.violations}
print(google.protobuf.__version__)
"""


@pytest.mark.parametrize("requirements", [("protobuf==6.31.1", "grpcio==1.76.0"), ("protobuf>=7,<8", "grpcio")])
def test_the_client_works_at_both_ends_of_its_protobuf_range(
    requirements: tuple[str, ...], tmp_path: Path, serve: Callable[[str], ServerProcess]
) -> None:
    server = serve(f"""
        gpus = "0"
        [harnesses.failing]
        kind = "command"
        command = ["{sys.executable}", "-c", "raise SystemExit(3)"]
    """)
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run((python, "-m", "pip", "install", "--quiet", str(copy_source(tmp_path)), *requirements), check=True)
    done = subprocess.run((python, "-W", "error", "-c", CLIENT, server.address), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(".")[0] == requirements[0][len("protobuf==")]
