"""The callback in the real Trainer of transformers, which trains a tiny model."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import COMPLETED, SECONDS, Api, ServerThere, Site

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/support/train_tiny.py"
NEEDED = ("grpc", "google")
"""What the client needs, beside what an environment with transformers has."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    site = Site(tmp_path)
    server = ServerThere(site)
    yield server.api
    server.kill()
    site.kill_runs()


@pytest.fixture
def python_path(lmms_python: Path, tmp_path: Path) -> str:
    """This package, and what it needs from this interpreter, for an interpreter that has neither."""
    version = "import sys; print(*sys.version_info[:2])"
    if subprocess.check_output([lmms_python, "-c", version], text=True).split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip("the environment with transformers has another Python than this one, so it can't load its grpcio")
    needed = tmp_path / "needed"
    needed.mkdir()
    for name in NEEDED:
        (needed / name).symlink_to(Path(sysconfig.get_path("platlib")) / name)
    return f"{ROOT}{os.pathsep}{needed}"


@pytest.mark.slow
def test_each_checkpoint_is_evaluated_and_a_server_that_is_away_fails_no_training(
    api: Api, lmms_python: Path, python_path: str, tmp_path: Path
) -> None:
    command = [lmms_python, PROGRAM, tmp_path / "trained", api.address, "127.0.0.1:1"]
    environment = os.environ | {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS * 4, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        {"steps": 6, "submitted": [2, 4, 6]},
        {"steps": 6, "submitted": []},
    ]
    assert "not evaluated: the checkpoints of the steps 2, 4, 6; `evalrpc follow` submits them later" in done.stderr
    found = {job.labels["step"]: api.wait_for(job.job_id, COMPLETED) for job in api.ListJobs().jobs}
    assert sorted(found) == ["2", "4", "6"]
    for step, job in found.items():
        path = tmp_path / "trained" / "0" / f"checkpoint-{step}"
        assert job.labels["run"] == "tiny"
        assert dict(job.request.model_args.items()) == {"pretrained": str(path), "step": step}
        assert (path / "model.safetensors").exists()
