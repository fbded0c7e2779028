"""Every error of this package, in one tree.

An error that crosses the wire has a `reason` (stable, for programs) and a `code` (the name of a gRPC status). The server turns
it into a status in one place, and the client turns the status back into the same class by its reason.

    EvalrpcError
    ├── InvalidRequestError         INVALID_ARGUMENT     every bad field at once
    ├── NotFoundError               NOT_FOUND
    │   ├── JobNotFoundError
    │   ├── SuiteRunNotFoundError
    │   ├── AttemptNotFoundError
    │   ├── EngineNotFoundError
    │   ├── ArtifactNotFoundError
    │   ├── SamplesNotFoundError
    │   └── MetricNotFoundError
    ├── RequestIdReusedError        ALREADY_EXISTS
    ├── PreconditionError           FAILED_PRECONDITION
    │   ├── JobFinishedError
    │   ├── JobNotFinishedError
    │   ├── JobNotQueuedError
    │   ├── IllegalTransitionError
    │   ├── CatalogUnavailableError
    │   ├── NoResultsError
    │   ├── FileUnreadableError
    │   └── ReadLimitError
    ├── ConflictError               ABORTED              read the job again, and retry
    ├── QueueFullError              RESOURCE_EXHAUSTED   with a retry delay
    ├── LimitExceededError          RESOURCE_EXHAUSTED   with a retry delay, unless it would not help
    │   ├── TooManyStreamsError
    │   ├── TooManyCallsError
    │   ├── TooMuchUnreadError
    │   └── RequestTooLargeError
    ├── QuotaExceededError          RESOURCE_EXHAUSTED   with a retry delay
    ├── OutOfRangeError             OUT_OF_RANGE
    │   ├── RevisionCompactedError
    │   ├── RevisionInFutureError
    │   └── OffsetOutOfRangeError
    ├── UnavailableError            UNAVAILABLE          with a retry delay
    │   ├── ServerStoppingError
    │   ├── StoreUnavailableError
    │   ├── FileUnavailableError
    │   └── SignInUnavailableError
    ├── UnimplementedError          UNIMPLEMENTED
    ├── UnauthenticatedError        UNAUTHENTICATED
    ├── PermissionDeniedError       PERMISSION_DENIED
    │   └── FieldsRefusedError                           every refused field at once
    │       ├── PolicyViolationError
    │       └── SecretNotAllowedError
    ├── InternalError               INTERNAL
    ├── UnsendableError             never crosses the wire: an argument that no message can hold; a ValueError, too
    ├── ClientClosedError           never crosses the wire: the client was closed before it was called
    ├── ChangesMissedError          never crosses the wire: whoever follows a store reads its state again
    ├── GatewayError                never crosses the wire
    │   ├── GatewayUnavailableError                      the server calls again
    │   └── GatewayRefusedError                          a bug, or a gateway of another version
    ├── ConfigurationError          never crosses the wire: the server does not start
    │   └── DataDirectoryInUseError
    ├── RunFailedError              becomes the JobError of a job
    └── JobNotCompletedError        raised by clients that wait
        ├── JobFailedError
        └── JobCancelledError
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

from evalrpc.protobuf.structs import wire_text
from evalrpc.v1.jobs_pb2 import JobError, JobInfo

DOMAIN = "evalrpc"
"""The `domain` of every google.rpc.ErrorInfo."""


class FieldViolation(NamedTuple):
    """A bad field: its path in the call's message, such as `request.tasks[1]`, and what is wrong with it."""

    field: str
    description: str


def _listed(violations: Iterable[FieldViolation]) -> str:
    return "; ".join(f"{field}: {description}" for field, description in violations)


class EvalrpcError(Exception):
    """Base class. `metadata` goes into ErrorInfo, `retry_delay_seconds` into RetryInfo. Clients raise it directly, with the
    received reason, for an answer that no subclass matches."""

    reason: str = "UNKNOWN"
    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_delay_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_delay_seconds = retry_delay_seconds


