"""What a shell completes, through click's own interface to shells."""

import os
import subprocess
import sys

import pytest
from click.shell_completion import CompletionItem, ShellComplete
from fake_server import JOB_ID, FakeServer, FakeService, job_at

from evalrpc import errors
from evalrpc.cli import main
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobStatus

RUNNING = JobStatus.JOB_STATUS_RUNNING
OTHER = "abcd8d5e-6f1e-4f0e-9d51-0d5fb3a1c002"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    monkeypatch.setenv("EVALRPC_ADDRESS", server.address)
    server.service.page_size = 50


def items(*arguments: str) -> list[CompletionItem]:
    *before, incomplete = arguments
    return ShellComplete(main, {}, "evalrpc", "_EVALRPC_COMPLETE").get_completions(before, incomplete)


def completed(*arguments: str) -> list[str]:
    return [item.value for item in items(*arguments)]


def test_the_ids_of_the_latest_jobs_come_with_status_and_model(service: FakeService) -> None:
    service.change(job_at(RUNNING, request=EvaluateRequest(model="llava")))
    service.change(job_at(RUNNING, job_id=OTHER, request=EvaluateRequest(model="\x1b[2J")))

    assert [(item.value, item.help) for item in items("get", "")] == [(JOB_ID, "RUNNING llava"), (OTHER, "RUNNING \\x1b[2J")]
    (request,) = service.received["ListJobs"]
    assert request.page_size == 50  # type: ignore[attr-defined]


def test_at_most_fifty_jobs_are_offered(service: FakeService) -> None:
    for number in range(60):
        service.change(job_at(RUNNING, job_id=f"{number:08d}-6f1e-4f0e-9d51-0d5fb3a1c002"))

    assert len(completed("get", "")) == 50


@pytest.mark.parametrize("incomplete", ["7", "7b0b", "7B0B8D5E-6f", JOB_ID])
def test_an_id_is_completed_from_its_beginning(service: FakeService, incomplete: str) -> None:
    service.change(job_at(RUNNING))
    service.change(job_at(RUNNING, job_id=OTHER))

    assert completed("watch", incomplete) == [JOB_ID]


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch"],
        ["wait", OTHER],
        ["cancel"],
        ["update"],
        ["delete"],
        ["logs"],
        ["results"],
        ["samples"],
        ["download"],
        ["rerun"],
        ["submit", "--like"],
        ["baseline", "set", "main"],
        ["compare"],
        ["compare", OTHER],
        ["compare", OTHER, OTHER],
    ],
    ids=" ".join,
)
def test_every_command_that_takes_a_job_completes_it(service: FakeService, arguments: list[str]) -> None:
    service.change(job_at(RUNNING))

    assert completed(*arguments, "7b") == [JOB_ID]
    assert completed(*arguments, "@la") == ["@latest"]


def test_names_are_those_that_the_server_has(service: FakeService) -> None:
    assert completed("list", "--harness", "") == ["lmms-eval", "nightly"]
    assert completed("submit", "--harness", "n") == ["nightly"]
    assert completed("submit", "--harness", "nightly", "--model", "mmm") == ["mmmu_val"]
    assert completed("submit", "--tasks", "mme,mms") == ["mme,mmstar"]
    assert completed("list", "--harness", "nightly", "--task", "mmm") == ["mmmu_val"]
    assert completed("history", "--model", "mmm") == ["mmmu_val"]
    assert completed("tasks", "mmm") == ["mmmu_val"]
    harnesses = [request.harness for name in ("ListModels", "ListTasks") for request in service.received[name]]  # type: ignore[attr-defined]
    assert harnesses == ["nightly", "", "", "nightly", ""]


def test_labels_are_those_of_the_latest_jobs(service: FakeService) -> None:
    service.change(job_at(RUNNING, labels={"run": "sft", "step": "5"}))
    service.change(job_at(RUNNING, job_id=OTHER, labels={"run": "sft", "step": "10", "evalrpc.baseline": "main"}))

    assert completed("list", "--label", "") == ["evalrpc.baseline=main", "run=sft", "step=10", "step=5"]
    assert completed("submit", "--label", "st") == ["step=10", "step=5"]
    assert completed("list", "-L", "run,s") == ["run,step"]
    assert completed("history", "--by", "r") == ["run"]
    assert completed("update", JOB_ID, "--remove-label", "s") == ["step"]
    assert completed("baseline", "remove", "") == ["main"]


def test_owners_are_those_of_the_latest_jobs(service: FakeService) -> None:
    service.change(job_at(RUNNING, owner="bob"))
    service.change(job_at(RUNNING, job_id=OTHER, owner="alice"))
    service.change(job_at(RUNNING, job_id=OTHER.replace("a", "c")))

    assert completed("list", "--owner", "") == ["alice", "bob"]
    assert completed("history", "--owner", "b") == ["bob"]


def test_the_address_may_stand_before_or_behind_the_command(
    service: FakeService, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.change(job_at(RUNNING))
    monkeypatch.setenv("EVALRPC_ADDRESS", "127.0.0.1:1")

    assert completed("--address", server.address, "get", "") == [JOB_ID]
    assert completed("get", "--address", server.address, "") == [JOB_ID]


@pytest.mark.parametrize("error", [errors.InvalidRequestError("no"), errors.UnavailableError("no"), None])
def test_a_failure_completes_nothing_and_says_nothing(
    service: FakeService, server: FakeServer, capfd: pytest.CaptureFixture[str], error: errors.EvalrpcError | None
) -> None:
    if error:
        service.errors["ListJobs"] = [error] * 100
    else:
        server.kill()

    assert completed("get", "") == []
    assert capfd.readouterr() == ("", "")


def test_an_address_that_makes_no_sense_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALRPC_ADDRESS", "1:2:3:4")

    assert completed("get", "") == []


def shell(server: FakeServer, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call the program as the function does that a shell has for it."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "EVALRPC_ADDRESS": server.address}
    command = [sys.executable, "-m", "evalrpc"]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("bash", f"plain,{JOB_ID}\n"),
        ("zsh", f"plain\n{JOB_ID}\nRUNNING llava\n"),
        ("fish", f"plain,{JOB_ID}\tRUNNING llava\n"),
    ],
)
def test_each_shell_gets_its_own_form(server: FakeServer, kind: str, lines: str) -> None:
    server.service.change(job_at(RUNNING, request=EvaluateRequest(model="llava")))
    words = {"COMP_WORDS": "evalrpc get 7b", "COMP_CWORD": "7b" if kind == "fish" else "2"}

    result = shell(server, _EVALRPC_COMPLETE=f"{kind}_complete", **words)

    assert (result.stdout, result.stderr) == (lines, "")


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(server: FakeServer, kind: str) -> None:
    result = shell(server, _EVALRPC_COMPLETE=f"{kind}_source")

    assert (result.returncode, result.stderr) == (0, "")
    assert "_EVALRPC_COMPLETE" in result.stdout
