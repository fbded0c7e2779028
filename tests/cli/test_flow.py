"""From one job to the next: waiting for several, ending many, running one again, and naming one to compare with."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import click
import pytest
from click.testing import Result
from fake_server import JOB_ID, FakeService, job_at
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from waiting import eventually

from evalrpc import errors
from evalrpc.cli import ending, following, job_table
from evalrpc.v1.jobs_pb2 import (
    CACHE_MODE_ALLOW,
    GPU_MODE_DATA_PARALLEL,
    EvaluateRequest,
    JobInfo,
    JobStatus,
    Progress,
    ServedModel,
    SubmitJobRequest,
)

Run = Callable[..., Result]

QUEUED, RUNNING = JobStatus.JOB_STATUS_QUEUED, JobStatus.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = (
    JobStatus.JOB_STATUS_COMPLETED,
    JobStatus.JOB_STATUS_FAILED,
    JobStatus.JOB_STATUS_CANCELLED,
)
A, B, C = (f"{letter * 8}-6f1e-4f0e-9d51-0d5fb3a1c001" for letter in "abc")


def add(service: FakeService, *jobs: tuple[str, "JobStatus.ValueType"], **fields: Any) -> None:
    for job_id, status in jobs:
        service.change(job_at(status, job_id=job_id, **fields))


def sent(service: FakeService) -> SubmitJobRequest:
    """Return the last submission."""
    request = service.received["SubmitJob"][-1]
    assert isinstance(request, SubmitJobRequest)
    return request


def ids(result: Result) -> list[str]:
    """Return the ids in the first column of a table."""
    return [line.split("\t")[0] for line in result.stdout.splitlines()[1:]]


# wait


def test_wait_ends_at_once_if_all_jobs_have_ended(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), (B, COMPLETED))

    result = run("wait", A, B, A)

    assert (result.exit_code, ids(result)) == (0, [A, B])


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_wait_exits_with_1_if_any_job_did_not_complete(run: Run, service: FakeService, status: "JobStatus.ValueType") -> None:
    add(service, (A, COMPLETED), (B, status))

    assert run("wait", A, B).exit_code == 1


@contextmanager
def ending_later(service: FakeService, *jobs: tuple[str, "JobStatus.ValueType"]) -> Iterator[None]:
    """End jobs once the command has looked at all of them and found none that has ended."""

    def end() -> None:
        eventually(lambda: len(service.received["GetJob"]) >= len(service.jobs), "for the command to look at the jobs")
        add(service, *jobs)

    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(end)
        yield
        ending.result()


def test_wait_waits_for_all(run: Run, service: FakeService) -> None:
    add(service, (A, RUNNING), (B, QUEUED))

    with ending_later(service, (B, RUNNING), (B, COMPLETED), (A, COMPLETED)):
        result = run("wait", A, B)

    assert (result.exit_code, ids(result)) == (0, [B, A])


def test_wait_for_any_ends_with_the_first(run: Run, service: FakeService) -> None:
    add(service, (A, RUNNING), (B, QUEUED))

    with ending_later(service, (B, FAILED)):
        result = run("wait", "--any", A, B)

    assert (result.exit_code, ids(result)) == (1, [B])
    service.wait_for_watchers(0)


def test_wait_asks_for_the_ends_of_jobs_only(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED))

    run("wait", A)

    (request,) = service.received["WatchJobs"]
    assert set(request.filter.statuses) == {COMPLETED, FAILED, CANCELLED}  # type: ignore[attr-defined]
    assert request.skip_snapshots  # type: ignore[attr-defined]


def test_wait_ends_with_124_when_the_time_is_over(run: Run, service: FakeService) -> None:
    add(service, (A, RUNNING), (B, COMPLETED))

    result = run("wait", A, B, "--timeout", "50ms")

    assert (result.exit_code, result.stderr) == (124, "evalrpc: the time is over, and 1 of 2 jobs have not ended: they go on\n")


@pytest.mark.parametrize(("status", "exit_code"), [(COMPLETED, 0), (FAILED, 1), (RUNNING, 124)])
def test_wait_looks_once_even_if_there_is_no_time(
    run: Run, service: FakeService, status: "JobStatus.ValueType", exit_code: int
) -> None:
    add(service, (A, status))

    result = run("wait", A, "--timeout", "0")

    assert (result.exit_code, ids(result)) == (exit_code, [] if status == RUNNING else [A])


def test_wait_as_json_prints_a_job_per_line(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), (B, COMPLETED))

    lines = run("wait", A, B, "--json").stdout.splitlines()

    assert [json_format.Parse(line, JobInfo()).job_id for line in lines] == [A, B]


@pytest.mark.parametrize("flags", [[], ["--timeout", "soon", A], ["abc"]])
def test_wait_that_makes_no_sense_is_a_wrong_call(run: Run, service: FakeService, flags: list[str]) -> None:
    assert run("wait", *flags).exit_code == 2
    assert service.received["WatchJobs"] == []


def test_wait_for_a_job_that_is_not_there_is_a_wrong_call(run: Run) -> None:
    result = run("wait", A)

    assert (result.exit_code, result.stdout) == (2, "")


# cancel and delete


def test_cancel_by_filter_ends_what_is_queued_or_runs(run: Run, service: FakeService) -> None:
    add(service, (A, QUEUED), (B, RUNNING), (C, COMPLETED), labels={"run": "x"})
    add(service, (JOB_ID, RUNNING))

    result = run("cancel", "--label", "run=x", "--yes", "--reason", "enough")

    assert (result.exit_code, result.stdout.splitlines()) == (0, [f"{A}: CANCELLED: enough", f"{B}: CANCELLED: enough"])
    assert [service.jobs[job_id].status for job_id in (A, B, C, JOB_ID)] == [CANCELLED, CANCELLED, COMPLETED, RUNNING]


def test_cancel_by_filter_of_queued_jobs_only(run: Run, service: FakeService) -> None:
    add(service, (A, QUEUED), (B, RUNNING), labels={"run": "x"})

    run("cancel", "-l", "run=x", "--yes", "--queued-only")

    assert [service.jobs[job_id].status for job_id in (A, B)] == [CANCELLED, RUNNING]
    assert service.received["CancelJob"][0].queued_only  # type: ignore[attr-defined]


def test_delete_by_filter_deletes_what_has_ended(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), (B, RUNNING), (C, FAILED), labels={"run": "x"})

    result = run("delete", "--label", "run=x", "--yes")

    assert (result.exit_code, result.stdout.splitlines()) == (0, [f"deleted {A}", f"deleted {C}"])
    assert list(service.jobs) == [B]


def test_statuses_narrow_it_further(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), (B, RUNNING), (C, FAILED))

    run("delete", "--status", "failed", "--status", "running", "--yes")

    assert list(service.jobs) == [A, B]


@pytest.mark.parametrize("command", ["cancel", "delete"])
def test_without_a_terminal_nothing_is_done_unless_it_is_confirmed(run: Run, service: FakeService, command: str) -> None:
    add(service, (A, RUNNING), (B, COMPLETED), labels={"run": "x"})

    result = run(command, "--label", "run=x", input="y\n")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"evalrpc: this would {command} 1 job: repeat it with --yes\n"
    assert not service.received["CancelJob"] + service.received["DeleteJob"]


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_question_names_how_many(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    add(service, (A, COMPLETED), (B, COMPLETED))
    questions = []

    def confirm(text: str, **options: Any) -> bool:
        questions.append((text, options))
        return answer

    monkeypatch.setattr(ending, "is_asked", lambda: True)
    monkeypatch.setattr(click, "confirm", confirm)

    result = run("delete", "--status", "completed")

    assert questions == [("Delete 2 jobs?", {"err": True})]
    assert (result.exit_code, len(service.jobs)) == ((0, 0) if answer else (2, 2))


def test_a_filter_that_nothing_matches_is_no_error(run: Run, service: FakeService) -> None:
    add(service, (A, RUNNING))

    result = run("delete", "--label", "run=x")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "evalrpc: no job matches\n")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("cancel", errors.JobFinishedError("job a is COMPLETED")),
        ("cancel", errors.JobNotFoundError("there is no job a")),
        ("delete", errors.JobNotFoundError("there is no job a")),
    ],
)
def test_a_job_that_has_changed_meanwhile_does_not_stop_the_others(
    run: Run, service: FakeService, command: str, error: errors.EvalrpcError
) -> None:
    add(service, *((job_id, QUEUED if command == "cancel" else COMPLETED) for job_id in (A, B)), labels={"run": "x"})
    service.errors[f"{command.capitalize()}Job"] = [error]

    result = run(command, "--label", "run=x", "--yes")

    assert (result.exit_code, result.stderr) == (0, f"evalrpc: left alone: {error.message}\n")
    assert len(result.stdout.splitlines()) == 1
    assert B in result.stdout


@pytest.mark.parametrize("command", ["cancel", "delete"])
@pytest.mark.parametrize("flags", [[], ["--yes"], [A, "--label", "run=x"], [A, B]])
def test_all_jobs_are_never_meant_and_a_job_and_a_filter_exclude_each_other(
    run: Run, service: FakeService, command: str, flags: list[str]
) -> None:
    add(service, (A, QUEUED), (B, COMPLETED))

    assert run(command, *flags).exit_code == 2
    assert not service.received["CancelJob"] + service.received["DeleteJob"]


@pytest.mark.parametrize(("command", "status"), [("cancel", "completed"), ("delete", "running")])
def test_a_status_that_can_not_be_is_a_wrong_call(run: Run, service: FakeService, command: str, status: str) -> None:
    result = run(command, "--status", status, "--yes")

    assert (result.exit_code, service.received["ListJobs"]) == (2, [])
    assert "--status: a job has to be" in result.stderr


def test_as_json_there_is_a_job_per_line(run: Run, service: FakeService) -> None:
    for command, status in (("cancel", QUEUED), ("delete", COMPLETED)):
        add(service, (A, status), (B, status), labels={"run": "x"})

        lines = run(command, "-l", "run=x", "--yes", "--json").stdout.splitlines()

        assert [json_format.Parse(line, JobInfo()).job_id for line in lines] == [A, B]


# rerun and submit --like


def original() -> JobInfo:
    arguments = Struct()
    arguments.update({"pretrained": "acme/one", "dtype": "float32"})
    request = EvaluateRequest(harness="h", model="m", tasks=["a", "b"], model_args=arguments, limit=4, num_gpus=1)
    return job_at(
        COMPLETED,
        job_id=A,
        request=request,
        priority=3,
        labels={"run": "x", "step": "5", "evalrpc.baseline": "main"},
        timeout=Duration(seconds=60),
        max_attempts=2,
        supersede_key="key",
    )


def test_rerun_submits_the_same_request_and_options_and_prints_the_new_id(run: Run, service: FakeService) -> None:
    service.change(original())

    result = run("rerun", A)

    assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n")
    submission = sent(service)
    assert submission.request == original().request
    assert (submission.priority, submission.timeout.seconds, submission.max_attempts) == (3, 60, 2)
    assert submission.supersede_key == "key"
    assert submission.labels == {"run": "x", "step": "5"}


def test_rerun_changes_what_is_set_and_nothing_else(run: Run, service: FakeService) -> None:
    service.change(original())

    settings = {
        "limit": "0.5",
        "num_gpus": "0",
        "tasks": "c,d",
        "model_args.pretrained": "acme/two,x",
        "model_args.n": "7",
        "label.step": "6",
        "log_samples": "false",
        "predict_only": "true",
        "batch_size": "4",
        "timeout": "2h",
        "gpu_mode": "data-parallel",
        "cache": "true",
        "gen_kwargs": "temperature=0",
        "task_args.table": '{"a": [1]}',
        "task_args": "epochs=2",
        "priority": "-1",
    }
    result = run("rerun", A, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))

    assert result.exit_code == 0, result.stderr
    submission, expected = sent(service), original().request
    expected.limit, expected.num_gpus, expected.log_samples, expected.predict_only = 0.5, 0, False, True
    expected.batch_size, expected.gpu_mode, expected.tasks[:] = "4", GPU_MODE_DATA_PARALLEL, ["c", "d"]
    expected.model_args.update({"pretrained": "acme/two,x", "n": 7})
    expected.gen_kwargs.update({"temperature": 0})
    expected.task_args.update({"table": {"a": [1]}, "epochs": 2})
    assert submission.request == expected
    assert (submission.timeout.seconds, submission.priority, submission.cache) == (7200, -1, CACHE_MODE_ALLOW)
    assert submission.labels == {"run": "x", "step": "6"}


def test_rerun_keeps_a_served_model_and_changes_what_is_set_of_it(run: Run, service: FakeService) -> None:
    job = original()
    job.request.served_model.CopyFrom(ServedModel(engine="vllm", model="acme/one", num_gpus=2))
    job.request.served_model.args.update({"dtype": "float16", "length": 10})
    service.change(job)

    assert run("rerun", A).exit_code == 0
    assert sent(service).request.served_model == job.request.served_model

    settings = {"served_model": "acme/two", "engine_gpus": "4", "engine_args": "length=20"}
    result = run("rerun", A, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))

    assert result.exit_code == 0, result.stderr
    expected = ServedModel(engine="vllm", model="acme/two", num_gpus=4)
    expected.args.update({"dtype": "float16", "length": 20})
    assert service.received["SubmitJob"][-1].request.served_model == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["log_samples", "predict_only", "tasks_separately", "cache"])
def test_rerun_can_set_what_is_true_to_false(run: Run, service: FakeService, key: str) -> None:
    job = original()
    job.request.predict_only = job.request.tasks_separately = True
    service.change(job)

    assert run("rerun", A, "--set", f"{key}=false").exit_code == 0
    submission = sent(service)
    assert not getattr(submission if key == "cache" else submission.request, key)


@pytest.mark.parametrize(
    "setting",
    [
        *("limit", "=3", "limit=many", "num_gpus=1.5", "gpu_mode=both", "predict_only=perhaps", "nonsense=1"),
        *("model_args.=1", "label.=1", "model.x=1", "timeout=soon", "num_gpus=99999999999", "watch=true", "file=x"),
    ],
)
def test_rerun_refuses_what_can_not_be_set(run: Run, service: FakeService, setting: str) -> None:
    service.change(original())

    result = run("rerun", A, "--set", setting)

    assert (result.exit_code, service.received["SubmitJob"]) == (2, [])
    assert "Error: " in result.stderr


def test_submit_like_takes_everything_from_the_job_and_flags_override_it(run: Run, service: FakeService) -> None:
    service.change(original())

    assert run("submit", "--like", A, "--tasks", "z", "--label", "step=6", "--no-log-samples").exit_code == 0

    submission, expected = sent(service), original().request
    expected.tasks[:], expected.log_samples = ["z"], False
    assert submission.request == expected
    assert submission.labels == {"run": "x", "step": "6"}
    assert (submission.priority, submission.max_attempts) == (3, 2)


def test_submit_takes_either_a_file_or_a_job(run: Run, service: FakeService) -> None:
    assert run("submit", "--like", A, "--file", "-", input="{}").exit_code == 2
    assert service.received["SubmitJob"] == []


@pytest.mark.parametrize("command", [["rerun", B], ["submit", "--like", B]])
def test_a_job_that_is_not_there_can_not_be_run_again(run: Run, service: FakeService, command: list[str]) -> None:
    assert run(*command).exit_code == 2
    assert service.received["SubmitJob"] == []


@pytest.mark.parametrize("command", [["rerun", A], ["submit", "--model", "m", "--tasks", "t"]])
@pytest.mark.parametrize(("form", "stream"), [([], "stdout"), (["-o", "wide"], "stdout"), (["-o", "csv"], "stderr")])
def test_the_id_is_printed_before_the_job_is_watched(
    run: Run, service: FakeService, command: list[str], form: list[str], stream: str
) -> None:
    service.change(original())
    service.on_submit = lambda: service.change(job_at(COMPLETED))

    result = run(*command, "--watch", *form)

    assert getattr(result, stream).splitlines()[0] == JOB_ID


def test_a_program_that_reads_events_gets_nothing_else(run: Run, service: FakeService) -> None:
    service.on_submit = lambda: service.change(job_at(COMPLETED))

    (line,) = run("submit", "--model", "m", "--tasks", "t", "--watch", "--json").stdout.splitlines()

    assert '"job_id"' in line


# baselines


def test_a_baseline_moves_from_job_to_job(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), (B, COMPLETED), labels={"run": "x"})

    assert run("baseline", "set", "main", A).stdout == f"main is job {A}\n"
    assert run("baseline", "set", "main", A).exit_code == 0
    assert run("baseline", "set", "main", B).exit_code == 0

    assert service.jobs[A].labels == {"run": "x"}
    assert service.jobs[B].labels == {"run": "x", "evalrpc.baseline": "main"}
    assert ids(run("baseline", "list")) == ["main"]


def test_a_job_has_one_baseline_at_most(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED))
    run("baseline", "set", "main", A)

    result = run("baseline", "set", "other", A)

    assert (result.exit_code, service.jobs[A].labels) == (2, {"evalrpc.baseline": "main"})
    assert "`evalrpc baseline remove main` first" in result.stderr


def test_baselines_are_listed_by_name_and_the_newest_job_counts(run: Run, service: FakeService) -> None:
    for job_id, name in ((C, "main"), (B, "main"), (A, "alpha")):  # the newest first, as a server lists them
        add(service, (job_id, COMPLETED), labels={"evalrpc.baseline": name})

    rows = [line.split("\t")[:2] for line in run("baseline", "list").stdout.splitlines()[1:]]

    assert rows == [["alpha", A], ["main", C]]
    assert run("get", "@baseline:main", "--json").stdout == run("get", C, "--json").stdout


def test_a_baseline_is_removed_and_its_job_stays(run: Run, service: FakeService) -> None:
    add(service, (A, COMPLETED), labels={"evalrpc.baseline": "main", "run": "x"})

    assert run("baseline", "remove", "main").stdout == f"main was job {A}\n"
    assert service.jobs[A].labels == {"run": "x"}
    assert run("baseline", "remove", "main").exit_code == 2


# watch


class FixedClock:
    """A clock that a test sets."""

    seconds = 1000

    def now(self) -> Timestamp:
        return Timestamp(seconds=self.seconds)

    def monotonic(self) -> float:
        return float(self.seconds)


def test_a_watch_shows_how_long_the_job_has_been_running(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FixedClock()
    monkeypatch.setattr(job_table, "clock", clock)
    run_time = following.RunTime()

    assert run_time.text() == ""
    run_time.take(job_at(QUEUED, created_at=Timestamp(seconds=1)))
    assert run_time.text() == ""
    run_time.take(job_at(RUNNING, started_at=Timestamp(seconds=990)))
    clock.seconds += 5
    assert run_time.text() == "15s"
    run_time.take(job_at(RUNNING, started_at=Timestamp(seconds=1), progress=Progress(elapsed=Duration(seconds=60))))
    clock.seconds += 5
    assert run_time.text() == "1m05s", "by the server's clock, and this machine's since"
    run_time.take(job_at(COMPLETED, started_at=Timestamp(seconds=100), completed_at=Timestamp(seconds=130)))
    assert run_time.text() == "30s"
