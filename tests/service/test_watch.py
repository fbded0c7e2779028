"""Watching over the wire: what the contract promises about streams."""

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from serving import (
    BOOKMARK,
    CANCELLED,
    COMPLETED,
    DELETED,
    FAILED,
    PROGRESS,
    QUEUED,
    RUNNING,
    SECONDS,
    SNAPSHOT,
    STATUS,
    TERMINAL,
    UPDATED,
    Api,
    Launch,
    ServerHere,
    Site,
    detail,
    reason_of,
)
from waiting import eventually

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

HEARTBEAT = Duration(nanos=100_000_000)


class Watching:
    """Reads a stream in a thread, and records its events and how it ended."""

    def __init__(self, stream: Iterator[pb.JobEvent]) -> None:
        self.stream = stream
        self.seen: list[pb.JobEvent] = []
        self.error: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.stream:
                self.seen.append(event)
        except grpc.RpcError as error:
            self.error = error

    def end(self) -> list[pb.JobEvent]:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the stream does not end"
        return self.seen

    def leave(self) -> None:
        self.stream.cancel()  # type: ignore[attr-defined]
        self._thread.join(SECONDS)


def statuses(events: list[pb.JobEvent]) -> list[int]:
    return [event.job.status for event in events if event.type in (SNAPSHOT, STATUS)]


def test_a_job_is_watched_from_its_submission_to_its_end(api: Api, site: Site) -> None:
    job = api.submit("slow")
    stream = api.watch(job.job_id)
    seen = [next(stream)]
    site.release()  # not before, or it might have ended when the watch begins
    seen += stream
    assert seen[0].type == SNAPSHOT
    assert seen[-1].terminal
    assert not any(event.terminal for event in seen[:-1])
    assert statuses(seen) in ([QUEUED, RUNNING, COMPLETED], [RUNNING, COMPLETED])
    revisions = [event.revision for event in seen]
    assert revisions == sorted(revisions)
    assert seen[-1].job == api.get(job.job_id)
    assert all(event.HasField("time") for event in seen)


@pytest.mark.parametrize(("model", "status"), [("fails", FAILED), ("killed", FAILED), ("silent", FAILED)])
def test_a_run_that_fails_is_a_call_that_succeeds(api: Api, model: str, status: int) -> None:
    seen = list(api.watch(api.submit(model).job_id))
    assert (seen[-1].job.status, seen[-1].terminal) == (status, True)
    assert seen[-1].job.error.reason


def test_a_job_that_ended_long_ago_is_one_event(api: Api) -> None:
    done = api.run("good")
    (event,) = api.watch(done.job_id)
    assert (event.type, event.terminal, event.job) == (SNAPSHOT, True, done)


def test_progress_comes_between_the_changes(api: Api, site: Site) -> None:
    job = api.submit("on_demand")
    seen: list[pb.JobEvent] = []
    for event in api.watch(job.job_id):
        seen.append(event)
        site.release(str(event.job.progress.done + 1 if event.job.progress.total else 0))
    progress = [event for event in seen if event.type == PROGRESS]
    done = [event.job.progress.done for event in progress]
    assert done == sorted(done)
    assert {1, 2, 3} <= set(done)
    assert progress[-1].job.progress.total == 4
    assert all(event.job.status == RUNNING and not event.terminal for event in progress)
    assert seen[-1].job.progress.done == 4


def test_resuming_after_each_revision_gives_the_rest_exactly_once(api: Api) -> None:
    job = api.run("flaky", max_attempts=2)
    whole = list(api.watch(job.job_id, after_revision=1))
    revisions = [event.revision for event in whole]
    assert statuses(whole) == [RUNNING, QUEUED, RUNNING, COMPLETED]
    for after in revisions[:-1]:
        assert [event.revision for event in api.watch(job.job_id, after_revision=after)] == [r for r in revisions if r > after]
    (last,) = api.watch(job.job_id, after_revision=revisions[-1])
    assert (last.type, last.terminal) == (SNAPSHOT, True)


