"""`evalrpc follow` and the evaluator of a training loop, on real servers: each checkpoint once, whoever is killed meanwhile."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lasting_ports import lasting_address
from serving import CANCELLED, COMPLETED, QUEUED, RUNNING, SECONDS, Api, Launch, ServerThere, Site
from waiting import eventually

from evalrpc.cli import follow, main
from evalrpc.client import EvalClient
from evalrpc.training import CheckpointEvaluator
from evalrpc.training.checkpoints import Checkpoint, fingerprint_of
from evalrpc.training.evaluations import JobEvaluations, SuiteEvaluations
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo

REQUEST = (
    "--harness",
    "toy",
    "--model",
    "weighs",
    "--tasks",
    "t",
    "--num-gpus",
    "0",
    "--model-args",
    "pretrained={checkpoint}",
)
PAGE = Path(__file__).parents[2] / "docs/training.md"
SUITE = """
[suites.release]
entries = [
    { name = "first", harness = "toy", tasks = ["t"], threshold = 0.5, higher_is_better = true },
    { name = "second", harness = "toy", tasks = ["u"], threshold = 0.5, higher_is_better = true },
]
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_SECONDS", 0.05)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def save(out: Path, step: int, score: float = 0.5, documents: int = 1000) -> Path:
    """Write a checkpoint that the toy harness gives this score, on so many documents; with 0 it does not say on how many."""
    path = out / f"checkpoint-{step}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "prepared").write_text(f"{score} {documents}")
    return path


def checkpoint(path: Path, step: int) -> Checkpoint:
    fingerprint = fingerprint_of(path)
    assert fingerprint
    return Checkpoint(path, step, fingerprint)


def run_follow(api: Api, out: Path, *flags: str, request: tuple[str, ...] = REQUEST) -> Result:
    command = ("--address", api.address, "follow", str(out), "--quiet", "0", *request, *flags)
    result = CliRunner().invoke(main, command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def jobs(api: Api) -> list[JobInfo]:
    return list(api.ListJobs(page_size=1000).jobs)


def steps(api: Api) -> list[str]:
    return sorted((job.labels["step"] for job in jobs(api)), key=int)


def evaluate_request(**fields: Any) -> EvaluateRequest:
    model_args = {"pretrained": "{checkpoint}"}
    return EvaluateRequest(
        **{"harness": "toy", "model": "weighs", "tasks": ["t"], "num_gpus": 0, "model_args": model_args} | fields
    )


# The command


def test_what_is_there_is_evaluated_once_and_printed_with_its_results(api: Api, out: Path) -> None:
    for step, score in ((100, 0.25), (200, 0.5)):
        save(out, step, score)
    result = run_follow(api, out, "--once", "--label", "run=x")
    assert result.exit_code == 0, result.stderr
    header, *rows = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["step", "status", "result", "checkpoint", "evaluation"]
    # Both run at once, so either may be the first to end.
    assert sorted(row[:4] for row in rows if row[1] == "COMPLETED") == [
        ["100", "COMPLETED", "t: acc,none 0.2500", "checkpoint-100"],
        ["200", "COMPLETED", "t: acc,none 0.5000", "checkpoint-200"],
    ]
    assert {(job.labels["run"], job.labels["step"]) for job in jobs(api)} == {("x", "100"), ("x", "200")}
    again = run_follow(api, out, "--once", "--label", "run=x")
    assert sorted(line for line in again.stdout.splitlines() if "COMPLETED" in line) == sorted(
        line for line in result.stdout.splitlines() if "COMPLETED" in line
    )
    assert len(jobs(api)) == 2


def test_it_exits_with_1_if_an_evaluation_fails(api: Api, out: Path) -> None:
    save(out, 1)
    assert run_follow(api, out, "--once", request=(*REQUEST, "--model", "fails")).exit_code == 1


def test_a_save_that_crashed_is_not_waited_for_for_ever(api: Api, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_ABANDONED_SECONDS", 0.2)
    save(out, 1)
    (out / "checkpoint-2").mkdir()
    result = run_follow(api, out, "--once")
    assert (result.exit_code, steps(api)) == (1, ["1"])
    assert result.stderr.count("evalrpc: waiting until complete: checkpoint-2\n") == 1
    assert "not evaluated: checkpoint-2" in result.stderr


def test_it_exits_with_1_for_what_was_submitted_with_other_options(api: Api, out: Path) -> None:
    save(out, 1)
    assert run_follow(api, out, "--once", "--label", "run=x").exit_code == 0
    save(out, 2)
    result = run_follow(api, out, "--once", "--label", "run=y")
    assert (result.exit_code, steps(api)) == (1, ["1", "2"])
    assert "checkpoint-1 (step 1) is not evaluated: it was submitted before, with other options" in result.stderr


@pytest.mark.parametrize("flags", [(), ("--step-pattern", r"tokens(\d+)"), ("--every", "2")])
def test_it_exits_with_1_if_nothing_is_evaluated(api: Api, out: Path, flags: tuple[str, ...]) -> None:
    out.mkdir()
    if flags:
        save(out, 1)
    result = run_follow(api, out, "--once", *flags)
    assert result.exit_code == 1
    assert f"nothing was evaluated: no checkpoint in {out} was chosen" in result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model-args", "pretrained=/ckpt"), "nothing in the request names the checkpoint"),
        (("--baseline", "@latest"), "are for --suite"),
        (("--step-pattern", "("), "is no regular expression"),
        (("--every", "0"), "--every"),
        (("--file", "/nowhere"), "--file /nowhere"),
    ],
)
def test_a_command_that_makes_no_sense_says_why(api: Api, out: Path, flags: tuple[str, ...], said: str) -> None:
    result = run_follow(api, out, "--once", *flags)
    assert result.exit_code == 2
    assert said in result.stderr


