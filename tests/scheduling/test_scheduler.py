"""The scheduler with a fake executor: what happens between its threads, made certain."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from google.protobuf.duration_pb2 import Duration
from scheduler_house import CANCELLED, CLOCK, COMPLETED, FAILED, QUEUED, RUNNING, SETTINGS, House
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.errors import RunFailedError, StoreUnavailableError
from evalrpc.executors.base import Resources, RunKey
from evalrpc.harnesses.base import Command, Exit, Run
from evalrpc.harnesses.command import CommandHarness
from evalrpc.jobs import transitions
from evalrpc.scheduling import scheduler, supervisor
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change, Expected, JournalEvent, Submission
from evalrpc.testing.executor import FakeRun, nodes_of
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.scheduler.start()
    yield house
    house.close()


def test_jobs_start_as_gpus_come_free_and_no_gpu_is_given_twice(house: House) -> None:
    jobs = [house.submit() for _ in range(4)]
    first, second = (house.wait_until_running(job_id) for job_id in jobs[:2])
    assert sorted(first.devices + second.devices) == ["0", "1"]
    assert set(house.executor.started) == set(jobs[:2])
    second.finish()
    third = house.wait_until_running(jobs[2])
    assert third.devices == second.devices
    for job_id in jobs:
        house.wait_until_running(job_id).finish()
        assert house.wait_for(job_id, FAILED).error.reason == "HARNESS_FAILED"
    eventually(house.is_empty)
    assert all(run.closed for run in house.executor.runs.values())


def test_a_cancelled_run_is_ended_before_the_job_is_cancelled(house: House) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    house.cancel(job_id)
    assert house.wait_for(job_id, CANCELLED)
    assert run.has_ended
    eventually(house.is_empty)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_job_waits_in_the_queue_for_room_on_the_disk(house: House, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    tries, mkdir = [], Path.mkdir

    def mkdir_of_a_full_disk(folder: Path, *arguments: Any, **options: Any) -> None:
        tries.append(folder)
        if len(tries) < 3:
            raise OSError(number, os.strerror(number))
        mkdir(folder, *arguments, **options)

    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Path, "mkdir", mkdir_of_a_full_disk)
    job_id = house.submit()
    house.wait_until_running(job_id).finish()
    job = house.wait_for(job_id, FAILED)
    assert (job.error.reason, job.attempt) == ("HARNESS_FAILED", 1), "the harness ran, in the first attempt"


def test_a_queued_job_without_room_on_the_disk_can_be_cancelled(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def full(*_: object, **__: object) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Path, "mkdir", full)
    job_id = house.submit()
    assert tried.wait(SECONDS)
    house.cancel(job_id)
    assert house.wait_for(job_id, CANCELLED).attempt == 0
    eventually(house.is_empty)


def test_a_folder_that_can_not_be_made_is_a_start_failure(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    job = house.wait_for(house.submit(), FAILED)
    assert job.error.reason == "START_FAILED"
    assert os.strerror(errno.EROFS) in job.error.message


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_run_that_can_not_be_ended_fails_its_job_and_its_gpus_go_to_nobody(house: House, cancelled: bool) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)

    def refuse(_: float) -> None:
        raise RunFailedError("PROCESS_UNKILLABLE", "process 7 could not be killed")

    run.end = refuse  # type: ignore[method-assign]
    if cancelled:
        house.cancel(job_id)
    else:
        run.finish()
    failed = house.wait_for(job_id, FAILED, CANCELLED)
    assert (failed.status, failed.error.reason) == (FAILED, "PROCESS_UNKILLABLE"), "it must not be CANCELLED while it is there"
    (gpu,) = run.devices
    assert "process 7" in house.executor.quarantined()[gpu]
    assert house.wait_until_running(house.submit()).devices != run.devices
    waiting = house.job(house.submit())
    assert "1 quarantined" in house.queue_state.described(waiting).wait_reason


def test_a_run_that_an_earlier_server_started_is_seen_to_its_end(tmp_path: Path) -> None:
    first = House(tmp_path)
    first.scheduler.start()
    job_id = first.submit()
    run = first.wait_until_running(job_id)
    first.close()
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    run.finish()
    second.wait_for(job_id, FAILED)
    assert second.executor.started == [job_id]
    second.close()


def test_a_running_job_of_another_owner_is_left_alone_and_holds_nothing_of_this_server(tmp_path: Path) -> None:
    house = House(tmp_path, owns=lambda job: job.job_id != "job-1")
    foreign = house.submit(num_gpus=2)
    begin = lambda job: transitions.begin_attempt(job, ("0", "1"), "/out", CLOCK.now())  # noqa: E731
    house.store.update(foreign, begin).result(SECONDS)
    house.executor.leftovers = {foreign}
    house.scheduler.start()
    own = house.submit(num_gpus=2)
    house.wait_until_running(own).finish()
    house.wait_for(own, FAILED)
    eventually(house.is_empty)
    assert house.executor.started == [own]
    assert house.executor.quarantined() == {}
    assert house.job(foreign).status == RUNNING
    house.close()


def test_a_stop_leaves_the_runs_alone(house: House) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    house.scheduler.stop()
    assert not run.has_ended
    assert run.closed
    assert house.job(job_id).status == RUNNING


def test_a_bug_in_the_server_fails_the_job_and_sets_its_gpus_free(house: House) -> None:
    def bug(_: RunKey) -> None:
        raise ZeroDivisionError

    house.executor.on_start = bug
    job_id = house.submit(num_gpus=2)
    failed = house.wait_for(job_id, FAILED)
    assert failed.error.reason == "SERVER_ERROR"
    house.executor.on_start = lambda _: None
    house.wait_until_running(house.submit(num_gpus=2)).finish()
    eventually(house.is_empty)


@pytest.fixture
def immediate_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(scheduler, "_RECHECK_SECONDS", 0.001)


@pytest.mark.usefixtures("immediate_retries")
@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), OSError(errno.EMFILE, "Too many open files"), MemoryError("full")])
def test_a_run_whose_end_can_not_be_proved_fails_its_job_and_its_gpus_come_back_with_the_proof(
    house: House, bug: Exception
) -> None:
    job_id = house.submit(num_gpus=2)
    run = house.wait_until_running(job_id)

    def refuse(*_: object) -> None:
        raise bug

    run.end = refuse  # type: ignore[method-assign]
    run.finish()
    failed = house.wait_for(job_id, FAILED)
    assert failed.error.reason == "PROCESS_UNKILLABLE"
    assert bug.args[-1] in failed.error.message
    assert sorted(house.executor.quarantined()) == ["0", "1"]
    house.executor.can_kill_leftovers = True
    house.wait_until_running(house.submit(num_gpus=2)).finish()
    eventually(house.is_empty)


@pytest.mark.usefixtures("immediate_retries")
def test_a_server_gives_the_gpus_of_a_run_to_nobody_that_an_earlier_one_could_not_end(tmp_path: Path) -> None:
    first = House(tmp_path)
    first.scheduler.start()
    job_id = first.submit(num_gpus=2)
    first.wait_until_running(job_id).finish()
    first.wait_for(job_id, FAILED)
    eventually(first.is_empty)
    first.executor.leftovers = {job_id, "a job of another server"}
    first.close()
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    assert sorted(second.executor.quarantined()) == ["0", "1"]
    waiting = second.submit()
    second.executor.can_kill_leftovers = True
    second.wait_until_running(waiting).finish()
    second.close()


@pytest.mark.usefixtures("immediate_retries")
def test_a_job_that_can_not_be_supervised_ends_whatever_else_fails(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    update = house.store.update

    def refuse(job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected) -> Any:
        tries.append(job_id)
        if len(tries) < 5:
            raise StoreUnavailableError("the disk is full")
        return update(job_id, change, expect)

    def bug(_: RunKey) -> None:
        monkeypatch.setattr(house.store, "update", refuse)
        raise ZeroDivisionError

    house.executor.on_start = bug
    assert house.wait_for(house.submit(), FAILED).error.reason == "SERVER_ERROR"
    assert len(tries) == 5
    eventually(house.is_empty)


@pytest.mark.usefixtures("immediate_retries")
@pytest.mark.parametrize("call", ["end", "exit_status", "step_ends"])
@pytest.mark.parametrize("lack", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_the_server_lacks_for_a_while_costs_a_run_nothing(house: House, call: str, lack: Exception) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    genuine, tries = getattr(run, call), []

    def refuse(*arguments: object) -> object:
        tries.append(arguments)
        if len(tries) < 5:
            raise lack
        return genuine(*arguments)

    setattr(run, call, refuse)
    run.finish()
    assert house.wait_for(job_id, FAILED).error.reason == "HARNESS_FAILED", "what the program itself came to"
    assert house.executor.started == [job_id]
    eventually(house.is_empty)


@pytest.mark.usefixtures("immediate_retries")
def test_where_no_thread_can_be_started_for_a_while_a_run_loses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    start, refused = threading.Thread.start, threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if thread.name != "results" or refused.is_set():
            start(thread)
            return
        refused.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run.finish()
    assert house.wait_for(job_id, FAILED).error.reason == "HARNESS_FAILED"
    assert refused.is_set()


class Threads:
    """Lets worker threads be started, or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.are_lacking = True
        self.refused: list[str] = []
        self._start = threading.Thread.start
        monkeypatch.setattr(scheduler, "_RETRY_SECONDS", 0.01)
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._start_or_refuse(thread))

    def _start_or_refuse(self, thread: threading.Thread) -> None:
        if not self.are_lacking or not thread.name.startswith("run_"):
            return self._start(thread)
        self.refused.append(thread.name)
        raise RuntimeError("can't start new thread")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