def test_a_stream_cut_at_any_event_is_resumed_without_a_gap_or_a_double(api: Api) -> None:
    """Even while the job runs: cut after each event, resume from its revision."""
    job = api.submit("flaky", max_attempts=2)
    seen: list[pb.JobEvent] = []
    after = 0
    while not (seen and seen[-1].terminal):
        stream = api.watch(job.job_id, after_revision=after)
        event = next(stream)
        stream.cancel()
        after = event.revision
        seen.append(event)
    changes = [event.revision for event in seen if event.type == STATUS]
    assert changes == sorted(set(changes))
    journal = [event.revision for event in api.watch(job.job_id, after_revision=1)]
    known = seen[0].job.revision
    assert changes == [revision for revision in journal if revision > known]


def test_a_revision_from_another_server_is_in_the_future(api: Api) -> None:
    job = api.run("good")
    for stream in (api.watch(job.job_id, after_revision=9999), api.WatchJobs(after_revision=9999)):
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert reason_of(caught.value) == "REVISION_IN_FUTURE"
        metadata = detail(caught.value, error_details_pb2.ErrorInfo).metadata
        assert metadata["head_revision"] == str(api.head())


def test_a_revision_that_the_journal_no_longer_has_is_compacted(serve: Callable[..., ServerHere]) -> None:
    server = serve(journal_max_events=2)
    api = server.api
    job = api.run("good")
    server.server._store.compact(2, job.created_at).result(SECONDS)
    for stream in (api.watch(job.job_id, after_revision=0), api.watch(job.job_id, after_revision=1)):
        list(stream)
    api.run("good")
    server.server._store.compact(2, job.created_at).result(SECONDS)
    server.stop()  # its events in memory would be served even if the journal has dropped them
    api = serve(journal_max_events=2).api
    for stream in (api.watch(job.job_id, after_revision=1), api.WatchJobs(after_revision=1)):
        with pytest.raises(grpc.RpcError) as caught:
            list(itertools.islice(stream, 100))
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert reason_of(caught.value) == "REVISION_COMPACTED"
        oldest = detail(caught.value, error_details_pb2.ErrorInfo).metadata["oldest_revision"]
        assert oldest == str(api.GetServerInfo().oldest_revision)
    assert list(api.watch(job.job_id))[-1].terminal, "beginning anew is always possible"


def test_heartbeats_come_while_nothing_else_does(api: Api, site: Site) -> None:
    api.wait_for(api.submit("slow", request={"num_gpus": 2}).job_id, RUNNING)
    waiting = api.submit("good", request={"num_gpus": 1})
    stream = api.watch(waiting.job_id, heartbeat_interval=HEARTBEAT)
    first = list(itertools.islice(stream, 4))
    assert [event.type for event in first] == [SNAPSHOT, BOOKMARK, BOOKMARK, BOOKMARK]
    assert not any(event.HasField("job") for event in first[1:])
    assert all(event.revision >= first[0].revision for event in first)
    site.release()
    rest = list(stream)
    assert rest[-1].terminal
    assert [status for status in statuses(rest) if status] == [RUNNING, COMPLETED]


def test_a_watcher_that_leaves_touches_neither_the_job_nor_the_server(server: ServerHere, site: Site) -> None:
    api = server.api
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    watchers = [Watching(api.watch(job.job_id)) for _ in range(20)]
    for watcher in watchers:
        eventually(lambda watcher=watcher: watcher.seen)
    for watcher in watchers[:-1]:
        watcher.leave()
        assert watcher.error is not None
    eventually(lambda: server.server._feed._topics[job.job_id].watcher_count == 1, "for the server to notice")
    assert api.get(job.job_id).status == RUNNING
    site.release()
    assert watchers[-1].end()[-1].job.status == COMPLETED
    eventually(lambda: not server.server._feed._topics)


def test_many_watch_one_job_and_all_see_the_same(api: Api, site: Site) -> None:
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    watchers = [Watching(api.watch(job.job_id)) for _ in range(50)]
    for watcher in watchers:
        eventually(lambda watcher=watcher: watcher.seen)
    site.release()
    ends = [watcher.end()[-1] for watcher in watchers]
    assert all(end.job.status == COMPLETED for end in ends)
    assert len({end.revision for end in ends}) == 1


def test_watching_what_is_cancelled_ends_with_it(api: Api, site: Site) -> None:
    job = api.submit("hangs")
    site.wait_for_log(job.job_id)
    watcher = Watching(api.watch(job.job_id))
    eventually(lambda: watcher.seen)
    api.CancelJob(job_id=job.job_id, reason="enough")
    seen = watcher.end()
    assert (seen[-1].job.status, seen[-1].job.error.message) == (CANCELLED, "enough")
    updates = [event for event in seen if event.type == UPDATED]
    assert [event.job.HasField("cancel_requested_at") for event in updates] == [True], "asking is no change of status"
    assert seen[0].revision < updates[0].revision < seen[-1].revision


