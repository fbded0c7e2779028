"""The calls of a real server over HTTP: by the Connect protocol, with what HTTP adds to it."""

import base64
import gzip
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from callers import add_token, revoke_token
from certificates import Authority
from google.protobuf import json_format
from http_calls import JSON, HttpApi, http_of, path_of
from lasting_ports import lasting_address
from missing_modules import run_without
from serving import COMPLETED, Launch, ServerHere, Site
from waiting import eventually

from evalrpc.errors import ConfigurationError
from evalrpc.server.auth import authenticator
from evalrpc.server.transports.http import connection
from evalrpc.v1.jobs_pb2 import JobInfo

Serve = Callable[..., ServerHere]
ANY_PORT = "127.0.0.1:0"
TOY = {"request": {"harness": "toy", "model": "good", "tasks": ["t"], "numGpus": 0}}


@pytest.fixture
def server(serve: Serve) -> ServerHere:
    return serve(http_listen=ANY_PORT)


@pytest.fixture
def http(server: ServerHere) -> HttpApi:
    return http_of(server)


# Unary calls


def test_a_job_is_submitted_and_read_in_both_forms_and_is_the_one_of_grpc(server: ServerHere, http: HttpApi) -> None:
    submitted = http.call("SubmitJob", TOY)
    job_id = submitted.json["jobId"]
    job = server.api.wait_for(job_id, COMPLETED)

    as_json = json_format.Parse(http.call("GetJob", {"jobId": job_id}).body, JobInfo())
    request = b"\n\x24" + job_id.encode()
    as_proto = http.request("POST", path_of("GetJob"), request, {"content-type": "application/proto"})

    assert submitted.status == 200
    assert as_json == job
    assert as_proto.headers["content-type"] == "application/proto"
    assert JobInfo.FromString(as_proto.body) == job


def test_what_only_reads_is_a_get_too_and_what_changes_is_none(server: ServerHere, http: HttpApi) -> None:
    job = server.api.submit("hangs")
    message = json.dumps({"jobId": job.job_id})
    encoded = base64.urlsafe_b64encode(message.encode()).decode().rstrip("=")
    zipped = base64.urlsafe_b64encode(gzip.compress(message.encode())).decode()

    for query in (
        f"connect=v1&encoding=json&message={quote(message)}",
        f"encoding=json&base64=1&message={encoded}",
        f"base64=1&compression=gzip&message={zipped}",
    ):
        assert http.get(f"{path_of('GetJob')}?{query}").json["jobId"] == job.job_id
    assert "queuedCount" in http.get(path_of("GetQueue")).json, "no message is the empty one"
    refused = http.get(path_of("CancelJob") + f"?message={quote(message)}")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")


def test_a_query_that_is_none_is_refused(http: HttpApi) -> None:
    for query, complaint in (
        ("encoding=xml", "encoding"),
        ("base64=1&message=***", "base64"),
        ("compression=br", "compression"),
        ("connect=v2", "connect: must be v1"),
        ("message={}&message={}", "message: is named more than once"),
        ("message={", "JSON"),
        ("message=%ff", "query"),
        ("job_id=0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c", "job_id: there is no such parameter; there are: message, "),
        ("&".join("a=b" for _ in range(2000)), "query"),
    ):
        answer = http.get(f"{path_of('GetJob')}?{query}")
        assert answer.status in (400, 501)
        assert complaint in answer.json["message"]


def test_an_error_has_its_code_its_text_and_its_details(http: HttpApi) -> None:
    answer = http.call("SubmitJob", {"request": {"harness": "toy"}})

    assert answer.status == 400
    assert answer.json["code"] == "invalid_argument"
    details = {detail["type"]: detail["debug"] for detail in answer.json["details"]}
    assert details["google.rpc.ErrorInfo"] == {"reason": "INVALID_REQUEST", "domain": "evalrpc"}
    fields = {violation["field"] for violation in details["google.rpc.BadRequest"]["fieldViolations"]}
    assert fields == {"request.model", "request.tasks"}


