"""What a person does with the command line around a new checkpoint, on a real server."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from serving import RUNNING, SECONDS, Api

from evalrpc.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(api: Api) -> Run:
    return lambda *arguments: CliRunner().invoke(main, ["--address", api.address, *arguments])


def test_a_checkpoint_is_run_like_the_one_before_compared_and_becomes_the_baseline(api: Api, run: Run) -> None:
    first = api.run("good", labels={"run": "x", "step": "1"}).job_id
    assert run("baseline", "set", "main", first[:13]).stdout == f"main is job {first}\n"

    second = run("rerun", "@baseline:main", "--set", "model=better", "--set", "label.step=2").stdout.strip()
    assert run("wait", first, second).exit_code == 0
    assert api.get(second).labels == {"run": "x", "step": "2"}
    assert api.get(second).request.model == "better"
    assert second in run("compare", "@baseline:main", "@latest:run=x").stdout

    assert run("baseline", "set", "main", "@latest").stdout == f"main is job {second}\n"
    assert api.get(first).labels == {"run": "x", "step": "1"}
    assert run("results", "@latest:step=1").stdout == run("results", first).stdout != run("results", "@baseline:main").stdout


def test_jobs_are_waited_for_cancelled_and_deleted_together(api: Api, run: Run) -> None:
    jobs = [api.submit("hangs", labels={"run": "x"}).job_id for _ in range(2)]
    for job_id in jobs:
        api.wait_for(job_id, RUNNING)
    assert run("wait", *jobs, "--timeout", "100ms").exit_code == 124
    assert run("cancel", "--label", "run=x").exit_code == 2

    wait = (sys.executable, "-m", "evalrpc", "--address", api.address, "wait", *jobs)
    with subprocess.Popen(wait, stdout=subprocess.PIPE, text=True) as waiting:  # this process has only one standard output
        assert run("cancel", "--label", "run=x", "--yes").exit_code == 0
        waited, _ = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 1
    assert sorted(line.split("\t")[0] for line in waited.splitlines()[1:]) == sorted(jobs)

    assert len(run("delete", "-l", "run=x", "--yes").stdout.splitlines()) == 2
    assert run("get", "@latest").exit_code == 2


def test_a_shell_completes_what_the_server_has(api: Api, run: Run) -> None:
    job_id = api.run("good", labels={"run": "x"}).job_id
    shell = ShellComplete(main, {}, "evalrpc", "_EVALRPC_COMPLETE")

    def completed(*arguments: str) -> list[str]:
        *before, incomplete = arguments
        return [item.value for item in shell.get_completions(["--address", api.address, *before], incomplete)]

    assert completed("get", job_id[:9]) == completed("get", "") == [job_id]
    assert completed("list", "--label", "ru") == ["run=x"]
    assert completed("list", "--harness", "t") == ["toy"]
