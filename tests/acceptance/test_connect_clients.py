"""Clients of the Connect protocol that others have written, against a real server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.protobuf.message_factory import GetMessageClass
from http_calls import http_of
from serving import SECONDS, ServerHere, Site
from waiting import eventually

from evalrpc.server.app import SERVICE
from evalrpc.v1.jobs_pb2 import GetJobRequest, WatchJobRequest

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


def test_the_client_of_connectrpc_gets_what_grpc_does(server: ServerHere) -> None:
    job = server.api.run()
    with ConnectClientSync(http_of(server).url, codec=google_protobuf_binary_codec(), timeout_ms=int(SECONDS * 1000)) as client:
        for use_get in (False, True):
            method = method_info("GetJob", StreamType.UNARY)
            assert client.execute_unary(request=GetJobRequest(job_id=job.job_id), method=method, use_get=use_get) == job
        with pytest.raises(ConnectError) as caught:
            client.execute_unary(request=GetJobRequest(job_id="x"), method=method)
        assert caught.value.code is Code.INVALID_ARGUMENT
        watch = method_info("WatchJob", StreamType.SERVER_STREAM)
        events = list(client.execute_server_stream(request=WatchJobRequest(job_id=job.job_id), method=watch))
    assert [event.job.job_id for event in events] == [job.job_id]


def method_info(name: str, stream_type: "StreamType") -> "MethodInfo[Any, Any]":
    method = SERVICE.methods_by_name[name]
    classes = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    return MethodInfo(
        name=name,
        service_name=SERVICE.full_name,
        input=classes[0],
        output=classes[1],
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
        stream_type=stream_type,
    )
