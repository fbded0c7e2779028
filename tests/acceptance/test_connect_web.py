"""The official client of the Connect protocol for browsers, from npm, in Node: every call, and streams that are resumed."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import COMPLETED, RUNNING, SECONDS, ServerThere, Site

import evalrpc
from evalrpc.server.app import SERVICE

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "data" / "connect_web"
DESCRIPTORS = Path(evalrpc.__file__).with_name("v1") / "descriptors.binpb"
REFUSALS = {"InvalidArgument", "NotFound", "FailedPrecondition", "PermissionDenied"}
"""What the server answers to a call without the fields that it needs."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with its packages."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node here: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("connect_web") / "program"
    shutil.copytree(PROGRAM, folder)
    installed = subprocess.run(
        ("npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"), cwd=folder, capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm has no @connectrpc/connect-web here: {installed.stderr.strip()[-300:]}")
    return folder / "calls.mjs"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        site.set_up(http_listen=f"127.0.0.1:{free.getsockname()[1]}")
    yield site
    site.kill_runs()


def url_of(site: Site) -> str:
    return f"http://{site.settings().http_listen[0].address}"


def start(program: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ("node", program, DESCRIPTORS, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("form", ["json", "binary"])
def test_it_makes_every_call(program: Path, site: Site, form: str) -> None:
    server = ServerThere(site)
    job = server.api.run()
    with start(program, url_of(site), "calls", form, job.job_id) as process:
        output, errors = process.communicate(timeout=SECONDS)
    server.terminate()
    assert process.returncode == 0, errors
    outcomes: Sequence[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert {each["method"] for each in outcomes} == {method.name for method in SERVICE.methods}
    assert [each for each in outcomes if "code" in each and each["code"] not in REFUSALS] == []
    made = {each["method"] for each in outcomes if each.get("count")}
    assert {"GetJob", "ListJobs", "WatchJob", "WatchJobs", "ReadLog", "ListSamples", "ListArtifacts", "DeleteJob"} <= made


@pytest.mark.parametrize("form", ["json", "binary"])
def test_a_stream_is_resumed_after_a_kill_and_every_event_seen_once(program: Path, site: Site, form: str) -> None:
    server = ServerThere(site)
    job = server.api.submit("slow")
    server.api.wait_for(job.job_id, RUNNING)
    with start(program, url_of(site), "watch", form, job.job_id) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        server.kill()
        assert any("broken" in line for line in process.stdout)
        server = ServerThere(site)
        site.release(job.job_id)
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(SECONDS) == 0
    server.api.wait_for(job.job_id, COMPLETED)
    server.terminate()
    revisions = [each["revision"] for each in events if each.get("revision") and each.get("type") != 4]
    assert first["jobId"] == job.job_id
    assert revisions == sorted(set(revisions))
    assert events[-1]["terminal"]
    assert events[-1]["jobId"] == job.job_id
