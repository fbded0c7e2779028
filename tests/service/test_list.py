"""Listing jobs, the queue and the harnesses."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serving import BOOKMARK, CANCELLED, COMPLETED, DELETED, FAILED, QUEUED, RUNNING, Api, ServerHere, Site, fields_of

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter


def ids(jobs: Any) -> list[str]:
    return [job.job_id for job in jobs]


@pytest.fixture
def queued(api: Api) -> list[pb.JobInfo]:
    """Jobs that wait behind one that never ends."""
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    request = {"num_gpus": 1}
    return [
        api.submit("good", labels={"team": "a", "n": str(number)}, request={**request, "tasks": ["t", f"t{number}"]})
        for number in range(7)
    ]


def listed(api: Api, **conditions: Any) -> list[str]:
    return ids(api.ListJobs(filter=JobFilter(**conditions)).jobs)


def test_no_jobs_are_an_empty_list(api: Api) -> None:
    answer = api.ListJobs()
    assert not answer.jobs
    assert not answer.next_page_token


def test_jobs_are_listed_newest_first_with_their_positions(api: Api, queued: list[pb.JobInfo]) -> None:
    jobs = api.ListJobs(filter=JobFilter(statuses=[QUEUED])).jobs
    assert ids(jobs) == ids(queued[::-1])
    assert [job.position_in_queue for job in jobs] == list(range(6, -1, -1))
    assert all(job.wait_reason for job in jobs)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1000, 5000])
def test_pages_together_are_the_whole_list_though_jobs_arrive_meanwhile(api: Api, queued: list[pb.JobInfo], size: int) -> None:
    condition = JobFilter(labels={"team": "a"})
    found: list[str] = []
    token = ""
    while True:
        page = api.ListJobs(filter=condition, page_size=size, page_token=token)
        assert len(page.jobs) <= size
        found += ids(page.jobs)
        token = page.next_page_token
        api.submit("good", labels={"team": "a"}, request={"num_gpus": 1})
        if not token:
            break
    assert found == ids(queued[::-1])


def test_a_page_has_fifty_jobs_unless_told_otherwise(api: Api, queued: list[pb.JobInfo]) -> None:
    for _ in range(50):
        api.submit("good", request={"num_gpus": 1})
    first = api.ListJobs()
    assert len(first.jobs) == 50
    second = api.ListJobs(page_token=first.next_page_token)
    assert len(second.jobs) == 8
    assert not second.next_page_token
    assert len(set(ids(first.jobs) + ids(second.jobs))) == 58


def test_a_token_is_good_only_for_its_filter(api: Api, queued: list[pb.JobInfo]) -> None:
    token = api.ListJobs(page_size=1).next_page_token
    for other in (JobFilter(statuses=[QUEUED]), JobFilter(label_selector="team"), JobFilter(job_id_prefix="0b54")):
        with pytest.raises(grpc.RpcError) as caught:
            api.ListJobs(page_size=1, page_token=token, filter=other)
        assert fields_of(caught.value) == ["page_token"]


def test_a_selection_is_paged_like_any_list(api: Api, queued: list[pb.JobInfo]) -> None:
    selection = JobFilter(label_selector="n notin (2,5),team")
    first = api.ListJobs(filter=selection, page_size=3)
    second = api.ListJobs(filter=selection, page_size=3, page_token=first.next_page_token)
    wanted = [job for job in queued[::-1] if job.labels["n"] not in ("2", "5")]
    assert ids(first.jobs) + ids(second.jobs) == ids(wanted)
    assert not second.next_page_token


def test_a_token_is_good_only_for_its_view(api: Api, queued: list[pb.JobInfo]) -> None:
    token = api.ListJobs(page_size=1, view=pb.JOB_VIEW_BASIC).next_page_token
    assert api.ListJobs(page_size=1, view=pb.JOB_VIEW_BASIC, page_token=token).jobs
    with pytest.raises(grpc.RpcError) as caught:
        api.ListJobs(page_size=1, page_token=token)
    assert fields_of(caught.value) == ["page_token"]


def test_the_basic_view_leaves_out_log_tails(api: Api) -> None:
    job = api.run("fails")
    assert list(api.ListJobs(view=pb.JOB_VIEW_FULL).jobs) == list(api.ListJobs().jobs) == [job]
    assert job.error.log_tail
    job.error.ClearField("log_tail")
    assert list(api.ListJobs(view=pb.JOB_VIEW_BASIC).jobs) == [job]


def test_a_view_that_is_not_known_is_the_clients_fault(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.ListJobs(view=9, filter=JobFilter(statuses=[99]))
    assert fields_of(caught.value) == ["filter.statuses[0]", "view"]


def test_all_pages_have_the_revision_of_the_first(api: Api, queued: list[pb.JobInfo]) -> None:
    page = api.ListJobs(page_size=3)
    head = page.revision
    assert head == api.head()
    while page.next_page_token:
        api.submit("good", request={"num_gpus": 1})
        page = api.ListJobs(page_size=3, page_token=page.next_page_token)
        assert page.revision == head
    assert api.ListJobs().revision == api.head() > head


def test_what_changes_while_a_page_is_read_comes_to_whoever_watches_on(
    server: ServerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, store = server.api, server.server._store
    done = [api.run("good", labels={"a": "1"}) for _ in range(4)]
    changes = {
        1: lambda: api.UpdateJob(job_id=done[3].job_id, labels={"a": "1", "b": "1"}),
        2: lambda: (api.DeleteJob(job_id=done[2].job_id), api.UpdateJob(job_id=done[0].job_id, labels={"a": "2"})),
    }
    read = store.list_jobs

    def read_and_be_overtaken(*arguments: Any, **options: Any) -> Any:
        page = read(*arguments, **options)
        if changes:
            changes.pop(3 - len(changes))()
        return page

    monkeypatch.setattr(store, "list_jobs", read_and_be_overtaken)
    jobs, stream = list_and_watch(api, JobFilter(labels={"a": "1"}))
    assert not changes, "it was overtaken on both pages"
    monkeypatch.undo()
    final = {job.job_id: job.revision for job in api.ListJobs(filter=JobFilter(labels={"a": "1"})).jobs}
    assert follow(jobs, stream, api.head()) == final


@pytest.mark.parametrize("conditions", [{}, {"labels": {"a": "1"}}, {"statuses": [QUEUED, CANCELLED], "labels": {"a": "1"}}])
def test_listing_and_then_watching_misses_nothing_while_others_write(api: Api, conditions: dict[str, Any]) -> None:
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    stop = threading.Event()

    def write(seed: int) -> None:
        dice = random.Random(seed)
        mine: list[str] = []
        while not stop.is_set():
            if len(mine) < 8:
                mine.append(api.submit("good", labels={"a": str(dice.randrange(2))}, request={"num_gpus": 1}).job_id)
            job_id = dice.choice(mine)
            step = dice.randrange(4)
            if step < 2:
                api.UpdateJob(job_id=job_id, labels={"a": str(dice.randrange(2)), "n": str(dice.random())})
            elif step == 2:
                api.CancelJob(job_id=job_id)
            else:
                api.CancelJob(job_id=job_id)
                api.DeleteJob(job_id=job_id)
                mine.remove(job_id)

    job_filter = JobFilter(**conditions)
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, seed) for seed in range(3)]
        try:
            listings = [list_and_watch(api, job_filter) for _ in range(10)]
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    head = api.head()
    final = {job.job_id: job.revision for job in api.ListJobs(filter=job_filter, page_size=1000).jobs}
    for jobs, stream in listings:
        assert follow(jobs, stream, head) == final


def list_and_watch(api: Api, job_filter: JobFilter) -> tuple[dict[str, int], Any]:
    """Return what pages list, by job its revision, and a watch from their revision on."""
    jobs: dict[str, int] = {}
    token = ""
    while True:
        page = api.ListJobs(filter=job_filter, page_size=3, page_token=token)
        jobs |= {job.job_id: job.revision for job in page.jobs}
        token = page.next_page_token
        if not token:
            heartbeat = Duration(nanos=100_000_000)
            return jobs, api.WatchJobs(filter=job_filter, after_revision=page.revision, heartbeat_interval=heartbeat)


def follow(jobs: dict[str, int], stream: Any, head: int) -> dict[str, int]:
    """Apply a watch's events up to a revision."""
    for event in stream:
        if event.type == DELETED:
            jobs.pop(event.job.job_id, None)
        elif event.HasField("job"):
            jobs[event.job.job_id] = event.job.revision
        if event.type == BOOKMARK and event.revision >= head:
            break
    stream.cancel()
    return jobs


