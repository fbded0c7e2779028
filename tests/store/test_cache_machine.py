"""Hits and followers as a machine that hypothesis drives: any order of submissions, ends, deletions and restarts."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from example_count import example_count
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_jobs import CLOCK, OPENERS, SECONDS, new_job

from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.paths import attempt_dir
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server.removals import Removals
from evalrpc.store.base import Store, Submission
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
NODES = nodes_of({"local": ("0", "1")})

keys = st.sampled_from([b"a", b"a", b"b", b""])
supersede_keys = st.sampled_from(["", "", "s", "t"])
numbers = st.integers(0, 50)
priorities = st.integers(-2, 2)


def results_of(job_id: str, attempt: int) -> dict[str, ModelResult]:
    return {"m": ModelResult(results=f"/{job_id}/{attempt}")}


class CacheMachine(RuleBasedStateMachine):
    opener: Callable[..., Store]

    def __init__(self) -> None:
        super().__init__()
        self.data_dir = Path(tempfile.mkdtemp()) / "data"
        self.jobs: list[str] = []
        self.keys: dict[str, bytes] = {}
        self.open()

    def open(self) -> None:
        self.store = type(self).opener(self.data_dir, 1000)
        self.queue = QueueState(lambda: NODES, 0, CLOCK)
        self.queue.load(self.store.queued_rows(), self.store.running_jobs())
        self.store.follow(self.store.position, self.queue.apply)

    # What is there.

    def job(self, job_id: str) -> pb.JobInfo:
        return self.store.job(job_id).parse()

    def all(self) -> list[pb.JobInfo]:
        return [self.job(job_id) for job_id in self.jobs]

    def those(self, *statuses: int) -> list[str]:
        return [job.job_id for job in self.all() if job.status in statuses]

    def pick(self, ids: list[str], number: int) -> list[str]:
        """Return one of the ids, if there are any."""
        return [ids[number % len(ids)]] if ids else []

    def change(self, job_id: str, change: Callable[[pb.JobInfo], None]) -> None:
        self.store.update(job_id, change).result(SECONDS)

    # What happens.

    @rule(key=keys, priority=priorities, supersede_key=supersede_keys, attempts=st.integers(1, 2), count=st.integers(1, 3))
    def submit(self, key: bytes, priority: int, supersede_key: str, attempts: int, count: int) -> None:
        for _ in range(count):
            self.submit_one(key, priority, supersede_key, attempts)

    def submit_one(self, key: bytes, priority: int, supersede_key: str, attempts: int) -> None:
        expected = self.store.find_identical(key, supersede_key) if key else None
        job = new_job(priority=priority, supersede_key=supersede_key, max_attempts=attempts)
        got = self.store.submit(Submission(job, cache_key=key)).result(SECONDS)
        assert (got.job_id, got.priority, got.attempt) == (job.job_id, priority, 0)
        self.jobs.append(got.job_id)
        self.keys[got.job_id] = key
        if expected is None:
            assert (got.status, got.cached_from) == (QUEUED, "")
        elif expected.status == COMPLETED:
            assert (got.status, got.cached_from) == (COMPLETED, expected.cached_from or expected.job_id)
            assert got.started_at == got.completed_at
        else:
            assert (got.status, got.cached_from) == (QUEUED, expected.job_id)

    @rule(number=numbers)
    def start(self, number: int) -> None:
        """Start any that is served, as where several nodes take from the queue."""
        for job_id in self.pick(self.queue.queued_job_ids(100), number):
            self.begin(job_id)

    def begin(self, job_id: str) -> None:
        attempt = self.job(job_id).attempt + 1
        folder = attempt_dir(self.data_dir, job_id, attempt)
        (folder / "output").mkdir(parents=True)
        self.change(job_id, lambda job: transitions.begin_attempt(job, (), str(folder / "output"), CLOCK.now()))

    @rule(number=numbers, how=st.sampled_from(["complete", "complete", "fail", "lose"]))
    def end(self, number: int, how: str) -> None:
        """End any that runs; if none does, the next one."""
        if not self.those(RUNNING):
            self.start(0)
        for job_id in self.pick(self.those(RUNNING), number):
            results = results_of(job_id, self.job(job_id).attempt)
            error = pb.JobError(reason="RUN_LOST" if how == "lose" else "HARNESS_FAILED")
            if how == "complete":
                self.change(job_id, partial(transitions.complete, results=results, now=CLOCK.now()))
            else:
                self.change(job_id, partial(transitions.fail, error=error, now=CLOCK.now()))

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        for job_id in self.pick(self.those(QUEUED, RUNNING), number):
            self.change(job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now()))

    @rule(number=numbers, priority=priorities)
    def set_priority(self, number: int, priority: int) -> None:
        for job_id in self.pick(self.those(QUEUED, RUNNING), number):
            self.change(job_id, lambda job: setattr(job, "priority", priority))

    @rule(number=numbers, dies=st.booleans())
    def delete(self, number: int, dies: bool) -> None:
        """Delete any that has ended; the server may die before it has removed the files."""
        for job_id in self.pick(self.those(*lifecycle.TERMINAL), number):
            if dies:
                self.store.delete(job_id).result(SECONDS)
                self.jobs.remove(job_id)
                self.restart()
            else:
                self.delete_from_store(job_id)

    def delete_from_store(self, job_id: str) -> None:
        deleted = self.store.delete(job_id).result(SECONDS)
        self.jobs.remove(job_id)
        if deleted.files_of:
            Removals(self.store, self.data_dir).remove(deleted.files_of)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()
        Removals(self.store, self.data_dir).remove_orphans()

    # What is always so.

    @invariant()
    def whoever_follows_follows_a_live_job_of_the_same_evaluation_that_follows_nobody(self) -> None:
        for job in self.all():
            if job.status == QUEUED and job.cached_from:
                source = self.job(job.cached_from)
                assert source.status in lifecycle.LIVE
                assert not source.cached_from
                assert self.keys[source.job_id] == self.keys[job.job_id] != b""
                assert source.priority >= job.priority
                assert (job.attempt, list(job.attempts), list(job.gpus)) == (0, [], [])

    @invariant()
    def every_queued_job_is_served_or_follows(self) -> None:
        queued = [job for job in self.all() if job.status == QUEUED]
        served = sorted((job for job in queued if not job.cached_from), key=self.place)
        assert self.queue.queued_job_ids(1000) == [job.job_id for job in served]
        assert self.queue.following_count == len(queued) - len(served)
        assert self.queue.queued_count == len(queued) == self.store.status_counts()[QUEUED]
        rows = {row.job_id: (row.follows, row.priority) for row in self.store.queued_rows()}
        assert rows == {job.job_id: (job.cached_from, job.priority) for job in queued}
        for job in queued:
            described = self.queue.described(job)
            assert described.HasField("position_in_queue") == (not job.cached_from)
            assert described.wait_reason
            assert (described.wait_reason == f"follows job {job.cached_from}") == bool(job.cached_from)

    def place(self, job: pb.JobInfo) -> tuple[int, int]:
        return -job.priority, self.store.job(job.job_id).sequence

    @invariant()
    def a_hit_has_the_results_of_the_attempt_that_it_names_and_nothing_else(self) -> None:
        for job in self.all():
            if job.status == COMPLETED and job.cached_from:
                assert job.results == results_of(job.cached_from, job.cached_from_attempt)
                assert (job.attempt, list(job.attempts)) == (0, [])
                assert self.keys[job.cached_from] == self.keys[job.job_id] != b""
            elif job.status != QUEUED:
                assert (job.cached_from, job.cached_from_attempt) == ("", 0)

    @invariant()
    def files_are_kept_just_as_long_as_a_job_refers_to_them(self) -> None:
        jobs = self.all()
        referred_to = {job.job_id for job in jobs if job.attempt} | {job.cached_from for job in jobs if job.status == COMPLETED}
        folders = self.data_dir / "jobs"
        assert {path.name for path in folders.glob("*")} == referred_to - {""}

    @invariant()
    def every_last_event_is_the_job_as_it_is(self) -> None:
        for job in self.all():
            last = pb.JobEvent.FromString(self.store.events_after(0, 100, job.job_id)[-1].event)
            assert (last.job.status, last.job.revision, last.job.results) == (job.status, job.revision, job.results)
            assert last.terminal == (job.status in lifecycle.TERMINAL)

    def teardown(self) -> None:
        """Whatever happened, everything comes to an end: nobody waits for ever."""
        try:
            while live := self.those(QUEUED, RUNNING):
                for job_id in self.those(RUNNING):
                    self.change(job_id, lambda job: transitions.complete(job, {}, CLOCK.now()))
                for job_id in self.queue.queued_job_ids(1):
                    self.begin(job_id)
                assert self.those(RUNNING) or not self.those(QUEUED), f"{live} wait for ever"
            for job_id in list(self.jobs):
                self.delete_from_store(job_id)
            assert not list((self.data_dir / "jobs").glob("*"))
        finally:
            self.store.close()
            shutil.rmtree(self.data_dir.parent)


class SqliteCacheMachine(CacheMachine):
    opener = staticmethod(OPENERS["sqlite"])


class SharedCacheMachine(CacheMachine):
    opener = staticmethod(OPENERS["shared"])


TestSqliteCache = SqliteCacheMachine.TestCase
TestSharedCache = SharedCacheMachine.TestCase
TestSqliteCache.settings = TestSharedCache.settings = settings(
    max_examples=example_count(40), stateful_step_count=30, deadline=None
)