class FieldsError(EvalrpcError):
    """What is wrong with fields: `violations` lists them all, and is the message unless there is another."""

    def __init__(
        self,
        message: str = "",
        *,
        violations: Iterable[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float | None = None,
    ) -> None:
        self.violations = tuple(violations)
        text = message or _listed(self.violations)
        super().__init__(text, metadata=metadata, retry_delay_seconds=retry_delay_seconds)


class InvalidRequestError(FieldsError):
    """One or more fields are missing, malformed or out of range. `violations` lists them all."""

    reason = "INVALID_REQUEST"
    code = "INVALID_ARGUMENT"


class NotFoundError(EvalrpcError):
    """The named resource does not exist. `metadata` has its `resource_type` and `resource_name`."""

    reason = "NOT_FOUND"
    code = "NOT_FOUND"


class JobNotFoundError(NotFoundError):
    """There is no such job, or it was deleted."""

    reason = "JOB_NOT_FOUND"


class SuiteRunNotFoundError(NotFoundError):
    """There is no such suite run, or all its jobs were deleted."""

    reason = "SUITE_RUN_NOT_FOUND"


class AttemptNotFoundError(NotFoundError):
    """The job has no such attempt, or none has begun."""

    reason = "ATTEMPT_NOT_FOUND"


class EngineNotFoundError(NotFoundError):
    """There is no such engine, or it has ended and is forgotten."""

    reason = "ENGINE_NOT_FOUND"


class ArtifactNotFoundError(NotFoundError):
    """The job left no file of this name."""

    reason = "ARTIFACT_NOT_FOUND"


class SamplesNotFoundError(NotFoundError):
    """The job logged no samples for this model and task."""

    reason = "SAMPLES_NOT_FOUND"


class MetricNotFoundError(NotFoundError):
    """None of the jobs has a metric of this name."""

    reason = "METRIC_NOT_FOUND"


class RequestIdReusedError(EvalrpcError):
    """The `request_id` belongs to a submission with different contents."""

    reason = "REQUEST_ID_REUSED"
    code = "ALREADY_EXISTS"


class PreconditionError(EvalrpcError):
    """The call does not fit the current state of the job or the server."""

    reason = "FAILED_PRECONDITION"
    code = "FAILED_PRECONDITION"


class JobFinishedError(PreconditionError):
    """The job is already COMPLETED or FAILED, so it can't be cancelled; or it is terminal, so its priority can't change."""

    reason = "JOB_FINISHED"


class JobNotFinishedError(PreconditionError):
    """The job is not terminal yet, so it can't be deleted."""

    reason = "JOB_NOT_FINISHED"


class JobNotQueuedError(PreconditionError):
    """The job runs already, and only a queued one was to be cancelled."""

    reason = "JOB_NOT_QUEUED"


class IllegalTransitionError(PreconditionError):
    """The lifecycle has no such transition."""

    reason = "ILLEGAL_TRANSITION"


class CatalogUnavailableError(PreconditionError):
    """The harness can't list its tasks or models."""

    reason = "CATALOG_UNAVAILABLE"


class NoResultsError(PreconditionError):
    """The job has no results, or none yet, so there is nothing to compare."""

    reason = "NO_RESULTS"


class DefinitionsDifferError(PreconditionError):
    """The jobs answered different questions, and the comparison is strict."""

    reason = "DEFINITIONS_DIFFER"


class ExecutorUnsuitableError(FieldsError, PreconditionError):
    """The request asks for what its executor does not have. `violations` lists the fields."""

    reason = "EXECUTOR_UNSUITABLE"


class FileUnreadableError(PreconditionError):
    """A file of the job exists, but the server can't read it, or something else is in its place, such as a link.
    `metadata["errno"]` names the cause, such as EACCES."""

    reason = "FILE_UNREADABLE"


class ReadLimitError(PreconditionError):
    """What a run left takes more to read than one call may. `metadata` has the limit, as `limit_bytes`, `limit_seconds` or
    `limit_memory_bytes`."""

    reason = "READ_LIMIT_REACHED"


class ConflictError(EvalrpcError):
    """The job is not in the state that the change expected: it was changed meanwhile. `metadata["revision"]` is that of now."""

    reason = "CONFLICT"
    code = "ABORTED"


class QueueFullError(EvalrpcError):
    """The queue holds as many jobs as the operator allows. `metadata` has the `setting`, `max_queued`, and its `limit`."""

    reason = "QUEUE_FULL"
    code = "RESOURCE_EXHAUSTED"


class QuotaExceededError(EvalrpcError):
    """The owner has as much as the operator allows. `metadata` has the `owner`, the `quota`, such as `max_queued`, and the
    `limit`."""

    reason = "QUOTA_EXCEEDED"
    code = "RESOURCE_EXHAUSTED"


class LimitExceededError(EvalrpcError):
    """One caller, or all together, take more than the operator allows. `metadata` has the `setting` and its `limit`, and the
    `owner` if it is one for each owner."""

    reason = "LIMIT_EXCEEDED"
    code = "RESOURCE_EXHAUSTED"


class TooManyStreamsError(LimitExceededError):
    """As many streams are open as the operator allows, of this owner or in all."""

    reason = "TOO_MANY_STREAMS"


class TooManyCallsError(LimitExceededError):
    """The owner makes more calls per second than the operator allows."""

    reason = "TOO_MANY_CALLS"


class TooMuchUnreadError(LimitExceededError):
    """Answers that their clients have not read take all the memory that there is for them."""

    reason = "TOO_MUCH_UNREAD"


class RequestTooLargeError(LimitExceededError):
    """The request has more bytes than the server accepts, so it is never accepted."""

    reason = "REQUEST_TOO_LARGE"


class OutOfRangeError(EvalrpcError):
    """An offset or revision is out of range."""

    reason = "OUT_OF_RANGE"
    code = "OUT_OF_RANGE"


class RevisionCompactedError(OutOfRangeError):
    """The journal no longer reaches back to `after_revision`. `metadata["oldest_revision"]` is the oldest usable one."""

    reason = "REVISION_COMPACTED"


class RevisionInFutureError(OutOfRangeError):
    """`after_revision` is beyond the head, so it comes from another server. `metadata["head_revision"]` is the newest."""

    reason = "REVISION_IN_FUTURE"


class OffsetOutOfRangeError(OutOfRangeError):
    """The offset is past the end. `metadata["size_bytes"]` is the end."""

    reason = "OFFSET_OUT_OF_RANGE"


class UnavailableError(EvalrpcError):
    """The server can't be reached or can't serve now; the same call may succeed later."""

    reason = "UNAVAILABLE"
    code = "UNAVAILABLE"


class ServerStoppingError(UnavailableError):
    """The server is shutting down."""

    reason = "SERVER_STOPPING"


class StoreUnavailableError(UnavailableError):
    """The server's disk does not accept writes at present; nothing was changed."""

    reason = "STORE_UNAVAILABLE"


class FileUnavailableError(UnavailableError):
    """A file of the job can't be read at present. `metadata["errno"]` names the cause, such as EMFILE or EIO."""

    reason = "FILE_UNAVAILABLE"


class SignInUnavailableError(UnavailableError):
    """The server can't find out at present who calls: it can't read its tokens, or can't reach the identity provider."""

    reason = "SIGN_IN_UNAVAILABLE"


class DeadlineExceededError(EvalrpcError):
    """The call has not been answered within the time that its client gave. gRPC's own clients raise TimeoutError instead."""

    reason = "DEADLINE_EXCEEDED"
    code = "DEADLINE_EXCEEDED"


class UnimplementedError(EvalrpcError):
    """This server does not implement the call yet."""

    reason = "UNIMPLEMENTED"
    code = "UNIMPLEMENTED"


class UnauthenticatedError(EvalrpcError):
    """The caller has not signed in, or with what the server does not accept, or no more."""

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDeniedError(EvalrpcError):
    """The caller may not make this call. `reason` says which rule forbids it."""

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_delay_seconds=retry_delay_seconds)
        self.reason = reason or type(self).reason