def update_labels(api: Api, job_id: str, **labels: str) -> pb.JobInfo:
    return api.UpdateJob(job_id=job_id, labels=labels, update_mask=FieldMask(paths=["labels"]))


def test_updates_come_between_the_changes_and_again_to_whoever_resumes(api: Api, site: Site) -> None:
    job = api.submit("slow", labels={"n": "0"})
    site.wait_for_log(job.job_id)
    watcher = Watching(api.watch(job.job_id))
    eventually(lambda: watcher.seen)
    updated = [update_labels(api, job.job_id, n=str(number)) for number in (1, 2, 3)]
    site.release()
    seen = [event for event in watcher.end() if event.type in (STATUS, UPDATED)]
    assert [(event.job.revision, event.job.labels) for event in seen if event.type == UPDATED] == [
        (job.revision, job.labels) for job in updated
    ]
    first = watcher.seen[0].revision
    for after in range(first, seen[-1].revision):
        assert list(api.watch(job.job_id, after_revision=after)) == [event for event in seen if event.revision > after]


def test_a_job_of_which_nothing_is_left_can_not_be_watched(api: Api) -> None:
    job = api.run("good")
    api.DeleteJob(job_id=job.job_id)
    for after in (0, 1, job.revision, job.revision + 1):
        with pytest.raises(grpc.RpcError) as caught:
            next(api.watch(job.job_id, after_revision=after))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# Many jobs.


def test_all_jobs_are_watched_with_snapshots_a_bookmark_and_then_live(api: Api) -> None:
    done = [api.run("good") for _ in range(2)]
    stream = api.WatchJobs()
    first = [next(stream) for _ in range(3)]
    assert [(event.type, event.job.job_id) for event in first[:2]] == [(SNAPSHOT, job.job_id) for job in done[::-1]]
    assert [event.revision for event in first] == [0, 0, api.head()]
    assert first[2].type == BOOKMARK
    new = api.submit("fails")
    seen: list[pb.JobEvent] = []
    for event in stream:
        seen.append(event)
        if event.terminal:
            break
    stream.cancel()
    assert {event.job.job_id for event in seen} == {new.job_id}
    assert [event.job.status for event in seen if event.type == STATUS] == [QUEUED, RUNNING, FAILED]


def test_a_watch_of_many_jobs_takes_only_what_its_filter_takes(api: Api) -> None:
    stream = api.WatchJobs(filter=JobFilter(labels={"team": "a"}, statuses=list(TERMINAL)))
    assert next(stream).type == BOOKMARK
    api.run("good", labels={"team": "b"})
    mine = api.run("fails", labels={"team": "a"})
    event = next(stream)
    stream.cancel()
    assert (event.job.job_id, event.type, event.terminal) == (mine.job_id, STATUS, True)


def test_a_watch_selects_by_labels_and_by_the_beginning_of_ids(api: Api) -> None:
    mine = api.run("good", labels={"team": "a", "draft": ""})
    other = api.run("good", labels={"team": "a"})
    for selection, job in (
        (JobFilter(label_selector="team=a,draft"), mine),
        (JobFilter(label_selector="team in (a,b),!draft"), other),
        (JobFilter(job_id_prefix=mine.job_id[:20].upper()), mine),
    ):
        for after in (0, 1):  # from the store, and from the events
            stream = api.WatchJobs(filter=selection, after_revision=after)
            seen = {event.job.job_id for event in itertools.takewhile(lambda event: event.type != BOOKMARK, stream)}
            stream.cancel()
            assert seen == {job.job_id}


def test_a_watch_of_many_jobs_is_resumed_without_a_gap_or_a_double(api: Api) -> None:
    for _ in range(3):
        api.run("good")
    head = api.head()
    for after in range(1, head + 1):
        stream = api.WatchJobs(after_revision=after)
        seen = list(itertools.takewhile(lambda event: event.type != BOOKMARK, stream))
        stream.cancel()
        assert [event.revision for event in seen] == list(range(after + 1, head + 1))


