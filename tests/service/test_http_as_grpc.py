"""What calls say, and how they are answered, is the same over HTTP as over gRPC: all calls, every field, all ways to say it."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.client import HTTPConnection
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status
from http_calls import http_of, path_of
from message_examples import examples, full_example
from serving import NOWHERE, ServerHere

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.server import app
from evalrpc.server.app import SERVICE
from evalrpc.server.call import Call
from evalrpc.server.handlers import Handler

_VIOLATIONS: Final = (FieldViolation("request.tasks[0]", "is “ä”"), FieldViolation("labels", "are two\nlines"))
_CODE: Final = grpc.StatusCode.INVALID_ARGUMENT
_END: Final = 2
_OF_A_FILE: Final = {"job_id": NOWHERE, "name": "ä/b +%41", "max_media": 1}
"""What the path of a file says."""


class Recorder:
    """Answers every call of a server, and remembers what has arrived."""

    def __init__(self) -> None:
        self.arrived: dict[str, bytes] = {}
        self.answers: dict[str, list[bytes]] = {}
        """By method; without one, its calls are refused."""

    def handlers_of(self, service: ServiceDescriptor, *_: object) -> Mapping[str, Handler]:
        return {method.name: partial(self._answer, method) for method in service.methods}

    async def _answer(self, method: MethodDescriptor, request: bytes, call: Call) -> bytes:
        self.arrived[method.name] = request
        answers = self.answers.get(method.name)
        if answers is None:
            raise InvalidRequestError(violations=_VIOLATIONS, retry_delay_seconds=1.5)
        if not method.server_streaming:
            return answers[0]
        for answer in answers:
            await call.send(answer)
        return b""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(app, "handlers_of", recorder.handlers_of)
    return recorder


@pytest.fixture
def server(recorder: Recorder, serve: Callable[..., ServerHere]) -> ServerHere:
    return serve(http_listen="127.0.0.1:0")


@pytest.fixture
def connection(server: ServerHere) -> Iterator[HTTPConnection]:
    connection = http_of(server).connect()
    yield connection
    connection.close()


class Request(NamedTuple):
    """A request over HTTP."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}


Requests = Iterator[Request]


def requests_of(method: MethodDescriptor, message: Message) -> Requests:
    """Yield the requests that people write: JSON in a body, in a query, and parameters."""
    text = json_format.MessageToJson(message).encode()
    yield _post(method, "json", text)
    if _only_reads(method) and not method.server_streaming:
        yield Request("GET", f"{path_of(method.name)}?encoding=json&message={quote(text)}")
    if method.name in _PLAIN:
        yield from _PLAIN[method.name](message)


def other_requests_of(method: MethodDescriptor, message: Message) -> Requests:
    """Yield the other requests that mean the same."""
    by_number = json_format.MessageToJson(message, preserving_proto_field_name=True, use_integers_for_enums=True).encode()
    for form, body in (("json", by_number), ("proto", message.SerializeToString())):
        yield _post(method, form, body)
        yield _post(method, form, body, is_compressed=True)
        if _only_reads(method) and not method.server_streaming:
            query = f"?connect=v1&base64=1&encoding={form}&message="
            yield Request("GET", path_of(method.name) + query + _in_base64(body))
            yield Request("GET", f"{path_of(method.name)}{query}{_in_base64(gzip.compress(body))}&compression=gzip")


def _post(method: MethodDescriptor, form: str, body: bytes, *, is_compressed: bool = False) -> Request:
    if is_compressed:
        body = gzip.compress(body)
    prefix = ""
    if method.server_streaming:
        prefix, body = "connect+", bytes((is_compressed,)) + len(body).to_bytes(4) + body
    encoding = {f"{'connect-' if prefix else ''}content-encoding": "gzip"} if is_compressed else {}
    return Request("POST", path_of(method.name), body, {"content-type": f"application/{prefix}{form}", **encoding})


def _only_reads(method: MethodDescriptor) -> bool:
    return method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS


def _in_base64(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


# Plain paths


def _of_all_jobs(message: Any) -> Requests:
    is_sayable = not message.filter.labels and message.HasField("filter") == bool(message.filter.ByteSize())
    if is_sayable:  # labels are a map, in place of which there is label_selector
        yield Request("GET", f"/v1/events?{_parameters(message, 'filter')}&{_parameters(message.filter)}".replace("?&", "?"))


def _of_one_job(message: Any) -> Requests:
    if message.job_id:
        yield Request("GET", f"/v1/events?{_parameters(message)}")
    if message.job_id and message.after_revision > 0:
        path = f"/v1/events?{_parameters(message, 'after_revision')}"
        yield Request("GET", path, headers={"last-event-id": str(message.after_revision)})


def _of_a_file(path: str, message: Any, *but: str) -> Requests:
    if all(getattr(message, name) == _OF_A_FILE.get(name, getattr(message, name)) for name in but):
        yield Request("GET", f"/v1/jobs/{NOWHERE}/{path}?{_parameters(message, *but)}")


_PLAIN: Final[Mapping[str, Callable[[Any], Requests]]] = {
    "WatchJobs": _of_all_jobs,
    "WatchJob": _of_one_job,
    "ReadLog": lambda message: _of_a_file("log", message, "job_id"),
    "ReadArtifact": lambda message: _of_a_file(f"artifacts/{quote(message.name)}", message, "job_id", "name"),
    "ReadSampleMedia": lambda message: (
        _of_a_file(f"media/{message.start_index}", message, "job_id", "start_index", "max_media")
        if message.start_index in range(10**9)
        else iter(())
    ),
}


def _parameters(message: Message, *but: str) -> str:
    """Return the fields of a message as the parameters of a URL."""
    return urlencode(
        [
            (field.name, _text(field, item))
            for field, value in message.ListFields()
            if field.name not in but
            for item in (value if field.is_repeated else [value])
        ]
    )


def _text(field: FieldDescriptor, value: Any) -> str:
    if field.message_type is not None:
        return str(value.ToJsonString())
    if field.enum_type is not None and value in field.enum_type.values_by_number:
        return str(field.enum_type.values_by_number[value].name)
    return str(value).lower() if field.type == FieldDescriptor.TYPE_BOOL else str(value)


def messages_of(method: MethodDescriptor) -> Iterator[Message]:
    """Yield messages with each field, for the paths of files with what these say."""
    yield from examples(method.input_type)
    of_a_file = {name: value for name, value in _OF_A_FILE.items() if name in method.input_type.fields_by_name}
    if method.name in _PLAIN and "job_id" in of_a_file:
        for example in examples(method.input_type):
            example.MergeFrom(type(example)(**of_a_file))
            yield example


# Calls


def test_every_field_arrives_as_over_grpc_and_a_refusal_comes_back_as_over_grpc(
    server: ServerHere, recorder: Recorder, connection: HTTPConnection
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.GetQueue()
    refusal = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    details = [(each.TypeName(), base64.b64encode(each.value).rstrip(b"=").decode()) for each in refusal.details]
    differing = []

    def check(method: MethodDescriptor, message: Message, request: Request) -> None:
        recorder.arrived.clear()
        connection.request(*request)
        answer = connection.getresponse().read()
        arrived = type(message).FromString(recorder.arrived.get(method.name, b"\xff"))
        error = _error_of(answer)
        told = error["code"], error["message"], [(each["type"], each["value"]) for each in error["details"]]
        if _bytes(arrived) != _bytes(message) or told != (_CODE.name.lower(), refusal.message, details):
            differing.append((request, arrived, answer))

    for method in SERVICE.methods:
        full = full_example(method.input_type)
        for request in other_requests_of(method, full):
            check(method, full, request)
        for message in messages_of(method):
            for request in requests_of(method, message):
                check(method, message, request)
    assert not differing, differing[0]


def test_every_field_of_every_answer_comes_back(recorder: Recorder, connection: HTTPConnection) -> None:
    for method in SERVICE.methods:
        sent = [full_example(method.output_type)]
        if method.server_streaming:
            sent += examples(method.output_type)
        recorder.answers[method.name] = [each.SerializeToString() for each in sent]
        for form in ("json", "proto"):
            connection.request(*_post(method, form, b"{}" if form == "json" else b""))
            answer = connection.getresponse().read()
            texts = _messages_of(answer) if method.server_streaming else [answer]
            for text, expected in zip(texts, sent, strict=True):
                assert _bytes(_parsed(text, form, method)) == _bytes(expected)
    watch_jobs = SERVICE.methods_by_name["WatchJobs"]
    connection.request("GET", "/v1/events")
    lines = connection.getresponse().read().split(b"\n")
    events = [_parsed(line.removeprefix(b"data: "), "json", watch_jobs) for line in lines if line.startswith(b"data: ")]
    assert [_bytes(each) for each in events] == [_bytes(each) for each in map(_event, recorder.answers["WatchJobs"])]


def _event(serialized: bytes) -> Message:
    return GetMessageClass(SERVICE.methods_by_name["WatchJobs"].output_type).FromString(serialized)


def _parsed(text: bytes, form: str, method: MethodDescriptor) -> Message:
    message_class = GetMessageClass(method.output_type)
    return json_format.Parse(text, message_class()) if form == "json" else message_class.FromString(text)


def _messages_of(stream: bytes) -> Iterator[bytes]:
    """Yield the messages in the envelopes of a stream, but for the last one, which says that it has ended well."""
    while stream[0] != _END:
        end = 5 + int.from_bytes(stream[1:5])
        yield stream[5:end]
        stream = stream[end:]
    assert stream[5:] == b"{}"


def _error_of(answer: bytes) -> Any:
    """Return the error in a body, or in the end of a stream."""
    return json.loads(answer[5:])["error"] if answer[0] == _END else json.loads(answer)


def _bytes(message: Message) -> bytes:
    """Return what makes a message the same as another: NaN is none to Python."""
    return message.SerializeToString(deterministic=True)