class FieldsRefusedError(FieldsError, PermissionDeniedError):
    """The caller may make this call, but not with what some fields say. `violations` lists them all."""

    reason = "FIELDS_REFUSED"


class PolicyViolationError(FieldsRefusedError):
    """The operator's policy does not let this harness be run with what some fields say. `metadata["harness"]` names it."""

    reason = "POLICY_VIOLATION"


class SecretNotAllowedError(FieldsRefusedError):
    """The request names secrets that the caller's jobs may not use."""

    reason = "SECRET_NOT_ALLOWED"


class InternalError(EvalrpcError):
    """A bug in the server. Its log has the traceback."""

    reason = "INTERNAL"
    code = "INTERNAL"


class UnsendableError(EvalrpcError, ValueError):
    """An argument that no message can hold: a number out of range, or text that UTF-8 can't express."""

    reason = "UNSENDABLE"


class ClientClosedError(EvalrpcError):
    """The client was closed, so it makes no call any more."""

    reason = "CLIENT_CLOSED"


class ChangesMissedError(EvalrpcError):
    """The store no longer has all the changes after the given number."""

    reason = "CHANGES_MISSED"


class GatewayError(EvalrpcError):
    """The gateway of served models does not do what it is asked."""

    reason = "GATEWAY_ERROR"


class GatewayUnavailableError(GatewayError):
    """The gateway of served models can't be reached, or does not answer."""

    reason = "GATEWAY_UNAVAILABLE"


class GatewayRefusedError(GatewayError):
    """The gateway takes a call for wrong."""

    reason = "GATEWAY_REFUSED"


class ConfigurationError(EvalrpcError):
    """The server's settings are wrong. The message names the setting and says what to do."""

    reason = "BAD_CONFIGURATION"


class DataDirectoryInUseError(ConfigurationError):
    """Another server uses this data directory."""

    reason = "DATA_DIRECTORY_IN_USE"


class RunFailedError(EvalrpcError):
    """A run failed. `job_error` says why, without the log tail, which the scheduler adds."""

    reason = "RUN_FAILED"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.job_error = JobError(reason=reason, message=wire_text(message))


class JobNotCompletedError(EvalrpcError):
    """A job that was waited for ended without results. `job` is its last state."""

    reason = "JOB_NOT_COMPLETED"

    def __init__(self, job: JobInfo) -> None:
        super().__init__(f"job {job.job_id}: {job.error.message}")
        self.job = job


class JobFailedError(JobNotCompletedError):
    """The job FAILED; `job.error` says why."""

    reason = "JOB_FAILED"


class JobCancelledError(JobNotCompletedError):
    """The job was CANCELLED."""

    reason = "JOB_CANCELLED"
