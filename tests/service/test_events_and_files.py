"""What is at plain paths of a real server: events as browsers read them, and files as they are."""

import json
import os
from collections.abc import Callable, Iterator
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from http_calls import Answer, HttpApi, http_of, path_of
from serving import NOWHERE, RUNNING, SECONDS, ServerHere, Site
from waiting import eventually

Serve = Callable[..., ServerHere]
MIB = 2**20
EVENT_SOURCE = {"accept": "text/event-stream"}


class Event(NamedTuple):
    id: str
    name: str
    data: Any


def events_of(answer: HTTPResponse) -> Iterator[Event]:
    """Read events as a browser does."""
    fields: dict[str, str] = {}
    while line := answer.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif fields:
            yield Event(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}


@pytest.fixture
def server(serve: Serve) -> ServerHere:
    return serve(http_listen="127.0.0.1:0")


@pytest.fixture
def http(server: ServerHere) -> HttpApi:
    return http_of(server)


def test_events_have_the_revision_as_their_id_and_are_resumed_from_it(server: ServerHere, site: Site, http: HttpApi) -> None:
    job = server.api.submit("slow")
    server.api.wait_for(job.job_id, RUNNING)
    with http.opened("GET", f"/v1/events?job_id={job.job_id}") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = events_of(answer)
        first = next(events)
        site.release()
        rest = list(events)
    assert first.data["job"]["jobId"] == job.job_id
    assert all(event.id == event.data["revision"] for event in [first, *rest])
    assert rest[-1].data["terminal"]
    after = {"last-event-id": first.id, **EVENT_SOURCE}
    with http.opened("GET", f"/v1/events?job_id={job.job_id}", headers=after) as answer:
        assert list(events_of(answer))[-1] == rest[-1]
    done = http.get(f"/v1/events?job_id={job.job_id}", **EVENT_SOURCE, **{"last-event-id": rest[-1].id})
    assert (done.status, done.body) == (204, b""), "a browser would come back for ever"


def test_a_job_that_has_ended_is_not_said_again_and_what_was_changed_since_is(server: ServerHere, http: HttpApi) -> None:
    job_id, _ = server.api.run().job_id, server.api.run()
    path = f"/v1/events?job_id={job_id}"

    def after(revision: str) -> list[Event]:
        with http.opened("GET", path, headers={"last-event-id": revision, **EVENT_SOURCE}) as answer:
            assert answer.status in (200, 204)
            return list(events_of(answer))

    (snapshot,) = after("0")
    assert int(snapshot.id) > server.api.get(job_id).revision, "the other job has moved it on"
    assert http.get(path, **EVENT_SOURCE, **{"last-event-id": snapshot.id}).status == 204, "a browser would come back for ever"
    server.api.UpdateJob(job_id=job_id, labels={"a": "b"})
    (changed,) = after(snapshot.id)
    assert changed.data["job"]["labels"] == {"a": "b"}
    assert after(changed.id) == []


def test_all_jobs_are_filtered_by_parameters(server: ServerHere, http: HttpApi) -> None:
    red = server.api.submit("hangs", labels={"team": "red"})
    server.api.submit("hangs", labels={"team": "blue"})
    server.api.wait_for(red.job_id, RUNNING)
    statuses = "statuses=JOB_STATUS_RUNNING&statuses=JOB_STATUS_QUEUED"
    query = f"label_selector={quote('team=red')}&{statuses}&view=JOB_VIEW_BASIC"
    with http.opened("GET", f"/v1/events?{query}") as answer:
        snapshot, bookmark = (event for event, _ in zip(events_of(answer), range(2), strict=False))
    assert (snapshot.id, snapshot.data["job"]["jobId"]) == ("", red.job_id)
    assert (bookmark.id, bookmark.data["type"]) == (bookmark.data["revision"], "JOB_EVENT_TYPE_BOOKMARK")


def test_where_the_journal_does_not_reach_back_it_begins_anew(server: ServerHere, http: HttpApi) -> None:
    job = server.api.run()
    server.api.submit("hangs")
    server.server._store.compact(1, job.created_at).result(SECONDS)
    for query, revision in (("", "999999"), (f"?job_id={job.job_id}", "1"), (f"?job_id={job.job_id}", "999999")):
        with http.opened("GET", f"/v1/events{query}", headers={"last-event-id": revision, **EVENT_SOURCE}) as answer:
            assert next(events_of(answer)).data["type"] == "JOB_EVENT_TYPE_SNAPSHOT"


