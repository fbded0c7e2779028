"""What callers can take of a real server, and what our clients make of a limit."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from server_process import ServerProcess
from serving import RUNNING, Api, ServerHere, Site, detail, reason_of, submission
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.client import EvalClient, sync_transport
from evalrpc.errors import EvalrpcError, RequestTooLargeError, TooManyStreamsError, UnavailableError
from evalrpc.executors.local.processes import resident_bytes
from evalrpc.reading.sample_references import MAX_ALL_INLINE_BYTES
from evalrpc.server.limits import Limits
from evalrpc.server.transports import grpc_options
from evalrpc.server.unread import UnreadBytes
from evalrpc.v1 import jobs_pb2 as pb

MIB = 2**20
LARGE_BYTES = 64 * MIB
OPENER = Path(__file__).parent.parent / "support" / "stream_opener.py"
RESETTER = OPENER.with_name("stream_resetter.py")

Serve = Callable[..., ServerHere]


def large_job(api: Api) -> pb.JobInfo:
    """Submit a job of 1 MiB, which runs until it is released."""
    call = submission("slow")
    call.request.model_args.update({"x": "y" * (MIB // 2 - 1024)})
    call.request.gen_kwargs.update({"x": "y" * (MIB // 2 - 1024)})
    return api.wait_for(api.SubmitJob(call).job_id, RUNNING)


def large_file(api: Api, site: Site, job: pb.JobInfo) -> str:
    """Put a file into the output of a running job, and much into its log. Return the name of the file."""
    site.wait_for_log(job.job_id)
    output = Path(api.get(job.job_id).attempts[0].output_dir)
    (output / "large").touch()
    os.truncate(output / "large", LARGE_BYTES)
    with (output.parent / "log").open("ab") as log:
        log.write(b"l" * 8 * MIB)
    return "large"


def limits_of(server: ServerHere) -> Limits:
    return server.server.limits


KINDS: dict[str, Callable[[Api, str], Any]] = {
    "WatchJob": lambda api, job_id: api.WatchJob(job_id=job_id),
    "WatchJobs": lambda api, job_id: api.WatchJobs(),
    "ReadLog": lambda api, job_id: api.ReadLog(job_id=job_id, follow=True),
    "ReadArtifact": lambda api, job_id: api.ReadArtifact(job_id=job_id, name="large"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unread_streams_hold_bounded_memory_and_keep_nobody_from_reading(serve: Serve, site: Site, kind: str) -> None:
    server = serve(max_unread_bytes=2 * MIB)
    limits, job = limits_of(server), large_job(server.api)
    large_file(server.api, site, job)
    limits.unread._stall_seconds = 0.0
    unread = Api(server.address, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024))  # no reading ahead
    streams = [KINDS[kind](unread, job.job_id) for _ in range(12)]
    eventually(lambda: any(limits.unread._lines), "for streams that wait for room")
    assert limits.unread.held_bytes <= 2 * MIB
    with EvalClient(server.address) as client:  # over a connection of its own
        assert client.get_server_info().head_revision, "small answers need no room"
        assert client.get_job(job.job_id).job_id == job.job_id, "those that read nothing are disconnected"
    unread.close()
    eventually(lambda: limits.stream_count == 0, "for the streams to end")
    eventually(lambda: limits.unread.held_bytes == 0, "for their room to be given back")
    assert len(streams) == 12


def test_unread_media_of_a_sample_hold_bounded_memory_and_keep_nobody_from_reading(serve: Serve, site: Site) -> None:
    server = serve()
    room = server.server._service.inline_media = UnreadBytes(MAX_ALL_INLINE_BYTES + 1, server.server._disconnect, 0.0)
    job = server.api.run()
    picture = base64.b64encode(os.urandom(4 * MIB)).decode()
    samples = Path(job.attempts[0].output_dir) / "toy" / "20260101_000000_samples_t.jsonl"
    samples.write_text(json.dumps({"doc_id": 0, "image": f"data:image/png;base64,{picture}"}) + "\n")
    unread = Api(server.address, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024))  # no reading ahead
    streams = [unread.ReadSampleMedia(job_id=job.job_id, sample_id="0") for _ in range(12)]
    eventually(lambda: room.held_bytes and any(room._lines), "for streams that wait for room")
    assert room.held_bytes <= MAX_ALL_INLINE_BYTES
    with EvalClient(server.address) as client:  # over a connection of its own
        (medium,) = client.sample_media(job.job_id, "0")
    assert len(medium.data) == 4 * MIB, "those that read nothing are disconnected"
    unread.close()
    eventually(lambda: room.held_bytes == 0, "for their room to be given back")
    assert len(streams) == 12


def test_a_client_that_reads_all_gets_all_however_little_room_there_is(serve: Serve, site: Site) -> None:
    server = serve(max_unread_bytes=1)
    job = large_job(server.api)
    large_file(server.api, site, job)
    with EvalClient(server.address) as client, EvalClient(server.address) as other:
        for each in (client, other):
            assert [listed.job_id for listed in each.list_jobs()] == [job.job_id]
            with closing(each.watch(job.job_id)) as events:
                assert next(events).job.job_id == job.job_id
        site.release()
        assert client.wait_for_job(job.job_id).job_id == job.job_id
        assert sum(map(len, client.logs(job.job_id))) > 8 * MIB
        (path,) = client.download(job.job_id, site.folder / "downloads", "large")
        assert path.stat().st_size == LARGE_BYTES
    eventually(lambda: limits_of(server).unread.held_bytes == 0)


def test_a_client_that_is_killed_in_the_middle_of_its_streams_leaves_nothing(serve: Serve, site: Site) -> None:
    server = serve()
    limits, feed, job = limits_of(server), server.server._feed, large_job(server.api)
    name = large_file(server.api, site, job)
    threads = threading.active_count()
    command = (sys.executable, str(OPENER), server.address, job.job_id, name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as opener:
        try:
            assert opener.stdout is not None
            assert opener.stdout.readline() == "open\n"
            eventually(lambda: limits.stream_count == 4 and server.server.open_limits.stream_count == 2)
            eventually(lambda: limits.unread.held_bytes > 0, "for the file that is not read")
            assert feed._topics
        finally:
            opener.kill()
    eventually(lambda: (limits.stream_count, server.server.open_limits.stream_count) == (0, 0), "for the streams to end")
    eventually(lambda: limits.unread.held_bytes == 0, "for their room to be given back")
    eventually(lambda: not feed._topics, "for the watchers of the job to be forgotten")
    eventually(lambda: not feed._all_waiters.futures, "for the watchers of all jobs to be forgotten")
    eventually(lambda: threading.active_count() <= threads, "for its threads to end")
    assert not limits._streams_of


# Streams and calls


def test_a_stream_too_many_is_refused_and_our_client_has_its_turn_when_another_one_ends(serve: Serve) -> None:
    server = serve(max_streams_per_owner=1)
    job = large_job(server.api)
    first = server.api.watch(job.job_id)
    next(first)
    with pytest.raises(grpc.RpcError) as error:
        next(Api(server.address).watch(job.job_id))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error.value) == "TOO_MANY_STREAMS"
    assert detail(error.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    (violation,) = detail(error.value, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "owner:"
    heard: list[EvalrpcError] = []

    def on_disconnect(reason: EvalrpcError, delay_seconds: float) -> None:
        assert delay_seconds >= 1.0, "as the server asks"
        heard.append(reason)
        first.cancel()

    with EvalClient(server.address) as client, closing(client.watch(job.job_id, on_disconnect=on_disconnect)) as events:
        assert next(events).job.job_id == job.job_id
    assert type(heard[0]) is TooManyStreamsError
    eventually(lambda: limits_of(server).stream_count == 0, "for the end of the client's stream")
    second = server.api.watch(job.job_id)
    next(second)
    with EvalClient(server.address) as client, pytest.raises(TooManyStreamsError):
        next(client.watch(job.job_id, reconnect_timeout_seconds=0))


def test_a_call_past_the_rate_is_repeated_when_the_server_says(serve: Serve) -> None:
    server = serve(max_calls_per_second=5)
    with EvalClient(server.address) as client:
        for _ in range(12):
            client.get_queue_status()
    with pytest.raises(grpc.RpcError) as error:
        all(server.api.GetQueue() for _ in range(1000))
    assert reason_of(error.value) == "TOO_MANY_CALLS"
    assert detail(error.value, error_details_pb2.RetryInfo).retry_delay.nanos > 0


# Requests


def too_large(size_bytes: int) -> pb.SubmitJobRequest:
    call = submission()
    call.request.model_args.update({"x": "y" * size_bytes})
    return call


def test_a_request_that_is_too_large_is_refused_with_the_limit(serve: Serve) -> None:
    server = serve(max_request_bytes=MIB)
    with pytest.raises(grpc.RpcError) as error:
        server.api.SubmitJob(too_large(2 * MIB))
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    info = detail(error.value, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"setting": "max_request_bytes", "limit": str(MIB)}


@pytest.mark.parametrize("size_bytes", [2 * MIB, 20 * MIB], ids=["refused by the server", "refused by gRPC"])
def test_our_client_sends_a_request_that_is_too_large_once(
    serve: Serve, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(max_request_bytes=MIB)
    monkeypatch.setattr(sync_transport, "time", SimpleNamespace(sleep=lambda _: pytest.fail("it would be sent again")))
    with EvalClient(server.address) as client, pytest.raises(RequestTooLargeError, match=r"larger than|accepts at most"):
        client.submit(too_large(size_bytes).request)


# Connections


def test_a_connection_too_many_is_closed(serve: Serve) -> None:
    server = serve(max_connections=1)
    server.api.GetServerInfo()
    with EvalClient(server.address) as client, pytest.raises(UnavailableError):
        client.get_server_info()
    server.api.channel.close()
    with EvalClient(server.address) as client:
        eventually(client.is_healthy, "for the place of the connection that was closed")


@pytest.mark.slow
def test_streams_that_are_reset_as_soon_as_they_are_opened_take_bounded_memory(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "")
    try:
        server.start()
        host, _, port = server.address.rpartition(":")
        subprocess.run([sys.executable, RESETTER, host, port, "40000"], check=True, timeout=SECONDS)
        with server.client() as client:
            client.get_server_info()
        assert resident_bytes(server.pid) < 400 * MIB, "each of those that wait takes 14 KiB"
    finally:
        server.clean_up()


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_options, "_GRACE_SECONDS", 0.1)


@pytest.mark.usefixtures("short_grace")
def test_a_watch_outlives_the_connections_that_it_comes_over(serve: Serve, site: Site) -> None:
    server = serve(max_connection_age_seconds=0.5)
    with EvalClient(server.address) as client:
        job = client.evaluate("slow", ["t"], harness="toy", num_gpus=0)
        ends: list[EvalrpcError] = []

        def on_disconnect(reason: EvalrpcError, _: float) -> None:
            ends.append(reason)
            if len(ends) == 3:
                site.release()

        events = list(client.watch(job.job_id, on_disconnect=on_disconnect))
    revisions = [event.revision for event in events if event.type != pb.JOB_EVENT_TYPE_PROGRESS]
    assert revisions == sorted(set(revisions))
    assert events[-1].terminal
    assert len(ends) >= 3
