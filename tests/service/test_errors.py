"""Every error has a code, a reason and details, and nothing that a client sends causes INTERNAL."""

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from example_count import example_count
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import (
    NOWHERE,
    SECONDS,
    TERMINAL,
    Api,
    ServerHere,
    Site,
    detail,
    fields_of,
    reason_of,
    status_of,
    submission,
)

from evalrpc.v1 import evaluation_service_pb2 as calls
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.files_pb2 import ReadLogRequest
from evalrpc.v1.jobs_pb2 import JobFilter, SubmitJobRequest

METHODS = calls.DESCRIPTOR.services_by_name["EvaluationService"].methods
BAD_SELECTION = JobFilter(label_selector="run=x,step>5", job_id_prefix="0b5")
ELSEWHERE = "1b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"
BY_JOB = [method.name for method in METHODS if "job_id" in method.input_type.fields_by_name]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHere]:
    """One server for all calls that change no state."""
    site = Site(tmp_path_factory.mktemp("shared"))
    server = ServerHere(site.settings(max_queued=5))
    yield server
    server.start_no_more()
    site.kill_runs()
    server.stop()


@pytest.fixture
def api(shared: ServerHere) -> Api:
    return shared.api


def error_of(call: Callable[[], Any]) -> grpc.RpcError:
    """Call, read a stream to its end, and return the resulting error."""

    def answer() -> object:
        given = call()
        return list(given) if hasattr(given, "__next__") else given

    with pytest.raises(grpc.RpcError) as caught:
        answer()
    return caught.value


def comparing(**fields: Any) -> dict[str, Any]:
    """Return the fields of a comparison, valid except for those given."""
    return {"baseline_job_id": NOWHERE, "candidate_job_ids": [ELSEWHERE], **fields}


# Jobs that do not exist.

REQUIRED: dict[str, dict[str, Any]] = {
    "ReadArtifact": {"name": "x"},
    "UpdateJob": {"priority": 1},
    "ReadSampleMedia": {"sample_id": "0"},
}
"""What a call needs besides the job's id."""


