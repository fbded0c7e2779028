"""The parts of the client that do no I/O."""

import math
from datetime import timedelta
from typing import Any

import grpc
import pytest
from clocks import ManualClock
from fake_server import JOB_ID, details_of, job_at
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2

from evalrpc import errors
from evalrpc.client import core
from evalrpc.client.core import MediumParts
from evalrpc.client.failures import STATUS_DETAILS_KEY, build_error, from_broken_call, from_rpc_error, parse_details
from evalrpc.client.reconnect import ReconnectPolicy
from evalrpc.client.resumable import (
    MAX_TRIES_OF_AN_UNREADABLE_FILE,
    AllJobsWatch,
    ArtifactBytes,
    JobWatch,
    LogBytes,
    SampleMediaChunks,
)
from evalrpc.client.retrying import RETRIED_METHODS, RETRY_SECONDS, Retries
from evalrpc.errors import DOMAIN, EvalrpcError, FieldViolation
from evalrpc.v1.evaluation_service_pb2 import DESCRIPTOR
from evalrpc.v1.files_pb2 import ReadArtifactResponse, ReadLogResponse
from evalrpc.v1.jobs_pb2 import GetJobRequest, JobEvent, JobEventType, JobStatus, SubmitJobRequest
from evalrpc.v1.samples_pb2 import ReadSampleMediaRequest, ReadSampleMediaResponse


class FakeRpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "why", status: bytes = b"") -> None:
        self._code, self._details, self._status = code, details, status

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ((STATUS_DETAILS_KEY, self._status),) if self._status else None


UNAVAILABLE = FakeRpcError(grpc.StatusCode.UNAVAILABLE)


def event(kind: str, revision: int, *, terminal: bool = False) -> JobEvent:
    status = JobStatus.JOB_STATUS_COMPLETED if terminal else JobStatus.JOB_STATUS_RUNNING
    kind_value = JobEventType.Value(f"JOB_EVENT_TYPE_{kind}")
    job = None if kind == "BOOKMARK" else job_at(status, revision)
    return JobEvent(type=kind_value, revision=revision, job=job, terminal=terminal)


# Errors


@pytest.mark.parametrize(
    "cls",
    [
        errors.InvalidRequestError,
        errors.JobNotFoundError,
        errors.ArtifactNotFoundError,
        errors.RequestIdReusedError,
        errors.JobFinishedError,
        errors.JobNotFinishedError,
        errors.JobNotQueuedError,
        errors.ConflictError,
        errors.CatalogUnavailableError,
        errors.QueueFullError,
        errors.LimitExceededError,
        errors.TooManyStreamsError,
        errors.TooManyCallsError,
        errors.TooMuchUnreadError,
        errors.RequestTooLargeError,
        errors.RevisionCompactedError,
        errors.RevisionInFutureError,
        errors.OffsetOutOfRangeError,
        errors.ServerStoppingError,
        errors.StoreUnavailableError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.InternalError,
    ],
)
def test_an_error_of_the_server_comes_back_as_the_same_class_with_all_it_said(cls: type[EvalrpcError]) -> None:
    sent = cls("what went wrong", metadata={"key": "value"}, retry_delay_seconds=1.5)

    got = from_rpc_error(FakeRpcError(grpc.StatusCode[cls.code], sent.message, details_of(sent)))

    assert type(got) is cls
    assert got.message == "what went wrong"
    assert got.metadata == {"key": "value"}
    assert got.retry_delay_seconds == 1.5


def test_every_bad_field_is_kept() -> None:
    violations = (FieldViolation("request.model", "is required"), FieldViolation("request.tasks[1]", "is a duplicate"))
    sent = errors.InvalidRequestError("bad", violations=violations)

    got = build_error("INVALID_ARGUMENT", "bad", parse_details(details_of(sent)))

    assert isinstance(got, errors.InvalidRequestError)
    assert got.violations == violations


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.PreconditionError),
        (grpc.StatusCode.OUT_OF_RANGE, errors.OutOfRangeError),
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnimplementedError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, EvalrpcError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimeoutError),
    ],
)
def test_an_error_without_details_becomes_the_class_of_its_code(code: grpc.StatusCode, cls: type[Exception]) -> None:
    assert type(from_rpc_error(FakeRpcError(code))) is cls


