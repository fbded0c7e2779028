"""An error as a google.rpc.Status, which every transport can carry."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from evalrpc.errors import (
    DOMAIN,
    EvalrpcError,
    FieldsError,
    FieldViolation,
    LimitExceededError,
    NotFoundError,
    PreconditionError,
    QueueFullError,
    QuotaExceededError,
)
from evalrpc.protobuf.texts import cut

# In gRPC the status travels in HTTP/2 trailers, and many clients refuse those over 8 KiB. They hold the message twice, once
# with three characters for each non-ASCII byte, and the details in base64.
_MAX_MESSAGE_BYTES: Final = 800
_MAX_VIOLATIONS_BYTES: Final = 2500
_MAX_DESCRIPTION_BYTES: Final = 300
_MAX_METADATA_BYTES: Final = 512  # of each value: names have up to 255 characters


def status_of(error: EvalrpcError) -> status_pb2.Status:
    """Return the error as a google.rpc.Status with its details."""
    message = cut(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: EvalrpcError) -> Iterator[Message]:
    description = cut(error.message, _MAX_DESCRIPTION_BYTES)
    metadata = {name: cut(value, _MAX_METADATA_BYTES) for name, value in error.metadata.items()}
    resource = metadata.get("resource_name", "")
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    if error.retry_delay_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if isinstance(error, FieldsError) and error.violations:
        yield error_details_pb2.BadRequest(field_violations=list(_bounded(error.violations)))
    if isinstance(error, NotFoundError):
        kind = error.metadata.get("resource_type", "")
        yield error_details_pb2.ResourceInfo(resource_type=kind, resource_name=resource, description=description)
    if isinstance(error, PreconditionError):
        failed = error_details_pb2.PreconditionFailure.Violation(type=error.reason, subject=resource, description=description)
        yield error_details_pb2.PreconditionFailure(violations=[failed])
    if isinstance(error, QueueFullError | QuotaExceededError):
        subject = f"owner:{error.metadata['owner']}" if isinstance(error, QuotaExceededError) else "queue"
        quota = error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)
        yield error_details_pb2.QuotaFailure(violations=[quota])
    if isinstance(error, LimitExceededError):
        subject = f"owner:{error.metadata['owner']}" if "owner" in error.metadata else "server"
        yield error_details_pb2.QuotaFailure(
            violations=[error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)]
        )


def _bounded(violations: tuple[FieldViolation, ...]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """Yield as many as fit into a status; a last one says how many more there are."""
    left = _MAX_VIOLATIONS_BYTES
    for index, (field, description) in enumerate(violations):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=cut(field, _MAX_DESCRIPTION_BYTES), description=cut(description, _MAX_DESCRIPTION_BYTES)
        )
        left -= violation.ByteSize()
        if left < 0:
            more = f"{len(violations) - index} more fields are wrong; fix these first"
            yield error_details_pb2.BadRequest.FieldViolation(field=cut(field, _MAX_DESCRIPTION_BYTES), description=more)
            return
        yield violation