def test_a_job_for_which_there_is_no_thread_stays_queued_and_is_tried_again(
    house: House, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = house.submit(), house.submit()
    eventually(lambda: len(threads.refused) > 2)
    assert house.job(first).status == house.job(second).status == QUEUED
    assert house.executor.started == []
    assert "can't start a thread for the job yet: can't start new thread" in caplog.text
    house.store.update(second, lambda job: transitions.cancel(job, CLOCK.now())).result(SECONDS)
    threads.are_lacking = False
    house.wait_until_running(first).finish()
    assert house.wait_for(first, FAILED).error.reason == "HARNESS_FAILED"
    eventually(house.is_empty)
    assert house.executor.started == [first]


def test_a_stop_does_not_wait_for_threads_that_can_not_be_started(house: House, threads: Threads) -> None:
    job_id = house.submit()
    eventually(lambda: threads.refused)
    house.scheduler.stop()
    assert house.job(job_id).status == QUEUED


def test_runs_of_an_earlier_server_go_on_and_are_seen_to_their_ends_once_there_are_threads(
    tmp_path: Path, threads: Threads
) -> None:
    threads.are_lacking = False
    first = House(tmp_path)
    first.scheduler.start()
    jobs = [first.submit() for _ in range(2)]
    runs = [first.wait_until_running(job_id) for job_id in jobs]
    first.close()
    threads.are_lacking = True
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    waiting = second.submit()
    eventually(lambda: len(threads.refused) > 2)
    assert {second.job(job_id).status for job_id in jobs} == {RUNNING}
    assert not second.scheduler.drain(0.0), "what goes on is waited for"
    second.scheduler._draining = second.queue_state.draining = False
    threads.are_lacking = False
    for run in runs:
        run.finish()
    for job_id in jobs:
        second.wait_for(job_id, FAILED)
    second.wait_until_running(waiting).finish()
    second.wait_for(waiting, FAILED)
    *resumed, last = second.executor.started  # each by a thread of its own
    assert (sorted(resumed), last) == (jobs, waiting)
    second.close()


@pytest.mark.usefixtures("immediate_retries")
def test_a_run_that_has_begun_though_its_start_failed_is_not_started_again(house: House) -> None:
    def begin_and_fail(key: RunKey) -> None:
        house.executor.on_start = lambda _: None
        house.executor.runs[key.job_id] = FakeRun(key, Command(("true",)), Resources("local", ("0",)))
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    house.executor.on_start = begin_and_fail
    job_id = house.submit()
    house.wait_until_running(job_id).finish()
    house.wait_for(job_id, FAILED)
    assert house.executor.started == [job_id]


@pytest.mark.usefixtures("immediate_retries")
def test_a_run_that_timed_out_says_so_though_its_end_took_several_tries(house: House) -> None:
    job_id = house.submit(max_attempts=2, timeout=Duration(nanos=1))
    run = house.wait_until_running(job_id)
    tries: list[float] = []

    def end(grace_seconds: float) -> None:
        run.finish()
        tries.append(grace_seconds)
        if len(tries) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    run.end = end  # type: ignore[method-assign]
    assert house.wait_for(job_id, FAILED).error.reason == "TIMED_OUT"


# While results are read.


class SlowHarness(CommandHarness):
    """Takes its time to read results, until it is let go of."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.reading = threading.Event()
        self.go_on = threading.Event()

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> dict[str, ModelResult]:
        self.reading.set()
        assert self.go_on.wait(SECONDS)
        return {"m": ModelResult(results="/r.json")}


@pytest.fixture
def slow_harness(tmp_path: Path) -> Iterator[tuple[House, SlowHarness]]:
    harness = SlowHarness()
    house = House(tmp_path, harness=harness)
    house.scheduler.start()
    yield house, harness
    harness.go_on.set()
    house.close()


def test_a_cancel_is_heard_while_results_are_read(slow_harness: tuple[House, SlowHarness]) -> None:
    house, harness = slow_harness
    job_id = house.submit()
    house.wait_until_running(job_id).finish(0)
    assert harness.reading.wait(SECONDS)
    house.cancel(job_id)
    house.wait_for(job_id, CANCELLED)
    assert not harness.go_on.is_set(), "nobody has waited for the results"
    eventually(house.is_empty)


class SlowReporter(SlowHarness):
    """Takes its time for the results of the tasks that have finished."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0

    def read_finished(self, run: Run, name: str) -> dict[str, ModelResult]:
        self.readers += 1
        self.reading.set()
        assert self.go_on.wait(SECONDS)
        return {}


def test_a_cancel_is_heard_while_the_results_of_tasks_are_read_and_nobody_reads_them_twice_at_a_time(tmp_path: Path) -> None:
    harness = SlowReporter()
    house = House(tmp_path, harness=harness)
    house.executor.on_start = lambda key: (key.attempt_dir / "output" / "log").touch()
    house.scheduler.start()
    job_id = house.submit()
    assert harness.reading.wait(SECONDS)
    house.cancel(job_id)
    house.wait_for(job_id, CANCELLED)
    assert harness.readers == 1
    assert not harness.go_on.is_set()
    harness.go_on.set()
    house.close()


def test_a_stop_is_heard_while_results_are_read_and_leaves_them_to_the_next_server(
    slow_harness: tuple[House, SlowHarness],
) -> None:
    house, harness = slow_harness
    job_id = house.submit()
    house.wait_until_running(job_id).finish(0)
    assert harness.reading.wait(SECONDS)
    house.scheduler.stop()
    assert house.job(job_id).status == RUNNING


def test_results_that_were_read_in_time_complete_the_job(slow_harness: tuple[House, SlowHarness]) -> None:
    house, harness = slow_harness
    job_id = house.submit()
    house.wait_until_running(job_id).finish(0)
    assert harness.reading.wait(SECONDS)
    harness.go_on.set()
    assert house.wait_for(job_id, COMPLETED).results["m"].results == "/r.json"


def test_a_bug_in_a_harness_fails_its_job_alone(slow_harness: tuple[House, SlowHarness]) -> None:
    house, harness = slow_harness

    def bug(*_: object) -> dict[str, ModelResult]:
        raise ZeroDivisionError

    harness.read_results = bug  # type: ignore[method-assign]
    first, second = house.submit(), house.submit()
    house.wait_until_running(first).finish(0)
    assert house.wait_for(first, FAILED).error.reason == "SERVER_ERROR"
    house.wait_until_running(second)
    assert house.job(second).status == RUNNING


def test_a_run_that_can_not_be_started_fails_the_job_and_sets_its_gpus_free(house: House) -> None:
    def refuse(_: RunKey) -> None:
        raise RunFailedError("START_FAILED", "no such program")

    house.executor.on_start = refuse
    job_id = house.submit(num_gpus=2)
    assert house.wait_for(job_id, FAILED).error.message == "no such program"
    eventually(house.is_empty)


def test_a_job_cancelled_while_its_start_is_refused_sets_its_gpus_free(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output_dir is not allowed any more, and between the refusal and its commit the job is cancelled."""
    update = house.store.update
    seen: list[str] = []

    def overtaken(job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected) -> Any:
        if not seen:  # the first that comes is the refusal
            seen.append(job_id)
            update(job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now())).result(SECONDS)
        return update(job_id, change, expect)

    monkeypatch.setattr(house.store, "update", overtaken)
    job = pb.JobInfo(job_id="job-x", max_attempts=1)
    job.request.MergeFrom(pb.EvaluateRequest(harness="h", model="m", tasks=["t"], num_gpus=2, output_dir="elsewhere"))
    house.store.submit(Submission(job)).result(SECONDS)
    assert house.wait_for("job-x", CANCELLED, FAILED).status == CANCELLED
    eventually(house.is_empty, "for the GPUs to be free")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a bug ends the dispatcher, as it should
def test_a_bug_in_the_choice_does_not_leave_a_scheduler_that_starts_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(house.queue_state, "choose", bug)
    house.submit()
    house.scheduler.wait_stopped()  # whoever waits for this ends the server


def test_a_drain_tells_the_jobs_that_wait_why(house: House) -> None:
    run = house.wait_until_running(house.submit(num_gpus=2))
    waiting = house.job(house.submit())
    assert "1 GPU, 0 free" in house.queue_state.described(waiting).wait_reason
    assert not house.scheduler.drain(0.0)
    assert "after the restart" in house.queue_state.described(waiting).wait_reason
    run.finish()
    assert house.scheduler.drain(SECONDS)
    assert house.job(waiting.job_id).status == QUEUED


# What the queue tells the scheduler and the service.


def job_at(status: int, retry_at: int = 0) -> pb.JobInfo:
    job = pb.JobInfo(job_id="job-1", status=status)
    job.created_at.FromSeconds(1)
    if retry_at:
        job.retry_at.FromSeconds(retry_at)
    return job


def test_a_job_that_becomes_ready_between_the_choice_and_the_wait_is_not_forgotten() -> None:
    clock = ManualClock(99.9999)
    state = QueueState(lambda: nodes_of({"local": ("0",)}), 0, clock)
    state.apply([Change(1, job_at(QUEUED, retry_at=100), 1, RUNNING, JournalEvent(1, b"event"))])
    looked_at = state.now_seconds()
    assert state.choose(state.free(), 600.0, {}, looked_at) is None
    clock.seconds = 100.0001
    timeout_seconds = state.seconds_until_ready()
    assert timeout_seconds is not None, "the dispatcher would wait until something else happens"
    assert timeout_seconds <= 0.1


def test_a_queued_job_always_has_a_position_even_if_it_started_meanwhile() -> None:
    state = QueueState(lambda: nodes_of({"local": ("0",)}), 0, ManualClock(5))
    state.apply([Change(1, job_at(RUNNING), 1, QUEUED, JournalEvent(1, b"event"))])
    described = state.described(job_at(QUEUED))
    assert described.HasField("position_in_queue")
    assert described.position_in_queue == 0