def test_a_reason_of_a_newer_server_falls_back_to_the_class_of_the_code() -> None:
    info = error_details_pb2.ErrorInfo(reason="MOON_IN_THE_WAY", domain=DOMAIN, metadata={"moon": "full"})
    status = status_pb2.Status()
    status.details.add().Pack(info)

    got = build_error("NOT_FOUND", "no", parse_details(status.SerializeToString()))

    assert type(got) is errors.NotFoundError
    assert got.metadata == {"moon": "full"}


def test_a_reason_of_another_domain_means_nothing() -> None:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="JOB_NOT_FOUND", domain="googleapis.com"))

    assert parse_details(status.SerializeToString()).reason is None


def test_damaged_details_count_as_absent() -> None:
    assert type(from_rpc_error(FakeRpcError(grpc.StatusCode.NOT_FOUND, status=b"\xff\xff"))) is errors.NotFoundError


@pytest.mark.parametrize(
    ("code", "details", "said"),
    [
        ("DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)", "no answer in time"),
        ("UNKNOWN", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))", "the connection broke off"),
        ("UNAVAILABLE", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))", "the connection broke off"),
        ("UNAVAILABLE", "Socket closed", "the connection broke off"),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", "the connection broke off"),
        ("UNAVAILABLE", "GOAWAY received; Error code: 0; Debug Text: Server shutdown", "the connection broke off"),
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connect: Connection refused (111)",
            "connection refused; no server listens there",
        ),
        (
            "UNAVAILABLE",
            "last error: FAILED_PRECONDITION: unix:/a: connect failed: addr: unix:/a error: No such file or directory",
            "there is no such socket, so no server listens there",
        ),
        (
            "UNAVAILABLE",
            "last error: FAILED_PRECONDITION: unix:/a: connect failed: addr: unix:/a error: Permission denied",
            "this account may not open the socket, which is its server's alone",
        ),
        (
            "UNAVAILABLE",
            "DNS resolution failed for nowhere:1: C-ares status is not ARES_SUCCESS",
            "there is no host of this name",
        ),
        (
            "UNAVAILABLE",
            "errors resolving a:1: [field:hostname lookup error:address lookup failed for a:1: Domain name not found]",
            "there is no host of this name",
        ),
        (
            "UNAVAILABLE",
            "ipv4:127.0.0.1:1: Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 79)",
            "what listens there does not speak gRPC as asked",
        ),
        (
            "UNAVAILABLE",
            "Failed parsing HTTP/2 (Expected SETTINGS frame ...) (Trying to connect an http1.x server (...))",
            "what listens there speaks HTTP and no gRPC: a server's http_listen is not its gRPC address",
        ),
        (
            "UNAVAILABLE",
            "ipv4:10.0.0.1:1: Failed to connect to remote host: Timeout occurred: FD Shutdown",
            "no answer in time",
        ),
        ("UNAVAILABLE", "the bridge is out", "the bridge is out"),
        ("NOT_FOUND", "the file handshake.txt is not there", "the file handshake.txt is not there"),
    ],
)
def test_what_grpc_itself_says_is_put_into_plain_words(code: str, details: str, said: str) -> None:
    assert str(from_rpc_error(FakeRpcError(grpc.StatusCode[code], details))) == said


def test_a_call_that_was_broken_off_is_said_so_in_plain_words() -> None:
    reset = FakeRpcError(grpc.StatusCode.INTERNAL, "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))")
    assert str(from_broken_call(reset)) == "the call was broken off: INTERNAL: the connection broke off"