def test_what_is_new_after_a_gap_in_the_journal_is_not_passed_over(server: ServerHere, http: HttpApi) -> None:
    job = server.api.submit("hangs")
    headers = {"last-event-id": "999999", **EVENT_SOURCE}
    with http.opened("GET", "/v1/events?skip_snapshots=true", headers=headers) as answer:
        assert next(events_of(answer)).data["job"]["jobId"] == job.job_id


def test_a_body_beside_a_query_is_not_passed_over(http: HttpApi) -> None:
    for path in (path_of("ListJobs"), f"/v1/jobs/{NOWHERE}/log", "/v1/events"):
        for headers in ({"content-length": "2"}, {"transfer-encoding": "chunked"}):
            answer = http.get(path, **headers)  # before any of it is sent
            assert (answer.status, "has a body" in answer.json["message"]) == (400, True)


def test_only_a_get_is_answered(http: HttpApi) -> None:
    for path in ("/v1/events", f"/v1/jobs/{NOWHERE}/log", f"/v1/jobs/{NOWHERE}/artifacts/x", f"/v1/jobs/{NOWHERE}/media/0"):
        for method in ("HEAD", "POST", "DELETE", "OPTIONS"):
            answer = http.request(method, path)
            assert (answer.status, answer.headers["allow"]) == (405, "GET"), (method, path)


def test_what_the_parameters_get_wrong_is_named(http: HttpApi) -> None:
    for query, field in (
        ("colour=red", "colour"),
        ("after_revision=soon", "after_revision"),
        ("skip_snapshots=perhaps", "skip_snapshots"),
        ("view=all", "view"),
        ("created_after=2026-01-01", "created_after: can't be '2026-01-01': it must be a time such as 2026-01-31T12:00:00Z"),
        ("heartbeat_interval=5", "heartbeat_interval: can't be '5': it must be a duration such as 90s"),
        ("filter=x", "filter"),
        ("labels=x", "labels"),
        ("job_id=x", "job_id"),
        (f"job_id={NOWHERE}&job_id={NOWHERE}", "job_id: is named more than once"),
        ("after_revision=1&after_revision=2", "after_revision: is named more than once"),
        (f"job_id={NOWHERE}&view=JOB_VIEW_BASIC", "view"),
    ):
        answer = http.get(f"/v1/events?{query}", **EVENT_SOURCE)
        assert (answer.status, answer.json["code"]) == (400, "invalid_argument")
        assert field in answer.json["message"]
    assert http.get(f"/v1/events?job_id={NOWHERE}", **EVENT_SOURCE).status == 404


def test_a_stream_that_the_server_ends_says_so(server: ServerHere, http: HttpApi) -> None:
    with http.opened("GET", "/v1/events") as answer:
        events = events_of(answer)
        assert next(events).name == "message"
        server.server._feed.stop()
        *_, last = events
    assert (last.name, last.data["code"]) == ("failure", "unavailable")


def test_a_browser_without_room_for_it_is_told_in_an_event_to_come_back(serve: Serve) -> None:
    http = http_of(serve(http_listen="127.0.0.1:0", max_streams=1))
    with http.opened("GET", "/v1/events") as answer:
        assert answer.read(1)
        refused, waits = http.get("/v1/events"), http.get("/v1/events", **EVENT_SOURCE)
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert (waits.status, waits.body.splitlines()[:2]) == (200, [b"event: failure", b"retry: 1000"])


# Files


@pytest.fixture
def files(server: ServerHere, site: Site) -> tuple[str, Path]:
    """A job that runs, and its output folder."""
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    return job.job_id, Path(server.api.get(job.job_id).attempts[0].output_dir)


def is_inert(answer: Answer) -> bool:
    headers = answer.headers
    return (
        headers["content-disposition"].startswith("attachment; ")
        and headers["x-content-type-options"] == "nosniff"
        and "sandbox" in headers["content-security-policy"]
    )


def test_a_file_is_sent_as_it_is_and_never_as_a_page(http: HttpApi, files: tuple[str, Path]) -> None:
    job_id, folder = files
    for name, content in (("page.html", b"<script>alert(1)</script>"), ("ä b/x.svg", b"<svg/>"), ("large", bytes(3 * 2**20))):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        answer = http.get(f"/v1/jobs/{job_id}/artifacts/{quote(name)}")
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-length"] == str(len(content))
        assert is_inert(answer)


