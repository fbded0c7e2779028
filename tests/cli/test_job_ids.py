"""A job may be named by the beginning of its id, as the latest, or as a baseline, wherever an id is taken."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from fake_server import JOB_ID, FakeService, job_at

from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, JobStatus

Run = Callable[..., Result]

COMPLETED, RUNNING = JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_RUNNING
SAME_BEGINNING = [f"abcd0000-0000-4000-8000-{number:012d}" for number in range(7)]


def add(service: FakeService, job_id: str = JOB_ID, **labels: str) -> JobInfo:
    job = job_at(COMPLETED, job_id=job_id, labels=labels, request=EvaluateRequest(model="m"))
    service.change(job)
    return job


def resolved(service: FakeService) -> str:
    """Return the id that the last GetJob asked for."""
    return service.received["GetJob"][-1].job_id  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("text", [JOB_ID, JOB_ID.upper()])
def test_a_whole_id_costs_no_call(run: Run, service: FakeService, text: str) -> None:
    add(service)

    assert run("get", text).exit_code == 0
    assert (resolved(service), service.received["ListJobs"]) == (JOB_ID, [])


@pytest.mark.parametrize("length", [4, 8, 9, 35])
def test_the_beginning_of_an_id_is_enough(run: Run, service: FakeService, length: int) -> None:
    add(service)
    add(service, SAME_BEGINNING[0])

    assert run("get", JOB_ID[:length].upper()).exit_code == 0
    assert resolved(service) == JOB_ID


def test_an_ambiguous_beginning_is_refused_with_what_it_may_mean(run: Run, service: FakeService) -> None:
    for job_id in SAME_BEGINNING[:2]:
        add(service, job_id)

    result = run("get", "abcd")

    lines = [f"evalrpc:   {job_id}  COMPLETED  m" for job_id in SAME_BEGINNING[:2]]
    assert (result.exit_code, result.stderr.splitlines()) == (2, ["evalrpc: the ids of several jobs begin with abcd:", *lines])
    assert service.received["GetJob"] == []


def test_of_many_matches_five_are_shown(run: Run, service: FakeService) -> None:
    service.page_size = 50
    for job_id in SAME_BEGINNING:
        add(service, job_id)

    lines = run("get", "abcd").stderr.splitlines()

    assert (len(lines), lines[-1]) == (1 + 5 + 1, "evalrpc:   and more")


@pytest.mark.parametrize(
    "text", ["abc", "", "nonsense", "abcd1", "7b0b8d5e6f1e", f"{JOB_ID}0", "@", "@baseline", "@baseline:", "@late"]
)
def test_what_names_no_job_is_a_wrong_call(run: Run, service: FakeService, text: str) -> None:
    add(service)

    result = run("get", text)

    assert (result.exit_code, service.received["GetJob"]) == (2, [])
    assert "there is no job" in result.stderr


def test_the_latest_is_the_first_that_the_server_lists_with_these_labels(run: Run, service: FakeService) -> None:
    add(service, SAME_BEGINNING[0], run="y", step="5")
    add(service, SAME_BEGINNING[1], run="x", step="5")
    add(service, SAME_BEGINNING[2], run="x", step="4")
    names = {"@latest": 0, "@latest:run=x": 1, "@latest:run=x,step=4": 2, "@latest:step=5,run!=y": 1}

    for name, place in names.items():
        assert run("get", name).exit_code == 0
        assert resolved(service) == SAME_BEGINNING[place], name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("@latest:run=z", "evalrpc: no job matches @latest:run=z: `evalrpc list` lists them\n"),
        ("@latest:run=(", "evalrpc: @latest:run=(, after the colon: at character 5: expected"),
        ("@baseline:main", "evalrpc: there is no baseline main: `evalrpc baseline list` lists them\n"),
    ],
)
def test_a_name_of_no_job_says_so(run: Run, service: FakeService, name: str, text: str) -> None:
    add(service, run="x")

    result = run("get", name)

    assert result.exit_code == 2
    assert result.stderr.startswith(text)


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("WatchJob", ["watch", "@latest"]),
        ("GetJob", ["get", "@latest"]),
        ("GetJob", ["wait", "@latest"]),
        ("GetJob", ["results", "@latest"]),
        ("GetJob", ["rerun", "@latest"]),
        ("GetJob", ["submit", "--like", "@latest"]),
        ("CancelJob", ["cancel", "@latest"]),
        ("UpdateJob", ["update", "@latest", "--priority", "1"]),
        ("DeleteJob", ["delete", "@latest"]),
        ("ReadLog", ["logs", "--attempt", "1", "@latest"]),
        ("ListSamples", ["samples", "@latest"]),
        ("ListArtifacts", ["download", "@latest"]),
        ("UpdateJob", ["baseline", "set", "main", "@latest"]),
    ],
)
def test_every_command_takes_such_names(
    run: Run, service: FakeService, tmp_path: Path, method: str, command: list[str]
) -> None:
    add(service)

    folder = [str(tmp_path / "files")] if command[0] == "download" else []
    assert run(*command, *folder).exit_code == 0
    assert service.received[method][-1].job_id == JOB_ID  # type: ignore[attr-defined]


def test_a_comparison_takes_such_names_on_both_sides(run: Run, service: FakeService) -> None:
    add(service, SAME_BEGINNING[0])
    add(service, **{"evalrpc.baseline": "main"})

    run("compare", "@baseline:main", "@latest", "abcd")

    (request,) = service.received["CompareJobs"]
    assert request.baseline_job_id == JOB_ID  # type: ignore[attr-defined]
    assert list(request.candidate_job_ids) == [SAME_BEGINNING[0]] * 2  # type: ignore[attr-defined]