def test_every_filter_narrows_the_list(api: Api) -> None:
    good = api.run("good", labels={"team": "a", "x": "1"})
    bad = api.run("fails", labels={"team": "a"}, request={"tasks": ["other"]})
    assert listed(api) == [bad.job_id, good.job_id]
    assert listed(api, statuses=[COMPLETED]) == [good.job_id]
    assert listed(api, statuses=[COMPLETED, FAILED]) == [bad.job_id, good.job_id]
    assert listed(api, labels={"team": "a"}) == [bad.job_id, good.job_id]
    assert listed(api, labels={"team": "a", "x": "1"}) == [good.job_id]
    assert listed(api, label_selector="team=a,x!=1") == [bad.job_id]
    assert listed(api, label_selector="team in (a,b),x") == [good.job_id]
    assert listed(api, label_selector="!team") == []
    assert listed(api, label_selector=" ") == [bad.job_id, good.job_id]
    assert listed(api, job_id_prefix=good.job_id[:8].upper()) == [good.job_id]
    assert listed(api, job_id_prefix=good.job_id, label_selector="!x") == []
    assert listed(api, models=["fails"]) == [bad.job_id]
    assert listed(api, tasks=["t"]) == [good.job_id]
    assert listed(api, harnesses=["toy"]) == [bad.job_id, good.job_id]
    assert listed(api, harnesses=["other"]) == []
    assert listed(api, created_after=bad.created_at) == [bad.job_id]
    assert listed(api, created_before=bad.created_at) == [good.job_id]
    assert listed(api, created_after=Timestamp(seconds=1), created_before=Timestamp(seconds=2)) == []


def test_a_listed_job_is_the_job(api: Api) -> None:
    job = api.run("good")
    assert list(api.ListJobs().jobs) == [job]


def test_the_queue_tells_the_counts_of_every_status(api: Api, queued: list[pb.JobInfo], site: Site) -> None:
    api.CancelJob(job_id=queued[0].job_id)
    api.run("fails")
    queue = api.GetQueue()
    counts = {pb.JobStatus.Name(count.status).removeprefix("JOB_STATUS_"): count.count for count in queue.status_counts}
    assert counts == {"QUEUED": 6, "RUNNING": 1, "CANCELLED": 1, "FAILED": 1}
    assert list(queue.queued_job_ids) == ids(queued[1:])
    assert (queue.max_running, queue.max_queued) == (4, 100_000)
    assert [gpu.id for gpu in queue.gpus] == ["0", "1"]


def test_the_harnesses_are_those_of_the_operator(api: Api) -> None:
    (harness,) = api.ListHarnesses().harnesses
    assert (harness.name, harness.kind, harness.available, harness.unavailable_reason) == ("toy", "command", True, "")