def test_a_download_goes_on_where_it_was_cut_off(http: HttpApi, files: tuple[str, Path]) -> None:
    job_id, folder = files
    (folder / "digits").write_bytes(b"0123456789")
    path = f"/v1/jobs/{job_id}/artifacts/digits"
    for wanted, status, body in (
        ("bytes=4-", 206, b"456789"),
        ("bytes=4-5", 206, b"45"),
        ("bytes=4-99", 206, b"456789"),
        ("bytes=-3", 200, b"0123456789"),
        ("bytes=5-4", 200, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("bytes=0-1,4-5", 200, b"0123456789"),
    ):
        answer = http.get(path, range=wanted)
        assert (answer.status, answer.body) == (status, body)
    for parameters, body in (("?offset=4", b"456789"), ("?limit=4", b"0123"), ("?offset=4&limit=2", b"45")):
        answer = http.get(path + parameters, range="bytes=1-2")
        assert (answer.status, answer.body) == (200, body), "as if the header were none: it counts from the begin of this part"
    assert http.get(path, range="bytes=4-5").headers["content-range"] == "bytes 4-5/10"
    assert http.get(path, range="bytes=10-").headers["content-range"] == "bytes */10"
    assert http.get(path, range="bytes=11-").json["code"] == "out_of_range"


def test_every_bad_parameter_is_named(http: HttpApi) -> None:
    answer = http.get("/v1/events?statuses=x&foo=1&after_revision=z&view=0")
    (violations,) = (each["debug"]["fieldViolations"] for each in answer.json["details"] if "fieldViolations" in each["debug"])
    assert (answer.status, [violation["field"] for violation in violations]) == (400, ["statuses", "foo", "after_revision"])
    assert violations[0]["description"].startswith("there is no 'x'; there are: JOB_STATUS_UNSPECIFIED, JOB_STATUS_QUEUED, ")


def test_a_file_that_shrinks_while_it_is_sent_is_cut_off_and_no_bug(
    http: HttpApi, files: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    job_id, folder = files
    for path, size_bytes in (("artifacts/large", 256 * MIB), ("artifacts/large?limit=200000000", 200_000_000)):
        with (folder / "large").open("wb") as file:
            file.truncate(256 * MIB)  # more than is on its way in all buffers
        with http.opened("GET", f"/v1/jobs/{job_id}/{path}") as answer:
            assert answer.headers["content-length"] == str(size_bytes)
            assert len(answer.read(MIB)) == MIB
            os.truncate(folder / "large", 0)
            with pytest.raises((IncompleteRead, ConnectionResetError)):
                answer.read()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_medium_that_shrinks_while_it_is_sent_is_cut_off_and_no_bug(
    server: ServerHere, http: HttpApi, caplog: pytest.LogCaptureFixture
) -> None:
    job = server.api.run()
    folder = Path(server.api.get(job.job_id).attempts[0].output_dir) / "toy"
    (folder / "20260101_000000_samples_t.jsonl").write_text('{"doc_id": 0, "image": "large"}\n')
    with (folder.parent / "large").open("wb") as file:
        file.truncate(256 * MIB)
    with http.opened("GET", f"/v1/jobs/{job.job_id}/media/0?sample_id=0") as answer:
        assert len(answer.read(MIB)) == MIB
        os.truncate(folder.parent / "large", 0)
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            answer.read()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_files_that_are_not_there_or_outside_are_refused(http: HttpApi, files: tuple[str, Path]) -> None:
    job_id, _ = files
    for path, status in (
        (f"{job_id}/artifacts/nothing", 404),
        (f"{job_id}/artifacts/../log", 400),
        (f"{job_id}/artifacts/%2e%2e%2flog", 400),
        (f"{job_id}/artifacts/%ff", 400),
        (f"{NOWHERE}/artifacts/x", 404),
        (f"{NOWHERE}/log", 404),
        ("x/log", 404),
        (f"{job_id}/log?attempt=7", 404),
        (f"{job_id}/log?colour=red", 400),
        (f"{job_id}/log?job_id={NOWHERE}", 400),
        (f"{job_id}/artifacts/x?name=y", 400),
        (f"{job_id}/media/0?sample_id=0&start_index=1", 400),
        (f"{job_id}/log?attempt=1&attempt=1", 400),
    ):
        assert http.get(f"/v1/jobs/{path}").status == status, path


def test_a_log_is_followed_to_its_end(site: Site, http: HttpApi, files: tuple[str, Path]) -> None:
    job_id, _ = files
    now = http.get(f"/v1/jobs/{job_id}/log")
    assert b"ready" in now.body
    assert is_inert(now)
    with http.opened("GET", f"/v1/jobs/{job_id}/log?follow=true") as answer:
        assert answer.read(1)
        site.release()
        answer.read()
    eventually(lambda: http.get(f"/v1/jobs/{job_id}/log").status == 200)