def test_deleted_jobs_and_those_that_leave_a_filter_are_deleted_for_their_watchers(api: Api) -> None:
    everything, mine = api.WatchJobs(), api.WatchJobs(filter=JobFilter(labels={"me": "1"}))
    assert next(everything).type == next(mine).type == BOOKMARK
    job = api.run("good", labels={"me": "1"})
    update_labels(api, job.job_id, me="2")
    update_labels(api, job.job_id, me="1")
    api.DeleteJob(job_id=job.job_id)

    def changes(stream: Iterator[pb.JobEvent], count: int) -> list[pb.JobEvent]:
        found = list(itertools.islice((event for event in stream if event.type in (STATUS, UPDATED, DELETED)), count))
        stream.cancel()  # type: ignore[attr-defined]
        return found

    revision = job.revision
    seen = changes(mine, 6)
    assert [event.type for event in seen] == [STATUS, STATUS, STATUS, DELETED, UPDATED, DELETED]
    assert [event.terminal for event in seen[3:]] == [False, True, True], "it only left the filter, came back, was deleted"
    assert [event.job for event in (seen[3], seen[5])] == [
        pb.JobInfo(job_id=job.job_id, revision=revision + step) for step in (1, 3)
    ]
    assert [event.type for event in changes(everything, 6)] == [STATUS, STATUS, STATUS, UPDATED, UPDATED, DELETED]
    resumed = changes(api.WatchJobs(after_revision=1), revision + 2)
    assert {event.type for event in resumed} == {DELETED}, "what is gone is not sent again"
    assert [event.revision for event in resumed] == list(range(2, revision + 4))


def test_a_watch_resumes_over_a_deletion_after_a_restart(launch: Launch) -> None:
    server = launch()
    job, other = server.api.run("good"), server.api.run("good", labels={"a": "1"})
    server.api.DeleteJob(job_id=job.job_id)
    head = server.api.head()
    server.terminate()
    api = launch().api
    assert api.head() == head
    stream = api.WatchJobs(after_revision=1)
    seen = list(itertools.takewhile(lambda event: event.type != BOOKMARK, stream))
    stream.cancel()
    assert [event.revision for event in seen] == list(range(2, head + 1))
    assert [event.job.job_id for event in seen if event.type == DELETED] == [job.job_id] * 3
    assert {event.job.job_id for event in seen if event.type == STATUS} == {other.job_id}


def test_snapshots_can_be_skipped(api: Api) -> None:
    api.run("good")
    stream = api.WatchJobs(skip_snapshots=True)
    first = next(stream)
    assert (first.type, first.revision) == (BOOKMARK, api.head())
    job = api.submit("good")
    assert next(stream).job == pb.JobInfo.FromString(stored(job).SerializeToString())
    stream.cancel()


def stored(job: pb.JobInfo) -> pb.JobInfo:
    """Return a queued job as its event has it."""
    job.ClearField("position_in_queue")
    job.ClearField("wait_reason")
    return job


def test_a_view_leaves_out_what_is_large(api: Api) -> None:
    job = api.run("fails")
    basic = pb.JobInfo.FromString(job.SerializeToString())
    basic.error.ClearField("log_tail")
    assert basic != job
    for view, expected in ((pb.JOB_VIEW_BASIC, basic), (pb.JOB_VIEW_FULL, job), (pb.JOB_VIEW_UNSPECIFIED, job)):
        for after in (0, 2):
            stream = api.WatchJobs(view=view, after_revision=after)
            assert next(stream).job == expected
            stream.cancel()


def test_a_watch_of_all_sees_every_change_of_a_busy_server_once(api: Api) -> None:
    stream = api.WatchJobs()
    assert next(stream).type == BOOKMARK
    with ThreadPoolExecutor(8) as pool:
        ids = {job.job_id for job in pool.map(lambda _: api.submit("good"), range(12))}
    ended: set[str] = set()
    revisions: list[int] = []
    for event in stream:
        if event.type == STATUS:
            revisions.append(event.revision)
        if event.terminal:
            ended.add(event.job.job_id)
        if ended == ids:
            break
    stream.cancel()
    assert revisions == list(range(1, 37))