def test_a_field_that_json_gets_wrong_is_named(http: HttpApi) -> None:
    for body, field in (
        (b'{"request": {"modle": "x"}}', "request.modle"),
        (b'{"request": {"numGpus": "many"}}', "request.numGpus"),
        (b'{"priority": 1e999}', "priority"),
        (b'{"labels": {"a": 1}}', "labels"),
    ):
        answer = http.request("POST", path_of("SubmitJob"), body, JSON)
        (violation,) = answer.json["details"][1]["debug"]["fieldViolations"]
        assert (answer.status, violation["field"]) == (400, field)


def test_json_that_is_nested_too_deep_is_told_so(http: HttpApi) -> None:
    for depth in (20, 60, 99):
        body = b'{"request": {"model": "m", "tasks": ["t"], "modelArgs": {"a": %s}}}' % (b"[" * depth + b"]" * depth)
        answer = http.request("POST", path_of("SubmitJob"), body, JSON)
        assert (answer.status, "nested more than 16 deep" in answer.json["message"]) == (400, True), answer.json["message"]


def test_what_is_no_object_in_json_is_refused(http: HttpApi) -> None:
    for body in (b"{", b"[]", b"3", b"null", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000, b"{}" * 2):
        answer = http.request("POST", path_of("GetQueue"), body, JSON)
        assert (answer.status, answer.json["code"]) == (400, "invalid_argument")


def test_a_body_of_another_type_is_refused_so_no_foreign_page_can_send_one(http: HttpApi) -> None:
    for kind in (
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/connect+json",
    ):
        for method in ("SubmitJob", "GetQueue"):
            answer = http.request("POST", path_of(method), b"{}", {"content-type": kind})
            assert (answer.status, answer.headers["accept-post"]) == (415, "application/json, application/proto")
        assert http.get(path_of("ListJobs")).json == http.call("ListJobs").json


def test_nothing_is_at_other_paths_and_methods(http: HttpApi) -> None:
    assert (http.call("EatCake").status, http.call("EatCake").json["code"]) == (501, "unimplemented")
    assert (http.get("/nothing").status, http.get("/%2e%2e/etc/passwd").status) == (404, 404)
    assert http.request("HEAD", path_of("GetQueue")).status == 405
    assert http.request("DELETE", path_of("GetQueue")).headers["allow"] == "GET, POST"


