"""Server reflection: what generic clients, such as grpcurl, ask for instead of having a schema.

Answers come from the descriptors that are shipped beside the stubs: those of the stubs themselves have no comments. Versions
v1 and v1alpha of the protocol have the same messages on the wire, so one implementation serves both.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from evalrpc.errors import InvalidRequestError

SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
METHOD: Final = "ServerReflectionInfo"

MAX_REQUEST_BYTES: Final = 1024 * 1024
"""The size of a question. Its answer repeats it, and names in an error what is not there."""


class Reflection:
    """Describes the evaluation service with its errors, reflection itself, and the services of the further files."""

    def __init__(self, further_files: Iterable[FileDescriptor]) -> None:
        # With the details of errors, generic clients show these as text.
        files = [*_shipped_files(), *_reflection_files(), *map(_proto, (error_details_pb2.DESCRIPTOR, *further_files))]
        self._services = sorted(f"{file.package}.{service.name}" for file in files for service in file.service)
        self._files = {file.name: file for file in files}
        self._pool = DescriptorPool()
        for file in files:
            self._pool.AddSerializedFile(file.SerializeToString())

    def answer(self, message: bytes) -> bytes:
        """Answer one message of a stream with another. What is not here is an error within it.

        Raises InvalidRequestError for bytes that are no message, or too many.
        """
        if len(message) > MAX_REQUEST_BYTES:  # answers repeat it
            raise InvalidRequestError(f"the message has {len(message)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
        try:
            request = pb.ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise InvalidRequestError("the bytes sent are no ServerReflectionRequest") from None
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except KeyError as error:
            _fail(response, code_pb2.NOT_FOUND, f"this server does not have it: {error.args[0]}")
        answer: bytes = response.SerializeToString()
        return answer

    def _fill(self, response: Any, request: Any) -> None:
        """Fill in what is asked for. Raises KeyError for what is not here."""
        match request.WhichOneof("message_request"):
            case "file_by_filename":
                self._add_files(response, request.file_by_filename)
            case "file_containing_symbol":
                self._add_files(response, self._file_of(request.file_containing_symbol))
            case "file_containing_extension":
                wanted = request.file_containing_extension
                extended = self._pool.FindMessageTypeByName(wanted.containing_type)
                extension: Any = self._pool.FindExtensionByNumber(extended, wanted.extension_number)
                self._add_files(response, extension.file.name)
            case "all_extension_numbers_of_type":
                extended = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                numbers = sorted(extension.number for extension in self._pool.FindAllExtensions(extended))
                found = pb.ExtensionNumberResponse(base_type_name=extended.full_name, extension_number=numbers)
                response.all_extension_numbers_response.CopyFrom(found)
            case "list_services":
                services = [pb.ServiceResponse(name=name) for name in self._services]
                response.list_services_response.service.extend(services)
            case _:
                _fail(response, code_pb2.INVALID_ARGUMENT, "the request asks for nothing that this server knows")

    def _file_of(self, symbol: str) -> str:
        try:
            return self._pool.FindFileContainingSymbol(symbol).name
        except KeyError:  # the pool finds no methods by their names
            service, _, method = symbol.rpartition(".")
            described = self._pool.FindServiceByName(service)
            if method not in described.methods_by_name:
                raise
            return described.file.name

    def _add_files(self, response: Any, name: str) -> None:
        """Add a file and all that it imports, however deep."""
        names = [name]
        for each in names:
            names.extend(imported for imported in self._files[each].dependency if imported not in names)
        found = [self._files[each].SerializeToString() for each in names]
        response.file_descriptor_response.file_descriptor_proto.extend(found)


@cache
def _shipped_files() -> Sequence[FileDescriptorProto]:
    """Return the schema and the well-known types that it uses, with comments; none comes before what it imports."""
    data = resources.files("evalrpc.v1").joinpath("descriptors.binpb").read_bytes()
    return FileDescriptorSet.FromString(data).file


@cache
def _reflection_files() -> Sequence[FileDescriptorProto]:
    """Return the schema of both versions of the protocol; the package that has the messages brings only v1alpha."""
    alpha = _proto(pb.DESCRIPTOR)
    return alpha, json_format.Parse(json_format.MessageToJson(alpha).replace("v1alpha", "v1"), FileDescriptorProto())


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(file.serialized_pb)


def _fail(response: Any, code: int, text: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = text
