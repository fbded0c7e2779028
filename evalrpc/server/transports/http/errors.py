"""Errors as Connect writes them in JSON, which everything over HTTP answers with, apart from what imitates another server."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2  # noqa: F401 - its types are found by name

from evalrpc.errors import EvalrpcError, InvalidRequestError
from evalrpc.server.error_status import status_of
from evalrpc.server.transports.http.request import INERT, Headers, HttpRequest

HTTP_STATUS: Final[Mapping[str, int]] = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
"""The HTTP status of each code, as Connect has them."""

JSON: Final = (b"content-type", b"application/json")


def error_json(error: EvalrpcError) -> dict[str, Any]:
    """Return an error with its details. `debug` is a detail for people, and `value` the same for programs."""
    status = status_of(error)
    details = [_detail(detail) for detail in status.details]
    return {"code": _connect_code(error.code), "message": status.message, "details": details}


def error_body(error: EvalrpcError) -> bytes:
    """Return the body of an answer that is an error."""
    return json.dumps(error_json(error), ensure_ascii=False).encode()


def error_headers(error: EvalrpcError) -> Headers:
    """Return the headers of an answer that is an error."""
    headers = [JSON, *INERT]
    if error.code == "UNAUTHENTICATED":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_delay_seconds is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_delay_seconds)))
    return headers


async def refuse_method(request: HttpRequest, allowed: str) -> None:
    """Answer that a path does not take the method of a request, and which ones it does, such as `GET, POST`."""
    error = InvalidRequestError(f"this path takes {allowed.replace(', ', ' and ')}")
    await request.respond(405, (*error_headers(error), (b"allow", allowed.encode())), error_body(error))


def _connect_code(code: str) -> str:
    return "canceled" if code == "CANCELLED" else code.lower()


def _detail(detail: AnyMessage) -> dict[str, Any]:
    name = detail.TypeName()
    message = GetMessageClass(Default().FindMessageTypeByName(name)).FromString(detail.value)
    value = base64.b64encode(detail.value).rstrip(b"=").decode()
    return {"type": name, "value": value, "debug": MessageToDict(message)}
