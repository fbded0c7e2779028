"""Traces of jobs: the call that submits one, each wait, each attempt.

A wait or an attempt is recorded when it ends, with the times that the store has, by the server that commits its end: so none is
lost with a server, and nothing is kept for it meanwhile but the id of its span, which was chosen when it began. Calls that only
read have no spans.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import evalrpc
from evalrpc.errors import EvalrpcError
from evalrpc.jobs import lifecycle, trace_context
from evalrpc.jobs.trace_context import TraceContext
from evalrpc.server.call import Call
from evalrpc.store.base import Change
from evalrpc.v1 import jobs_pb2 as pb

_SERVICE: Final = "evalrpc.v1.EvaluationService"
_HEADER: Final = "traceparent"
_STOP_SECONDS: Final = 2.0

Attributes = Mapping[str, str | int | bool]


class Traces:
    """Records spans. `apply` runs on the store's writer thread, the rest on any."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """Send spans where the standard variables of OpenTelemetry (`OTEL_...`) say, or to `processor`."""
        self._ids = _ChosenIds()
        self._provider = TracerProvider(resource=_resource(), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("evalrpc", evalrpc.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def submission(self, method: str, call: Call) -> Iterator[str]:
        """Trace a call of a method while it is made, as a part of its client's trace if it has one. Yields the W3C
        `traceparent` of its span."""
        parent = self._propagator.extract({_HEADER: call.header(_HEADER)}, Context())
        attributes = {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/{method}"}
        span = self._tracer.start_span(f"{_SERVICE}/{method}", parent, SpanKind.SERVER, attributes)
        context = _context_of(span)
        try:
            with trace_context.within(context):
                yield str(context)
        except EvalrpcError as error:
            span.set_attribute("rpc.response.status_code", error.code)
            span.set_attribute("error.type", error.reason)
            span.set_status(Status(StatusCode.ERROR, error.message))
            raise
        finally:
            span.end()

    def apply(self, changes: Sequence[Change]) -> None:
        """Record the waits and the attempts that have ended in a commit. A listener of the store."""
        for change in changes:
            if change.job.traceparent and change.status_changed and not change.deleted:
                self._follow(change)

    def close(self) -> None:
        """Send what is left, for a moment: who collects spans may be gone. Blocks."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(_STOP_SECONDS)

    def _follow(self, change: Change) -> None:
        if change.previous == pb.JOB_STATUS_QUEUED:
            self._record_wait(change.job)
        elif change.previous == pb.JOB_STATUS_RUNNING:
            self._record_attempt(change.job)

    def _record_wait(self, job: pb.JobInfo) -> None:
        has_begun = job.status == pb.JOB_STATUS_RUNNING
        earlier = job.attempts[-2:-1] if has_begun else job.attempts[-1:]
        begun = earlier[0].completed_at if earlier else job.created_at
        ended = job.started_at if has_begun else job.completed_at
        self._record("wait in the queue", job, begun, ended)

    def _record_attempt(self, job: pb.JobInfo) -> None:
        attempt = job.attempts[-1]
        if not attempt.span_id:
            return  # it began under a server of an earlier release
        attributes: dict[str, str | int | bool] = {
            "evalrpc.attempt": attempt.number,
            "evalrpc.gpu_count": len(attempt.gpus),
            "evalrpc.node": attempt.node,
            "evalrpc.warm": attempt.warm,
        }
        if attempt.HasField("error"):
            attributes["error.type"] = attempt.error.reason
        span_id = int(attempt.span_id, 16)
        self._record("attempt", job, attempt.started_at, attempt.completed_at, attributes, attempt.error.message, span_id)

    def _record(
        self,
        name: str,
        job: pb.JobInfo,
        begun: Timestamp,
        ended: Timestamp,
        attributes: Attributes | None = None,
        error: str = "",
        span_id: int = 0,
    ) -> None:
        """Record a span that has ended, below that of the submission. 0: with any id."""
        submission = trace_context.submission_of(job)
        assert submission is not None  # noqa: S101 - the job has a trace
        described = {"evalrpc.job_id": job.job_id, "evalrpc.harness": job.request.harness, **(attributes or {})}
        begun_ns = begun.ToNanoseconds()
        with self._ids.chosen(span_id):
            span = self._tracer.start_span(name, _parent(submission), attributes=described, start_time=begun_ns)
        span.set_attribute("evalrpc.status", lifecycle.status_name(job.status))
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(max(begun_ns, ended.ToNanoseconds()))


class _ChosenIds(RandomIdGenerator):
    """Gives the next span of a thread the id that was chosen for it, if there is one."""

    def __init__(self) -> None:
        self._chosen = threading.local()

    @contextmanager
    def chosen(self, span_id: int) -> Iterator[None]:
        """Give this id to the span that is begun in the block."""
        self._chosen.span_id = span_id
        try:
            yield
        finally:
            self._chosen.span_id = 0

    def generate_span_id(self) -> int:
        """Return the chosen id, or a random one."""
        return getattr(self._chosen, "span_id", 0) or super().generate_span_id()


def _context_of(span: Span) -> TraceContext:
    context = span.get_span_context()
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{int(context.trace_flags):02x}")


def _parent(context: TraceContext) -> Context:
    flags = TraceFlags(int(context.flags, 16))
    parent = SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _resource() -> Resource:
    """Return how the server is called in traces, unless the standard variables say so."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if named else {"service.name": "evalrpc"}
    return Resource.create({**name, "service.version": evalrpc.__version__})