def test_what_the_server_says_is_left_as_it_is() -> None:
    sent = errors.StoreUnavailableError("Socket closed by the janitor")
    assert str(from_rpc_error(FakeRpcError(grpc.StatusCode.UNAVAILABLE, sent.message, details_of(sent)))) == sent.message


def test_a_limit_of_grpc_itself_is_no_full_queue() -> None:
    got = from_rpc_error(FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Bandwidth exhausted"))

    assert type(got) is EvalrpcError


@pytest.mark.parametrize(
    "details",
    [
        "SERVER: Received message larger than max (20971520 vs. 5242880)",
        "CLIENT: Sent message larger than max (20971520 vs. 5242880)",
        "grpc: received message larger than max (20971520 vs. 4194304)",
    ],
)
def test_a_message_that_grpc_finds_too_large_is_never_sent_again(details: str) -> None:
    error = FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    with pytest.raises(errors.RequestTooLargeError, match="larger than max"):
        retries(GetJobRequest()).failed(error)
    with pytest.raises(errors.RequestTooLargeError):
        JobWatch(JOB_ID).failed(error)


@pytest.mark.parametrize("cls", [errors.TooManyStreamsError, errors.TooManyCallsError, errors.TooMuchUnreadError])
def test_past_a_limit_a_call_is_repeated_when_the_server_says_and_the_limit_is_raised_in_the_end(
    cls: type[EvalrpcError],
) -> None:
    sent = cls("too many", retry_delay_seconds=1.5)
    error = FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, sent.message, details_of(sent))
    clock = ManualClock()
    tries = retries(GetJobRequest(), clock)
    assert tries.failed(error) == 1.6
    clock.seconds += RETRY_SECONDS
    with pytest.raises(cls):
        tries.failed(error)
    assert JobWatch(JOB_ID, policy=ReconnectPolicy(jitter=lambda: 1.0)).failed(error) == 1.6


def test_a_limit_that_waiting_does_not_help_is_final() -> None:
    sent = errors.RequestTooLargeError("too large")
    error = FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, sent.message, details_of(sent))
    with pytest.raises(errors.RequestTooLargeError):
        retries(GetJobRequest()).failed(error)


def test_a_full_queue_is_final_though_it_says_when_to_come_back() -> None:
    sent = errors.QueueFullError("full", retry_delay_seconds=1.0)
    error = FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, sent.message, details_of(sent))
    with pytest.raises(errors.QueueFullError):
        retries(SubmitJobRequest()).failed(error)


# Requests


def test_a_request_keeps_absent_and_zero_apart() -> None:
    bare = core.evaluate_request("m", ["t"])
    zero = core.evaluate_request("m", ["t"], num_fewshot=0, limit=0, num_gpus=0, log_samples=False)

    assert not bare.HasField("num_fewshot")
    assert not bare.HasField("limit")
    assert not bare.HasField("num_gpus")
    assert bare.log_samples
    assert all(zero.HasField(name) for name in ("num_fewshot", "limit", "num_gpus", "log_samples"))


def test_a_request_takes_plain_values() -> None:
    request = core.evaluate_request(
        "m", "mme", {"a": [1, None, {"b": True}]}, batch_size=8, gen_kwargs="temperature=0,until=end", harness="h"
    )

    assert json_format.MessageToDict(request.model_args) == {"a": [1, None, {"b": True}]}
    assert json_format.MessageToDict(request.gen_kwargs) == {"temperature": 0, "until": "end"}
    assert (list(request.tasks), request.batch_size, request.harness) == (["mme"], "8", "h")


def test_a_row_of_samples_is_plain_values_with_whole_numbers_and_nan() -> None:
    struct = Struct()
    struct.update({"doc_id": 3, "score": 0.5, "nested": {"list": [1, None, True, "x"]}, "bad": float("nan")})

    row = core.plain_row(struct)

    assert math.isnan(row.pop("bad"))
    assert row == {"doc_id": 3, "score": 0.5, "nested": {"list": [1, None, True, "x"]}}
    assert isinstance(row["doc_id"], int)


