"""Tasks run one after the other: the results of each are available at once, and kept whatever happens to the others."""

import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from serving import CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL, Api, Launch, MovableClock, Site, nothing_left_of
from waiting import eventually

from evalrpc.v1 import jobs_pb2 as pb


def submit(api: Api, *tasks: str, **fields: Any) -> str:
    return api.submit("each", request={"tasks": tasks, "tasks_separately": True}, **fields).job_id


def tasks_of(job: pb.JobInfo) -> list[str]:
    return [metric.task for result in job.results.values() for metric in result.metrics]


def wait_for_tasks(api: Api, job_id: str, *tasks: str) -> pb.JobInfo:
    eventually(lambda: tasks_of(api.get(job_id)) == sorted(tasks), f"for the results of {tasks}")
    return api.get(job_id)


def test_metrics_of_a_task_are_in_the_stream_while_the_next_one_runs(api: Api, site: Site) -> None:
    job_id = submit(api, "good", "slow")
    seen = []
    for event in api.watch(job_id):
        if not event.terminal:
            seen.append(event.job)
            if tasks_of(event.job) == ["good"]:
                site.release()
    assert [tasks_of(job) for job in seen] == sorted(map(tasks_of, seen))
    assert ["good"] in map(tasks_of, seen)
    job = api.get(job_id)
    assert (job.status, tasks_of(job)) == (COMPLETED, ["good", "slow"])
    assert site.starts(job_id) == ["1", "1"]


def test_every_task_has_its_files_and_samples(api: Api, site: Site) -> None:
    site.release()
    job = api.wait_for(submit(api, "slow", "good"), *TERMINAL)
    ((model, result),) = job.results.items()
    output = Path(job.attempts[0].output_dir)
    files = [output / f"task-{number}/toy/20260101_000000_results.json" for number in (1, 2)]
    assert (model, result.results) == ("toy", str(files[0]))
    assert {task.task: task.results for task in result.tasks} == {"slow": "", "good": str(files[1])}
    assert len(result.samples) == 2
    for task in ("slow", "good"):
        rows = api.ListSamples(job_id=job.job_id, task=task).samples
        assert [row["task"] for row in rows] == [task] * 4
    names = [artifact.name for artifact in api.ListArtifacts(job_id=job.job_id).artifacts]
    assert {os.path.relpath(path, output) for path in (*files, *result.samples)} == set(names)


def test_progress_names_the_task_and_adds_up(api: Api, site: Site) -> None:
    job_id = submit(api, "good", "slow", "also_good")
    site.wait_for_log(job_id, "Evaluating: 1/4")
    eventually(lambda: api.get(job_id).progress.done == 5, "for the first step of the second task")
    progress = api.get(job_id).progress
    assert (progress.current_task, progress.total, progress.unit) == ("slow", 8, "items")
    site.release()
    events = [event.job.progress for event in api.watch(job_id)]
    assert [progress.done for progress in events] == sorted(progress.done for progress in events)
    assert (events[-1].current_task, events[-1].done, events[-1].total) == ("also_good", 12, 12)


def test_a_task_that_fails_is_named_and_the_others_are_kept(api: Api) -> None:
    job = api.wait_for(submit(api, "good", "fails", "also_good"), *TERMINAL)
    assert (job.status, tasks_of(job)) == (FAILED, ["also_good", "good"])
    assert (job.error.reason, job.error.exit_code) == ("HARNESS_FAILED", 1)
    assert job.error.message == "fails: ValueError: the dataset is gone"
    assert job.error.log_tail[0] == "about to fail", "what the tasks before and after it wrote is not its own"
    assert job.error.log_tail[-1] == "ValueError: the dataset is gone"
    assert len(api.ListSamples(job_id=job.job_id, task="also_good").samples) == 4


def test_a_job_of_which_only_some_tasks_have_finished_is_not_compared(api: Api) -> None:
    whole, part = api.run("good"), api.wait_for(submit(api, "good", "fails"), FAILED)
    assert tasks_of(part) == ["good"]
    with pytest.raises(grpc.RpcError, match="compare jobs that are COMPLETED"):
        api.CompareJobs(baseline_job_id=whole.job_id, candidate_job_ids=[part.job_id])


def test_the_reason_is_that_of_the_first_and_the_others_are_named(api: Api) -> None:
    job = api.wait_for(submit(api, "silent", "fails", "killed"), *TERMINAL)
    assert (job.status, job.error.reason, dict(job.results)) == (FAILED, "RESULTS_MISSING", {})
    assert job.error.message.startswith("silent: the program left no file")
    assert job.error.message.endswith("; also failed: fails, killed")


