"""Heartbeats: what a client gets on a quiet stream, whether it asks for them or not."""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from serving import BOOKMARK, RUNNING, SNAPSHOT, Api, ServerHere, Site

from evalrpc.v1.files_pb2 import ReadLogResponse

OFTEN = 0.1
"""Seconds of silence, to get heartbeats without waiting for long."""


@pytest.fixture
def running(server: ServerHere, site: Site) -> str:
    """A job that runs, and prints nothing more until it is let go; the server's default heartbeats come often."""
    server.server._service.default_interval = lambda: OFTEN
    job_id = server.api.submit("slow", request={"num_gpus": 2}).job_id
    server.api.wait_for(job_id, RUNNING)
    site.wait_for_log(job_id)
    return job_id


def streams(api: Api, job_id: str, **fields: Any) -> Iterator[Any]:
    """Open the streams that may be quiet for long."""
    yield api.WatchJob(job_id=job_id, **fields)
    yield api.WatchJobs(**fields)
    yield api.ReadLog(job_id=job_id, follow=True, **fields)


def is_heartbeat(message: Any) -> bool:
    if isinstance(message, ReadLogResponse):
        return not message.data and message.HasField("offset") and message.attempt == 1
    return message.type == BOOKMARK and not message.HasField("job")


def test_every_stream_that_may_be_quiet_has_heartbeats_by_default(api: Api, running: str) -> None:
    for stream in streams(api, running):
        heartbeats = list(itertools.islice(filter(is_heartbeat, stream), 4))
        stream.cancel()
        assert len(heartbeats) == 4


def test_a_client_may_choose_how_often(server: ServerHere, api: Api, running: str) -> None:
    server.server._service.default_interval = lambda: 3600.0
    for stream in streams(api, running, heartbeat_interval=Duration(nanos=100_000_000)):
        assert len(list(itertools.islice(filter(is_heartbeat, stream), 4))) == 4
        stream.cancel()


def test_zero_means_none(api: Api, running: str, site: Site) -> None:
    quiet = list(streams(api, running, heartbeat_interval=Duration()))
    for stream in streams(api, running):  # while these have had theirs, the quiet ones would have had some too
        list(itertools.islice(filter(is_heartbeat, stream), 10))
        stream.cancel()
    site.release()
    watch, watch_all, log = quiet
    assert not any(map(is_heartbeat, watch))
    assert not any(map(is_heartbeat, log))
    events = list(itertools.takewhile(lambda event: not event.terminal, watch_all))
    assert [event.type for event in events].count(BOOKMARK) == 1, "only the one that ends the snapshots"


def test_a_heartbeat_of_a_log_says_where_it_stands(api: Api, running: str, site: Site) -> None:
    stream = api.ReadLog(job_id=running, follow=True)
    read = 0
    for message in itertools.islice(stream, 6):
        assert (message.offset, message.attempt) == (read, 1)
        read += len(message.data)
    assert read == len(site.log_of(running))
    site.release()
    assert b"".join(message.data for message in stream) == site.log_of(running)[read:].encode()


def test_a_log_that_has_not_begun_has_heartbeats_without_an_attempt_to_resume(api: Api, running: str, site: Site) -> None:
    waiting = api.submit("good", request={"num_gpus": 2})
    stream = api.ReadLog(job_id=waiting.job_id, follow=True)
    for message in itertools.islice(stream, 3):
        assert (message.data, message.HasField("offset"), message.offset, message.attempt) == (b"", True, 0, 0)
    site.release()
    assert b"".join(message.data for message in stream) == b"4/4\n"


def test_a_log_that_is_not_followed_has_no_heartbeats(api: Api, running: str) -> None:
    assert not any(map(is_heartbeat, api.ReadLog(job_id=running)))


def test_the_heartbeats_of_a_job_begin_after_its_snapshot_and_end_with_its_end(api: Api, running: str, site: Site) -> None:
    stream = api.WatchJob(job_id=running)
    assert next(stream).type == SNAPSHOT
    next(filter(is_heartbeat, stream))
    site.release()
    assert list(stream)[-1].terminal


def test_an_interval_that_is_too_short_is_named(api: Api, running: str) -> None:
    for stream in streams(api, running, heartbeat_interval=Duration(nanos=99_999_999)):
        with pytest.raises(grpc.RpcError, match="heartbeat_interval"):
            next(stream)
