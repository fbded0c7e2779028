"""Maps the status of a failed call to the class of `evalrpc.errors` that the server raised."""

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from evalrpc import errors
from evalrpc.errors import (
    DOMAIN,
    ConfigurationError,
    EvalrpcError,
    FieldsError,
    FieldViolation,
    JobNotCompletedError,
    LimitExceededError,
    RequestTooLargeError,
    RunFailedError,
    UnavailableError,
)

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailing metadata key that carries a serialised google.rpc.Status."""

_ABOUT_THE_REQUEST: Final = (
    # A proxy, or a server of another kind, asks who calls (HTTP 401), forbids it (403), or has nothing there (404).
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    # Neither gRPC nor a proxy makes these by itself: another program has read the request, and answers it.
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
)
"""The codes that are final even without our ErrorInfo.

Not among them: CANCELLED, which is never our own where it is judged; DEADLINE_EXCEEDED, since the deadline of a stream
is checked before each call, and else a proxy has limited it; RESOURCE_EXHAUSTED, which a proxy that asks for calm (RST_STREAM)
causes, unless it says that a message is too large; UNKNOWN, INTERNAL, ABORTED and DATA_LOSS, which a bug of our server would
send with an ErrorInfo.
"""

_TOO_LARGE: Final = re.compile(r"message (is )?larger than", re.IGNORECASE)
"""How gRPC, on either side, refuses a message for its size, without details."""

_NEVER_ON_THE_WIRE: Final = (ConfigurationError, RunFailedError, JobNotCompletedError)


class ErrorDetails(NamedTuple):
    """What a status carries besides its code and message. Absent details are None or empty."""

    reason: str | None = None
    metadata: dict[str, str] | None = None
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_seconds: float | None = None


def from_rpc_error(error: grpc.RpcError) -> EvalrpcError | TimeoutError:
    """Build the error for a failed call, to be raised from it.

    The reason in ErrorInfo determines the class, else the status code. DEADLINE_EXCEEDED becomes a TimeoutError. Where gRPC
    speaks, not the server, its internals are left out of the message; the cause has them.
    """
    code, message = error.code().name, error.details() or error.code().name
    if code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
        return TimeoutError("no answer in time")
    details = parse_details(_status_details(error))
    if details.reason is None and code == grpc.StatusCode.RESOURCE_EXHAUSTED.name and _TOO_LARGE.search(message):
        return RequestTooLargeError(message)
    is_of_grpc = details.reason is None and code in _CODES_OF_GRPC
    return build_error(code, _in_words(message) if is_of_grpc else message, details)


def is_broken_off(error: grpc.RpcError) -> bool:
    """Return whether a call was only broken off on the way, so that the same request, or the rest of it, may succeed.

    What carries our ErrorInfo is the server's answer, and final unless it is UNAVAILABLE, or a limit on callers that says when
    to call again. What lacks it is not from our server: a proxy has reset the call or answered itself, the connection was lost,
    or gRPC gave up. It counts as broken off whatever its code, unless it can only be about the request.
    """
    failure = from_rpc_error(error)
    if isinstance(failure, LimitExceededError):
        return failure.retry_delay_seconds is not None
    if parse_details(_status_details(error)).reason is not None:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return error.code() not in _ABOUT_THE_REQUEST


def from_broken_call(error: grpc.RpcError) -> UnavailableError | LimitExceededError:
    """Build the error for a call that was broken off, whatever its code."""
    failure = from_rpc_error(error)
    if isinstance(failure, UnavailableError | LimitExceededError):
        return failure
    return UnavailableError(f"the call was broken off: {error.code().name}: {_in_words(error.details() or 'no reason given')}")


def build_error(code: str, message: str, details: ErrorDetails) -> EvalrpcError:
    """Build the error for this status code and these details."""
    cls = _error_class(code, details.reason)
    options: dict[str, Any] = {"metadata": details.metadata, "retry_delay_seconds": details.retry_delay_seconds}
    if issubclass(cls, FieldsError):
        options["violations"] = details.violations
    error = cls(message, **options)
    error.reason = details.reason or error.reason
    return error


def parse_details(serialised_status: bytes) -> ErrorDetails:
    """Parse the details of a serialised google.rpc.Status. Unknown kinds and damaged details count as absent."""
    status = status_pb2.Status()
    found = ErrorDetails()
    try:
        status.ParseFromString(serialised_status)
        for detail in status.details:
            found = found._replace(**_read_detail(detail))
    except DecodeError:
        return found
    return found


def _read_detail(detail: Any) -> dict[str, Any]:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        return {"reason": info.reason, "metadata": dict(info.metadata)} if info.domain == DOMAIN else {}
    if detail.Unpack(request):
        return {"violations": tuple(FieldViolation(v.field, v.description) for v in request.field_violations)}
    if detail.Unpack(retry):
        return {"retry_delay_seconds": retry.retry_delay.ToTimedelta().total_seconds()}
    return {}


_CODES_OF_GRPC: Final = frozenset({"CANCELLED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"})

_WORDS: Final = (
    (re.compile(r"CERTIFICATE_VERIFY_FAILED: certificate has expired"), "its certificate has expired"),
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED"),
        "its certificate is signed by nobody whom this client trusts; tls_ca names whom to trust",
    ),
    (re.compile(r"Hostname Verification Check failed"), "its certificate is one for other hosts"),
    (re.compile(r"WRONG_VERSION_NUMBER"), "what listens there does not speak TLS; without https:// the client does not either"),
    (
        re.compile(r"failed to connect to all addresses.*([Ss]ocket closed|Connection reset)", re.DOTALL),
        "it hung up at once; perhaps it speaks TLS, where https:// is missing, or wants a certificate of the client (tls_cert)",
    ),
    (re.compile(r"unix:.*No such file or directory"), "there is no such socket, so no server listens there"),
    (re.compile(r"unix:.*Permission denied"), "this account may not open the socket, which is its server's alone"),
    (re.compile(r"Connection refused"), "connection refused; no server listens there"),
    (
        re.compile(
            r"DNS|Name or service not known|name resolution|nodename nor servname|hostname lookup|Domain name not found"
        ),
        "there is no host of this name",
    ),
    (re.compile(r"No route to host|Network is unreachable"), "the network has no way to this host"),
    (re.compile(r"Timeout occurred|timed out|Deadline Exceeded", re.IGNORECASE), "no answer in time"),
    (re.compile("http1"), "what listens there speaks HTTP and no gRPC: a server's http_listen is not its gRPC address"),
    (
        re.compile(r"SSL|TLS|handshake|SETTINGS frame", re.IGNORECASE),
        "what listens there does not speak gRPC as asked",
    ),
    (
        re.compile(r"Stream removed|RST_STREAM|GOAWAY|[Ss]ocket closed|Connection reset|Broken pipe|recvmsg|Transport closed"),
        "the connection broke off",
    ),
)
"""What gRPC's own messages come down to. The first that matches counts."""


