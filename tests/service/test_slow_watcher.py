"""A client that takes its time with the jobs of a watch of all keeps no more than a page of them, and misses nothing."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from lasting_ports import lasting_address
from serving import BOOKMARK, CANCELLED, DELETED, QUEUED, SNAPSHOT, UPDATED, Api, ServerHere, Site

from evalrpc.client import EvalClient, resumable
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "LISTED_AT_ONCE", 1)


@pytest.fixture
def listings(server: ServerHere, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The place at which each page that the server read began."""
    store, read = server.server._store, []
    list_jobs = store.list_jobs

    def note(job_filter: JobFilter, before: int | None, *limits: Any, **options: Any) -> Any:
        read.append(before or 0)
        return list_jobs(job_filter, before, *limits, **options)

    monkeypatch.setattr(store, "list_jobs", note)
    return read


def queued(api: Api, **fields: Any) -> str:
    return api.submit("hangs", request={"num_gpus": 2}, **fields).job_id


@pytest.mark.usefixtures("one_at_a_time")
def test_jobs_are_fetched_as_the_caller_takes_them(api: Api, listings: list[int]) -> None:
    for _ in range(6):
        queued(api)
    with EvalClient(api.address) as client, closing(client.watch_all()) as events:
        next(events)
        next(events)
        assert len(listings) == 2


@pytest.mark.usefixtures("one_at_a_time")
def test_what_changes_between_two_jobs_comes_once_and_after_them(api: Api) -> None:
    queued(api)  # this one runs
    deleted, changed_before, changed_after, left = (queued(api, labels={"a": "1"}) for _ in range(4))
    with EvalClient(api.address) as client, closing(client.watch_all(JobFilter(labels={"a": "1"}))) as events:
        seen = [next(events)]
        assert seen[0].job.job_id == left
        api.UpdateJob(job_id=left, labels={"b": "1"})
        api.UpdateJob(job_id=changed_before, labels={"a": "1", "b": "1"})  # before it is listed: it is listed so
        api.CancelJob(job_id=deleted)
        api.DeleteJob(job_id=deleted)
        seen.append(next(events))
        assert seen[1].job.job_id == changed_after
        last = api.CancelJob(job_id=changed_after)
        seen += [next(events) for _ in range(2)]
        end = queued(api, labels={"a": "1"})
        while seen[-1].job.job_id != end:
            seen.append(next(events))
    snapshots = [event.job for event in seen if event.type == SNAPSHOT]
    assert [job.job_id for job in snapshots] == [left, changed_after, changed_before]
    assert snapshots[2].labels == {"a": "1", "b": "1"}
    assert [event.type for event in seen].index(BOOKMARK) == 3
    later = [(event.type, event.job.job_id) for event in seen[4:-1] if event.type != pb.JOB_EVENT_TYPE_PROGRESS]
    assert (UPDATED, changed_before) not in later, "the listing had it"
    assert (DELETED, left) in later
    assert (DELETED, deleted) in later
    assert (pb.JOB_EVENT_TYPE_STATUS, changed_after) in later
    assert max(event.revision for event in seen if event.job.job_id == changed_after) == last.revision
    revisions = [event.revision for event in seen[4:]]
    assert revisions == sorted(revisions)


@pytest.mark.usefixtures("one_at_a_time")
def test_a_listing_survives_a_restart_of_the_server(site: Site, serve: Callable[..., ServerHere]) -> None:
    server = serve(listen=lasting_address())
    ids = [queued(server.api) for _ in range(4)]
    with EvalClient(server.address) as client, closing(client.watch_all(JobFilter(statuses=[QUEUED]))) as events:
        seen = [next(events)]
        server.start_no_more()
        server.stop()
        again = serve(listen=server.address)
        again.api.CancelJob(job_id=seen[0].job.job_id)
        while not any(event.job.status == CANCELLED or event.type == DELETED for event in seen):
            seen.append(next(events))
    listed = [event.job.job_id for event in seen if event.type == SNAPSHOT]
    assert listed == [job_id for job_id in ids[::-1] if job_id in listed], "each once, newest first"
    assert set(ids[1:]) <= set(listed)


def test_the_first_jobs_of_a_new_server_come_too(api: Api) -> None:
    with EvalClient(api.address) as client, closing(client.watch_all()) as events:
        assert next(events).type == BOOKMARK
        job_id = queued(api)
        assert next(event for event in events if event.revision).job.job_id == job_id
