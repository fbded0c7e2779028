"""The feed on its own: real store, real event loop, no network. What watchers see under any interleaving."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pytest
from example_count import example_count
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.clock import SystemClock
from evalrpc.errors import JobNotFoundError, RevisionCompactedError, RevisionInFutureError, ServerStoppingError
from evalrpc.jobs import transitions
from evalrpc.jobs.views import reduce_to_view
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.testing.executor import nodes_of
from evalrpc.testing.shared_store import Database, SharedStore
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.watching import events as events_module
from evalrpc.watching import feed as feed_module
from evalrpc.watching.feed import Feed, Send

SNAPSHOT, STATUS = pb.JOB_EVENT_TYPE_SNAPSHOT, pb.JOB_EVENT_TYPE_STATUS
PROGRESS, BOOKMARK = pb.JOB_EVENT_TYPE_PROGRESS, pb.JOB_EVENT_TYPE_BOOKMARK
UPDATED, DELETED = pb.JOB_EVENT_TYPE_UPDATED, pb.JOB_EVENT_TYPE_DELETED
CLOCK = SystemClock()
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

AnyStore = SqliteStore | SharedStore

_T = TypeVar("_T")


class Watcher:
    """Reads a stream in its own task, and keeps what it saw."""

    def __init__(self, watch: Callable[[Send], Awaitable[None]], after: int) -> None:
        self.after = after
        self.seen: list[pb.JobEvent] = []
        self.error: Exception | None = None
        self._watch = watch
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            await self._watch(self._take)
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error

    async def _take(self, serialized: bytes) -> None:
        self.seen.append(pb.JobEvent.FromString(serialized))
        await self._may_read.wait()

    def pause(self) -> None:
        self._may_read.clear()

    def go_on(self) -> None:
        self._may_read.set()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def end(self) -> list[pb.JobEvent]:
        """Wait until the stream ends by itself."""
        self.go_on()
        await asyncio.wait_for(self.task, SECONDS)
        if self.error is not None:
            raise self.error
        return self.seen

    def statuses(self) -> list[int]:
        return [event.revision for event in self.seen if event.type == STATUS]

    def changes(self) -> list[int]:
        """Return the revisions of all events that have one of their own."""
        return [event.revision for event in self.seen if event.type in (STATUS, UPDATED, DELETED)]


class World:
    """A store and a feed as the server wires them. What is written is written through `writer`."""

    def __init__(self, store: AnyStore, writer: AnyStore, readers: ThreadPoolExecutor) -> None:
        self.store = store
        self.writer = writer
        self.queue_state = QueueState(lambda: nodes_of({"local": ("0",)}), 0, CLOCK)
        self.feed = Feed(store, self.queue_state, CLOCK, readers)
        store.follow(store.position, self.queue_state.apply)
        store.follow(store.position, self.feed.publish)
        self.watchers: list[Watcher] = []
        self.count = 0

    async def submit(self, **fields: Any) -> str:
        self.count += 1
        job = pb.JobInfo(job_id=f"job-{self.count}", max_attempts=9, **fields)
        job.request.model = "m"
        return (await asyncio.wrap_future(self.writer.submit(Submission(job)))).job_id

    async def change(self, job_id: str, change: Callable[[pb.JobInfo], None]) -> pb.JobInfo:
        return await asyncio.wrap_future(self.writer.update(job_id, change))

    async def relabel(self, job_id: str, **labels: str) -> pb.JobInfo:
        return await self.change(job_id, lambda job: transitions.update(job, labels, None))

    async def delete(self, job_id: str) -> pb.JobInfo:
        return await asyncio.wrap_future(self.writer.delete(job_id))

    async def begin(self, job_id: str) -> pb.JobInfo:
        return await self.change(job_id, begin)

    async def finish(self, job_id: str) -> pb.JobInfo:
        await self.begin(job_id)
        return await self.change(job_id, complete)

    def progress(self, job_id: str, done: int) -> None:
        job = self.queue_state.set_progress(job_id, pb.Progress(done=done))
        if job is not None:
            self.feed.publish_progress(job)

    def watch(self, job_id: str, after: int = 0, heartbeat: float | None = None) -> Watcher:
        return self._keep(Watcher(partial(self.feed.watch_job, job_id, after, every(heartbeat)), after))

    def watch_all(
        self,
        after: int = 0,
        heartbeat: float | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
        **conditions: Any,
    ) -> Watcher:
        """Watch all jobs of a filter with these conditions."""
        watch = partial(self.feed.watch_jobs, JobFilter(**conditions), after, every(heartbeat), **options)
        return self._keep(Watcher(watch, after))

    def _keep(self, watcher: Watcher) -> Watcher:
        self.watchers.append(watcher)
        return watcher

    def journal(self, job_id: str | None = None) -> list[pb.JobEvent]:
        return [pb.JobEvent.FromString(event.event) for event in self.writer.events_after(0, 10_000, job_id)]


def every(seconds: float | None) -> Callable[[], float] | None:
    return None if seconds is None else lambda: seconds


def begin(job: pb.JobInfo) -> None:
    transitions.begin_attempt(job, (), "/out", CLOCK.now())


def complete(job: pb.JobInfo) -> None:
    transitions.complete(job, {}, CLOCK.now())


def lose(job: pb.JobInfo) -> None:
    transitions.fail(job, pb.JobError(reason="RUN_LOST"), CLOCK.now())


@contextmanager
def one_writer(data_dir: Path) -> Iterator[tuple[AnyStore, AnyStore]]:
    with closing(SqliteStore(data_dir, CLOCK, 1000)) as store:
        yield store, store


@contextmanager
def another_writer(data_dir: Path) -> Iterator[tuple[AnyStore, AnyStore]]:
    """Give a store that hears of what was written through the other one, later and with gaps."""
    with (
        closing(Database(data_dir, CLOCK, 1000)) as database,
        closing(SharedStore(database)) as store,
        closing(SharedStore(database)) as writer,
    ):
        yield store, writer


Opener = Callable[[Path], AbstractContextManager[tuple[AnyStore, AnyStore]]]


@asynccontextmanager
async def world_in(folder: Path, opener: Opener) -> AsyncIterator[World]:
    with opener(folder / "data") as stores, ThreadPoolExecutor(2) as readers:
        world = World(*stores, readers)
        try:
            yield world
        finally:
            for watcher in world.watchers:
                await watcher.leave()
            await asyncio.sleep(0)
            assert not world.feed._topics, "a watcher that left leaves nothing behind"


def run(folder: Path, scenario: Callable[[World], Awaitable[_T]], opener: Opener = one_writer) -> _T:
    async def play() -> _T:
        async with world_in(folder, opener) as world:
            return await asyncio.wait_for(scenario(world), 3 * SECONDS)

    return asyncio.run(play())


async def until(condition: Callable[[], object]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), SECONDS)


# One job.


def test_a_watcher_sees_the_present_state_then_every_change_then_the_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch(job_id)
        await until(lambda: watcher.seen)
        await world.finish(job_id)
        seen = await watcher.end()
        assert [event.type for event in seen] == [SNAPSHOT, STATUS, STATUS]
        assert [event.job.status for event in seen] == [pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED]
        assert [event.terminal for event in seen] == [False, False, True]
        assert seen[0].job.position_in_queue == 0
        assert seen[1:] == world.journal(job_id)[1:], "watchers get what was committed, byte for byte"

    run(tmp_path, scenario)


def test_a_finished_job_is_one_snapshot_and_the_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        done = await world.finish(job_id)
        (event,) = await world.watch(job_id).end()
        assert (event.type, event.terminal, event.job) == (SNAPSHOT, True, done)

    run(tmp_path, scenario)


def test_resuming_after_any_revision_gives_all_that_came_later_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id, other = await world.submit(), await world.submit()
        await world.begin(job_id)
        await world.begin(other)
        await world.change(job_id, lose)
        await world.finish(job_id)
        of_job = [event.revision for event in world.journal(job_id)]
        for after in range(1, world.store.head_revision + 1):
            seen = await world.watch(job_id, after).end()
            expected = [revision for revision in of_job if revision > after]
            if expected:
                assert [(event.type, event.revision) for event in seen] == [(STATUS, revision) for revision in expected]
            else:
                assert [(event.type, event.terminal) for event in seen] == [(SNAPSHOT, True)], (
                    "never OK without a terminal event"
                )

    run(tmp_path, scenario)


def test_what_the_journal_does_not_have_is_an_error(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.finish(job_id)
        await asyncio.wrap_future(world.store.compact(1, Timestamp()))
        for watch in (lambda after: world.watch(job_id, after), world.watch_all):
            with pytest.raises(RevisionInFutureError):
                await watch(99).end()
        with pytest.raises(RevisionCompactedError):
            await world.watch(job_id, 1).end()
        with pytest.raises(JobNotFoundError):
            await world.watch("nobody").end()

    run(tmp_path, scenario)


def test_progress_is_merged_for_a_slow_watcher_but_no_status_ever_is(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        slow, quick = world.watch(job_id), world.watch(job_id)
        slow.pause()
        await until(lambda: slow.seen and quick.seen)
        await world.begin(job_id)
        for done in range(100):
            world.progress(job_id, done)
            if done % 20 == 0:
                await until(lambda done=done: quick.seen[-1].job.progress.done == done)
        await world.change(job_id, lose)
        await world.finish(job_id)
        await quick.end()
        seen = await slow.end()
        assert slow.statuses() == quick.statuses() == [2, 3, 4, 5]
        assert sum(event.type == PROGRESS for event in seen) <= 1
        assert sum(event.type == PROGRESS for event in quick.seen) >= 5
        done = [event.job.progress.done for event in quick.seen if event.type == PROGRESS]
        assert done == sorted(done)

    run(tmp_path, scenario)


def test_progress_of_an_attempt_never_comes_after_its_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch(job_id)
        await world.begin(job_id)
        world.progress(job_id, 1)
        world.progress(job_id, 2)
        await world.change(job_id, complete)
        seen = await watcher.end()
        assert seen[-1].terminal
        assert [event.type for event in seen if event.job.status == pb.JOB_STATUS_COMPLETED] == [STATUS]

    run(tmp_path, scenario)


def test_a_watcher_that_joins_late_sees_the_latest_progress_in_its_snapshot(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.begin(job_id)
        world.progress(job_id, 7)
        watcher = world.watch(job_id)
        await until(lambda: watcher.seen)
        assert watcher.seen[0].job.progress.done == 7

    run(tmp_path, scenario)


def test_stopping_ends_every_stream_with_the_reason_and_a_delay(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        one, all_of_them = world.watch(job_id), world.watch_all()
        await until(lambda: one.seen and all_of_them.seen)
        world.feed.stop()
        for watcher in (one, all_of_them, world.watch(job_id)):
            with pytest.raises(ServerStoppingError) as caught:
                await watcher.end()
            assert caught.value.retry_delay_seconds

    run(tmp_path, scenario)


def test_a_watcher_gets_what_was_committed_before_the_stop(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch(job_id)
        await until(lambda: watcher.seen)
        watcher.pause()
        await world.finish(job_id)
        await until(lambda: world.feed._head == 3)
        world.feed.stop()
        assert (await watcher.end())[-1].terminal

    run(tmp_path, scenario)


def test_a_heartbeat_comes_when_nothing_else_does(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        one, all_of_them = world.watch(job_id, heartbeat=0.05), world.watch_all(heartbeat=0.05)
        for watcher in (one, all_of_them):
            await until(lambda watcher=watcher: sum(event.type == BOOKMARK for event in watcher.seen) >= 3)
            assert not any(event.HasField("job") or event.terminal for event in watcher.seen if event.type == BOOKMARK)
            assert {event.revision for event in watcher.seen if event.type == BOOKMARK} == {1}

    run(tmp_path, scenario)


# Races, made deterministic.


class SlowReads:
    """Delays reads of a job from disk until the test has done something else; the cache is empty, as after a restart."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.release = threading.Event(), threading.Event()
        read = world.store.job

        def slow(job_id: str) -> bytes:
            serialized = read(job_id)
            self.reading.set()
            assert self.release.wait(SECONDS)
            return serialized

        monkeypatch.setattr(world.store, "job", slow)
        monkeypatch.setattr(world.store, "cached_job", lambda _: None)


