"""Which trace a job belongs to, as W3C Trace Context writes it. Needs no library: spans are made in `server/telemetry`."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from evalrpc.v1.jobs_pb2 import JobInfo

TRACEPARENT_VARIABLE: Final = "TRACEPARENT"
"""The environment variable in which a program finds the span that it belongs to."""

_VERSION: Final = "00"


class TraceContext(NamedTuple):
    """A span, which others may belong to."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    flags: str
    """Two hexadecimal digits; the last bit says whether the span is recorded."""

    def __str__(self) -> str:
        return "-".join((_VERSION, *self))


_current: ContextVar[TraceContext | None] = ContextVar("evalrpc_trace", default=None)


def current_trace() -> TraceContext | None:
    """Return the span that this thread or task works for; None if that is unknown."""
    return _current.get()


@contextmanager
def within(context: TraceContext | None) -> Iterator[None]:
    """Have what is logged in the block carry the ids of a span."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def submission_of(job: JobInfo) -> TraceContext | None:
    """Return the span of the call that has submitted a job; None of one that was submitted without traces."""
    return TraceContext(*job.traceparent.split("-")[1:]) if job.traceparent else None


def begin_attempt(job: JobInfo) -> None:
    """Choose the span of the attempt that has just begun, if the job has a trace. It is recorded when the attempt ends, by
    whichever server sees that."""
    submission = submission_of(job)
    if submission is not None:
        job.attempts[-1].trace_id = submission.trace_id
        job.attempts[-1].span_id = secrets.token_hex(8)


def attempt_of(job: JobInfo) -> TraceContext | None:
    """Return the span of the last attempt of a job; None without traces."""
    submission = submission_of(job)
    if submission is None or not job.attempts or not job.attempts[-1].span_id:
        return None
    return TraceContext(submission.trace_id, job.attempts[-1].span_id, submission.flags)