def test_every_submission_has_a_request_id_of_its_own() -> None:
    first, second = (core.submit_request(core.evaluate_request("m", ["t"])) for _ in range(2))

    assert first.request_id
    assert first.request_id != second.request_id
    assert core.submit_request(first.request, request_id="mine").request_id == "mine"


@pytest.mark.parametrize("timeout", [90, 90.0, timedelta(minutes=1, seconds=30)])
def test_a_timeout_is_seconds_or_a_timedelta(timeout: float | timedelta) -> None:
    assert core.submit_request(core.evaluate_request("m", ["t"]), timeout=timeout).timeout.seconds == 90


def test_no_timeout_stays_absent() -> None:
    assert not core.submit_request(core.evaluate_request("m", ["t"])).HasField("timeout")


# ReconnectPolicy


def test_delays_double_with_full_jitter_up_to_a_limit_and_begin_anew_after_a_success() -> None:
    policy = ReconnectPolicy(jitter=lambda: 1.0)
    error = errors.UnavailableError("gone")

    assert [policy.delay_seconds(error) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    policy.succeeded()
    assert policy.delay_seconds(error) == 0.1
    assert ReconnectPolicy(jitter=lambda: 0.0).delay_seconds(error) == 0.0


def test_a_delay_that_the_server_asks_for_is_kept() -> None:
    error = errors.ServerStoppingError("stopping", retry_delay_seconds=3)

    assert ReconnectPolicy(jitter=lambda: 1.0).delay_seconds(error) == 3.1


def test_a_policy_gives_up_when_nothing_succeeded_for_too_long() -> None:
    clock = ManualClock()
    policy = ReconnectPolicy(10, clock=clock.monotonic)
    error = errors.UnavailableError("gone")

    policy.delay_seconds(error)
    clock.seconds += 9
    policy.delay_seconds(error)
    clock.seconds += 1
    with pytest.raises(errors.UnavailableError):
        policy.delay_seconds(error)


def test_no_call_and_no_delay_lasts_longer_than_the_time_to_wait() -> None:
    clock = ManualClock()
    policy = ReconnectPolicy(timeout_seconds=5, clock=clock.monotonic, jitter=lambda: 1.0)

    assert policy.delay_seconds(errors.UnavailableError("gone", retry_delay_seconds=60)) == 5
    clock.seconds += 4
    assert policy.remaining_seconds() == 1
    clock.seconds += 1
    with pytest.raises(TimeoutError):
        policy.remaining_seconds()


def test_whoever_asked_hears_of_every_break() -> None:
    heard: list[tuple[EvalrpcError, float]] = []
    policy = ReconnectPolicy(on_disconnect=lambda error, delay: heard.append((error, delay)), jitter=lambda: 1.0)
    error = errors.UnavailableError("gone")

    policy.delay_seconds(error)

    assert heard == [(error, 0.1)]


# Retries


def retries(request: Any, clock: ManualClock | None = None) -> Retries:
    return Retries(request, ReconnectPolicy(RETRY_SECONDS, 30, clock=(clock or ManualClock()).monotonic, jitter=lambda: 1.0))


def test_only_calls_that_are_safe_to_repeat_are_repeated() -> None:
    methods = DESCRIPTOR.services_by_name["EvaluationService"].methods_by_name
    assert set(RETRIED_METHODS) <= set(methods)
    assert not {"DeleteJob", "WatchJob", "WatchJobs", "ReadLog", "ReadArtifact"} & set(RETRIED_METHODS)
    for name, method in methods.items():
        request = GetMessageClass(method.input_type)()
        if name in RETRIED_METHODS:
            assert retries(request).failed(UNAVAILABLE) == 0.1
        else:
            with pytest.raises(errors.UnavailableError) as caught:
                retries(request).failed(UNAVAILABLE)
            assert caught.value.__cause__ is UNAVAILABLE


def test_a_call_is_repeated_for_two_seconds_and_then_unavailable() -> None:
    clock = ManualClock()
    call = retries(GetJobRequest(), clock)
    assert call.timeout_seconds() == 30
    assert [call.failed(UNAVAILABLE) for _ in range(3)] == [0.1, 0.2, 0.4]
    clock.seconds = 2
    assert call.timeout_seconds() == 28
    with pytest.raises(errors.UnavailableError):
        call.failed(UNAVAILABLE)


def test_a_call_that_a_proxy_breaks_is_repeated_and_one_that_the_server_answers_or_that_takes_too_long_is_not() -> None:
    assert retries(GetJobRequest()).failed(FakeRpcError(grpc.StatusCode.INTERNAL, "RST_STREAM")) == 0.1
    stopping = errors.ServerStoppingError("stopping", retry_delay_seconds=1)
    answered = FakeRpcError(grpc.StatusCode.UNAVAILABLE, "stopping", details_of(stopping))
    assert retries(GetJobRequest()).failed(answered) == 1.1
    final = {
        FakeRpcError(grpc.StatusCode.INTERNAL, "a bug", details_of(errors.InternalError("a bug"))): errors.InternalError,
        FakeRpcError(grpc.StatusCode.NOT_FOUND): errors.NotFoundError,
        FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED): TimeoutError,
    }
    for error, cls in final.items():
        with pytest.raises(cls) as caught:
            retries(GetJobRequest()).failed(error)
        assert caught.value.__cause__ is error


