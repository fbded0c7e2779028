"""The command line as seen by scripts and people: what it prints where, and its exit codes."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import grpc
import pytest
from accounts import FIRST_UID, UIDS, needs_accounts
from certificates import Authority
from click.testing import CliRunner, Result
from fake_server import JOB_ID, FakeServer, FakeService, job_at
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from waiting import DEADLINE_SECONDS

from evalrpc import errors
from evalrpc.cli import following, main, wording
from evalrpc.cli.baseline import baseline_command
from evalrpc.cli.ending import cancel_command, delete_command
from evalrpc.cli.export import export_command
from evalrpc.cli.history import history_command
from evalrpc.cli.jobs import list_command, watch_all_command
from evalrpc.cli.node import node_command
from evalrpc.cli.parameters import parse_duration
from evalrpc.cli.policy import policy_command
from evalrpc.cli.submit import submit_command
from evalrpc.cli.token import token_command
from evalrpc.errors import FieldViolation
from evalrpc.v1.callers_pb2 import GetCallerResponse
from evalrpc.v1.catalog_pb2 import GetServerInfoResponse
from evalrpc.v1.comparison_pb2 import CompareJobsResponse, JobComparison, MetricComparison, TestMethod, Verdict
from evalrpc.v1.jobs_pb2 import (
    GPU_MODE_DATA_PARALLEL,
    GPU_MODE_MODEL_PARALLEL,
    JobAttempt,
    JobError,
    JobEvent,
    JobInfo,
    JobStatus,
    Progress,
    ServedModel,
    SubmitJobRequest,
)
from evalrpc.v1.queue_pb2 import GetQueueResponse
from evalrpc.v1.results_pb2 import ListMetricsResponse, Metric, MetricSelector, ModelMetric, ModelResult, TaskResult

QUEUED, RUNNING = JobStatus.JOB_STATUS_QUEUED, JobStatus.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = (
    JobStatus.JOB_STATUS_COMPLETED,
    JobStatus.JOB_STATUS_FAILED,
    JobStatus.JOB_STATUS_CANCELLED,
)

OTHER_IDS = [f"{number:08d}-6f1e-4f0e-9d51-0d5fb3a1c001" for number in range(3)]

Run = Callable[..., Result]


def completed_job() -> JobInfo:
    metrics = [
        Metric(
            task="mme", metric="score", filter="none", value=0.75, standard_error=0.01, higher_is_better=True, sample_count=8
        ),
        Metric(task="mme", metric="wer", value=float("nan")),
    ]
    result = ModelResult(results="/srv/results.json", metrics=metrics, tasks=[TaskResult(task="mme", version="1.0")])
    return job_at(COMPLETED, results={"model": result}, attempt=1)


def failed_job() -> JobInfo:
    error = JobError(reason="HARNESS_FAILED", message="CUDA out of memory", log_tail=["first line", "last line"])
    return job_at(FAILED, error=error)


def sent(service: FakeService) -> SubmitJobRequest:
    (request,) = service.received["SubmitJob"]
    assert isinstance(request, SubmitJobRequest)
    return request


# Submitting


def test_submit_prints_the_job_id_alone(run: Run) -> None:
    result = run("submit", "--model", "m", "--tasks", "a,b")

    assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n")


def test_every_field_has_a_flag(run: Run, service: FakeService) -> None:
    result = run(
        *("submit", "--harness", "h", "--model", "m", "--tasks", "a,b", "--tasks", "c", "--model-args", "x=1,y=z"),
        *("--num-fewshot", "0", "--batch-size", "auto", "--device", "cpu", "--limit", "0.5", "--gen-kwargs", '{"t": 0}'),
        *("--no-log-samples", "--predict-only", "--num-gpus", "0", "--output-dir", "out", "--request-id", "id"),
        *("--priority", "-3", "--label", "k=v", "--label", "k2=v=2", "--timeout", "1h30m", "--max-attempts", "2"),
        *("--supersede-key", "key", "--tasks-separately", "--task-arg", "epochs=3", "--task-arg", "shuffle=true"),
        *("--task-arg", "text=a=b,[c", "--task-arg", 'table={"a": [1]}'),
    )

    assert result.exit_code == 0
    assert json_format.MessageToDict(sent(service), preserving_proto_field_name=True) == {
        "request": {
            "harness": "h",
            "model": "m",
            "tasks": ["a", "b", "c"],
            "model_args": {"x": 1, "y": "z"},
            "num_fewshot": 0,
            "batch_size": "auto",
            "device": "cpu",
            "limit": 0.5,
            "gen_kwargs": {"t": 0},
            "task_args": {"epochs": 3, "shuffle": True, "text": "a=b,[c", "table": {"a": [1]}},
            "log_samples": False,
            "predict_only": True,
            "num_gpus": 0,
            "output_dir": "out",
            "tasks_separately": True,
        },
        "request_id": "id",
        "priority": -3,
        "labels": {"k": "v", "k2": "v=2"},
        "timeout": "5400s",
        "max_attempts": 2,
        "supersede_key": "key",
    }


def test_every_field_of_the_schema_can_be_set_on_the_command_line() -> None:
    names = {parameter.name for parameter in submit_command.params}

    assert {*JobInfo().request.DESCRIPTOR.fields_by_name, *SubmitJobRequest.DESCRIPTOR.fields_by_name} - {"request"} <= names


def test_every_field_of_both_served_models_has_a_flag(run: Run, service: FakeService) -> None:
    run(
        *("submit", "--tasks", "t", "--engine", "e", "--served-model", "m", "--engine-arg", "a=1", "--engine-gpus", "0"),
        *("--engine-replicas", "2", "--served-revision", "r", "--judge-engine", "e", "--judge-model", "m"),
        *("--judge-arg", "a=1", "--judge-gpus", "0", "--judge-replicas", "2", "--judge-revision", "r"),
    )

    request = sent(service).request
    assert request.served_model == request.judge_model
    assert {field.name for field, _ in request.judge_model.ListFields()} == set(ServedModel.DESCRIPTOR.fields_by_name)


def test_what_is_not_given_stays_absent(run: Run, service: FakeService) -> None:
    run("submit", "--model", "m", "--tasks", "a")

    request = sent(service).request
    assert not any(request.HasField(name) for name in ("num_fewshot", "limit", "log_samples", "num_gpus", "model_args"))


@pytest.mark.parametrize(
    "content",
    [
        {"model": "m", "tasks": ["t"], "predict_only": True},
        {"request": {"model": "m", "tasks": ["t"], "predictOnly": True}, "priority": 7},
    ],
    ids=["EvaluateRequest", "SubmitJobRequest"],
)
def test_a_file_holds_the_whole_message_and_flags_override_it(
    run: Run, service: FakeService, tmp_path: Path, content: dict[str, Any]
) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(content))

    assert run("submit", "--file", str(file), "--model", "other").exit_code == 0

    request = sent(service)
    assert (request.request.model, list(request.request.tasks), request.request.predict_only) == ("other", ["t"], True)
    assert request.priority == content.get("priority", 0)


def test_a_file_may_come_from_stdin(run: Run, service: FakeService) -> None:
    assert run("submit", "--file", "-", input='{"model": "m", "tasks": ["t"]}').exit_code == 0
    assert sent(service).request.model == "m"


@pytest.mark.parametrize("content", ["{", "[]", '{"modle": "m"}', '{"request": {"limit": "x"}}'])
def test_a_file_that_is_no_request_is_a_wrong_call(run: Run, service: FakeService, content: str) -> None:
    result = run("submit", "--file", "-", input=content)

    assert (result.exit_code, service.received["SubmitJob"]) == (2, [])
    assert "--file -" in result.stderr


def test_validating_queues_nothing(run: Run, service: FakeService) -> None:
    result = run("submit", "--model", "m", "--tasks", "a", "--validate-only")

    assert (result.exit_code, result.stdout, service.jobs) == (0, "the request is valid\n", {})


def test_every_bad_field_gets_a_line_that_names_its_flag(run: Run, service: FakeService) -> None:
    violations = [FieldViolation("request.model_args", "is too large"), FieldViolation("request.tasks[1]", "is a duplicate")]
    service.errors["SubmitJob"] = [errors.InvalidRequestError(violations=violations)]

    result = run("submit")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "evalrpc: --model-args (request.model_args): is too large",
        "evalrpc: --tasks (request.tasks[1]): is a duplicate",
    ]


def test_a_bad_argument_is_named_as_the_usage_names_it(run: Run, service: FakeService) -> None:
    service.errors["GetJob"] = [errors.InvalidRequestError(violations=[FieldViolation("job_id", "must be a UUID")])]

    assert run("get", JOB_ID).stderr == "evalrpc: JOB (job_id): must be a UUID\n"


@pytest.mark.parametrize(
    "flags",
    [
        ["--timeout", "soon"],
        ["--timeout", "inf"],
        ["--label", "novalue"],
        ["--model-args", "{"],
        ["--model-args", "novalue"],
        ["--num-gpus", "many"],
        ["--num-gpus", "99999999999"],
        ["--file", "/does/not/exist"],
        ["--unknown"],
    ],
)
def test_a_flag_that_makes_no_sense_is_a_wrong_call(run: Run, service: FakeService, flags: list[str]) -> None:
    result = run("submit", *flags)

    assert (result.exit_code, service.received["SubmitJob"]) == (2, [])
    assert "Traceback" not in result.output


# Following


@pytest.mark.parametrize(("status", "exit_code"), [(COMPLETED, 0), (FAILED, 1), (CANCELLED, 1)])
def test_watch_exits_by_how_the_job_ended(run: Run, service: FakeService, status: JobStatus, exit_code: int) -> None:
    service.change(job_at(status))

    assert run("watch", JOB_ID).exit_code == exit_code


def test_watch_ends_with_the_metrics_and_where_the_files_are(run: Run, service: FakeService) -> None:
    service.change(completed_job())

    result = run("watch", JOB_ID)

    assert result.stdout.splitlines() == [
        "COMPLETED",
        "task\tmetric\tvalue\tstderr\tfilter\tbetter\tsamples\tmodel\tversion\tgroup",
        "mme\tscore\t0.7500\t0.0100\tnone\thigher\t8\tmodel\t1.0\t",
        "mme\twer\tnan\t\t\t\t\tmodel\t1.0\t",
    ]
    assert "/srv/results.json" in result.stderr
    assert f"evalrpc download {JOB_ID}" in result.stderr


def test_watch_of_a_failed_job_ends_with_why_and_the_end_of_its_log(run: Run, service: FakeService) -> None:
    service.change(failed_job())

    result = run("watch", JOB_ID)

    assert result.stderr.splitlines()[:2] == ["first line", "last line"]
    assert "HARNESS_FAILED: CUDA out of memory" in result.stderr


def test_watch_with_json_prints_an_event_per_line(run: Run, service: FakeService) -> None:
    service.change(completed_job())

    (line,) = run("watch", JOB_ID, "--json").stdout.splitlines()

    assert json_format.Parse(line, JobEvent()).terminal


def test_submit_with_watch_follows_the_job(run: Run, service: FakeService) -> None:
    service.on_submit = lambda: service.change(failed_job())

    result = run("submit", "--model", "m", "--tasks", "a", "--watch")

    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, JOB_ID)
    assert "CUDA out of memory" in result.stderr


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_watch_it_again(server: FakeServer, service: FakeService) -> None:
    service.change(job_at(RUNNING))
    command = [sys.executable, "-m", "evalrpc.cli", "--address", server.address, "watch", JOB_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        service.wait_for_watchers(1)
        assert process.stdout is not None
        assert process.stdout.readline() == "RUNNING\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_SECONDS)

    assert process.returncode == 130
    assert stderr == f"evalrpc: the job runs on; to watch it again: evalrpc watch {JOB_ID}\n"
    assert service.received["CancelJob"] == []
    service.wait_for_watchers(0)


def test_watch_goes_on_when_the_server_starts_again(server: FakeServer, service: FakeService) -> None:
    service.change(job_at(RUNNING))
    command = [sys.executable, "-m", "evalrpc.cli", "--address", server.address, "watch", JOB_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "RUNNING\n"
        server.restart()
        service.change(completed_job())
        stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)

    assert process.returncode == 0
    assert stdout.splitlines()[0] == "COMPLETED"
    assert stderr.count("lost the server") == 1
    assert "Traceback" not in stderr


# Reading


def test_results_are_a_table_of_metrics(run: Run, service: FakeService) -> None:
    service.change(completed_job())

    assert run("results", JOB_ID).stdout.splitlines()[1] == "mme\tscore\t0.7500\t0.0100\tnone\thigher\t8\tmodel\t1.0\t"
    assert json_format.Parse(run("results", JOB_ID, "--json").stdout, JobInfo()).results["model"].metrics[0].value == 0.75


def test_what_has_finished_is_shown_although_the_job_failed_or_runs_on(run: Run, service: FakeService) -> None:
    for status, exit_code in ((FAILED, 1), (RUNNING, 2)):
        job = failed_job() if status == FAILED else job_at(RUNNING)
        job.results["model"].CopyFrom(completed_job().results["model"])
        service.change(job)
        printed = run("results", JOB_ID)
        assert (printed.stdout.splitlines()[1].split("\t")[:2], printed.exit_code) == (["mme", "score"], exit_code)


def test_watch_shows_each_task_once_as_it_finishes(capsys: pytest.CaptureFixture[str]) -> None:
    score, wer = completed_job().results["model"].metrics
    states = [job_at(RUNNING, results={"model": ModelResult(metrics=metrics)}) for metrics in ([], [score], [score, wer])]

    following._show_lines([*states, completed_job()], err=False)

    lines = ["RUNNING", "mme: score,none 0.7500 ± 0.0100", "mme: wer nan", "COMPLETED"]
    assert capsys.readouterr().out.splitlines() == lines


def test_watch_shows_what_was_changed_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    states = [job_at(RUNNING), job_at(RUNNING, priority=2), job_at(RUNNING, priority=2, labels={"a": "1"})]
    following._show_lines(states, err=False)

    lines = ["RUNNING", "updated: priority 2, labels none", "updated: priority 2, labels a=1"]
    assert capsys.readouterr().out.splitlines() == lines


def test_groups_come_after_the_tasks_and_versions_below_the_table(run: Run, service: FakeService) -> None:
    job = completed_job()
    result = job.results["model"]
    result.metrics.add(task="all", metric="score", is_group=True)
    result.tasks.add(task="all", is_group=True, subtasks=["mme", "mmb"])
    result.harness_versions.update({"transformers": "5.1", "lm_eval": "0.4.13"})
    result.total_evaluation_time.FromSeconds(125)
    service.change(job)

    printed = run("results", JOB_ID)

    assert [line.split("\t")[0] for line in printed.stdout.splitlines()] == ["task", "mme", "mme", "all"]
    assert printed.stdout.splitlines()[-1].endswith("\tof 2")
    assert "evaluated with lm_eval 0.4.13, transformers 5.1, 2m05s" in printed.stderr


@pytest.mark.parametrize("command", ["results", "watch"])
def test_what_is_doubtful_about_metrics_is_told_beside_them(run: Run, service: FakeService, command: str) -> None:
    job = completed_job()
    job.warnings.append("19 of 20 answers to task mme failed: no route")
    service.change(job)
    printed = run(command, JOB_ID)
    assert "mme" in printed.stdout
    assert "evalrpc: warning: 19 of 20 answers to task mme failed: no route\n" in printed.stderr


@pytest.mark.parametrize(("job", "exit_code"), [(job_at(RUNNING), 2), (failed_job(), 1)], ids=["running", "failed"])
def test_results_that_are_not_there_are_an_error(run: Run, service: FakeService, job: JobInfo, exit_code: int) -> None:
    service.change(job)

    assert run("results", JOB_ID).exit_code == exit_code


def test_logs_are_printed_byte_for_byte(run: Run, service: FakeService) -> None:
    service.change(job_at(COMPLETED, attempt=1))
    service.log = b"\x1b[1m50%\r100%\n\xff"

    assert run("logs", JOB_ID).stdout_bytes == service.log
    assert run("logs", JOB_ID, "-f", "--offset", "4").stdout_bytes == service.log[4:]


def test_samples_are_json_lines(run: Run, service: FakeService) -> None:
    service.samples = [{"doc": number, "answer": "ä"} for number in range(5)]

    lines = run("samples", JOB_ID, "--limit", "3").stdout.splitlines()

    assert [json.loads(line)["doc"] for line in lines] == [0, 1, 2]


def test_rows_that_were_cut_are_named_on_stderr(run: Run, service: FakeService) -> None:
    service.samples, service.truncated_fields = [{"doc": 1}], ["samples[0].resps"]

    result = run("samples", JOB_ID)

    assert result.stdout == '{"doc": 1}\n'
    assert "samples[0].resps" in result.stderr


def test_all_metrics_of_a_job_are_printed_page_by_page(run: Run, service: FakeService) -> None:
    service.metrics = [ModelMetric(model="m", metric=Metric(task=f"t{number}", metric="acc", value=0)) for number in range(5)]

    lines = run("metrics", JOB_ID, "--metric", "t/acc", "--metric", "f1,strict", "--model", "m").stdout.splitlines()

    assert lines[0].split("\t") == ["task", "metric", "value", "stderr", "filter", "better", "samples", "model"]
    assert lines[1:] == [f"t{number}\tacc\t0.0000\t\t\t\t\tm" for number in range(5)]
    requests = service.received["ListMetrics"]
    assert len(requests) == 3
    selectors = [MetricSelector(task="t", metric="acc"), MetricSelector(metric="f1", filter="strict")]
    assert all((list(request.metrics), request.model) == (selectors, "m") for request in requests)
    printed = json_format.Parse(run("metrics", JOB_ID, "--json").stdout, ListMetricsResponse())
    assert list(printed.metrics) == service.metrics
    assert printed.metrics[0].metric.HasField("value")


def test_results_that_lack_metrics_say_where_all_are(run: Run, service: FakeService) -> None:
    job = completed_job()
    job.results["model"].metrics_truncated, job.results["model"].metric_count = True, 40_000
    service.change(job)

    assert f"2 of 40000 metrics are shown; all of them: evalrpc metrics {JOB_ID}" in run("results", JOB_ID).stderr


def test_download_prints_the_paths(run: Run, service: FakeService, tmp_path: Path) -> None:
    service.files = {"m/a.json": b"{}", "m/b.jsonl": b"[]"}

    result = run("download", JOB_ID, str(tmp_path / "out"), "--name", "m/a.json")

    assert result.stdout == f"{tmp_path / 'out' / 'm' / 'a.json'}\n"
    assert (tmp_path / "out" / "m" / "a.json").read_bytes() == b"{}"


def test_fields_of_served_models_are_named_by_their_flags(run: Run, service: FakeService) -> None:
    names = ("engine", "model", "args.dtype", "num_gpus", "max_replicas", "revision")
    fields = [f"{served}.{name}" for served in ("served_model", "judge_model") for name in names]
    violations = [FieldViolation(f"request.{field}", "is bad") for field in fields]
    service.errors["SubmitJob"] = [errors.InvalidRequestError(violations=violations)]

    result = run("submit", "--tasks", "t", "--engine", "x", "--served-model", "y")

    assert {name.partition(".")[0] for name in names} == set(ServedModel.DESCRIPTOR.fields_by_name)
    flags = [
        *("--engine", "--served-model", "--engine-arg", "--engine-gpus", "--engine-replicas", "--served-revision"),
        *("--judge-engine", "--judge-model", "--judge-arg", "--judge-gpus", "--judge-replicas", "--judge-revision"),
    ]
    assert result.stderr.splitlines() == [
        f"evalrpc: {flag} (request.{field}): is bad" for flag, field in zip(flags, fields, strict=True)
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"modl": "m"}', "there is no field 'modl'; did you mean 'model'?"),
        ('{"request": {}, "frobnicate": 1}', "there is no field 'frobnicate'; there are: request, requestId, priority"),
        ("{bad", "is no JSON: Expecting property name"),
    ],
)
def test_a_bad_request_in_a_file_is_explained_shortly(run: Run, service: FakeService, content: str, problem: str) -> None:
    result = run("submit", "--file", "-", input=content)

    assert result.exit_code == 2
    assert f"--file -: {problem}" in result.stderr


def test_download_says_that_there_are_no_files(run: Run, service: FakeService, tmp_path: Path) -> None:
    result = run("download", JOB_ID, str(tmp_path / "out"))

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"evalrpc: job {JOB_ID} has left no files\n"


def test_a_folder_that_can_not_be_written_is_a_wrong_call(run: Run, service: FakeService, tmp_path: Path) -> None:
    service.files = {"a/b": b"x"}
    (tmp_path / "a").write_text("a file where a folder is needed")

    result = run("download", JOB_ID, str(tmp_path / "a"))

    assert result.exit_code == 2
    assert str(tmp_path / "a") in result.stderr


def test_download_names_the_files_that_are_missing_and_brings_the_others(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    service.files = {"../evil\x1b[2J": b"x", "good": b"g"}

    result = run("download", JOB_ID, str(tmp_path / "out"))

    assert (result.exit_code, result.stdout) == (1, f"{tmp_path / 'out' / 'good'}\n")
    assert result.stderr == ("evalrpc: '../evil\\x1b[2J' is missing: name: '../evil\\x1b[2J' is no path within the folder\n")


def test_download_as_json_has_the_files_that_are_there(run: Run, service: FakeService, tmp_path: Path) -> None:
    service.files = {"../evil": b"x", "good": b"g"}

    result = run("download", JOB_ID, str(tmp_path), "--json")

    assert result.exit_code == 1
    assert [artifact["name"] for artifact in json.loads(result.stdout)["artifacts"]] == ["good"]


@pytest.mark.parametrize("address", ["127.0.0.1:port", "http://127.0.0.1:1/v1", "ftp://127.0.0.1", "50051"])
def test_an_address_that_makes_no_sense_is_a_wrong_call(run: Run, address: str) -> None:
    result = run("list", "--address", address)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"evalrpc: the address {address!r} ")
    assert result.stderr.count("\n") == 1


# Comparing


def compared(**verdicts: Verdict) -> CompareJobsResponse:
    """Build a response with these verdicts by metric name."""
    tested = {"difference": -0.125, "interval_lower": -0.2, "interval_upper": -0.05, "p_value": 0.0021}
    metrics = [
        MetricComparison(
            candidate_model="m",
            task="t",
            metric=name,
            filter="none",
            verdict=verdict,
            baseline_value=0.5,
            candidate_value=0.375,
            method=TestMethod.TEST_METHOD_MCNEMAR,
            paired_sample_count=80,
            higher_is_better=True,
            **tested,
        )
        for name, verdict in verdicts.items()
    ]
    return CompareJobsResponse(candidates=[JobComparison(candidate_job_id=JOB_ID, metrics=metrics)], confidence_level=0.95)


def test_compare_prints_a_line_per_metric_and_fails_where_one_is_worse(run: Run, service: FakeService) -> None:
    service.comparison = compared(acc=Verdict.VERDICT_WORSE, f1=Verdict.VERDICT_SAME, new=99)

    result = run("compare", OTHER_IDS[0], JOB_ID)

    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split("\t") == [
        *(
            "WORSE",
            "t/acc,none",
            "0.5000",
            "0.3750",
            "-0.1250",
            "[-0.2000, -0.0500]",
            "0.0021",
            "",
            "McNemar, 80 pairs",
            "m",
            JOB_ID,
        )
    ]
    assert result.stderr.splitlines() == [
        "1 SAME, 1 VERDICT_99, 1 WORSE",
        "evalrpc: the gate no-significant-drop does not pass:",
        "evalrpc:   t/acc,none is WORSE",
    ]


@pytest.mark.parametrize("verdict", ["BETTER", "SAME", "INCONCLUSIVE"])
def test_compare_is_content_with_what_is_not_worse(run: Run, service: FakeService, verdict: str) -> None:
    service.comparison = compared(acc=Verdict.Value(f"VERDICT_{verdict}"))

    assert run("compare", OTHER_IDS[0], JOB_ID).exit_code == 0


def test_compare_says_what_is_missing_and_why_nothing_was_paired(run: Run, service: FakeService) -> None:
    metric = MetricComparison(
        task="t", metric="acc", baseline_model="m", baseline_value=0.5, verdict=Verdict.VERDICT_INCONCLUSIVE
    )
    metric.method, metric.note = TestMethod.TEST_METHOD_NONE, "the candidate has no such metric"
    service.comparison = CompareJobsResponse(candidates=[JobComparison(candidate_job_id=JOB_ID, metrics=[metric])])

    cells = run("compare", OTHER_IDS[0], JOB_ID).stdout.splitlines()[1].split("\t")
    assert cells == [
        "INCONCLUSIVE",
        "t/acc",
        "0.5000",
        "",
        "",
        "",
        "",
        "",
        "none, the candidate has no such metric",
        "m",
        JOB_ID,
    ]


def test_compare_prints_json_and_still_fails_where_one_is_worse(run: Run, service: FakeService) -> None:
    service.comparison = compared(acc=Verdict.VERDICT_WORSE)

    result = run("compare", OTHER_IDS[0], JOB_ID, "--json")

    assert result.exit_code == 1
    assert json_format.Parse(result.stdout, CompareJobsResponse()) == service.comparison


def test_compare_passes_every_threshold_on(run: Run, service: FakeService) -> None:
    run(
        *("compare", *OTHER_IDS, "--metric", "mme/score", "--metric", "acc", "--alpha", "0.01", "--holm"),
        *("--tolerance", "0.02", "--tolerance", "mme/score=5", "--direction", "higher", "--direction", "wer=lower"),
    )

    (request,) = service.received["CompareJobs"]
    assert json_format.MessageToDict(request, preserving_proto_field_name=True) == {
        "baseline_job_id": OTHER_IDS[0],
        "candidate_job_ids": OTHER_IDS[1:],
        "metrics": [{"task": "mme", "metric": "score"}, {"metric": "acc"}],
        "alpha": 0.01,
        "tolerance": 0.02,
        "higher_is_better": True,
        "metric_thresholds": [
            {"selector": {"task": "mme", "metric": "score"}, "tolerance": 5.0},
            {"selector": {"metric": "wer"}, "higher_is_better": False},
        ],
        "correction": "CORRECTION_HOLM",
    }


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--tolerance", "acc=much"], "'much' is no number"),
        (["--direction", "up"], "'up' is neither"),
        (["--alpha", "x"], "'x' is not a valid float"),
    ],
)
def test_compare_refuses_thresholds_that_are_none(run: Run, service: FakeService, flags: list[str], text: str) -> None:
    result = run("compare", *OTHER_IDS[:2], *flags)

    assert result.exit_code == 2
    assert text in result.stderr
    assert not service.received["CompareJobs"]


def test_compare_names_the_flag_of_what_the_server_refuses(run: Run, service: FakeService) -> None:
    violations = [FieldViolation("alpha", "is too large"), FieldViolation("candidate_job_ids[0]", "must be a UUID")]
    service.errors["CompareJobs"] = [errors.InvalidRequestError(violations=violations)]

    result = run("compare", *OTHER_IDS[:2], "--alpha", "1")

    assert result.exit_code == 2
    assert "--alpha (alpha): is too large" in result.stderr
    assert "(candidate_job_ids[0]): must be a UUID" in result.stderr


# Managing


def test_get_list_cancel_and_delete(run: Run, service: FakeService) -> None:
    service.change(job_at(RUNNING, labels={"team": "vision"}))

    assert "team=vision" in run("get", JOB_ID).stdout
    assert run("list").stdout.splitlines()[1].startswith(f"{JOB_ID}\tRUNNING")
    assert run("cancel", JOB_ID, "--reason", "enough").stdout == "CANCELLED: enough\n"
    assert run("delete", JOB_ID).stdout == f"deleted {JOB_ID}\n"
    assert run("get", JOB_ID).exit_code == 2


def test_get_shows_what_the_request_asks_for(run: Run, service: FakeService) -> None:
    args = {"pretrained": "/ckpt/5", "layers": 4, "deep": {"a": [1.5]}}
    flags = ["--limit", "8", "--num-fewshot", "0", "--gpu-mode", "data-parallel", "--secret", "KEY"]
    run("submit", "--model", "m", "--tasks", "t", "--model-args", json.dumps(args), *flags)

    rows = dict(line.split("\t") for line in run("get", "@latest").stdout.splitlines())

    assert rows["model_args"] == 'deep={"a": [1.5]}, layers=4, pretrained=/ckpt/5'
    asked = {name: rows[name] for name in ("limit", "num_fewshot", "gpu_mode", "secrets")}
    assert asked == {"limit": "8", "num_fewshot": "0", "gpu_mode": "data-parallel", "secrets": "KEY"}
    assert "log_samples" not in rows
    job = job_at(RUNNING)
    job.timeout.FromSeconds(7200)
    service.change(job)
    assert "\ntimeout\t2h00m\n" in run("get", JOB_ID).stdout


def test_get_shows_how_the_processes_of_the_attempt_share_its_gpus(run: Run, service: FakeService) -> None:
    for mode, words in ((GPU_MODE_MODEL_PARALLEL, "one that sees all GPUs"), (GPU_MODE_DATA_PARALLEL, "one per GPU")):
        service.change(job_at(RUNNING, attempts=[JobAttempt(number=1, gpu_mode=mode)]))
        assert f"\nprocesses\t{words}\n" in run("get", JOB_ID).stdout
    service.change(job_at(RUNNING, attempts=[JobAttempt(number=1)]))
    assert "processes" not in run("get", JOB_ID).stdout


def test_cancel_of_queued_jobs_only_is_refused_for_one_that_runs(run: Run, service: FakeService) -> None:
    service.change(job_at(RUNNING))
    service.errors["CancelJob"] = [errors.JobNotQueuedError("job j is RUNNING")]

    result = run("cancel", JOB_ID, "--queued-only")

    assert (result.exit_code, result.stderr) == (2, "evalrpc: job j is RUNNING\n")
    (request,) = service.received["CancelJob"]
    assert request.queued_only  # type: ignore[attr-defined]


def test_update_changes_the_labels_that_are_named_and_leaves_the_others(run: Run, service: FakeService) -> None:
    service.change(job_at(QUEUED, labels={"keep": "1", "drop": "2", "change": "3"}, priority=1))

    result = run("update", JOB_ID, "--label", "change=4", "--label", "new=5", "--remove-label", "drop", "--remove-label", "no")

    assert result.stdout == "QUEUED, priority 1, labels change=4, keep=1, new=5\n"
    assert service.jobs[JOB_ID].labels == {"keep": "1", "change": "4", "new": "5"}
    (request,) = service.received["UpdateJob"]
    assert list(request.update_mask.paths) == ["labels"]  # type: ignore[attr-defined]
    assert request.expected_revision == 1  # type: ignore[attr-defined]


def test_update_of_a_job_that_was_changed_meanwhile_looks_at_it_again(run: Run, service: FakeService) -> None:
    service.change(job_at(QUEUED, labels={"a": "1"}))
    service.errors["UpdateJob"] = [errors.ConflictError("changed meanwhile")] * 3

    result = run("update", JOB_ID, "--label", "b=2", "--priority", "7", "--json")

    updated = json_format.Parse(result.stdout, JobInfo())
    assert (result.exit_code, updated.priority, dict(updated.labels)) == (0, 7, {"a": "1", "b": "2"})
    assert len(service.received["UpdateJob"]) == len(service.received["GetJob"]) == 4


def test_update_of_the_priority_alone_leaves_the_labels_to_others(run: Run, service: FakeService) -> None:
    service.change(job_at(QUEUED, labels={"a": "1"}, priority=3))

    assert run("update", JOB_ID, "--priority", "0").stdout == "QUEUED, priority 0, labels a=1\n"
    (request,) = service.received["UpdateJob"]
    assert list(request.update_mask.paths) == ["priority"]  # type: ignore[attr-defined]
    assert not request.HasField("expected_revision")


@pytest.mark.parametrize("flags", [[], ["--label", "a"], ["--label", "=b"], ["--priority", "high"]])
def test_update_that_makes_no_sense_is_a_wrong_call(run: Run, service: FakeService, flags: list[str]) -> None:
    result = run("update", JOB_ID, *flags)

    assert (result.exit_code, service.received["UpdateJob"]) == (2, [])
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("update", JOB_ID, "--label", "run=x", "--label", "run=y"),
        ("list", "--label", "run=x", "--label", "run=y"),
        *(("submit", "--model", "m", "--tasks", "t", flag, "run=x", flag, "run=y") for flag in ("--label", "--task-arg")),
        *(("submit", "--engine", "e", flag, "run=x", flag, "run=y") for flag in ("--engine-arg", "--judge-arg")),
        ("submit-suite", "release", "--harness-model", "run=x", "--harness-model", "run=y"),
        ("compare", JOB_ID, JOB_ID, "--tolerance", "run=1", "--tolerance", "run=2"),
        ("compare", JOB_ID, JOB_ID, "--direction", "higher", "--direction", "lower"),
        ("submit", "--file", "-"),
    ],
)
def test_of_several_values_for_one_key_none_is_passed_over(run: Run, service: FakeService, command: tuple[str, ...]) -> None:
    result = run(*command, input='{"model": "m", "tasks": ["t"], "modelArgs": {"run": "x", "run": "y"}}')

    assert (result.exit_code, dict(service.received)) == (2, {})
    assert "'run' has several values, and can have one" in result.stderr or "there are several values for all" in result.stderr


def test_update_names_the_flag_of_a_bad_field(run: Run, service: FakeService) -> None:
    service.change(job_at(QUEUED))
    violation = FieldViolation("priority", "must be from -1000 to 1000")
    service.errors["UpdateJob"] = [errors.InvalidRequestError(violations=[violation])]

    result = run("update", JOB_ID, "--priority", "2000")

    assert (result.exit_code, result.stderr) == (2, "evalrpc: --priority (priority): must be from -1000 to 1000\n")


def test_list_passes_every_condition_on(run: Run, service: FakeService) -> None:
    run(
        *("list", "--status", "failed", "--status", "CANCELLED", "--label", "a=b", "--model", "m", "--task", "t"),
        *("--harness", "h", "--since", "2026-02-14T10:00:00+00:00", "--until", "1h", "--limit", "5"),
        *("-l", "run=x,step!=5", "--selector", " ", "--selector", '!draft,note="a, b"'),
        *("--owner", "alice", "--owner", ""),
    )

    (request,) = service.received["ListJobs"]
    assert request.filter.label_selector == 'run=x,step!=5,!draft,note="a, b"'  # type: ignore[attr-defined]
    assert list(request.filter.statuses) == [FAILED, CANCELLED]  # type: ignore[attr-defined]
    assert list(request.filter.owners) == ["alice", ""]  # type: ignore[attr-defined]
    assert request.filter.created_after.ToJsonString() == "2026-02-14T10:00:00Z"  # type: ignore[attr-defined]
    assert request.filter.created_before.seconds > request.filter.created_after.seconds  # type: ignore[attr-defined]
    assert request.page_size == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "command",
    [list_command, watch_all_command, history_command, cancel_command, delete_command],
    ids=["list", "watch-all", "history", "cancel", "delete"],
)
def test_every_command_that_takes_a_filter_takes_a_selector_and_owners(command: click.Command) -> None:
    flags = [parameter.opts for parameter in command.params]
    assert ["-l", "--selector"] in flags
    assert ["--owner"] in flags


def test_the_owner_of_a_job_is_shown(run: Run, service: FakeService) -> None:
    service.change(job_at(RUNNING, owner="alice"))

    assert "alice" not in run("list").stdout, "only where there is room"
    header, row = run("list", "-o", "wide").stdout.splitlines()
    assert row.split("\t")[header.split("\t").index("owner")] == "alice"
    assert '"owner": "alice"' in run("list", "-o", "json").stdout
    assert "owner\talice" in run("get", JOB_ID).stdout


def test_list_stops_at_its_limit(run: Run, service: FakeService) -> None:
    for number in range(5):
        service.change(job_at(RUNNING, job_id=str(number)))

    limited = run("list", "--limit", "3")
    assert len(limited.stdout.splitlines()) == 1 + 3
    assert limited.stderr == "evalrpc: more jobs match: --limit 0 shows all\n"
    for limit in ("5", "0"):
        everything = run("list", "--limit", limit, "--json")
        assert (len(everything.stdout.splitlines()), everything.stderr) == (5, "")


@pytest.mark.parametrize(
    ("command", "message"),
    [("queue", GetQueueResponse), ("info", GetServerInfoResponse), ("whoami", GetCallerResponse)],
    ids=["queue", "info", "whoami"],
)
def test_json_is_the_message_itself(run: Run, command: str, message: Any) -> None:
    assert json_format.Parse(run(command, "--json").stdout, message()) != message()


def test_the_catalog_is_printed_line_by_line(run: Run) -> None:
    assert run("tasks", "mmm").stdout == "mmmu_val\n"
    assert run("models").stdout.splitlines() == ["mme", "mmmu_val", "mmstar"]
    assert run("harnesses").stdout.splitlines()[2] == "nightly\tcommand\t\tno such program\tno"
    assert "9.9.9" in run("info").stdout
    assert "GPU 1\tfree" in run("queue").stdout


def test_the_queue_does_not_call_a_gpu_free_that_a_job_holds_which_it_may_not_name(run: Run, service: FakeService) -> None:
    for gpu in service.queue.gpus:
        gpu.ClearField("job_id")
    service.queue.gpus[0].held = True
    lines = [line for line in run("queue").stdout.splitlines() if line.startswith("GPU")]
    assert lines == ["GPU 0\theld by a job of others", "GPU 1\tfree"]


# Errors


@pytest.mark.parametrize(
    "command",
    [
        *(["watch", JOB_ID], ["queue"], ["delete", JOB_ID], ["logs", "-f", JOB_ID], ["download", JOB_ID, "out"], ["tasks"]),
        ["compare", JOB_ID, JOB_ID],
        ["submit", "--model", "m", "--tasks", "t", "--watch"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_exit_code_3(server: FakeServer, run: Run, command: list[str]) -> None:
    server.kill()

    result = run(*command)

    assert result.exit_code == 3
    assert result.stdout == ""
    assert f"can't reach the server at {server.address}" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["logs", JOB_ID, "--attempt", "99999999999"],
        ["update", JOB_ID, "--priority", "99999999999"],
        ["cancel", JOB_ID, "--reason", "\udcff"],
        ["list", "--task", "\udcff"],
        ["history", "--metric", "\udcff"],
        ["samples", JOB_ID, "--text", "\udcff"],
        ["compare", OTHER_IDS[0], JOB_ID, "--metric", "\udcff/acc"],
        ["compare", OTHER_IDS[0], JOB_ID, "--tolerance", "\udcff=1"],
        ["flips", OTHER_IDS[0], JOB_ID, "--metric", "\udcff"],
        ["get", "@baseline:\udcff"],
        ["list", "--limit", "-1"],
        ["samples", JOB_ID, "--limit", "-1"],
    ],
    ids=lambda command: " ".join(command[::3]),
)
def test_what_no_message_can_hold_is_a_wrong_call(run: Run, command: list[str]) -> None:
    result = run(*command)

    assert result.exit_code == 2
    assert result.stderr.startswith(("evalrpc: ", "Usage: "))
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["watch", "get", "cancel", "delete", "logs", "results"])
def test_a_job_that_is_not_there_is_exit_code_2(run: Run, command: str) -> None:
    result = run(command, "nonsense")

    assert result.exit_code == 2
    assert result.stderr.startswith("evalrpc: there is no job nonsense: a job is given by its id, the first 4 characters")


def test_the_address_may_stand_before_or_behind_the_command(server: FakeServer) -> None:
    runner = CliRunner(env={"EVALRPC_ADDRESS": "127.0.0.1:1"})

    assert runner.invoke(main, ["--address", server.address, "info"]).exit_code == 0
    assert runner.invoke(main, ["info", "--address", server.address]).exit_code == 0


def test_every_command_can_print_json() -> None:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    groups = {
        "baseline": baseline_command,
        "export": export_command,
        "node": node_command,
        "policy": policy_command,
        "token": token_command,
    }
    for name, group in groups.items():
        commands |= {f"{name} {command}": group.commands[command] for command in group.commands}
        del commands[name]
    flags = {
        name: {flag for parameter in command.params for flag in parameter.opts} for name, command in commands.items() if command
    }

    go_on = {"serve", "mcp", *(name for name in flags if name.startswith("export "))}
    assert {name for name in flags if "--json" not in flags[name]} == go_on


def test_fields_that_a_policy_refuses_are_named_with_their_flags(service: FakeService, server: FakeServer) -> None:
    violations = [
        FieldViolation("request.model_args.base_url", "is refused"),
        FieldViolation("request.secrets[0]", "is not for you"),
    ]
    service.errors["SubmitJob"] = [errors.PolicyViolationError(violations=violations)]
    arguments = ["submit", "--model", "m", "--tasks", "t", "--secret", "A", "--secret", "B"]
    result = CliRunner().invoke(main, arguments, env={"EVALRPC_ADDRESS": server.address})
    assert (result.exit_code, result.stderr.splitlines()) == (
        4,
        [
            "evalrpc: --model-args (request.model_args.base_url): is refused",
            "evalrpc: --secret (request.secrets[0]): is not for you",
        ],
    )
    (received,) = service.received["SubmitJob"]
    assert received.request.secrets == ["A", "B"]


# The server's side


def test_serve_refuses_settings_that_can_not_work(tmp_path: Path) -> None:
    config = tmp_path / "evalrpc.toml"
    config.write_text("max_runing = 2\n")

    assert "max_running" in CliRunner().invoke(main, ["serve", "--config", str(config)]).stderr
    result = CliRunner().invoke(main, ["serve", "--listen", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.startswith("evalrpc: setting listen: must be HOST:PORT, with a port from 0 to 65535, or unix:PATH;")
    assert result.stderr.endswith(" (from --listen)\n")


def doctor(*flags: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = CliRunner().invoke(main, ["doctor", "--json", *flags])
    return result.exit_code, {finding["subject"]: finding for finding in map(json.loads, result.stdout.splitlines())}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "evalrpc.toml"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file.write_text(f'gpus = "0"\ndata_dir = "data"\n[harnesses.nightly]\nkind = "command"\ncommand = ["{program}"]\n')
    return file


def test_doctor_finds_nothing_wrong_where_nothing_is(config: Path, tmp_path: Path) -> None:
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")

    assert {subject for subject, finding in findings.items() if not finding["good"]} == set()
    assert findings["config file"]["detail"] == str(config)
    assert findings["defaults"]["detail"] == "harness nightly; GPUs: 0"
    assert set(findings) == {
        *("config file", "harness nightly", "GPUs", "defaults", "cgroups", "environment of runs", "accounts of runs"),
        *("memory of runs", "processes of runs"),
        *("store", "data folder", "port", "sign-in"),
    }
    assert findings["sign-in"]["detail"].startswith("127.0.0.1:0 asks nobody to sign in: any local user and any proxy on this")
    assert "cgroup" in findings["cgroups"]["detail"] or "every run has one" in findings["cgroups"]["detail"]
    assert exit_code == 0
    assert not (tmp_path / "data").exists()


def test_doctor_knows_a_server_of_ours(config: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.cli.doctor._PROBE_TIMEOUT_SECONDS", DEADLINE_SECONDS)
    _, findings = doctor("--config", str(config), "--listen", server.address)

    assert findings["port"]["good"]
    assert "evalrpc 9.9.9 answers" in findings["port"]["detail"]


def test_doctor_says_what_is_wrong(config: Path, tmp_path: Path) -> None:
    (tmp_path / "program").unlink()
    (tmp_path / "data").write_text("a file")
    config.write_text(f"default_num_gpus = 1\n{config.read_text()}")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound but not listening: no evalrpc server answers there
        exit_code, findings = doctor("--config", str(config), "--listen", f"127.0.0.1:{other.getsockname()[1]}")

    assert exit_code == 1
    assert findings["defaults"]["detail"] == "setting default_num_gpus: 1 is more than the 0 GPUs of this server"
    assert {subject for subject, finding in findings.items() if not finding["good"]} >= {
        "defaults",
        "data folder",
        "port",
        "harness nightly",
    }


def test_doctor_finds_the_data_with_which_no_server_would_start(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store() -> str:
        exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
        assert exit_code == 1
        return str(findings["store"]["detail"])

    folder = tmp_path / "data"
    (folder / "jobs" / JOB_ID).mkdir(parents=True)
    assert "evalrpc.sqlite3 is empty or gone" in store()
    database = folder / "evalrpc.sqlite3"
    database.write_text("no database")
    assert "file is not a database" in store()
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "its database has version 99" in store()
    assert sorted(path.name for path in folder.iterdir()) == ["evalrpc.sqlite3", "jobs"]

    config.write_text(
        config.read_text().replace('"data"', f'"{"x" * 300}"')
    )  # raises an OSError, as does a folder without rights
    assert "name too long" in store()
    config.write_text(config.read_text().replace("x" * 300, "data"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    assert "is full" in doctor("--config", str(config), "--listen", "127.0.0.1:0")[1]["data folder"]["detail"]


def test_doctor_says_by_what_limits_of_runs_are_enforced(config: Path) -> None:
    config.write_text(f'cgroups = "off"\nmax_run_memory_bytes = 7\n{config.read_text()}')
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert exit_code == 0
    by_rlimits = "enforced by rlimits (address space of each process)"
    assert findings["memory of runs"]["detail"] == f"at most 7 bytes, {by_rlimits}"
    nothing = "enforced by nothing: that takes cgroups or run_as_uids"
    assert findings["processes of runs"]["detail"] == f"not limited (setting max_run_processes); a limit would be {nothing}"

    config.write_text(f"{config.read_text()}max_run_processes = 8\n")
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert exit_code == 1
    assert (findings["processes of runs"]["good"], findings["processes of runs"]["detail"]) == (
        False,
        f"at most 8 at once, {nothing}",
    )


@needs_accounts
def test_doctor_tries_what_a_run_with_an_account_can_do(config: Path, tmp_path: Path) -> None:
    """The folder of the test is private to root, as is the program in it."""
    config.write_text(f'run_as_uids = "{UIDS}"\n{config.read_text()}env = {{ HF_HOME = "{tmp_path}" }}\n')
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert exit_code == 1
    assert findings["accounts of runs"]["detail"] == f"one for each owner, of {UIDS}"
    finding = findings["harness nightly with an account of runs"]
    assert not finding["good"]
    assert f"{tmp_path / 'program'} can't be run with the account {FIRST_UID}" in finding["detail"]
    assert f"HF_HOME={tmp_path} can't be written with the account {FIRST_UID}" in finding["detail"]

    config.write_text(config.read_text().replace(str(tmp_path / "program"), "/bin/true").replace(str(tmp_path), "/tmp"))
    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert findings["harness nightly with an account of runs"]["good"]


@needs_accounts
def test_doctor_names_the_folder_that_keeps_accounts_from_the_data_folder(config: Path, tmp_path: Path) -> None:
    config.write_text(f'run_as_uids = "{UIDS}"\n{config.read_text()}')
    with tempfile.TemporaryDirectory() as above:
        for mode, is_good in ((0o700, False), (0o711, True)):
            Path(above).chmod(mode)
            flags = ("--listen", "127.0.0.1:0", "--data-dir", f"{above}/data")
            finding = doctor("--config", str(config), *flags)[1]["data folder with an account of runs"]
            assert finding["good"] == is_good
            assert above in finding["detail"]


def test_doctor_says_that_accounts_take_root(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config.write_text(f'run_as_uids = "{UIDS}"\n{config.read_text()}')
    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert not findings["accounts of runs"]["good"]
    assert "only a server that runs as root can start runs with other accounts" in findings["accounts of runs"]["detail"]


def test_doctor_names_the_variables_that_runs_miss_as_possible_secrets(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "ACME_KEY", "ACME_NAME"):
        monkeypatch.setenv(name, "sk-123456")
    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0", "--gpus", "0")
    detail = findings["environment of runs"]["detail"]
    assert {"ACME_KEY", "HF_TOKEN"} <= set(detail.rpartition(": ")[2].split(", "))
    assert "ACME_NAME" not in detail
    assert "sk-123456" not in detail


def test_doctor_reads_every_secret_and_shows_none(config: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("sk-123456")
    with config.open("a") as file:
        file.write(f"[secrets.A]\nowners = ['alice', 'bob']\nfile = '{tmp_path / 'a'}'\n")
        file.write(f"[secrets.B]\nowners = ['*']\nfile = '{tmp_path / 'b'}'\n")
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert findings["secret A"] == {"subject": "secret A", "good": True, "detail": "can be read; for alice, bob"}
    assert findings["secret B"]["detail"] == "its file can't be read: No such file or directory"
    assert (exit_code, "sk-123456" in str(findings)) == (1, False)


@pytest.mark.parametrize(
    ("kind", "arguments", "change", "said"),
    [
        ("preparation", '"{model}", "{output}"', ('"true"', '"sh", "-c"'), "would be read as code"),
        ("engine", '"{model}", "--port", "{port}"', (', "{port}"', ""), "engines.good.command: must have {port}"),
    ],
)
def test_doctor_looks_at_the_command_line_and_the_program_of_every(
    config: Path, kind: str, arguments: str, change: tuple[str, str], said: str
) -> None:
    programs = {"good": "true", "bad": "/no/one"}
    tables = (f'[{kind}s.{name}]\ncommand = ["{program}", {arguments}]\n' for name, program in programs.items())
    config.write_text(config.read_text() + "".join(tables))
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert exit_code == 1
    assert findings[f"{kind} good"]["good"]
    assert f"install it or set {kind}s.bad.command" in findings[f"{kind} bad"]["detail"]
    config.write_text(config.read_text().replace(*change))
    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert said in findings[f"{kind}s"]["detail"]


def test_doctor_shows_the_suites_and_what_is_wrong_with_them(config: Path) -> None:
    entry = "[[suites.release.entries]]\nharness = 'nightly'\ntasks = ['{}']\n"
    given = config.read_text()
    config.write_text(given + entry.format("mme") + entry.format("mmmu"))
    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert findings["suite release"] == {"subject": "suite release", "good": True, "detail": "entries: mme, mmmu"}
    config.write_text(given + entry.format("tasks/mme.yaml"))
    exit_code, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")
    assert (exit_code, findings["suites"]["good"]) == (1, False)
    assert "suites.release.entries[0].tasks[0]: must be the name of a task, not a path" in findings["suites"]["detail"]


def test_doctor_names_the_address_where_there_are_several(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "socket"

    exit_code, findings = doctor("--config", str(config), "--listen", f"127.0.0.1:0,unix:{path}", "--auth", "required")

    assert exit_code == 0
    assert findings[f"port unix:{path}"]["detail"] == f"unix:{path} is free"
    assert findings[f"sign-in unix:{path}"]["detail"] == f"unix:{path} requires it"
    assert "port 127.0.0.1:0" in findings
    assert not path.parent.exists()


def test_doctor_refuses_what_serve_would_refuse(config: Path) -> None:
    exit_code, findings = doctor("--config", str(config), "--listen", "0.0.0.0:0")

    assert exit_code == 1
    assert findings["addresses"]["detail"].startswith("setting tls_cert (--tls-cert): 0.0.0.0:0 is not loopback")


@pytest.mark.parametrize(
    ("days", "good", "text"), [(100, True, "is valid until"), (0.1, False, "expires soon"), (-0.5, False, "has expired")]
)
def test_doctor_says_when_the_certificate_ends_and_warns_before(
    config: Path, tmp_path: Path, days: float, good: bool, text: str
) -> None:
    cert, key = Authority().issue(days=days).write(tmp_path)
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))

    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0", *tls)

    assert findings["certificate"]["good"] == good
    assert findings["certificate"]["detail"].startswith(f"{cert} {text}")


def test_doctor_says_why_a_certificate_can_not_be_used(config: Path, tmp_path: Path) -> None:
    tls = ("--tls-cert", str(tmp_path / "none"), "--tls-key", str(tmp_path / "none"))

    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0", *tls)

    assert not findings["certificate"]["good"]
    problem = f"can't read {tmp_path / 'none'}: No such file or directory"
    assert findings["certificate"]["detail"] == f"setting tls_cert (--tls-cert): {problem}"


def test_doctor_knows_a_server_with_its_certificate_and_no_other(config: Path, tmp_path: Path) -> None:
    issued = Authority().issue()
    cert, key = issued.write(tmp_path)
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(issued.key, issued.cert)]))
    server.start()
    try:
        _, findings = doctor("--config", str(config), "--listen", f"127.0.0.1:{port}", *tls)
        assert findings["port"]["detail"] == f"a server with this certificate answers at 127.0.0.1:{port}"
        unreadable = ("--tls-cert", str(tmp_path / "none"), "--tls-key", str(key))
        _, findings = doctor("--config", str(config), "--listen", f"127.0.0.1:{port}", *unreadable)
        assert findings["port"]["good"], "it may be the server itself; the finding of the certificate says what to do"
        assert f"that can't be told without the certificate in {tmp_path / 'none'}" in findings["port"]["detail"]
        assert not findings["certificate"]["good"]
        Authority().issue().write(tmp_path)
        _, findings = doctor("--config", str(config), "--listen", f"127.0.0.1:{port}", *tls)
        assert not findings["port"]["good"]
    finally:
        server.stop(None).wait()


def test_doctor_goes_on_where_one_check_can_not_be_made(tmp_path: Path) -> None:
    config = tmp_path / "evalrpc.toml"
    config.write_text('[harnesses.odd]\nkind = "unheard-of"\n')

    _, findings = doctor("--config", str(config), "--listen", "127.0.0.1:0")

    assert not findings["harnesses"]["good"]
    assert findings["port"]["good"]


# Words


def test_progress_is_shown_in_one_line() -> None:
    progress = Progress(phase=Progress.Phase.PHASE_EVALUATING, done=120, total=900, unit="requests", rate_per_second=3.25)
    progress.time_left.FromSeconds(240)

    assert wording.describe(job_at(RUNNING, progress=progress)) == "RUNNING, evaluating, 120/900 requests, 3.25/s, 4m00s left"
    assert wording.describe(job_at(QUEUED, position_in_queue=0, wait_reason="all GPUs are taken")) == (
        "QUEUED, 0 before it, all GPUs are taken"
    )


def test_times_are_shown_in_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    try:
        assert wording.time_text(Timestamp(seconds=1_771_059_600)) == "2026-02-14 14:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert wording.time_text(Timestamp()) == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800), ("250ms", 0.25), ("10m5s", 605)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


def test_the_program_starts_without_what_a_command_does_not_need() -> None:
    code = "import sys, evalrpc.cli; print([m for m in ('grpc', 'rich', 'google.protobuf') if m in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