def test_what_has_finished_survives_a_crash_of_the_server(launch: Launch, site: Site) -> None:
    first = launch()
    job_id = submit(first.api, "good", "slow", "also_good")
    before = wait_for_tasks(first.api, job_id, "good")
    first.kill()
    second = launch()
    after = second.api.get(job_id)
    assert (after.status, tasks_of(after)) == (RUNNING, ["good"])
    assert after.results == before.results
    site.release()
    job = second.api.wait_for(job_id, *TERMINAL)
    assert (job.status, tasks_of(job), job.attempt) == (COMPLETED, ["also_good", "good", "slow"], 1)
    assert site.starts(job_id) == ["1", "1", "1"]


def test_tasks_go_on_and_are_found_while_no_server_is_there(launch: Launch, site: Site) -> None:
    first = launch()
    job_id = submit(first.api, "slow", "fails", "good")
    site.wait_for_log(job_id)
    first.kill()
    site.release()
    eventually(lambda: nothing_left_of(job_id), "for the run to end by itself")
    job = launch().api.wait_for(job_id, *TERMINAL)
    assert (job.status, tasks_of(job)) == (FAILED, ["good", "slow"])
    assert job.error.message == "fails: ValueError: the dataset is gone"


def test_a_cancel_keeps_what_has_finished_and_starts_nothing_more(api: Api, site: Site) -> None:
    job_id = submit(api, "good", "hangs", "also_good")
    wait_for_tasks(api, job_id, "good")
    site.wait_for_log(job_id)
    api.CancelJob(job_id=job_id)
    job = api.wait_for(job_id, *TERMINAL)
    assert (job.status, tasks_of(job)) == (CANCELLED, ["good"])
    assert site.starts(job_id) == ["1", "1"]
    assert nothing_left_of(job_id)


def test_a_timeout_bounds_all_tasks_together_and_keeps_what_has_finished(api: Api, clock: MovableClock) -> None:
    job_id = submit(api, "good", "hangs", timeout=Duration(seconds=600))
    wait_for_tasks(api, job_id, "good")
    clock.move_ahead(3600)
    job = api.wait_for(job_id, *TERMINAL)
    assert (job.status, job.error.reason, tasks_of(job)) == (FAILED, "TIMED_OUT", ["good"])
    assert nothing_left_of(job.job_id)


def test_a_run_whose_shim_is_killed_says_what_was_not_run(api: Api, site: Site) -> None:
    job_id = submit(api, "good", "hangs", "also_good")
    wait_for_tasks(api, job_id, "good")
    site.wait_for_log(job_id)
    pid = int((site.folder / "data" / "jobs" / job_id / "attempt-1" / "run" / "pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    job = api.wait_for(job_id, *TERMINAL)
    assert (job.status, job.error.reason, tasks_of(job)) == (FAILED, "PROCESS_SIGNALLED", ["good"])
    assert job.error.message == "hangs: the harness was ended by SIGKILL (signal 9); not run: also_good"


def test_a_retry_repeats_only_what_has_not_finished(api: Api, site: Site) -> None:
    job = api.wait_for(submit(api, "good", "flaky", "also_good", max_attempts=2), *TERMINAL)
    assert (job.status, job.attempt, tasks_of(job)) == (COMPLETED, 2, ["also_good", "flaky", "good"])
    assert site.starts(job.job_id) == ["1", "1", "1", "2"]
    (result,) = job.results.values()
    assert {task.task: task.attempt for task in result.tasks} == {"good": 1, "flaky": 2, "also_good": 1}
    assert all("/attempt-2/" in path for path in (result.results, *result.samples)), "it has the files of all tasks"
    names = {artifact.name for artifact in api.ListArtifacts(job_id=job.job_id).artifacts}
    assert names >= {result.results_artifact, *result.sample_artifacts}
    for task in ("good", "flaky", "also_good"):
        assert len(api.ListSamples(job_id=job.job_id, task=task).samples) == 4


def test_what_was_kept_is_found_again_by_a_server_that_starts_during_the_retry(launch: Launch, site: Site) -> None:
    first = launch()
    job_id = submit(first.api, "good", "flaky_then_slow", max_attempts=2)
    eventually(lambda: site.starts(job_id) == ["1", "1", "2"], "for the second attempt")
    eventually(lambda: first.api.get(job_id).attempt == 2 and tasks_of(first.api.get(job_id)) == ["good"], "for what is kept")
    first.kill()
    second = launch()
    site.release()
    job = second.api.wait_for(job_id, *TERMINAL)
    assert (job.status, tasks_of(job)) == (COMPLETED, ["flaky_then_slow", "good"])
    assert site.starts(job_id) == ["1", "1", "2"]


@pytest.mark.parametrize("separately", [True, False])
def test_one_run_for_all_tasks_leaves_its_files_where_it_always_did(api: Api, separately: bool, site: Site) -> None:
    tasks = ["good"] if separately else ["good", "t"]
    job = api.run("good", request={"tasks": tasks, "tasks_separately": separately})
    (result,) = job.results.values()
    assert result.results == f"{job.attempts[0].output_dir}/toy/20260101_000000_results.json"
    assert tasks_of(job) == tasks
    assert site.starts(job.job_id) == ["1"]