# Watching one job


def test_a_watch_goes_on_after_the_last_revision_it_saw() -> None:
    watch = JobWatch(JOB_ID)
    assert watch.request().after_revision == 0

    watch.accept(event("SNAPSHOT", 3))
    watch.accept(event("PROGRESS", 3))
    watch.accept(event("BOOKMARK", 7))
    watch.failed(UNAVAILABLE)

    assert watch.request().after_revision == 7


def test_a_watch_never_repeats_an_event() -> None:
    watch = JobWatch(JOB_ID, after_revision=5)

    assert list(watch.accept(event("STATUS", 5))) == []
    assert list(watch.accept(event("SNAPSHOT", 4))) == []
    assert list(watch.accept(event("STATUS", 6))) == [event("STATUS", 6)]
    assert list(watch.accept(event("PROGRESS", 6))) == [event("PROGRESS", 6)]
    assert watch.request().after_revision == 6


def test_a_watch_ends_with_the_terminal_event_even_if_it_lies_before_the_revision_asked_for() -> None:
    watch = JobWatch(JOB_ID, after_revision=9)
    end = event("SNAPSHOT", 4, terminal=True)

    assert list(watch.accept(end)) == [end]
    assert watch.is_finished()
    assert watch.request().after_revision == 9


def test_a_watch_that_ends_too_early_goes_on() -> None:
    watch = JobWatch(JOB_ID, policy=ReconnectPolicy(jitter=lambda: 1.0))

    assert watch.ended() == 0.1
    assert not watch.is_finished()


FINAL_WITHOUT_A_REASON = {
    "UNAUTHENTICATED": EvalrpcError,
    "PERMISSION_DENIED": EvalrpcError,
    "UNIMPLEMENTED": errors.UnimplementedError,
    "INVALID_ARGUMENT": errors.InvalidRequestError,
    "NOT_FOUND": errors.NotFoundError,
    "ALREADY_EXISTS": errors.RequestIdReusedError,
    "FAILED_PRECONDITION": errors.PreconditionError,
    "OUT_OF_RANGE": errors.OutOfRangeError,
}
BROKEN_OFF = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK and code.name not in FINAL_WITHOUT_A_REASON]