def _in_words(message: str) -> str:
    """Return a message of gRPC's own in plain words, if they are known."""
    return next((words for pattern, words in _WORDS if pattern.search(message)), message)


def _status_details(error: grpc.RpcError) -> bytes:
    pairs: Iterable[Any] = error.trailing_metadata() or ()
    return next((value for key, value in pairs if key == STATUS_DETAILS_KEY), b"")


_WIRE_CLASSES: Final = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, EvalrpcError) and not issubclass(cls, _NEVER_ON_THE_WIRE)
]
_BY_REASON: Final = {cls.reason: cls for cls in _WIRE_CLASSES}
_BY_CODE: Final = {
    cls.code: cls for cls in _WIRE_CLASSES if all(getattr(base, "code", cls.code) != cls.code for base in cls.__bases__)
}
"""The most general class of each code. UNKNOWN has none but EvalrpcError itself."""


def _error_class(code: str, reason: str | None) -> type[EvalrpcError]:
    """Find the class. RESOURCE_EXHAUSTED without a reason is gRPC's own, or a proxy's, and none of our limits."""
    if reason is None and code == grpc.StatusCode.RESOURCE_EXHAUSTED.name:
        return EvalrpcError
    return _BY_REASON.get(reason or "") or _BY_CODE.get(code, EvalrpcError)