def test_once_needs_a_folder(api: Api, out: Path) -> None:
    result = run_follow(api, out, "--once")
    assert (result.exit_code, result.stderr) == (
        2,
        f"evalrpc: {out}: No such file or directory; there is nothing to evaluate yet\n",
    )


def test_a_request_that_the_server_refuses_ends_it_with_the_fields(api: Api, out: Path) -> None:
    save(out, 1)
    result = run_follow(api, out, "--once", "--harness", "none")
    assert result.exit_code == 2
    assert "--harness" in result.stderr


def test_a_fall_of_the_run_is_an_alarm_that_is_said_once(api: Api, out: Path) -> None:
    for number, score in enumerate([0.60, 0.61, 0.59, 0.60, 0.62, 0.61, 0.60, 0.59, 0.30, 0.29, 0.31, 0.30]):
        save(out, 100 * number, score)
    result = run_follow(api, out, "--once", "--label", "run=x", "--direction", "higher")
    alarms = [line for line in result.stderr.splitlines() if "alarm" in line]
    assert len(alarms) == 1, result.stderr
    assert alarms[0].startswith("evalrpc: alarm: t/acc,none is worse at step ")
    shown = CliRunner().invoke(
        main, ["--address", api.address, "history", "--label", "run=x", "--trend", "--direction", "higher"]
    )
    assert "\tat " in shown.stdout


def test_a_metric_without_a_direction_is_said_once_to_have_no_alarm(api: Api, out: Path) -> None:
    for step in (1, 2):
        save(out, step)
    result = run_follow(api, out, "--once", "--label", "run=x", "--max-outstanding", "1")
    said = [line for line in result.stderr.splitlines() if "alarm" in line]
    assert said == ["evalrpc: no alarm for t/acc,none: its harness says no direction, and there is no --direction"]


def test_a_suite_ends_with_a_decision_for_each_checkpoint(site: Site, launch: Launch, out: Path) -> None:
    site.config.write_text(site.config.read_text() + SUITE)
    api = launch().api
    save(out, 100, 0.9, documents=0)
    save(out, 200, 0.1, documents=0)
    suite = ("--suite", "release", "--num-gpus", "0", "--harness-model", "toy=weighs,pretrained={checkpoint}")
    result = run_follow(api, out, "--once", "--label", "run=x", request=suite)
    rows = [line.split("\t") for line in result.stdout.splitlines()[1:]]
    assert {(row[0], row[1]) for row in rows if "GO" in row[1]} == {("100", "GO"), ("200", "NO_GO")}, result.output
    assert result.exit_code == 1
    assert len(jobs(api)) == 4
    run_follow(api, out, "--once", "--label", "run=x", request=suite)
    assert len(jobs(api)) == 4


def test_with_another_baseline_each_checkpoint_is_decided_over_anew(site: Site, launch: Launch, out: Path) -> None:
    site.config.write_text(site.config.read_text() + SUITE)
    api = launch().api
    suite = ("--suite", "release", "--num-gpus", "0", "--harness-model", "toy=weighs,pretrained={checkpoint}")
    save(out, 100, 0.9, documents=0)
    assert run_follow(api, out, "--once", request=suite).exit_code == 0
    (main_run,) = {job.suite_run_id for job in jobs(api)}
    for _ in range(2):
        assert run_follow(api, out, "--once", "--baseline", main_run, request=suite).exit_code == 0
    assert len({job.suite_run_id for job in jobs(api)}) == 2