@pytest.mark.parametrize("code", BROKEN_OFF)
def test_a_stream_that_breaks_without_an_answer_of_the_server_goes_on(code: grpc.StatusCode) -> None:
    heard: list[EvalrpcError] = []
    policy = ReconnectPolicy(jitter=lambda: 1.0, on_disconnect=lambda error, _: heard.append(error))
    error = FakeRpcError(code)

    assert JobWatch(JOB_ID, policy=policy).failed(error) == 0.1
    assert isinstance(heard[0], errors.UnavailableError)
    assert "why" in heard[0].message
    assert heard[0].__cause__ is error


@pytest.mark.parametrize("code", BROKEN_OFF)
def test_what_breaks_for_too_long_is_raised_as_unavailable_whatever_its_code(code: grpc.StatusCode) -> None:
    watch = JobWatch(JOB_ID, policy=ReconnectPolicy(reconnect_timeout_seconds=0))
    with pytest.raises(errors.UnavailableError, match="why"):
        watch.failed(FakeRpcError(code))


@pytest.mark.parametrize(("name", "cls"), FINAL_WITHOUT_A_REASON.items())
def test_what_another_call_would_not_mend_is_raised_from_its_cause(name: str, cls: type[Exception]) -> None:
    error = FakeRpcError(grpc.StatusCode[name])
    with pytest.raises(cls) as caught:
        JobWatch(JOB_ID).failed(error)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_an_answer_of_the_server_is_final_unless_it_is_unavailable(code: grpc.StatusCode) -> None:
    answer = errors.EvalrpcError("why")
    answer.reason = "OF_A_NEWER_SERVER"
    error = FakeRpcError(code, status=details_of(answer))
    watch = JobWatch(JOB_ID, policy=ReconnectPolicy(jitter=lambda: 1.0))

    if code is grpc.StatusCode.UNAVAILABLE:
        assert watch.failed(error) == 0.1
    else:
        with pytest.raises((EvalrpcError, TimeoutError)) as caught:
            watch.failed(error)
        assert caught.value.__cause__ is error


def test_a_deadline_is_ours_if_the_time_is_up_and_that_of_a_proxy_otherwise() -> None:
    clock = ManualClock()
    error = FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED)
    policy = ReconnectPolicy(timeout_seconds=5, clock=clock.monotonic, jitter=lambda: 1.0)
    watch = JobWatch(JOB_ID, policy=policy)

    assert watch.failed(error) == 0.1
    clock.seconds = 5
    with pytest.raises(TimeoutError):
        watch.failed(error)


def test_a_heartbeat_interval_is_sent_only_if_the_caller_has_one_and_zero_is_one() -> None:
    def interval(seconds: float | None) -> int | None:
        requests = [
            JobWatch(JOB_ID, 0, seconds).request(),
            AllJobsWatch(None, 0, seconds).request(),
            LogBytes(JOB_ID, 1, heartbeat_interval_seconds=seconds).request(),
        ]
        (sent,) = {
            request.heartbeat_interval.ToMilliseconds() if request.HasField("heartbeat_interval") else None
            for request in requests
        }
        return sent

    assert [interval(seconds) for seconds in (None, 0, 0.5)] == [None, 0, 500]


def test_heartbeats_of_the_server_move_the_revision_but_are_not_for_the_caller() -> None:
    one, all_of_them = JobWatch(JOB_ID), AllJobsWatch(after_revision=1)
    for watch in (one, all_of_them):
        watch.request()
        watch.accept(event("BOOKMARK", 5))
        assert list(watch.accept(event("BOOKMARK", 7))) == []
        assert watch.request().after_revision == 7


def test_heartbeats_that_the_caller_wants_are_for_the_caller() -> None:
    for watch in (JobWatch(JOB_ID, 1, 0.5), AllJobsWatch(None, 1, 0.5)):
        assert [list(watch.accept(event("BOOKMARK", 5))) for _ in range(2)] == [[event("BOOKMARK", 5)]] * 2


