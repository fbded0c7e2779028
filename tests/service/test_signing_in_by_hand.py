"""From a token to a job on a server that other machines can reach, with the commands that operators and users type."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority
from serving import SECONDS, Launch, Site
from waiting import eventually

from evalrpc.client import EvalClient

Evalrpc = Callable[..., "subprocess.CompletedProcess[str]"]
NOT_ALLOWED = 4


@pytest.fixture
def evalrpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evalrpc:
    """Run a command as a user whose home has no credentials."""
    monkeypatch.delenv("EVALRPC_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))

    def run(*arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        command = (sys.executable, "-m", "evalrpc", *arguments)
        return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=SECONDS, check=False)

    return run


def test_a_user_signs_in_with_a_token_submits_a_job_and_is_out_once_it_is_revoked(
    site: Site, launch: Launch, evalrpc: Evalrpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    cert, key = authority.issue().write(site.folder)
    monkeypatch.setenv("EVALRPC_TLS_CA", str(authority.write(site.folder)))
    server = launch("--listen", "0.0.0.0:0", "--tls-cert", str(cert), "--tls-key", str(key))
    address = f"https://localhost:{server.api.address.rpartition(':')[2]}"
    site.release()

    assert evalrpc("list", "--address", address).returncode == NOT_ALLOWED
    data_dir = str(site.folder / "data")
    created = evalrpc("token", "create", "--owner", "alice", "--role", "submitter", "--data-dir", data_dir)
    token = created.stdout.strip()
    eventually(lambda: evalrpc("login", address, typed=token).returncode == 0, "for the server to know the token")
    assert json.loads(evalrpc("whoami", "--json", "--address", address).stdout)["owner"] == "alice"
    with EvalClient(address) as client:
        job = client.evaluate("good", ["t"], harness="toy", num_gpus=0)
        assert client.wait_for_job(job.job_id).owner == "alice"
    evalrpc("token", "revoke", token.split("_")[1], "--data-dir", data_dir)
    eventually(lambda: evalrpc("list", "--address", address).returncode == NOT_ALLOWED, "for the token to be revoked")
    assert token not in server.log_path.read_text()