@pytest.mark.parametrize("name", BY_JOB)
def test_every_call_about_a_job_says_that_there_is_none(api: Api, name: str) -> None:
    error = error_of(lambda: getattr(api, name)(job_id=NOWHERE, **REQUIRED.get(name, {})))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(error) == "JOB_NOT_FOUND"
    resource = detail(error, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("evalrpc.v1.JobInfo", NOWHERE)


@pytest.mark.parametrize("job_id", ["x", "0b54e7a6", NOWHERE + "0", NOWHERE.replace("-", ""), " ", "é" * 36, "x" * 100_000])
@pytest.mark.parametrize("name", BY_JOB)
def test_every_call_about_a_job_refuses_what_is_no_uuid(api: Api, name: str, job_id: str) -> None:
    assert fields_of(error_of(lambda: getattr(api, name)(job_id=job_id, **REQUIRED.get(name, {})))) == ["job_id"]


@pytest.mark.parametrize("name", BY_JOB)
def test_every_call_about_a_job_requires_its_id(api: Api, name: str) -> None:
    assert fields_of(error_of(lambda: getattr(api, name)(**REQUIRED.get(name, {})))) == ["job_id"]


def test_an_id_in_capitals_is_the_same_id(serve: Callable[..., ServerHere]) -> None:
    api = serve().api
    job = api.run("good")
    assert api.get(job.job_id.upper()).job_id == job.job_id


# Bad fields.


def test_all_bad_fields_of_a_submission_are_named_at_once(api: Api) -> None:
    call = submission(
        "-m",
        request={
            "harness": "nope",
            "tasks": ["a", "a", "../x"],
            "limit": -1,
            "num_gpus": 99,
            "num_fewshot": -1,
            "batch_size": "x",
        },
        request_id=" ",
        priority=9999,
        max_attempts=-1,
        timeout=Duration(),
        labels={"!": "x"},
    )
    call.request.model_args.update({"deep": {"list": [0, math.nan]}})
    assert set(fields_of(error_of(lambda: api.SubmitJob(call)))) == {
        "request.harness",
        "request.model",
        "request.tasks[1]",
        "request.tasks[2]",
        "request.limit",
        "request.num_gpus",
        "request.num_fewshot",
        "request.batch_size",
        "request.model_args.deep.list[1]",
        "request_id",
        "priority",
        "max_attempts",
        "timeout",
        "labels",
    }


def test_an_empty_submission_names_what_is_missing(api: Api) -> None:
    assert fields_of(error_of(lambda: api.SubmitJob(SubmitJobRequest()))) == ["request"]


def test_five_mebibytes_of_arguments_are_refused_by_name(api: Api) -> None:
    call = submission()
    call.request.model_args.update({"x": "y" * 5 * 2**20})
    assert fields_of(error_of(lambda: api.SubmitJob(call))) == ["request.model_args"]


def test_a_message_that_is_too_large_for_the_server_is_refused(api: Api) -> None:
    call = submission()
    call.request.model_args.update({"x": "y" * 17 * 2**20})
    error = error_of(lambda: api.SubmitJob(call))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert api.GetServerInfo().max_request_bytes == 16 * 2**20


def test_more_bad_fields_than_a_status_can_carry_are_counted(api: Api) -> None:
    call = submission(request={"tasks": [f"-{number}" for number in range(900)]})
    error = error_of(lambda: api.SubmitJob(call))
    named = fields_of(error)
    assert named[0] == "request.tasks[0]"
    assert 5 < len(named) < 900
    last = detail(error, error_details_pb2.BadRequest).field_violations[-1]
    assert "more" in last.description


@pytest.mark.parametrize("letter", ["\U0001f600", "é", "\u4e2d"])
def test_an_error_about_text_in_any_script_arrives_whole(api: Api, letter: str) -> None:
    call = submission(request={"tasks": ["-" + letter * 200 + str(number) for number in range(100)]})
    error = error_of(lambda: api.SubmitJob(call))
    assert fields_of(error)[0] == "request.tasks[0]"
    trailers = sum(len(key) + len(value) for key, value in error.trailing_metadata() or ())
    message = error.details() or ""
    assert trailers * 4 / 3 + 3 * len(message.encode()) < 8192, "many clients refuse trailers over 8 KiB"


@pytest.mark.parametrize(
    ("call", "fields", "expected"),
    [
        ("ListJobs", {"page_size": -1}, ["page_size"]),
        ("ListJobs", {"page_token": "x"}, ["page_token"]),
        ("ListJobs", {"filter": JobFilter(statuses=[0, 99])}, ["filter.statuses[0]", "filter.statuses[1]"]),
        ("ListJobs", {"filter": JobFilter(labels={"a b": "c"})}, ["filter.labels"]),
        ("WatchJobs", {"filter": JobFilter(statuses=[99])}, ["filter.statuses[0]"]),
        (
            "ListJobs",
            {"filter": BAD_SELECTION, "page_size": -1},
            ["filter.label_selector", "filter.job_id_prefix", "page_size"],
        ),
        (
            "WatchJobs",
            {"filter": BAD_SELECTION, "after_revision": -1},
            ["filter.label_selector", "filter.job_id_prefix", "after_revision"],
        ),
        (
            "GetHistory",
            {"filter": BAD_SELECTION, "step_label": "a b", "page_size": -1},
            ["filter.label_selector", "filter.job_id_prefix", "step_label", "page_size"],
        ),
        ("WatchJobs", {"after_revision": -1}, ["after_revision"]),
        ("WatchJobs", {"view": 3, "filter": JobFilter(labels={"a b": "c"})}, ["filter.labels", "view"]),
        ("ListJobs", {"view": -1}, ["view"]),
        ("UpdateJob", {"job_id": "x"}, ["job_id", "update_mask"]),
        ("WatchJobs", {"heartbeat_interval": Duration(nanos=1)}, ["heartbeat_interval"]),
        ("WatchJob", {"job_id": "x", "after_revision": -1}, ["job_id", "after_revision"]),
        ("WatchJob", {"job_id": NOWHERE, "heartbeat_interval": Duration(seconds=-1)}, ["heartbeat_interval"]),
        ("CancelJob", {"job_id": "x", "reason": "x" * 1001}, ["job_id", "reason"]),
        ("CancelJob", {"job_id": NOWHERE, "reason": "a\nb"}, ["reason"]),
        ("ReadLog", {"job_id": "x", "offset": -1, "attempt": -1}, ["job_id", "offset", "attempt"]),
        ("ReadLog", {"job_id": NOWHERE, "heartbeat_interval": Duration(nanos=99_999_999)}, ["heartbeat_interval"]),
        ("WatchJobs", {"filter": JobFilter(statuses=[99]), "after_revision": -1}, ["filter.statuses[0]", "after_revision"]),
        ("ReadArtifact", {"job_id": "x", "name": "x", "offset": -1, "limit": -1}, ["job_id", "offset", "limit"]),
        (
            "ListSamples",
            {"job_id": "x", "filter": {"min_value": 1}, "page_size": -1},
            ["job_id", "filter.metric", "page_size"],
        ),
        (
            "ListSamples",
            {"job_id": "x", "filter": {"metric": "m", "min_value": 1, "max_value": 0}},
            ["job_id", "filter.min_value"],
        ),
        ("ListSamples", {"job_id": "x", "filter": {"metric": "m", "max_value": -1}}, ["job_id"]),
        ("ReadSampleMedia", {"job_id": "x", "max_media": -1}, ["job_id", "max_media", "sample_id"]),
        ("ListArtifacts", {"job_id": "x", "attempt": -1, "page_size": -1}, ["job_id", "attempt", "page_size"]),
        ("ListMetrics", {"job_id": "x", "metrics": [{}], "page_size": -1}, ["job_id", "metrics[0]", "page_size"]),
        ("ListTasks", {"harness": "x", "page_size": -1}, ["harness", "page_size"]),
        ("ListFlips", {"direction": 9, "page_size": -1}, ["baseline_job_id", "candidate_job_id", "direction", "page_size"]),
        ("CompareJobs", {}, ["baseline_job_id", "candidate_job_ids"]),
        ("CompareJobs", {"baseline_job_id": "x", "candidate_job_ids": ["y"]}, ["baseline_job_id", "candidate_job_ids[0]"]),
        ("CompareJobs", comparing(candidate_job_ids=[NOWHERE.upper()]), ["candidate_job_ids[0]"]),
        ("CompareJobs", comparing(candidate_job_ids=[ELSEWHERE, ELSEWHERE]), ["candidate_job_ids[1]"]),
        ("CompareJobs", comparing(candidate_job_ids=[ELSEWHERE] * 17), ["candidate_job_ids"]),
        ("CompareJobs", comparing(alpha=math.nan, tolerance=math.inf), ["alpha", "tolerance"]),
        ("CompareJobs", comparing(alpha=0.0, tolerance=-1), ["alpha", "tolerance"]),
        ("CompareJobs", comparing(alpha=0.51, correction=9), ["alpha", "correction"]),
        ("CompareJobs", comparing(metrics=[{"filter": "x"}, {"task": "a\nb"}]), ["metrics[0]", "metrics[1].task"]),
        ("CompareJobs", comparing(cluster_by="a\nb", max_bad_answer_ratio=1.1), ["cluster_by", "max_bad_answer_ratio"]),
        ("CompareJobs", comparing(cluster_by="x" * 256, max_bad_answer_ratio=math.nan), ["cluster_by", "max_bad_answer_ratio"]),
        ("CompareJobs", comparing(metrics=[{"task": "x"}] * 101), ["metrics"]),
        (
            "CompareJobs",
            comparing(metric_thresholds=[{"tolerance": math.nan}, {"selector": {"metric": "x" * 256}}]),
            [
                "metric_thresholds[0].selector",
                "metric_thresholds[0].tolerance",
                "metric_thresholds[1].selector.metric",
                "metric_thresholds[1]",
            ],
        ),
    ],
)
def test_a_bad_field_of_any_call_is_named(api: Api, call: str, fields: dict[str, Any], expected: list[str]) -> None:
    assert fields_of(error_of(lambda: getattr(api, call)(**fields))) == expected


def test_a_filter_with_very_many_statuses_is_the_clients_fault(api: Api) -> None:
    assert fields_of(error_of(lambda: api.ListJobs(filter=JobFilter(statuses=[1] * 300_000)))) == ["filter.statuses"]


def test_a_job_that_was_accepted_can_be_listed_and_watched(serve: Callable[..., ServerHere]) -> None:
    api = serve().api
    accepted = None
    for depth in range(40, 1, -1):
        call = submission()
        nested = call.request.model_args
        for _ in range(depth):
            nested = nested.fields["a"].struct_value
        nested.fields["a"].number_value = 1
        try:
            accepted = api.SubmitJob(call)
        except grpc.RpcError:
            continue
        break
    assert accepted is not None
    assert api.ListJobs().jobs[0].job_id == accepted.job_id
    assert next(iter(api.watch(accepted.job_id))).job.job_id == accepted.job_id
    api.wait_for(accepted.job_id, *TERMINAL)


# Unimplemented calls.


def test_a_call_that_is_not_built_yet_says_so_and_is_no_capability(api: Api) -> None:
    capabilities = set(api.GetServerInfo().capabilities)
    assert {
        "SubmitJob",
        "GetJob",
        "WatchJob",
        "WatchJobs",
        "ListJobs",
        "CancelJob",
        "UpdateJob",
        "GetQueue",
        "GetServerInfo",
    } <= capabilities
    for method in METHODS:
        if method.name not in capabilities:
            error = error_of(lambda name=method.name: getattr(api, name)())
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert reason_of(error) == "UNIMPLEMENTED"
            assert method.name in error.details()


def test_the_server_tells_what_it_is(api: Api) -> None:
    info = api.GetServerInfo()
    assert (info.gpu_count, info.max_running, info.max_queued) == (2, 4, 5)
    assert info.version
    assert info.HasField("started_at")
    assert info.oldest_revision <= info.head_revision


# Health and reflection.


@pytest.mark.parametrize("service", ["", "evalrpc.v1.EvaluationService"])
def test_the_server_is_healthy(api: Api, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_knows_the_services(api: Api) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = stub.ServerReflectionInfo(requests, timeout=SECONDS)
    names = {service.name for service in answer.list_services_response.service}
    assert {"evalrpc.v1.EvaluationService", "grpc.health.v1.Health"} <= names


# Fuzzing.

PLAIN_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,  # what operators do
}


def send(api: Api, method: MethodDescriptor, data: bytes) -> grpc.RpcError | None:
    """Send any bytes, and read the answer up to the first event after which a stream may stay quiet."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if not method.server_streaming:
            api.channel.unary_unary(path)(data, timeout=SECONDS)
            return None
        stream = api.channel.unary_stream(path)(data, timeout=SECONDS)
        for event in stream:
            if method.name != "WatchJobs" or pb.JobEvent.FromString(event).type == pb.JOB_EVENT_TYPE_BOOKMARK:
                stream.cancel()
                break
    except grpc.RpcError as error:
        return error
    return None


def check(error: grpc.RpcError | None) -> None:
    if error is not None and error.code() is not grpc.StatusCode.CANCELLED:
        assert error.code() in PLAIN_CODES, f"{error.code()}: {error.details()}"
        assert reason_of(error)
        assert status_of(error)


FUZZ = settings(
    max_examples=example_count(80),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(method=st.sampled_from(list(METHODS)), data=st.binary(max_size=100))
def test_any_bytes_get_a_plain_answer(api: Api, method: MethodDescriptor, data: bytes) -> None:
    check(send(api, method, data))


NUMBERS = st.sampled_from([0, 1, -1, 2, 5, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32 - 1])
TEXTS = st.one_of(
    st.text(max_size=30), st.sampled_from([NOWHERE, "toy", "lmms-eval", "t", "\0", "-x", "a" * 300, "..", "/etc/passwd"])
)
FLOATS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 0.5, 1.0]))


def clamp(number: int, field: FieldDescriptor) -> int:
    if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM):
        return struct.unpack("i", struct.pack("I", number & 0xFFFFFFFF))[0]
    return number


def values_of(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages_of(GetMessageClass(field.message_type), depth - 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=10)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return FLOATS
    return NUMBERS.map(lambda number: clamp(number, field))


@st.composite
def messages_of(draw: st.DrawFn, message_class: type[Message], depth: int = 4) -> Message:
    """Draw a message with any fields set to anything that its types allow."""
    message = message_class()
    if depth <= 0:
        return message
    for field in (
        draw(st.lists(st.sampled_from(list(message.DESCRIPTOR.fields)), max_size=6)) if message.DESCRIPTOR.fields else []
    ):
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            key = draw(TEXTS)
            if value.message_type is not None:
                target[key].CopyFrom(draw(values_of(value, depth)))
            else:
                target[key] = draw(values_of(value, depth))
        elif field.is_repeated:
            items = draw(st.lists(values_of(field, depth), max_size=3))
            target.extend(items)
        elif field.message_type is not None:
            target.CopyFrom(draw(values_of(field, depth)))
        else:
            setattr(message, field.name, draw(values_of(field, depth)))
    return message


@FUZZ
@given(data=st.data(), method=st.sampled_from(list(METHODS)))
def test_any_fields_get_a_plain_answer(api: Api, data: st.DataObject, method: MethodDescriptor) -> None:
    message = data.draw(messages_of(GetMessageClass(method.input_type)))
    if isinstance(message, SubmitJobRequest):
        message.validate_only = True
    if isinstance(message, ReadLogRequest):
        message.follow = False
    check(send(api, method, message.SerializeToString()))


@FUZZ
@given(data=st.data())
def test_any_submission_that_is_almost_good_gets_a_plain_answer(api: Api, data: st.DataObject) -> None:
    call = submission()
    call.MergeFrom(data.draw(messages_of(SubmitJobRequest)))
    call.validate_only = data.draw(st.booleans())
    call.request.harness = "toy"
    call.request.num_gpus = 2
    check(
        send(api, calls.DESCRIPTOR.services_by_name["EvaluationService"].methods_by_name["SubmitJob"], call.SerializeToString())
    )