def test_the_first_bookmark_of_all_jobs_is_always_for_the_caller() -> None:
    resumed, fresh = AllJobsWatch(after_revision=1), AllJobsWatch()
    fresh.request()
    for watch in (resumed, fresh):
        assert list(watch.accept(event("BOOKMARK", 5))) == [event("BOOKMARK", 5)]
        watch.failed(UNAVAILABLE)
        watch.request()
        assert list(watch.accept(event("BOOKMARK", 6))) == []


# Watching all jobs


def test_snapshots_are_held_until_they_are_whole_so_that_a_break_among_them_loses_nothing() -> None:
    watch = AllJobsWatch()
    watch.request()

    assert list(watch.accept(event("SNAPSHOT", 8))) == []
    watch.failed(UNAVAILABLE)
    assert watch.request().after_revision == 0
    assert list(watch.accept(event("SNAPSHOT", 9))) == []
    assert list(watch.accept(event("BOOKMARK", 9))) == [event("SNAPSHOT", 9), event("BOOKMARK", 9)]
    assert watch.request().after_revision == 9


def test_an_empty_server_is_watched_from_its_first_revision() -> None:
    watch = AllJobsWatch()
    watch.request()
    watch.accept(event("BOOKMARK", 0))

    assert list(watch.accept(event("STATUS", 1))) == [event("STATUS", 1)]
    assert watch.request().after_revision == 1


def test_a_watch_that_skips_snapshots_asks_for_what_came_after_an_empty_server() -> None:
    watch = AllJobsWatch(skip_snapshots=True)
    assert watch.request().skip_snapshots
    watch.failed(UNAVAILABLE)
    assert watch.request().skip_snapshots, "it has seen nothing yet"
    assert list(watch.accept(event("BOOKMARK", 0))) == [event("BOOKMARK", 0)]
    watch.failed(UNAVAILABLE)

    again = watch.request()

    assert (again.after_revision, again.skip_snapshots) == (0, False), "what was submitted meanwhile comes as snapshots"
    assert list(watch.accept(event("SNAPSHOT", 0))) == []
    assert list(watch.accept(event("BOOKMARK", 3))) == [event("SNAPSHOT", 0), event("BOOKMARK", 3)]
    assert watch.request().after_revision == 3


@pytest.mark.parametrize("kind", ["STATUS", "UPDATED", "DELETED"])
@pytest.mark.parametrize("reader", [JobWatch, AllJobsWatch])
def test_every_change_comes_once_and_is_resumed_after(reader: Any, kind: str) -> None:
    watch = AllJobsWatch(after_revision=5) if reader is AllJobsWatch else JobWatch(JOB_ID, after_revision=5)
    watch.request()

    assert list(watch.accept(event(kind, 5))) == []
    assert list(watch.accept(event(kind, 7))) == [event(kind, 7)]
    assert list(watch.accept(event(kind, 7))) == []
    assert list(watch.accept(event(kind, 6))) == []
    assert watch.request().after_revision == 7


def test_a_watch_of_all_jobs_resumes_without_repeating_and_never_ends() -> None:
    watch = AllJobsWatch(after_revision=5)
    assert watch.request().after_revision == 5

    assert list(watch.accept(event("STATUS", 5, terminal=True))) == []
    assert list(watch.accept(event("STATUS", 6, terminal=True))) == [event("STATUS", 6, terminal=True)]
    assert not watch.is_finished()
    assert watch.ended() >= 0


# Bytes


@pytest.mark.parametrize(
    ("reader", "message"),
    [(LogBytes(JOB_ID, 1, offset=10), ReadLogResponse), (ArtifactBytes(JOB_ID, "name", 10), ReadArtifactResponse)],
)
def test_bytes_go_on_where_they_broke_off_and_none_comes_twice(reader: Any, message: Any) -> None:
    assert list(reader.accept(message(data=b"abc", offset=10))) == [b"abc"]
    reader.failed(UNAVAILABLE)
    assert reader.request().offset == 13
    assert list(reader.accept(message(data=b"bcd", offset=11))) == [b"d"]
    assert list(reader.accept(message(data=b"", offset=14))) == []
    assert reader.ended() == 0
    assert reader.is_finished()