def test_a_job_that_ends_while_it_is_read_still_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.begin(job_id)
        reads = SlowReads(world, monkeypatch)
        watcher = world.watch(job_id)
        await until(reads.reading.is_set)
        await world.change(job_id, complete)
        await until(lambda: world.feed._head == 3)
        reads.release.set()
        await until(lambda: watcher.seen)
        await asyncio.wait([watcher.task], timeout=SECONDS)
        assert watcher.task.done(), "the watcher waits for ever for an end that was"
        assert watcher.seen[-1].terminal

    run(tmp_path, scenario)


def test_a_heartbeat_never_claims_an_event_that_was_not_sent(tmp_path: Path) -> None:
    """The timer fires, and an event arrives before the watcher runs."""

    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch(job_id, heartbeat=1000)
        await until(lambda: watcher.seen and world.feed._topics[job_id].waiters.futures)
        committed: list[Any] = []
        world.feed.publish = committed.append  # type: ignore[method-assign]
        world.store._changes._listeners[-1] = committed.append
        await world.begin(job_id)
        for future in world.feed._topics[job_id].waiters.futures:
            future.set_result(None)  # what the timer does
        world.feed._deliver(committed[0])
        await until(lambda: len(watcher.seen) >= 2)
        sent = 0
        for event in watcher.seen:
            if event.type == STATUS:
                sent = event.revision
            if event.type == BOOKMARK:
                assert event.revision < 2 or sent == 2, "who resumes after this bookmark misses revision 2"

    run(tmp_path, scenario)


