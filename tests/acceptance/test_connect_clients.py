"""Clients of the Connect protocol that others have written, against a real server."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message_factory import GetMessageClass
from http_calls import http_of
from serving import RUNNING, SECONDS, ServerHere, ServerThere, Site
from waiting import eventually

from evalrpc.server.app import SERVICE
from evalrpc.v1.jobs_pb2 import JobEventType, WatchJobRequest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")
ENDLESS = {"WatchJobs"}
OF_JOBS = '{"jobId": "%s"}'
CODES = {"invalid_argument", "not_found", "failed_precondition", "permission_denied"}
"""What the server answers to a call without the fields that it needs."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHere]:
    site = Site(tmp_path)
    here = ServerHere(site.settings(http_listen="127.0.0.1:0"))
    yield here
    site.release()
    eventually(lambda: here.idle)
    here.stop()


@pytest.mark.slow
def test_buf_makes_every_call(server: ServerHere) -> None:
    job = server.api.run()
    url = http_of(server).url

    def start(method: str) -> "subprocess.Popen[str]":
        message = OF_JOBS % job.job_id if "job_id" in SERVICE.methods_by_name[method].input_type.fields_by_name else "{}"
        command = (BUF, "curl", "--protocol", "connect", "--schema", ROOT / "protos", "--data", message)
        path = f"{url}/{SERVICE.full_name}/{method}"
        return subprocess.Popen((*command, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    last = {"DeleteJob", *ENDLESS}
    for method in [*(each.name for each in SERVICE.methods if each.name not in last), "DeleteJob"]:
        with start(method) as process:
            output, errors = process.communicate(timeout=SECONDS)
        if process.returncode == 0:
            assert output == "" or output.lstrip().startswith("{"), method
        else:
            assert json.loads(errors)["code"] in CODES, (method, errors)
    for method in ENDLESS:
        with start(method) as process:
            assert process.stdout is not None
            assert any("JOB_EVENT_TYPE_BOOKMARK" in line for line in process.stdout)
            process.kill()


CODECS = {"binary": google_protobuf_binary_codec, "json": google_protobuf_json_codec}


def connect(url: str, form: str) -> ConnectClientSync:
    return ConnectClientSync(url, codec=CODECS[form](), timeout_ms=int(SECONDS * 1000))


@pytest.mark.parametrize("form", CODECS)
def test_the_client_of_connectrpc_makes_every_call_and_gets_what_grpc_does(server: ServerHere, form: str) -> None:
    job = server.api.run()
    made: set[str] = set()
    refused: dict[str, str] = {}
    with connect(http_of(server).url, form) as client:
        for name in [*(each.name for each in SERVICE.methods if each.name != "DeleteJob"), "DeleteJob"]:
            method = method_info(name)
            has_job = "job_id" in SERVICE.methods_by_name[name].input_type.fields_by_name
            request = method.input(**({"job_id": job.job_id} if has_job else {}))
            try:
                if method.stream_type is StreamType.UNARY:
                    client.execute_unary(request=request, method=method)
                else:
                    for message in client.execute_server_stream(request=request, method=method):
                        if name in ENDLESS and message.type == JobEventType.JOB_EVENT_TYPE_BOOKMARK:
                            break
                made.add(name)
            except ConnectError as error:
                refused[name] = error.code.value
            if name == "GetJob":
                for use_get in (False, True):
                    assert client.execute_unary(request=request, method=method, use_get=use_get) == job
    assert set(refused.values()) <= CODES, refused
    assert {"GetJob", "ListJobs", "WatchJob", "WatchJobs", "ReadLog", "ListSamples", "ListArtifacts", "DeleteJob"} <= made


@pytest.mark.parametrize("form", CODECS)
def test_a_stream_of_connectrpc_is_resumed_after_a_kill_and_every_event_seen_once(tmp_path: Path, form: str) -> None:
    site = Site(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    site.set_up(http_listen=address)
    there = ServerThere(site)
    job = there.api.submit("slow")
    there.api.wait_for(job.job_id, RUNNING)
    revisions: list[int] = []
    breaks: list[ConnectError] = []
    method = method_info("WatchJob")
    is_over = False
    while not is_over and len(breaks) < 2:
        request = WatchJobRequest(job_id=job.job_id, after_revision=max(revisions, default=0))
        try:
            with connect(f"http://{address}", form) as client:
                for event in client.execute_server_stream(request=request, method=method):
                    if event.type in (JobEventType.JOB_EVENT_TYPE_SNAPSHOT, JobEventType.JOB_EVENT_TYPE_STATUS):
                        revisions.append(event.revision)
                    if not breaks and revisions:
                        there.kill()
                    is_over = event.terminal
        except ConnectError as error:
            breaks.append(error)
            there = ServerThere(site)
            site.release(job.job_id)
    there.terminate()
    site.kill_runs()
    assert len(breaks) == 1, breaks
    assert len(revisions) > 1
    assert revisions == sorted(set(revisions))


def method_info(name: str) -> "MethodInfo[Any, Any]":
    method = SERVICE.methods_by_name[name]
    only_reads = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return MethodInfo(
        name=name,
        service_name=SERVICE.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS if only_reads else IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )
