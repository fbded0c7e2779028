"""Exports the jobs of a server twice to a real MLflow server that it starts, and to W&B offline, and checks what is there. Run
by an interpreter that has both: ADDRESS FOLDER JOB_ID."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient

address, folder, job_id = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


def export(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "evalrpc", "--address", address, "export", *arguments, "--once"], check=True)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 400  # on a busy machine it takes minutes to start
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", str(folder / "artifacts")]
environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
server = subprocess.Popen(
    [sys.executable, "-m", "mlflow", "server", *where, *stores], env=environment, stdout=subprocess.DEVNULL
)
try:
    uri = f"http://127.0.0.1:{port}"
    wait_for(f"{uri}/health")
    for state in ("first", "again"):  # another state, so that all is exported once more
        export("mlflow", "--tracking-uri", uri, "--state", str(folder / state))
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "evalrpc"]
    runs = {run.data.tags["evalrpc.job_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == len(client.search_runs([experiment.experiment_id])) == 2
    run = runs[job_id]
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "good"
    assert run.data.tags["label.run"] == "r1"
    assert run.data.metrics["t/acc"] == 0.5
    (point,) = client.get_metric_history(run.info.run_id, "t/acc")
    assert point.step == 300
    assert {run.info.status for run in runs.values()} == {"FINISHED", "FAILED"}
    export("wandb", "--project", "tests", "--state", str(folder / "wandb-state"))
    assert any(folder.glob(f"wandb/offline-run-*-{job_id}/*.wandb"))
finally:
    server.terminate()
    server.wait(60)
