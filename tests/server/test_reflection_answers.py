"""Server reflection: every kind of request, and what is not there."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.text_format import Parse
from grpc_reflection.v1alpha import reflection_pb2 as pb
from waiting import DEADLINE_SECONDS

from evalrpc.config import ListenSettings, Settings
from evalrpc.errors import InvalidRequestError
from evalrpc.server.reflection import MAX_REQUEST_BYTES, METHOD, SERVICES, Reflection
from evalrpc.testing.server import ServerThread
from evalrpc.v1 import evaluation_service_pb2, jobs_pb2

SERVICE = "evalrpc.v1.EvaluationService"

EXTENSIBLE = """
name: "acme/extensible.proto"
package: "acme"
syntax: "proto2"
message_type { name: "Base" extension_range { start: 100 end: 200 } }
message_type {
  name: "Scope"
  extension { name: "inner" extendee: ".acme.Base" number: 120 type: TYPE_INT32 label: LABEL_OPTIONAL }
}
extension { name: "outer" extendee: ".acme.Base" number: 110 type: TYPE_STRING label: LABEL_OPTIONAL }
"""


@pytest.fixture(scope="module")
def reflection() -> Reflection:
    pool = DescriptorPool()
    pool.AddSerializedFile(Parse(EXTENSIBLE, FileDescriptorProto()).SerializeToString())
    return Reflection([pool.FindFileByName("acme/extensible.proto")])


def ask(reflection: Reflection, **fields: Any) -> Any:
    request = pb.ServerReflectionRequest(host="here", **fields)
    response = pb.ServerReflectionResponse.FromString(reflection.answer(request.SerializeToString()))
    assert (response.valid_host, response.original_request) == ("here", request)
    return response


def files(response: Any) -> dict[str, FileDescriptorProto]:
    assert response.WhichOneof("message_response") == "file_descriptor_response", response
    found = map(FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in found}


def test_the_longest_question_has_an_answer_that_can_be_read_and_a_longer_one_is_refused(reflection: Reflection) -> None:
    most = MAX_REQUEST_BYTES - pb.ServerReflectionRequest(host="here", file_containing_symbol="").ByteSize() - 2
    assert ask(reflection, file_containing_symbol="s" * most).ByteSize() < 4 * 1024**2
    with pytest.raises(InvalidRequestError, match="at most 1048576 are allowed"):
        ask(reflection, file_containing_symbol="s" * (most + 1))


def test_all_services_are_listed(reflection: Reflection) -> None:
    services = ask(reflection, list_services="").list_services_response.service
    assert [service.name for service in services] == [SERVICE, *SERVICES]


@pytest.mark.parametrize(
    "symbol",
    [
        SERVICE,
        f"{SERVICE}.GetJob",
        "evalrpc.v1.JobInfo",
        "evalrpc.v1.JobInfo.job_id",
        "evalrpc.v1.JobInfo.LabelsEntry",
        "evalrpc.v1.JobStatus",
        "evalrpc.v1.JOB_STATUS_QUEUED",
        "google.protobuf.Struct",
        "google.rpc.ErrorInfo",
        "google.protobuf.Value.kind",
        "grpc.reflection.v1.ServerReflectionRequest",
        f"{SERVICES[0]}.{METHOD}",
        f"{SERVICES[1]}.{METHOD}",
        "acme.Base",
        "acme.outer",
        "acme.Scope.inner",
    ],
)
def test_a_symbol_of_any_kind_comes_with_all_that_its_file_imports(reflection: Reflection, symbol: str) -> None:
    found = files(ask(reflection, file_containing_symbol=symbol))
    pool = DescriptorPool()
    first = next(iter(found))
    add(pool, first, found)
    service, _, method = symbol.rpartition(".")
    if service in (SERVICE, *SERVICES):
        assert method in pool.FindServiceByName(service).methods_by_name
    else:
        assert pool.FindFileContainingSymbol(symbol).name == first


def add(pool: DescriptorPool, name: str, found: dict[str, FileDescriptorProto]) -> None:
    """Add a file after those that it imports, as a client does."""
    if file := found.pop(name, None):
        for imported in file.dependency:
            add(pool, imported, found)
        pool.AddSerializedFile(file.SerializeToString())


def test_a_file_is_described_by_name_with_comments_and_json_names(reflection: Reflection) -> None:
    found = files(ask(reflection, file_by_filename="evalrpc/v1/jobs.proto"))
    file = found["evalrpc/v1/jobs.proto"]
    comments = "".join(location.leading_comments for location in file.source_code_info.location)
    assert "Send a BOOKMARK whenever nothing else was sent for this long" in comments
    (job,) = (message for message in file.message_type if message.name == "JobInfo")
    assert {field.name: field.json_name for field in job.field}["job_id"] == "jobId"


def test_the_descriptors_are_those_of_the_stubs(reflection: Reflection) -> None:
    found = files(ask(reflection, file_containing_symbol=SERVICE))
    for stub in (jobs_pb2.DESCRIPTOR, evaluation_service_pb2.DESCRIPTOR):
        file = found[stub.name]
        file.ClearField("source_code_info")
        for message in file.message_type:
            _clear_json_names(message)
        assert file == FileDescriptorProto.FromString(stub.serialized_pb)


def _clear_json_names(message: Any) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _clear_json_names(nested)


def test_extensions_are_found_by_number_and_listed_by_type(reflection: Reflection) -> None:
    for number in (110, 120):
        asked = pb.ExtensionRequest(containing_type="acme.Base", extension_number=number)
        assert set(files(ask(reflection, file_containing_extension=asked))) == {"acme/extensible.proto"}
    numbers = ask(reflection, all_extension_numbers_of_type="acme.Base").all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == ("acme.Base", [110, 120])
    none = ask(reflection, all_extension_numbers_of_type="evalrpc.v1.JobInfo").all_extension_numbers_response
    assert (none.base_type_name, list(none.extension_number)) == ("evalrpc.v1.JobInfo", [])


@pytest.mark.parametrize(
    "asked",
    [
        {"file_by_filename": "nowhere.proto"},
        {"file_by_filename": ""},
        {"file_by_filename": "../../etc/passwd"},
        {"file_containing_symbol": "evalrpc.v1.Nothing"},
        {"file_containing_symbol": f"{SERVICE}.Nothing"},
        {"file_containing_symbol": "evalrpc.v1"},
        {"file_containing_symbol": ""},
        {"file_containing_symbol": "..."},
        {"file_containing_symbol": "ü" * 100_000},
        {"file_containing_extension": pb.ExtensionRequest(containing_type="acme.Base", extension_number=111)},
        {"file_containing_extension": pb.ExtensionRequest(containing_type="acme.Base", extension_number=-(2**31))},
        {"file_containing_extension": pb.ExtensionRequest(containing_type="acme.Nothing", extension_number=110)},
        {"all_extension_numbers_of_type": "acme.Nothing"},
        {"all_extension_numbers_of_type": "evalrpc.v1.JobStatus"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_is_not_there_is_not_found_within_the_message(reflection: Reflection, asked: dict[str, Any]) -> None:
    error = ask(reflection, **asked).error_response
    assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert error.error_message


def test_a_request_for_nothing_is_an_invalid_argument_within_the_message(reflection: Reflection) -> None:
    assert ask(reflection).error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    response = pb.ServerReflectionResponse.FromString(reflection.answer(b"\x5a\x00"))  # a kind of a later version
    assert response.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.mark.parametrize("garbage", [b"\xff", b"\x1a\xff", b"\x1a\x02\xff\xfe", b"\x2a\x01\x08"])
def test_garbage_is_refused(reflection: Reflection, garbage: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        reflection.answer(garbage)


# Over the wire.


@pytest.mark.parametrize("service", SERVICES)
def test_both_versions_answer_each_message_of_a_stream_and_survive_garbage(
    tmp_path: Path, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = ServerThread(Settings(data_dir=tmp_path / "data", listen=(ListenSettings("127.0.0.1:0"),)))
    try:
        with grpc.insecure_channel(server.address) as channel:
            call = channel.stream_stream(
                f"/{service}/{METHOD}",
                request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
                response_deserializer=pb.ServerReflectionResponse.FromString,
            )
            asked = [
                pb.ServerReflectionRequest(list_services=""),
                pb.ServerReflectionRequest(file_containing_symbol="nothing"),
                pb.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health.Check"),
            ]
            listed, missing, health = call(iter(asked), timeout=DEADLINE_SECONDS)
            names = [each.name for each in listed.list_services_response.service]
            assert names == [SERVICE, "grpc.health.v1.Health", *SERVICES]
            assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
            assert "grpc_health/v1/health.proto" in files(health)
            answers = call(iter([asked[0], b"\xff"]), timeout=DEADLINE_SECONDS)
            with pytest.raises(grpc.RpcError) as caught:
                list(answers)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert len(list(call(iter(asked), timeout=DEADLINE_SECONDS))) == 3
    finally:
        server.stop()
    # gRPC's own poller logs one where two event loops share a process, as in this test.
    assert not [record for record in caplog.records if record.exc_info and record.name != "asyncio"]


def test_a_client_that_leaves_in_the_middle_leaves_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = ServerThread(Settings(data_dir=tmp_path / "data", listen=(ListenSettings("127.0.0.1:0"),)))

    async def leave() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.stream_stream(f"/{SERVICES[0]}/{METHOD}")()
            await call.write(pb.ServerReflectionRequest(list_services="").SerializeToString())
            assert await call.read()
            call.cancel()

    try:
        asyncio.run(leave())
    finally:
        server.stop()
    # gRPC's own poller logs one where two event loops share a process, as they do here.
    assert not [record for record in caplog.records if record.exc_info and record.name != "asyncio"]
