"""Which executors a request may name, and which must be there. Pure."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from evalrpc.config import Settings
from evalrpc.config.executors import LOCAL_EXECUTOR, may_place
from evalrpc.errors import ConfigurationError, FieldViolation
from evalrpc.jobs.defaults import executor_of, executors_of
from evalrpc.jobs.served_models import SERVED_FIELDS
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo

_FIELD: Final = "request.executor"
_MAX_SHOWN: Final = 80
_MAX_NAMED: Final = 5


def violations(request: EvaluateRequest, settings: Settings) -> Iterator[FieldViolation]:
    """Yield what is wrong with the `executor` of a request, in which the default is filled in."""
    name = request.executor or LOCAL_EXECUTOR
    known = (LOCAL_EXECUTOR, *settings.executors)
    harness = settings.harnesses.get(request.harness)
    allowed = executors_of(harness, settings) if harness is not None else known
    if name not in known:
        yield FieldViolation(_FIELD, f"this server has no executor {name[:_MAX_SHOWN]!r}; it has: {', '.join(known)}")
    elif name not in allowed:
        yield FieldViolation(_FIELD, f"{request.harness} may not run on {name}, only on: {', '.join(allowed)}")


def not_allowed(request: EvaluateRequest, settings: Settings, owner: str) -> Iterator[FieldViolation]:
    """Yield the executor, if it is one that the jobs of this owner may not be placed on."""
    executor = settings.executors.get(executor_of(request))
    if executor is not None and not may_place(executor, owner):
        whose = repr(owner) if owner else "who is not signed in"
        yield FieldViolation(_FIELD, f"{executor.name} is not for {whose}: its owners are the operator's choice")


def unsuitable(request: EvaluateRequest) -> Iterator[FieldViolation]:
    """Yield what a request asks for that only the server's own machine has, if it is for another executor."""
    asked = {field: request.HasField(field) for field in SERVED_FIELDS} | {"preparation": bool(request.preparation)}
    for field in (field for field, is_asked in asked.items() if is_asked and executor_of(request)):
        yield FieldViolation(f"request.{field}", f"is only for executor {LOCAL_EXECUTOR}, and not for {request.executor}")


def require_executors(running: Iterable[JobInfo], executors: Collection[str]) -> None:
    """Raise ConfigurationError if jobs run on an executor that is not configured any more: without it nobody knows what becomes
    of their runs, which would be taken for lost while they go on."""
    left: dict[str, list[str]] = {}
    for job in running:
        if (name := executor_of(job.request)) and name not in executors:
            left.setdefault(name, []).append(job.job_id)
    if not left:
        return
    name, job_ids = next(iter(left.items()))
    named = ", ".join(job_ids[:_MAX_NAMED]) + (f" and {more} more" if (more := len(job_ids) - _MAX_NAMED) > 0 else "")
    raise ConfigurationError(
        f"executors.{name}: jobs still run on it, and it is not configured any more: {named}; put [executors.{name}] back "
        f"until they have ended or are cancelled, with `owners = []` if it is to get no new ones"
    )