def test_browsers_are_told_to_run_and_to_keep_nothing(http: HttpApi) -> None:
    for answer in (http.get(path_of("GetQueue")), http.get("/nothing"), http.call("SubmitJob")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "sandbox" in answer.headers["content-security-policy"]


def test_bodies_are_bounded_also_once_decompressed(serve: Serve) -> None:
    http = http_of(serve(http_listen=ANY_PORT, max_request_bytes=10_000))
    zipped = {"content-encoding": "gzip"} | JSON
    spaces = b"{" + b" " * 100_000 + b"}"

    for body, headers in ((spaces, JSON), (gzip.compress(spaces), zipped)):
        answer = http.request("POST", path_of("GetQueue"), body, headers)
        assert (answer.status, answer.json["code"]) == (413, "resource_exhausted")
    assert http.request("POST", path_of("GetQueue"), gzip.compress(b"{}"), zipped).status == 200
    for body in (b"no gzip", gzip.compress(b"{}")[:-4], gzip.compress(b"{") + gzip.compress(b"}"), gzip.compress(b"{}") + b"x"):
        assert http.request("POST", path_of("GetQueue"), body, zipped).status == 400
    assert http.request("POST", path_of("GetQueue"), b"{}", {"content-encoding": "br"} | JSON).status == 501


def test_a_large_message_is_converted_aside(server: ServerHere, http: HttpApi) -> None:
    model_args = {f"key{number}": "v" * 1000 for number in range(100)}
    sent = {"request": {**TOY["request"], "modelArgs": model_args}}
    job_id = http.call("SubmitJob", sent).json["jobId"]
    assert http.call("GetJob", {"jobId": job_id}).json["request"]["modelArgs"] == model_args


def test_the_deadline_of_the_client_counts(http: HttpApi) -> None:
    with http.stream("WatchJobs", **{"connect-timeout-ms": "1"}) as messages:
        assert list(messages)[-1]["end"]["error"]["code"] == "deadline_exceeded"
    for text in ("soon", "-1", "99999999999", "1.5"):
        assert http.call("GetQueue", **{"connect-timeout-ms": text}).status == 400
    assert http.call("GetQueue", **{"connect-protocol-version": "2"}).status == 400


def test_health_is_answered_without_signing_in(serve: Serve) -> None:
    http = http_of(serve(http_listen=ANY_PORT, auth="required"))
    answer = http.request("POST", "/grpc.health.v1.Health/Check", b"{}", JSON)
    assert (answer.status, answer.json) == (200, {"status": "SERVING"})
    assert http.call("GetQueue").status == 401


# Streams


def test_a_stream_ends_with_its_job(server: ServerHere, site: Site, http: HttpApi) -> None:
    job = server.api.submit("slow")
    with http.stream("WatchJob", {"jobId": job.job_id}) as messages:
        assert next(messages)["type"] == "JOB_EVENT_TYPE_SNAPSHOT"
        site.release()
        *events, end = messages
    assert events[-1]["terminal"]
    assert end == {"end": {}}


def test_an_error_of_a_stream_is_its_end(http: HttpApi) -> None:
    with http.stream("WatchJob", {"jobId": "x"}) as messages:
        (end,) = messages
    assert end["end"]["error"]["code"] == "invalid_argument"


def test_a_stream_takes_one_message_in_its_envelope(http: HttpApi) -> None:
    for body in (b"", b"{}", b"\0\0\0\0\3{}", b"\0\0\0\0\2{}x", b"\4\0\0\0\2{}", b"\1\0\0\0\2{}", b"\0\xff\xff\xff\xff{}"):
        headers = {"content-type": "application/connect+json", "connect-content-encoding": "gzip"}
        with http.opened("POST", path_of("WatchJobs"), body, headers) as answer:
            assert b'"invalid_argument"' in answer.read()


def test_a_stream_is_resumed_after_the_server_was_killed(launch: Launch, site: Site) -> None:
    server = launch("--http-listen", lasting_address())
    url = http_url(server)
    http = HttpApi(url)
    first = http.call("SubmitJob", TOY).json["jobId"]
    revisions: list[int] = []
    with http.stream("WatchJobs", {"skipSnapshots": True}) as messages:
        second = http.call("SubmitJob", TOY).json["jobId"]
        for event in messages:
            revisions += revisions_of(event)
            if event.get("terminal") and event["job"]["jobId"] == second:
                break
        server.kill()
        with pytest.raises(Exception):  # noqa: B017 - whatever a broken connection is to this client
            next(messages)
    launch("--http-listen", url.removeprefix("http://"))
    third = http.call("SubmitJob", TOY).json["jobId"]
    with http.stream("WatchJobs", {"afterRevision": str(revisions[-1])}) as messages:
        for event in messages:
            revisions += revisions_of(event)
            if event.get("terminal") and event["job"]["jobId"] == third:
                break
    assert revisions == sorted(set(revisions))
    jobs = {job["jobId"]: job for job in http.call("ListJobs").json["jobs"]}
    assert jobs.keys() == {first, second, third}
    assert revisions[-1] == int(jobs[third]["revision"])


def revisions_of(event: dict[str, Any]) -> list[int]:
    """Return the revision of an event that has one of its own."""
    return [int(event["revision"])] if event["type"] in ("JOB_EVENT_TYPE_STATUS", "JOB_EVENT_TYPE_UPDATED") else []


def http_url(server: object) -> str:
    """Return the second line that a server prints."""
    return server.process.stdout.readline().split()[-1]  # type: ignore[attr-defined, no-any-return]


def test_the_server_stops_at_once_and_tells_the_open_streams(server: ServerHere, http: HttpApi) -> None:
    with http.stream("WatchJobs") as messages:
        assert next(messages)["type"] == "JOB_EVENT_TYPE_BOOKMARK"
        server.server._settings.__dict__["stop_seconds"] = 3600.0  # the test would time out if the stream delayed the stop
        server.stop()
        (end,) = messages
    assert end["end"]["error"]["code"] == "unavailable"
    assert any(detail["type"] == "google.rpc.RetryInfo" for detail in end["end"]["error"]["details"])


def test_a_client_that_reads_nothing_holds_bounded_memory_and_nothing_once_it_has_gone(serve: Serve, site: Site) -> None:
    server = serve(http_listen=ANY_PORT, max_unread_bytes=2**20)
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    output = Path(server.api.get(job.job_id).attempts[0].output_dir)
    with (output / "large").open("wb") as file:
        file.truncate(64 * 2**20)
    limits = server.server.limits
    with http_of(server).stream("ReadArtifact", {"jobId": job.job_id, "name": "large"}):
        eventually(lambda: limits.unread.held_bytes > 0, "for what is not read")
        assert limits.unread.held_bytes <= 2**20
    eventually(lambda: (limits.unread.held_bytes, limits.stream_count) == (0, 0), "for the stream to end")


# Who calls


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticator, "INTERVAL_SECONDS", 0.02)