def test_a_baseline_that_moves_on_stays_what_it_was_when_following_began(site: Site, launch: Launch, out: Path) -> None:
    site.config.write_text(site.config.read_text() + SUITE)
    api = launch().api
    suite = ("--suite", "release", "--num-gpus", "0", "--harness-model", "toy=weighs,pretrained={checkpoint}")
    save(out, 100, 0.9, documents=0)
    assert run_follow(api, out, "--once", request=suite).exit_code == 0
    (first_run,) = api.ListSuiteRuns().suite_runs
    for step in (200, 300):
        save(out, step, 0.9, documents=0)
        result = run_follow(api, out, "--once", "--baseline", "@latest", request=suite)
        assert result.exit_code == 0, result.output
    assert f"the baseline stays {first_run.suite_run_id}, which @latest named" in result.stderr
    *followed, _ = api.ListSuiteRuns().suite_runs
    assert {run.submission.baseline_suite_run_id for run in followed} == {first_run.suite_run_id}
    assert [run.submission.labels["step"] for run in followed] == ["300", "100", "200"]


@pytest.fixture
def process(out: Path) -> Iterator[Callable[[Api], "subprocess.Popen[str]"]]:
    """Start the command as a process."""
    started: list[subprocess.Popen[str]] = []

    def start(api: Api) -> "subprocess.Popen[str]":
        command = ("--address", api.address, "follow", str(out), "--quiet", "0", *REQUEST, "--max-outstanding", "3")
        started.append(
            subprocess.Popen(
                (sys.executable, "-m", "evalrpc", *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate(timeout=SECONDS)


def test_nothing_is_lost_or_submitted_twice_when_command_and_server_are_killed(
    site: Site, launch: Launch, out: Path, process: Callable[[Api], "subprocess.Popen[str]"]
) -> None:
    address = lasting_address()
    server: ServerThere = launch("--listen", address)
    for step in range(1, 9):
        save(out, step)
    first = process(server.api)
    eventually(lambda: len(jobs(server.api)) >= 4, "for the first jobs")
    first.kill()
    server.kill()
    server = launch("--listen", address)
    second = process(server.api)
    eventually(lambda: len(jobs(server.api)) >= 6, "for more jobs")
    server.kill()
    save(out, 9)
    server = launch("--listen", address)
    eventually(lambda: steps(server.api) == [str(step) for step in range(1, 10)], "for all jobs")
    eventually(lambda: all(job.status == COMPLETED for job in jobs(server.api)), "for their ends")
    assert second.poll() is None


# What it submits


def test_a_checkpoint_that_was_deleted_has_its_job_cancelled_only_while_that_waits(
    site: Site, launch: Launch, out: Path
) -> None:
    api = launch("--max-running", "1").api
    with EvalClient(api.address) as client:
        running = JobEvaluations(client, evaluate_request(model="weighs_later")).submit(checkpoint(save(out, 1), 1)).id
        api.wait_for(running, RUNNING)
        evaluations = JobEvaluations(client, evaluate_request())
        waiting = evaluations.submit(checkpoint(save(out, 2), 2)).id
        assert api.get(waiting).status == QUEUED
        assert evaluations.give_up(waiting, "the checkpoint was deleted")
        assert api.get(waiting).status == CANCELLED
        assert api.get(waiting).error.message.endswith("the checkpoint was deleted")
        assert not evaluations.give_up(running, "the checkpoint was deleted")
        assert not evaluations.give_up("0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c", "the checkpoint was deleted")
        site.release()
        assert api.wait_for(running, COMPLETED)


def test_placeholders_are_filled_in_wherever_they_are_and_other_braces_stay(api: Api, out: Path) -> None:
    path = save(out, 7)
    model_args = {"pretrained": "{checkpoint}", "nested": [{"name": "{name} of {step}"}], "braces": "{other} {}", "number": 2}
    with EvalClient(api.address) as client:
        evaluation = JobEvaluations(client, evaluate_request(model="good", model_args=model_args), labels={"a": 1}).submit(
            checkpoint(path, 7)
        )
    job = api.get(evaluation.id)
    arguments = job.request.model_args
    assert arguments["pretrained"] == str(path)
    assert arguments["nested"][0]["name"] == "checkpoint-7 of 7"
    assert (arguments["braces"], arguments["number"]) == ("{other} {}", 2)
    assert job.labels == {"a": "1", "step": "7"}


def test_another_evaluation_of_the_same_checkpoint_is_another_job(api: Api, out: Path) -> None:
    one = checkpoint(save(out, 1), 1)
    with EvalClient(api.address) as client:
        first, same, other = (JobEvaluations(client, evaluate_request(tasks=[task])).submit(one).id for task in ("t", "t", "u"))
    assert first == same != other


def suite_evaluations(client: EvalClient, model: str, baseline: str = "") -> SuiteEvaluations:
    toy = EvaluateRequest(model=model, model_args={"pretrained": "{checkpoint}"})
    return SuiteEvaluations(client, "release", EvaluateRequest(num_gpus=0), {"toy": toy}, baseline_suite_run_id=baseline)


@pytest.fixture
def suite_api(site: Site, launch: Launch) -> Api:
    site.config.write_text(site.config.read_text() + SUITE)
    return launch("--max-running", "6").api  # two for the GPUs, and four for jobs without one


def test_nothing_is_decided_before_the_baseline_has_ended(site: Site, suite_api: Api, out: Path) -> None:
    with EvalClient(suite_api.address) as client:
        baseline = suite_evaluations(client, "weighs_later").submit(checkpoint(save(out, 1, 0.9), 1)).id
        evaluations = suite_evaluations(client, "weighs", baseline)
        candidate = checkpoint(save(out, 2, 0.9), 2)
        run = evaluations.submit(candidate).id
        eventually(lambda: client.get_suite_run(run).status == COMPLETED, "for the end of its jobs")
        assert not evaluations.look(run).has_ended
        assert not evaluations.submit(candidate).has_ended
        site.release()
        eventually(lambda: evaluations.look(run).has_ended, "for the end of the baseline's jobs")


def test_a_baseline_that_was_deleted_is_said_and_no_success(suite_api: Api, out: Path) -> None:
    with EvalClient(suite_api.address) as client:
        evaluations = suite_evaluations(client, "weighs")
        baseline = evaluations.submit(checkpoint(save(out, 1, 0.9), 1)).id
        eventually(lambda: evaluations.look(baseline).has_ended, "for the end of the baseline's jobs")
        for job in jobs(suite_api):
            client.delete_job(job.job_id)
        assert not evaluations.give_up(baseline, "the checkpoint was deleted")
    suite = ("--suite", "release", "--num-gpus", "0", "--harness-model", "toy=weighs,pretrained={checkpoint}")
    result = run_follow(suite_api, out, "--once", "--baseline", baseline, request=suite)
    assert result.exit_code == 1
    assert "checkpoint-1 (step 1) is not evaluated: " in result.stderr


# In a training loop


def test_a_training_loop_has_its_checkpoints_evaluated(api: Api, out: Path) -> None:
    with CheckpointEvaluator(evaluate_request(), address=api.address, labels={"run": "x"}) as evaluator:
        for step in (1, 2, 3):
            evaluator.saved(save(out, step), step)
    assert [submitted.step for submitted in evaluator.submitted] == [1, 2, 3]
    assert steps(api) == ["1", "2", "3"]
    result = run_follow(api, out, "--once", "--label", "run=x")
    assert "with other options" not in result.output
    assert len(jobs(api)) == 3, "a follower finds the same jobs"


def test_a_training_loop_has_a_suite_submitted_for_each_checkpoint(suite_api: Api, out: Path) -> None:
    of_harnesses = {"toy": EvaluateRequest(model="weighs", model_args={"pretrained": "{checkpoint}"})}
    given = {"suite": "release", "harness_requests": of_harnesses, "address": suite_api.address}
    with CheckpointEvaluator(EvaluateRequest(num_gpus=0), **given) as evaluator:
        evaluator.saved(save(out, 1, 0.9, documents=0), 1)
    (submitted,) = evaluator.submitted
    (suite_run,) = suite_api.ListSuiteRuns().suite_runs
    assert (submitted.suite_run_id, submitted.job_id) == (suite_run.suite_run_id, "")
    assert dict(suite_run.submission.labels) == {"step": "1"}
    suite = ("--suite", "release", "--num-gpus", "0", "--harness-model", "toy=weighs,pretrained={checkpoint}")
    result = run_follow(suite_api, out, "--once", request=suite)
    assert result.exit_code == 0, result.output
    assert len(suite_api.ListSuiteRuns().suite_runs) == 1, "a follower finds the same run"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"suite": "s", "supersede_key": "k"}, "supersede_key is for jobs"),
        ({"harness_requests": {"toy": EvaluateRequest()}}, "are for a suite"),
        ({"baseline_suite_run_id": "r"}, "are for a suite"),
    ],
)
def test_what_only_a_job_or_only_a_suite_has_is_refused_of_the_other(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CheckpointEvaluator(evaluate_request(), **given)


def test_the_lines_for_a_loop_in_the_docs_do_what_they_say(api: Api, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "CheckpointEvaluator" in block)
    assert len([line for line in lines.splitlines() if line]) <= 10
    monkeypatch.setenv("EVALRPC_ADDRESS", api.address)
    trained: list[int] = []

    def save_to(path: str) -> None:
        save(out, int(path.rpartition("_")[2])).rename(path)

    exec(lines, {"steps": 6, "save_steps": 2, "out": str(out), "train": trained.append, "save": save_to})
    assert trained == [1, 2, 3, 4, 5, 6]
    assert {(job.labels["run"], job.labels["step"], job.request.model_args["pretrained"]) for job in jobs(api)} == {
        ("x", str(step), f"{out}/step_{step}") for step in (2, 4, 6)
    }


def test_a_server_that_is_away_delays_no_training_and_gets_everything_later(
    site: Site, launch: Launch, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = lasting_address()
    with CheckpointEvaluator(evaluate_request(), address=address, retry_seconds=0.05) as evaluator:
        evaluator.saved(save(out, 1), 1)
        evaluator.saved(os.fspath(save(out, 2)), 2)
        eventually(lambda: "is not submitted yet" in caplog.text, "for the warning")
        assert not evaluator.submitted
        server = launch("--listen", address)
        eventually(lambda: len(evaluator.submitted) == 2, "for both submissions")
    assert steps(server.api) == ["1", "2"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_could_not_be_submitted_is_said_at_the_end_and_the_evaluator_can_go_on(
    api: Api, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = CheckpointEvaluator(evaluate_request(), address="127.0.0.1:1", retry_seconds=0.05, finish_seconds=0.1)
    evaluator.saved(save(out, 1), 1)
    eventually(lambda: "is not submitted yet" in caplog.text, "for the warning")
    evaluator.close()
    assert "not evaluated: the checkpoints of the steps 1;" in caplog.text
    caplog.clear()
    evaluator.close()
    assert not caplog.records


def test_a_thread_that_waits_for_an_answer_when_it_is_closed_ends_after_it(out: Path) -> None:
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        evaluator = CheckpointEvaluator(
            evaluate_request(), address=f"127.0.0.1:{silent.getsockname()[1]}", retry_seconds=0.01, finish_seconds=0.05
        )
        evaluator.saved(save(out, 1), 1)
        connection, _ = silent.accept()
        evaluator.close()
    connection.close()
    eventually(
        lambda: not [each for each in threading.enumerate() if each not in before and each.name == "evalrpc-checkpoints"],
        "for the end of the thread",
    )


def test_what_the_server_refuses_and_what_is_gone_is_logged_and_harms_nothing_else(
    api: Api, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointEvaluator(evaluate_request(), address=api.address) as evaluator:
        gone = save(out, 1)
        shutil.rmtree(gone)
        evaluator.saved(gone, 1)
        evaluator.saved(save(out, 2), 2)
    assert "it is gone, empty, not quiet yet, or can't be looked at" in caplog.text
    assert "the steps 1;" in caplog.text
    assert steps(api) == ["2"]
    with CheckpointEvaluator(evaluate_request(harness="none"), address=api.address) as evaluator:
        evaluator.saved(save(out, 3), 3)
    assert "harness" in caplog.text
    assert steps(api) == ["2"]


def test_a_checkpoint_that_other_processes_write_to_is_submitted_once_it_is_quiet(api: Api, out: Path) -> None:
    with CheckpointEvaluator(evaluate_request(), address=api.address) as evaluator:
        evaluator.saved(save(out, 1), 1, quiet_seconds=0.05)
    assert steps(api) == ["1"]


@pytest.mark.parametrize(
    ("request_", "address"), [(EvaluateRequest(model="m", tasks=["t"]), None), (evaluate_request(), "http://a b")]
)
def test_what_can_not_work_is_said_before_the_training_begins(request_: EvaluateRequest, address: str | None) -> None:
    with pytest.raises(ValueError):
        CheckpointEvaluator(request_, address=address)


def test_a_suite_needs_a_placeholder_too(api: Api) -> None:
    with EvalClient(api.address) as client, pytest.raises(ValueError, match="names the checkpoint"):
        SuiteEvaluations(client, "release", EvaluateRequest(model="m"))