def piece(index: int, data: bytes, offset: int = 0, size_bytes: int = 6) -> ReadSampleMediaResponse:
    return ReadSampleMediaResponse(index=index, data=data, offset=offset, size_bytes=size_bytes)


def test_media_go_on_with_the_medium_that_broke_off_and_no_byte_comes_twice() -> None:
    reader = SampleMediaChunks(ReadSampleMediaRequest(start_index=2, max_media=3))
    assert [each.data for each in reader.accept(piece(2, b"", size_bytes=0))] == [b""]
    assert [each.data for each in reader.accept(piece(3, b"abc"))] == [b"abc"]
    reader.failed(UNAVAILABLE)
    assert (reader.request().start_index, reader.request().max_media) == (3, 2)
    assert list(reader.accept(piece(3, b"ab"))) == []
    assert [(each.data, each.offset) for each in reader.accept(piece(3, b"cdef", 2))] == [(b"def", 3)]
    reader.failed(UNAVAILABLE)
    assert (reader.request().start_index, reader.request().max_media) == (4, 1)
    assert [each.data for each in reader.accept(piece(4, b"abcdef"))] == [b"abcdef"]
    assert reader.is_finished()


@pytest.mark.parametrize("size_bytes", [0, 2, 3, 7])
def test_a_medium_that_has_another_size_when_it_goes_on_is_a_problem_and_the_next_is_whole(size_bytes: int) -> None:
    reader, parts = SampleMediaChunks(ReadSampleMediaRequest()), MediumParts(1000)
    messages = [
        *reader.accept(piece(0, b"abc")),
        *reader.accept(piece(0, bytes(size_bytes), size_bytes=size_bytes)),
        *reader.accept(piece(0, b"x", 6, size_bytes=7)),
        *reader.accept(piece(1, b"a", size_bytes=2)),
        *reader.accept(piece(1, b"b", 1, size_bytes=2)),
    ]
    media = [medium for each in messages if (medium := parts.take(each)) is not None]
    assert [(each.index, each.data, each.problem) for each in media] == [
        (0, b"", "it has changed while it was read"),
        (1, b"ab", ""),
    ]


def test_a_file_that_the_server_can_not_read_is_given_up_after_some_tries() -> None:
    reader = ArtifactBytes(JOB_ID, "name")
    sent = errors.FileUnavailableError("input/output error", metadata={"errno": "EIO"})
    unreadable = FakeRpcError(grpc.StatusCode.UNAVAILABLE, sent.message, details_of(sent))

    for _ in range(MAX_TRIES_OF_AN_UNREADABLE_FILE - 1):
        reader.failed(unreadable)
    reader.failed(UNAVAILABLE)  # a restart of the server has nothing to do with it
    for _ in range(MAX_TRIES_OF_AN_UNREADABLE_FILE - 1):
        reader.failed(unreadable)
    reader.accept(ReadArtifactResponse(data=b"a"))
    for _ in range(MAX_TRIES_OF_AN_UNREADABLE_FILE - 1):
        reader.failed(unreadable)
    with pytest.raises(errors.FileUnavailableError):
        reader.failed(unreadable)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("modelargs", "there is no argument 'modelargs'; did you mean 'model_args'?"), ("xyzzy", "there is no argument 'xyzzy'")],
)
def test_an_argument_that_there_is_not_is_named(name: str, problem: str) -> None:
    arguments: Any = {name: 1}
    with pytest.raises(TypeError) as caught:
        core.submit_request(core.evaluate_request("m", ["t"]), **arguments)

    assert str(caught.value) == problem