@pytest.mark.usefixtures("quick")
def test_callers_sign_in_as_over_grpc_and_their_streams_end_with_their_token(serve: Serve, site: Site) -> None:
    token = add_token(site.folder / "data")
    server = serve(http_listen=ANY_PORT, auth="required")
    stranger, alice = http_of(server), http_of(server, token=token)
    eventually(lambda: alice.call("GetCaller").status == 200)

    assert alice.call("GetCaller").json["owner"] == "alice"
    refused = stranger.call("SubmitJob", TOY)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert alice.call("PauseQueue").status == 403
    assert alice.call("SubmitJob", TOY).status == 200
    assert alice.call("GetQueue", **{"x-forwarded-for": "192.0.2.1"}).status == 200
    with alice.stream("WatchJobs") as messages:
        assert next(messages)
        revoke_token(site.folder / "data", token)
        *_, end = messages
    assert end["end"]["error"]["code"] == "unauthenticated"
    server.stop()
    audit = (site.folder / "data" / "audit.jsonl").read_text()
    entries = [(entry["call"], entry["code"], entry.get("owner", "")) for entry in map(json.loads, audit.splitlines())]
    assert ("SubmitJob", "UNAUTHENTICATED", "") in entries
    assert ("PauseQueue", "PERMISSION_DENIED", "alice") in entries
    assert ("SubmitJob", "OK", "alice") in entries