def test_a_slow_watcher_of_all_costs_the_others_nothing_and_misses_nothing(api: Api) -> None:
    slow, quick = api.WatchJobs(), api.WatchJobs()
    assert next(slow).type == next(quick).type == BOOKMARK
    call = {"request": {"num_gpus": 2}, "labels": {f"l{number}": "x" * 250 for number in range(60)}}
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: api.submit("good", **call), range(300)))
    assert [event.revision for event in itertools.islice((e for e in quick if e.type == STATUS), 302)] == list(range(1, 303))
    assert [event.revision for event in itertools.islice((e for e in slow if e.type == STATUS), 302)] == list(range(1, 303))
    slow.cancel()
    quick.cancel()


# Server shutdown.


def test_a_server_that_stops_ends_its_streams_with_unavailable_and_when_to_come_back(launch: Launch, site: Site) -> None:
    server = launch()
    api = server.api
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    watchers = [Watching(api.watch(job.job_id)), Watching(api.WatchJobs())]
    for watcher in watchers:
        eventually(lambda watcher=watcher: watcher.seen)
    assert server.terminate() == 0
    for watcher in watchers:
        watcher.end()
        assert watcher.error is not None
        assert watcher.error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(watcher.error) == "SERVER_STOPPING"
        assert detail(watcher.error, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0
    last = watchers[0].seen[-1].revision
    api = launch().api
    site.release()
    rest = list(api.watch(job.job_id, after_revision=last))
    assert [event.job.status for event in rest if event.type == STATUS] == [COMPLETED]


def test_a_submission_to_a_server_that_stops_is_unavailable(serve: Callable[..., ServerHere]) -> None:
    server = serve()
    server.server._service.stopping = True
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit("good")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "SERVER_STOPPING"
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


def test_a_revision_seen_before_a_crash_is_good_after_it(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    first = Watching(server.api.watch(job.job_id))
    eventually(lambda: first.seen)
    server.kill()
    first.end()
    api = launch().api
    second = Watching(api.watch(job.job_id, after_revision=first.seen[-1].revision))
    site.release()
    together = [event for event in first.seen + second.end() if event.type in (SNAPSHOT, STATUS)]
    assert [event.job.status for event in together] in ([RUNNING, COMPLETED], [QUEUED, RUNNING, COMPLETED])
    assert api.get(job.job_id).revision == together[-1].revision


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_line_follows_all_jobs_of_a_filter(api: Api, site: Site, as_json: bool) -> None:
    before = api.submit("wait", labels={"run": "x"})
    program = "from evalrpc.cli import main; main()"
    flags = ("--label", "run=x", "--address", api.address, *(["--json"] if as_json else []))
    command = (sys.executable, "-c", program, "watch-all", *flags)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        header = "" if as_json else watching.stdout.readline()
        assert header.split() == [] if as_json else header.startswith("job\t")
        assert before.job_id in watching.stdout.readline()
        api.submit(labels={"run": "other"})
        job = api.submit(labels={"run": "x"})
        lines = list(itertools.takewhile(lambda line: not (job.job_id in line and "COMPLETED" in line), watching.stdout))
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=SECONDS)
    assert (watching.returncode, errors) == (0, "")
    ids = {json.loads(line).get("job", {}).get("job_id", job.job_id) if as_json else line.split()[0] for line in lines}
    assert ids <= {before.job_id, job.job_id}, "the other job is not of the filter"


def test_the_command_line_says_which_jobs_were_changed_and_which_are_gone(api: Api) -> None:
    first, second = api.run("good", labels={"run": "x"}), api.run("good", labels={"run": "x"})
    program = "from evalrpc.cli import main; main()"
    command = (sys.executable, "-c", program, "watch-all", "--label", "run=x", "-L", "run,note", "--address", api.address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().split("\t")[:5] == ["job", "status", "duration", "run", "note"]
        before = [watching.stdout.readline().split("\t") for _ in range(2)]
        update_labels(api, first.job_id, run="x", note="y")
        update_labels(api, first.job_id, run="z")
        api.DeleteJob(job_id=second.job_id)
        after = [watching.stdout.readline().split("\t") for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=SECONDS)
    assert (watching.returncode, errors) == (0, "")
    assert [row[:2] for row in before] == [[job.job_id, "COMPLETED"] for job in (second, first)]
    assert [(row[0], row[1], row[3], row[4]) for row in after] == [
        (first.job_id, "COMPLETED", "x", "y"),
        (first.job_id, "LEFT", "", ""),
        (second.job_id, "DELETED", "", ""),
    ]
