"""A client of the Connect protocol, which takes and returns serialised messages whatever it sends."""

import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from evalrpc.client.failures import build_error, parse_details
from evalrpc.server.app import SERVICE

_HEAD_BYTES: Final = 5
_END: Final = 2


class ConnectTransport:
    """Calls of the evaluation service at a URL, in the form `json` or `proto`. Raises the error that the server has sent."""

    def __init__(self, session: aiohttp.ClientSession, form: str) -> None:
        self._session = session
        self._form = form

    async def unary(self, method: str, request: bytes) -> bytes:
        descriptor = SERVICE.methods_by_name[method]
        headers = {"content-type": f"application/{self._form}", "connect-protocol-version": "1"}
        body = self._encoded(request, descriptor.input_type)
        async with self._session.post(f"/{SERVICE.full_name}/{method}", data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise error_of(json.loads(content))
        return self._decoded(content, descriptor.output_type)

    async def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        descriptor = SERVICE.methods_by_name[method]
        headers = {"content-type": f"application/connect+{self._form}", "connect-protocol-version": "1"}
        body = enveloped(self._encoded(request, descriptor.input_type))
        async with self._session.post(f"/{SERVICE.full_name}/{method}", data=body, headers=headers) as answer:
            assert answer.status == 200
            while True:
                head = await answer.content.readexactly(_HEAD_BYTES)
                message = await answer.content.readexactly(int.from_bytes(head[1:]))
                if head[0] == _END:
                    break
                yield self._decoded(message, descriptor.output_type)
        if failure := json.loads(message).get("error"):
            raise error_of(failure)

    def _encoded(self, message: bytes, descriptor: Descriptor) -> bytes:
        if self._form == "proto":
            return message
        try:
            return json_format.MessageToJson(GetMessageClass(descriptor).FromString(message)).encode()
        except DecodeError:
            return message  # a test sends what is none

    def _decoded(self, message: bytes, descriptor: Descriptor) -> bytes:
        if self._form == "proto":
            return message
        return json_format.Parse(message, GetMessageClass(descriptor)()).SerializeToString()


@asynccontextmanager
async def connect_transport(url: str, form: str) -> AsyncIterator[ConnectTransport]:
    async with aiohttp.ClientSession(url) as session:
        yield ConnectTransport(session, form)


def enveloped(message: bytes) -> bytes:
    """Return a message in its envelope."""
    return b"\0" + len(message).to_bytes(4) + message


def error_of(failure: Mapping[str, Any]) -> Exception:
    """Return the error that its JSON describes, from the details for programs."""
    status = status_pb2.Status()
    for detail in failure["details"]:
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        status.details.add(type_url=f"type.googleapis.com/{detail['type']}", value=value)
    code = "CANCELLED" if failure["code"] == "canceled" else failure["code"].upper()
    return build_error(code, failure["message"], parse_details(status.SerializeToString()))