def test_tls_and_client_certificates_are_those_of_grpc(launch: Launch, site: Site) -> None:
    authority, clients = Authority(), Authority("clients")
    cert, key = authority.issue().write(site.folder)
    ca = clients.write(site.folder, "clients.pem")
    with site.config.open("a") as config:
        config.write('[client_certificates]\n"alice" = { owner = "alice", role = "submitter" }\n')
    tls = (f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-client-ca={ca}")
    url = http_url(launch("--http-listen", ANY_PORT, "--auth", "required", *tls))

    def trusting(issuer: Authority, client: str = "") -> HttpApi:
        context = ssl.create_default_context(cadata=issuer.pem.decode())
        if client:
            context.load_cert_chain(*clients.issue(client).write(site.folder, f"client-{client}"))
        return HttpApi(url, context=context)

    assert url.startswith("https://")
    assert trusting(authority, "alice").call("GetCaller").json["owner"] == "alice"
    assert trusting(authority, "eve").call("GetCaller").status == 401
    with pytest.raises(OSError):
        trusting(authority).call("GetCaller")
    newer = Authority("newer")
    newer.issue().write(site.folder)

    def has_changed() -> bool:
        try:
            return trusting(newer, "alice").call("GetCaller").status == 200
        except ssl.SSLError:
            return False

    eventually(has_changed, "for the new certificate")


def test_a_socket_is_private_and_answers(serve: Serve, site: Site) -> None:
    folder = site.folder / "sockets"
    server = serve(http_listen=f"unix:{folder}/http")
    assert (folder / "http").stat().st_mode & 0o777 == 0o600
    assert http_of(server).call("GetQueue").status == 200
    server.stop()
    assert not (folder / "http").exists()


def test_a_page_of_a_named_origin_may_ask_and_read(serve: Serve) -> None:
    http = http_of(serve(http_listen=ANY_PORT, http_origins="https://dashboard.example"))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    named = http.request("OPTIONS", path_of("SubmitJob"), headers=asks | {"origin": "https://dashboard.example"})
    foreign = http.request("OPTIONS", path_of("SubmitJob"), headers=asks | {"origin": "https://evil.example"})
    assert (named.status, named.headers["access-control-allow-origin"]) == (204, "https://dashboard.example")
    assert "content-type" in named.headers["access-control-allow-headers"]
    assert foreign.status == 403
    assert not any(name.startswith("access-control") for name in foreign.headers)
    assert http.call("GetQueue", origin="https://evil.example").status == 403
    assert http.call("GetQueue", host="evil.example").status == 403


# Connections


def test_connections_are_bounded(serve: Serve) -> None:
    server = serve(http_listen=ANY_PORT, max_connections=1)
    http = http_of(server)
    first = http.connect()
    first.request("GET", path_of("GetQueue"))
    assert first.getresponse().read()
    with pytest.raises(OSError):
        http.call("GetQueue")
    first.close()
    eventually(lambda: not server.server.http_listeners[0]._connections.connections)
    assert http.call("GetQueue").status == 200


def raw(http: HttpApi, sent: bytes) -> bytes:
    """Send bytes, and return all that comes until the server hangs up."""
    opened = http.connect()
    opened.connect()
    with opened.sock as connected:
        connected.sendall(sent)
        return b"".join(iter(lambda: received(connected), b""))


def received(connected: socket.socket) -> bytes:
    try:
        return connected.recv(65536)
    except ConnectionResetError:
        return b""


GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
ASKING = CHUNKED % path_of("GetQueue").encode()
WATCHING = b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_a_head_without_end_is_refused(http: HttpApi) -> None:
    assert raw(http, GET + b"x: " + b"y" * 2**20).startswith(b"HTTP/1.1 431")
    assert raw(http, b"no HTTP at all\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(ASKING + b"0\r\n" + b"a:\r\n" * 2**18, id="trailers"),
        pytest.param(ASKING + b"0\r\na: " + b"y" * 2**20, id="one trailer"),
        pytest.param(ASKING + b"2;" + b"y" * 2**20, id="what is said of a chunk"),
        pytest.param(WATCHING + (GET + b"\r\n") * 100, id="requests that wait for the answer to the one before"),
    ],
)
def test_nothing_but_a_body_may_be_long(http: HttpApi, sent: bytes) -> None:
    assert b"431" not in raw(http, sent)


def test_what_comes_after_a_body_changes_no_request_and_a_few_requests_may_wait(http: HttpApi) -> None:
    closing = GET + b"connection: close\r\n\r\n"
    answers = raw(http, ASKING + b"2\r\n{}\r\n0\r\nhost: elsewhere\r\n\r\n" + (GET + b"\r\n") * 8 + closing)
    assert answers.count(b"HTTP/1.1 200") == 10


def test_who_says_nothing_is_hung_up_on(http: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.01)
    assert raw(http, b"") == b""
    assert raw(http, b"GET / HTTP/1.1\r\n") == b""


def test_a_taken_port_is_said_with_its_setting(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"setting http_listen: {address} is not free"):
            serve(http_listen=address)


def test_without_its_libraries_only_a_server_with_http_does_not_start(tmp_path: Path) -> None:
    code = """
import asyncio
from pathlib import Path
from typing import Any
from evalrpc.config import HttpListenSettings, Settings
from evalrpc.server.app import running_server
from evalrpc.errors import ConfigurationError
async def main():
    try:
        async with running_server(Settings(data_dir=Path(sys.argv[1]), http_listen=(HttpListenSettings("127.0.0.1:0"),))):
            pass
    except ConfigurationError as error:
        print(error.message)
asyncio.run(main())
"""
    result = run_without({"uvicorn"}, code, str(tmp_path / "data"))
    assert "setting http_listen: uvicorn is missing; install it: pip install '.[http]'" in result.stdout, result.stderr