def test_a_watcher_whose_filter_takes_nothing_still_gets_its_heartbeats(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        watcher = world.watch_all(heartbeat=0.1, labels={"nobody": "has"})
        await until(lambda: watcher.seen)
        while watcher.seen[-1].revision <= 1:  # otherwise it could never resume from a later revision
            await world.submit()
            await asyncio.sleep(0.01)

    run(tmp_path, scenario)


def test_a_watcher_that_resumes_while_events_are_committed_is_never_ahead_of_the_store(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()

        async def commit() -> None:
            for _ in range(60):
                await world.begin(job_id)
                await world.change(job_id, lambda job: (lose(job), job.ClearField("attempts"), setattr(job, "attempt", 0))[0])

        committing = asyncio.create_task(commit())
        while not committing.done():
            watcher = world.watch(job_id, 1)
            await until(lambda watcher=watcher: len(watcher.seen) >= 2 or watcher.error)
            assert watcher.error is None, watcher.error
            await watcher.leave()
        await committing

    run(tmp_path, scenario)


# Many jobs.


def test_all_jobs_come_as_snapshots_then_a_bookmark_then_live(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        ids = [await world.submit() for _ in range(3)]
        await world.finish(ids[0])
        watcher = world.watch_all()
        await until(lambda: len(watcher.seen) == 4)
        assert [(event.type, event.job.job_id, event.revision) for event in watcher.seen[:3]] == [
            (SNAPSHOT, job_id, 0) for job_id in ids[::-1]
        ]
        assert (watcher.seen[3].type, watcher.seen[3].revision) == (BOOKMARK, 5)
        assert watcher.seen[2].terminal
        await world.finish(ids[1])
        new = await world.submit()
        await until(lambda: len(watcher.seen) == 7)
        assert [(event.job.job_id, event.revision) for event in watcher.seen[4:]] == [(ids[1], 6), (ids[1], 7), (new, 8)]

    run(tmp_path, scenario)


def test_progress_that_comes_between_the_snapshots_and_the_bookmark_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        running, ended = [await world.submit() for _ in range(2)]
        for job_id in (running, ended):
            await world.begin(job_id)
        page_of = world.feed._snapshot_page

        async def with_progress(*arguments: Any) -> Any:
            page = await page_of(*arguments)
            if page:
                world.progress(running, 7)
                world.progress(ended, 7)
                await world.change(ended, complete)
            return page

        monkeypatch.setattr(world.feed, "_snapshot_page", with_progress)
        watcher = world.watch_all()
        await until(lambda: any(event.type == PROGRESS for event in watcher.seen))
        assert [event.type for event in watcher.seen[:3]] == [SNAPSHOT, SNAPSHOT, BOOKMARK]
        later = [event for event in watcher.seen[3:] if event.type == PROGRESS]
        assert [(event.job.job_id, event.job.progress.done) for event in later] == [(running, 7)]

    run(tmp_path, scenario)


def test_snapshots_of_all_jobs_are_not_made_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as those for all watchers that come at once would take, no call would be answered."""
    threads = set()
    describe = QueueState.describe

    def noted(*args: Any, **kwargs: Any) -> bytes:
        threads.add(threading.get_ident())
        return describe(*args, **kwargs)

    async def scenario(world: World) -> None:
        await world.submit()
        watchers = [world.watch_all() for _ in range(3)]
        await until(lambda: all(watcher.seen for watcher in watchers))
        assert threads
        assert threading.get_ident() not in threads

    monkeypatch.setattr(QueueState, "describe", noted)
    run(tmp_path, scenario)


def test_a_filter_is_applied_to_snapshots_and_to_each_event(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        mine, other = await world.submit(labels={"me": "1"}), await world.submit()
        labelled = world.watch_all(labels={"me": "1"})
        running = world.watch_all(statuses=[pb.JOB_STATUS_RUNNING])
        await until(lambda: labelled.seen and running.seen and running.seen[-1].type == labelled.seen[-1].type == BOOKMARK)
        await world.finish(mine)
        await world.finish(other)
        await until(lambda: len(running.seen) == 5 and len(labelled.seen) == 4)
        assert [event.job.job_id for event in labelled.seen] == [mine, "", mine, mine]
        assert [(event.type, event.job.job_id) for event in running.seen] == [
            (BOOKMARK, ""),
            (STATUS, mine),
            (DELETED, mine),
            (STATUS, other),
            (DELETED, other),
        ]

    run(tmp_path, scenario)


def test_a_job_that_leaves_a_filter_is_deleted_for_its_watchers_live_and_when_they_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_EVENTS", 2)  # some are read from the journal

    async def scenario(world: World) -> None:
        live = world.watch_all(labels={"me": "1"}, statuses=[pb.JOB_STATUS_QUEUED])
        await until(lambda: live.seen)
        job_id, other = await world.submit(labels={"me": "1"}), await world.submit(labels={"me": "2"})
        await world.relabel(job_id, me="2")
        await world.relabel(job_id, me="3")
        await world.relabel(job_id, me="1", also="x")
        await world.begin(job_id)
        await world.relabel(job_id, me="4")
        await world.finish(other)
        expected = [(STATUS, 1, False), (DELETED, 3, False), (UPDATED, 5, False), (DELETED, 6, False)]
        for after in range(10):
            watcher = world.watch_all(after, labels={"me": "1"}, statuses=[pb.JOB_STATUS_QUEUED]) if after else live
            await until(lambda watcher=watcher: _covered(watcher) >= 9 or len(watcher.seen) > 4)
            seen = [(event.type, event.revision, event.terminal) for event in watcher.seen if event.type != BOOKMARK]
            assert seen == [event for event in expected if event[1] > after]
        for event in live.seen:
            if event.type == DELETED:
                assert event.job == pb.JobInfo(job_id=job_id, revision=event.revision)
                assert event.HasField("time")

    run(tmp_path, scenario)


def test_watchers_of_a_deleted_job_get_its_id_and_nothing_else_of_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        mine, others = world.watch_all(labels={"me": "1"}), world.watch_all(labels={"me": "2"})
        await until(lambda: mine.seen and others.seen)
        job_id = await world.submit(labels={"me": "1"})
        await world.finish(job_id)
        await until(lambda: len(mine.seen) == 4)
        await world.delete(job_id)
        await world.submit(labels={"me": "2"})
        await until(lambda: len(mine.seen) == 5 and len(others.seen) == 2)
        gone = [pb.JobInfo(job_id=job_id, revision=revision) for revision in (1, 2, 3, 4)]
        assert [event.type for event in mine.seen] == [BOOKMARK, STATUS, STATUS, STATUS, DELETED]
        assert mine.seen[-1].job == gone[-1]
        assert mine.seen[-1].terminal
        assert [event.type for event in others.seen] == [BOOKMARK, STATUS], "it was never theirs"
        resumed, anew = world.watch_all(1), world.watch_all()
        await until(lambda: len(resumed.seen) == 5 and len(anew.seen) == 2)
        assert [event.type for event in resumed.seen] == [DELETED, DELETED, DELETED, STATUS, BOOKMARK]
        assert [event.job for event in resumed.seen[:3]] == gone[1:]
        assert [event.type for event in anew.seen] == [SNAPSHOT, BOOKMARK]
        assert job_id.encode() not in anew.seen[0].SerializeToString()
        with pytest.raises(JobNotFoundError):
            await world.watch(job_id, 1).end()

    run(tmp_path, scenario)


def test_a_deletion_that_is_read_from_the_journal_comes_to_every_watcher_since_its_labels_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_EVENTS", 1)

    async def scenario(world: World) -> None:
        job_id = await world.submit(labels={"me": "1"})
        await world.finish(job_id)
        await world.delete(job_id)
        await world.submit(labels={"me": "2"})
        await until(lambda: world.feed._head == 5)
        resumed = world.watch_all(1, labels={"me": "2"})
        await until(lambda: len(resumed.seen) == 5)
        assert [event.type for event in resumed.seen] == [DELETED, DELETED, DELETED, STATUS, BOOKMARK]
        assert [event.job for event in resumed.seen[:3]] == [pb.JobInfo(job_id=job_id, revision=n) for n in (2, 3, 4)]

    run(tmp_path, scenario)


RECENT = pytest.mark.parametrize("recent", [1, 1024], ids=["from the journal", "from memory"])


async def change_jobs_of_two(world: World) -> list[str]:
    """Let alice and bob, in turns, submit, relabel, finish and delete jobs. Return the ids of alice's."""
    jobs: dict[str, list[str]] = {"alice": [], "bob": []}
    for _ in range(3):
        for owner, job_ids in jobs.items():
            job_ids.append(await world.submit(owner=owner))
        for job_ids in jobs.values():
            await world.relabel(job_ids[-1], a="1")
            await world.begin(job_ids[-1])
            world.progress(job_ids[-1], 7)
            await world.change(job_ids[-1], complete)
    for job_ids in jobs.values():
        await world.delete(job_ids[0])
    return jobs["alice"]


@RECENT
@pytest.mark.parametrize("chosen", [({"owner": "alice"}, {}), ({}, {"owners": ["alice", "carol"]})], ids=["shown", "filter"])
def test_a_watcher_of_one_owners_jobs_gets_all_events_of_these_and_none_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent: int, chosen: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_EVENTS", recent)
    options, conditions = chosen

    async def scenario(world: World) -> None:
        live, everything = world.watch_all(options=options, **conditions), world.watch_all()
        await until(lambda: live.seen and everything.seen)
        alices = await change_jobs_of_two(world)
        await until(lambda: len(live.changes()) == 13)
        await until(lambda: len(everything.changes()) == 26)
        assert {event.job.job_id for event in live.seen} == {"", *alices}, "the bookmark names none"
        assert live.changes() == [
            event.revision for event in everything.seen if event.job.job_id in alices and event.type != PROGRESS
        ]
        assert [event.job.job_id for event in live.seen if event.type == DELETED] == [alices[0]]
        head = world.store.head_revision
        for after in range(1, head + 1):
            resumed = world.watch_all(after, options=options, **conditions)
            await until(lambda resumed=resumed: resumed.seen and resumed.seen[-1].type == BOOKMARK)
            assert resumed.changes() == [revision for revision in live.changes() if revision > after]
            assert {event.job.job_id for event in resumed.seen} <= {"", *alices}
            assert resumed.seen[-1].revision == head, "all up to there has been sent, though the last events are another's"
        anew = world.watch_all(options=options, **conditions)
        await until(lambda: anew.seen and anew.seen[-1].type == BOOKMARK)
        assert [event.job.job_id for event in anew.seen] == [*alices[:0:-1], ""]

    run(tmp_path, scenario)


def test_a_filter_of_another_owner_takes_nothing_for_a_watcher_of_one_owners_jobs(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        watcher = world.watch_all(options={"owner": "alice"}, owners=["bob"])
        await until(lambda: watcher.seen)
        await change_jobs_of_two(world)
        last = await world.submit(owner="bob")
        everything = world.watch_all(after=1)
        await until(lambda: any(event.job.job_id == last for event in everything.seen))
        assert [event.type for event in watcher.seen] == [BOOKMARK]

    run(tmp_path, scenario)


def test_a_watcher_of_one_owners_jobs_reads_none_of_others_from_the_journal_and_reads_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_EVENTS", 1)

    async def scenario(world: World) -> None:
        await world.submit(owner="alice")
        for _ in range(10):
            await world.finish(await world.submit(owner="bob"))
        await until(lambda: world.feed._head == 31)
        pages: list[list[str]] = []
        events_after = world.store.events_after

        def read(*given: Any, **options: Any) -> Any:
            page = events_after(*given, **options)
            pages.append([event.owner for event in page])
            return page

        monkeypatch.setattr(world.store, "events_after", read)
        watcher = world.watch_all(1, heartbeat=0.01, options={"owner": "alice"})
        await until(lambda: len(watcher.seen) >= 3)
        assert {(event.type, event.revision) for event in watcher.seen} == {(BOOKMARK, 31)}
        assert pages == [[]]

    run(tmp_path, scenario)


def test_whoever_watches_a_job_while_it_is_deleted_gets_its_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch(job_id)
        await until(lambda: watcher.seen)
        watcher.pause()
        await world.finish(job_id)
        await world.delete(job_id)
        await until(lambda: world.feed._head == 4)
        assert [event.type for event in await watcher.end()] == [SNAPSHOT, STATUS, STATUS]

    run(tmp_path, scenario)


def test_an_update_comes_to_watchers_of_the_job_and_of_all_and_its_progress_stays(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        one, everything = world.watch(job_id), world.watch_all()
        await until(lambda: one.seen and everything.seen and everything.seen[-1].type == BOOKMARK)
        await world.begin(job_id)
        world.progress(job_id, 7)
        await until(lambda: one.seen[-1].type == everything.seen[-1].type == PROGRESS)
        updated = await world.relabel(job_id, a="1")
        for watcher in (one, everything):
            await until(lambda watcher=watcher: watcher.seen[-1].type == PROGRESS and watcher.seen[-2].type == UPDATED)
            assert watcher.seen[-2].job == updated
            progress = watcher.seen[-1].job
            assert (progress.progress.done, progress.revision, dict(progress.labels)) == (7, updated.revision, {"a": "1"})

    run(tmp_path, scenario)


def test_the_labels_of_a_finished_job_can_change_and_its_watchers_still_get_one_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.finish(job_id)
        await world.relabel(job_id, a="1")
        last = await world.relabel(job_id, a="2")
        assert [(event.type, event.revision) for event in await world.watch(job_id, 1).end()] == [(STATUS, 2), (STATUS, 3)]
        for after in (0, 3, 4, 5):
            (event,) = await world.watch(job_id, after).end()
            assert (event.type, event.terminal, event.job, event.revision) == (SNAPSHOT, True, last, 5)
        watcher = world.watch_all(3)
        await until(lambda: len(watcher.seen) == 3)
        assert [(event.type, event.terminal) for event in watcher.seen[:2]] == [(UPDATED, True), (UPDATED, True)]

    run(tmp_path, scenario)


def test_watching_begins_with_the_bookmark_where_snapshots_are_skipped(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        watcher = world.watch_all(options={"skip_snapshots": True})
        await until(lambda: watcher.seen)
        await world.begin(job_id)
        await until(lambda: len(watcher.seen) == 2)
        assert [(event.type, event.revision) for event in watcher.seen] == [(BOOKMARK, 1), (STATUS, 2)]

    run(tmp_path, scenario)


def with_much(job: pb.JobInfo) -> None:
    """End a job with what the basic view leaves out."""
    job.results["m"].results = "/r.json"
    job.results["m"].metrics.add(task="t", metric="acc", value=0.5)
    transitions.fail(job, pb.JobError(reason="R", message="why", log_tail=["line"]), CLOCK.now())


def without_much(event: pb.JobEvent) -> pb.JobEvent:
    event.job.results["m"].ClearField("metrics")
    event.job.error.ClearField("log_tail")
    return event


def test_the_basic_view_leaves_out_metrics_and_log_tails_and_is_made_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[pb.JobInfo] = []

    def reduce(job: pb.JobInfo, view: pb.JobView.ValueType) -> None:
        made.append(job)
        reduce_to_view(job, view)

    monkeypatch.setattr(events_module, "reduce_to_view", reduce)
    basic = {"view": pb.JOB_VIEW_BASIC}

    async def scenario(world: World) -> None:
        full, *few = [world.watch_all(), *(world.watch_all(options=basic) for _ in range(20))]
        await until(lambda: all(watcher.seen for watcher in [full, *few]))
        job_id = await world.submit()
        await world.begin(job_id)
        world.progress(job_id, 1)
        await until(lambda: all(watcher.seen[-1].type == PROGRESS for watcher in [full, *few]))
        assert len(made) == 3
        await world.change(job_id, with_much)
        await until(lambda: all(len(watcher.seen) == 5 for watcher in [full, *few]))
        assert len(made) == 4, "once for each event, however many watch"
        assert full.seen[-1].job.results["m"].metrics
        assert full.seen[-1].job.error.log_tail
        for watcher in few:
            assert watcher.seen[-1] == without_much(pb.JobEvent.FromString(full.seen[-1].SerializeToString()))
            assert watcher.seen[1:4] == full.seen[1:4], "there was nothing to leave out"
        anew, resumed = world.watch_all(options=basic), world.watch_all(1, options=basic)
        await until(lambda: len(anew.seen) == 2 and len(resumed.seen) == 3)
        assert resumed.seen[1] == few[0].seen[-1]
        assert anew.seen[0].job == few[0].seen[-1].job

    run(tmp_path, scenario)


FILTERS: list[dict[str, Any]] = [
    {},
    {"labels": {"a": "1"}},
    {"statuses": [pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING]},
    {"labels": {"a": "1"}, "statuses": [pb.JOB_STATUS_COMPLETED]},
]


def fold(events: list[pb.JobEvent], jobs: Mapping[str, pb.JobInfo]) -> dict[str, pb.JobInfo]:
    """Return what a client makes of the events, beginning with what it had."""
    state = dict(jobs)
    for event in events:
        if event.type == DELETED:
            state.pop(event.job.job_id, None)
        elif event.HasField("job"):
            state[event.job.job_id] = event.job
    return state


@pytest.mark.parametrize("opener", [one_writer, another_writer])
@pytest.mark.parametrize("recent", [1024, 3], ids=["from memory", "from the journal"])
@pytest.mark.parametrize("conditions", FILTERS, ids=["all", "labels", "statuses", "both"])
def test_whoever_resumes_at_any_revision_comes_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: dict[str, Any], recent: int, opener: Opener
) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_EVENTS", recent)

    async def scenario(world: World) -> None:
        live = world.watch_all(**conditions)
        await until(lambda: live.seen)
        first, second, third = [await world.submit(labels={"a": str(number % 2)}) for number in range(3)]
        await world.relabel(first, a="1")
        await world.begin(first)
        await world.relabel(second, b="1")
        await world.change(first, complete)
        await world.relabel(first, a="2")
        await world.finish(second)
        await world.change(third, lambda job: transitions.update(job, None, 7))
        await world.delete(first)
        await world.relabel(second, a="1")
        await world.finish(third)
        await world.relabel(third, a="1")
        await world.delete(second)
        await world.relabel(third, a="1", c="x")
        head = world.writer.head_revision
        await until(lambda: world.feed._head == head)
        anew = world.watch_all(**conditions)
        await until(lambda: anew.seen and anew.seen[-1].type == BOOKMARK)
        final = fold(anew.seen, {})
        await until(lambda: fold(live.seen, {}) == final)
        seen_at_once = [event for event in live.seen if event.type != BOOKMARK]
        for after in range(1, head + 1):
            resumed = world.watch_all(after, **conditions)
            await until(lambda resumed=resumed: resumed.seen and resumed.seen[-1].type == BOOKMARK)
            assert resumed.changes() == sorted(set(resumed.changes()))
            assert all(revision > after for revision in resumed.changes())
            known = fold([event for event in seen_at_once if event.revision <= after], {})
            assert fold(resumed.seen, known) == final, f"after revision {after}"

    run(tmp_path, scenario, opener)


def test_resuming_all_jobs_gives_every_later_event_once_then_a_bookmark(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for _ in range(4):
            await world.finish(await world.submit())
        head = world.store.head_revision
        for after in range(1, head + 1):
            watcher = world.watch_all(after)
            await until(lambda watcher=watcher: watcher.seen and watcher.seen[-1].type == BOOKMARK)
            assert [event.revision for event in watcher.seen] == [*range(after + 1, head + 1), head]

    run(tmp_path, scenario)


def test_a_watcher_of_all_that_falls_far_behind_reads_on_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(feed_module, "_RECENT_EVENTS", 4)
        watcher = world.watch_all()
        await until(lambda: watcher.seen)
        watcher.pause()
        for _ in range(30):
            await world.finish(await world.submit())
        watcher.go_on()
        await until(lambda: len(watcher.statuses()) == 90)
        assert watcher.statuses() == list(range(1, 91))

    run(tmp_path, scenario)


# Arbitrary interleavings.

NUMBER = st.integers(0, 4)
STEP = st.one_of(
    st.tuples(st.just("submit"), NUMBER),
    st.tuples(st.sampled_from(["begin", "complete", "lose", "cancel", "progress", "touch", "label", "delete"]), NUMBER),
    st.tuples(st.sampled_from(["watch", "resume", "watch all", "resume all", "leave", "pause", "go on", "cut"]), NUMBER),
    st.tuples(st.sampled_from(["turn", "turn", "settle"]), NUMBER),
)


class Play:
    """Plays a script without ever waiting for a write, and finally checks everything that was seen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pending: list[asyncio.Future[Any]] = []
        self.single: list[tuple[str, Watcher]] = []
        self.all_of_them: list[Watcher] = []
        self.lines: dict[str, list[pb.JobEvent]] = {}  # what a client that is cut off and resumes puts together

    async def play(self, script: list[tuple[str, int]]) -> None:
        for kind, number in script:
            await self._step(kind, number)
        await self._wind_up()
        self._check()

    async def _step(self, kind: str, number: int) -> None:
        world = self.world
        job_id = f"job-{number + 1}"
        changes = {
            "begin": begin,
            "complete": complete,
            "lose": lose,
            "touch": lambda job: setattr(job, "priority", 1),
            "label": lambda job: transitions.update(job, {"a": str(number), "n": str(len(self.pending))}, None),
        }
        if kind == "submit":
            self.pending.append(asyncio.ensure_future(world.submit()))
        elif kind in changes:
            self.pending.append(asyncio.ensure_future(world.change(job_id, changes[kind])))
        elif kind == "delete":
            self.pending.append(asyncio.ensure_future(world.delete(job_id)))
        elif kind == "cancel":
            self.pending.append(
                asyncio.ensure_future(world.change(job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now())))
            )
        elif kind == "progress":
            world.progress(job_id, number)
        elif kind == "watch":
            self.single.append((job_id, world.watch(job_id)))
        elif kind == "resume":
            head = world.store.head_revision
            if head:
                self.single.append((job_id, world.watch(job_id, max(1, head - number))))
        elif kind == "watch all":
            self.all_of_them.append(world.watch_all())
        elif kind == "resume all":
            head = world.store.head_revision
            if head:
                self.all_of_them.append(world.watch_all(max(1, head - number)))
        elif kind == "turn":
            await asyncio.sleep(0)
        elif kind == "settle":
            await asyncio.sleep(0.002)
        elif world.watchers:
            watcher = world.watchers[number % len(world.watchers)]
            if kind == "pause":
                watcher.pause()
            elif kind == "go on":
                watcher.go_on()
            elif kind in ("leave", "cut"):
                await watcher.leave()
                if kind == "cut" and watcher.seen and watcher.seen[-1].revision:
                    self._resume(watcher)

    def _resume(self, cut: Watcher) -> None:
        """Resume where a watcher was cut off, and join the two streams."""
        for job_id, watcher in self.single:
            if watcher is cut and not cut.seen[-1].terminal:
                again = self.world.watch(job_id, cut.seen[-1].revision)
                again.seen.extend(cut.seen)
                again.after = cut.after
                self.single.remove((job_id, cut))
                self.single.append((job_id, again))
                return

    async def _wind_up(self) -> None:
        await asyncio.gather(*self.pending, return_exceptions=True)
        for number in range(self.world.count):
            job_id = f"job-{number + 1}"
            await asyncio.gather(self.world.begin(job_id), return_exceptions=True)
            await asyncio.gather(self.world.change(job_id, complete), return_exceptions=True)
        for watcher in self.world.watchers:
            watcher.go_on()
        for _, watcher in self.single:
            if not watcher.task.cancelled():
                await asyncio.wait_for(asyncio.wait([watcher.task]), SECONDS)
        head = self.world.writer.head_revision
        for watcher in self.all_of_them:
            if not watcher.task.done() and watcher.error is None:
                await until(lambda watcher=watcher: _covered(watcher) >= head or watcher.error)

    def _check(self) -> None:
        for job_id, watcher in self.single:
            if watcher.task.cancelled():
                continue
            if watcher.error is not None:
                assert isinstance(watcher.error, JobNotFoundError), repr(watcher.error)
                continue
            check_one(watcher, [event for event in self.world.journal() if event.job.job_id == job_id])
        for watcher in self.all_of_them:
            assert watcher.error is None, repr(watcher.error)
            check_all(watcher, self.world.journal())


def _covered(watcher: Watcher) -> int:
    """Return the revision up to which the watcher has seen everything."""
    known = [event.revision for event in watcher.seen]
    known += [event.job.revision for event in watcher.seen if event.type == SNAPSHOT]
    return max(known, default=0)


def check_one(watcher: Watcher, journal: list[pb.JobEvent]) -> None:
    seen = watcher.seen
    assert seen[-1].terminal
    assert not any(event.terminal for event in seen[:-1])
    first = seen[0]
    if watcher.after == 0:
        assert first.type == SNAPSHOT
    known = first.job.revision if first.type == SNAPSHOT else watcher.after
    if first.type == SNAPSHOT and first.terminal and (watcher.after or len(seen) == 1):
        assert len(seen) == 1
    else:
        assert seen[-1].type == STATUS
        assert watcher.changes() == [event.revision for event in journal if known < event.revision <= seen[-1].revision]
    check_states(seen)


def check_all(watcher: Watcher, journal: list[pb.JobEvent]) -> None:
    snapshots = {event.job.job_id: event.job.revision for event in watcher.seen if event.type == SNAPSHOT}
    bookmarks = [index for index, event in enumerate(watcher.seen) if event.type == BOOKMARK]
    changes = watcher.changes()
    assert changes == sorted(set(changes)), "in order, and none twice"
    if not bookmarks:
        return  # it left before its snapshots were complete, so it has to start over
    first = watcher.seen[bookmarks[0]]
    start = watcher.after or first.revision
    end = max([start, *changes])
    expected = [e.revision for e in journal if start < e.revision <= end and e.revision > snapshots.get(e.job.job_id, 0)]
    assert changes == expected
    if not watcher.after:
        before = {event.job.job_id for event in journal if event.revision <= start and event.type != DELETED}
        assert before <= snapshots.keys(), "all that there was came as a snapshot"
    check_states(watcher.seen)


def check_states(seen: list[pb.JobEvent]) -> None:
    """Check that no state of a job is older than one sent before it."""
    latest: dict[str, int] = {}
    for event in seen:
        if event.HasField("job"):
            assert event.job.revision >= latest.get(event.job.job_id, 0)
            latest[event.job.job_id] = event.job.revision


@pytest.mark.parametrize("opener", [one_writer, another_writer])
@settings(
    max_examples=example_count(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(STEP, max_size=50))
def test_whatever_happens_every_watcher_sees_every_change_once_and_in_order(
    opener: Opener, tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int]]
) -> None:
    def scenario(world: World) -> Coroutine[Any, Any, None]:
        return Play(world).play(script)

    run(tmp_path_factory.mktemp("feed"), scenario, opener)


# Another writer.


def test_a_watcher_sees_what_another_server_has_written(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        everything = world.watch_all()
        await until(lambda: everything.seen)
        job_id = await world.submit()
        watcher = world.watch(job_id)
        await world.finish(job_id)
        revisions = [event.revision for event in world.journal()]
        assert revisions == [5, 10, 15], "there are gaps"
        assert (await watcher.end())[-1].terminal
        await until(lambda: everything.statuses() == revisions)
        assert world.queue_state.queued_count == 0

    run(tmp_path, scenario, another_writer)


def test_a_job_that_was_read_ahead_of_its_events_still_brings_each_of_them(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await until(lambda: world.store.head_revision == 5)
        world.store.hold()
        await world.finish(job_id)
        anew, resumed = world.watch(job_id), world.watch(job_id, 5)
        (snapshot,) = await anew.end()
        assert (snapshot.type, snapshot.terminal, snapshot.revision) == (SNAPSHOT, True, 15)
        world.store.release()
        assert [(event.type, event.revision) for event in await resumed.end()] == [(STATUS, 10), (STATUS, 15)]

    run(tmp_path, scenario, another_writer)


def test_a_watcher_that_resumes_after_what_this_server_has_not_heard_of_waits_for_what_follows(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await until(lambda: world.store.head_revision == 5)
        world.store.hold()
        running = await world.begin(job_id)
        one, everything = world.watch(job_id, running.revision), world.watch_all(running.revision)
        await until(lambda: everything.seen)
        done = await world.change(job_id, complete)
        world.store.release()
        assert [event.revision for event in await one.end()] == [done.revision]
        await until(lambda: everything.statuses() == [done.revision])

    run(tmp_path, scenario, another_writer)
