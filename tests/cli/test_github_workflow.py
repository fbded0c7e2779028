"""The example of a workflow for GitHub Actions: its steps are run as a runner would run them, against a fake server."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import terminal_jobs as jobs
from fake_server import FakeServer, FakeService

from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus
from evalrpc.v1.suites_pb2 import SuiteDecision, SuiteOutcome

WORKFLOW = Path(__file__).parents[2] / "examples" / "github-actions" / "release.yml"


def steps() -> dict[str, str]:
    """Return the script of each step that has a name and one, by name."""
    found = {}
    for step in WORKFLOW.read_text().split("\n      - ")[1:]:
        name = re.search(r"^name: (.*)$", step, re.MULTILINE)
        script = re.search(r"^        run: (?:\|\n((?:          .*\n?)+)|(.*))$", step, re.MULTILINE)
        if name and script:
            found[name[1]] = script[1] or script[2]
    return found


@pytest.fixture
def environment(server: FakeServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a step, in which `evalrpc` is that of this tree."""
    program = tmp_path / "bin" / "evalrpc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m evalrpc "$@"\n')
    program.chmod(0o700)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "EVALRPC_ADDRESS": server.address,
        "CHECKPOINT": "/ckpt/500; rm -rf $HOME",
        "GITHUB_SHA": "abc",
        "GITHUB_RUN_ID": "17",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
    }


def run_step(name: str, folder: Path, environment: dict[str, str]) -> int:
    command = ("bash", "-e", "-o", "pipefail", "-c", steps()[name])
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


@pytest.mark.parametrize(("outcome", "code"), [(SuiteOutcome.SUITE_OUTCOME_GO, 0), (SuiteOutcome.SUITE_OUTCOME_NO_GO, 1)])
def test_the_workflow_fails_unless_the_suite_is_go_and_shows_why(
    service: FakeService, tmp_path: Path, environment: dict[str, str], outcome: SuiteOutcome.ValueType, code: int
) -> None:
    service.change(JobInfo(job_id=jobs.COMPLETED, suite_run_id=jobs.BASELINE_RUN, labels={"evalrpc.baseline": "main"}))
    service.decisions["release"] = SuiteDecision(outcome=outcome, reasons=["because"] if code else [])
    assert run_step("Evaluate", tmp_path, environment) == code
    (message,) = service.received["SubmitSuite"]
    assert message.request.model_args["pretrained"] == environment["CHECKPOINT"], "it is no part of the script"
    assert dict(message.labels) == {"commit": "abc", "workflow_run": "17"}
    assert (message.request_id, message.baseline_suite_run_id) == ("github-17", jobs.BASELINE_RUN)
    assert ET.parse(tmp_path / "junit.xml").getroot().get("failures") == str(code)
    assert run_step("Show the decision on the page of the run", tmp_path, environment) == 0
    page = (tmp_path / "page.md").read_text()
    assert page == (tmp_path / "summary.md").read_text()
    assert ("because" in page) == bool(code)


def test_without_a_decision_there_is_no_summary(tmp_path: Path, environment: dict[str, str]) -> None:
    assert run_step("Show the decision on the page of the run", tmp_path, environment) == 0
    assert not (tmp_path / "page.md").exists()


def test_a_workflow_that_is_cancelled_cancels_its_run(
    service: FakeService, tmp_path: Path, environment: dict[str, str]
) -> None:
    labels = {"evalrpc.suite": "release", "workflow_run": "17"}
    status = JobStatus.JOB_STATUS_RUNNING
    service.change(JobInfo(job_id=jobs.RUNNING, suite_run_id=jobs.SUITE_RUN, labels=labels, status=status))
    run = service.suite_runs[jobs.SUITE_RUN] = jobs.suite_run(jobs.SUITE_RUN, "/m", SuiteDecision())
    run.submission.labels.update(labels)
    assert run_step("Give back the GPUs when the workflow is cancelled", tmp_path, environment) == 0
    assert [call.suite_run_id for call in service.received["CancelSuiteRun"]] == [jobs.SUITE_RUN]
