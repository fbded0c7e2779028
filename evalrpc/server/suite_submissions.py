"""The jobs that a suite comes to for a client's model, and what is wrong with them, in terms of what the client has sent."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from evalrpc.errors import (
    ExecutorUnsuitableError,
    FieldsError,
    FieldViolation,
    InvalidRequestError,
    PolicyViolationError,
    SecretNotAllowedError,
)
from evalrpc.jobs.suite_states import SUITE_LABEL
from evalrpc.protobuf.copies import without
from evalrpc.server.admission import Admission, GpuCounts
from evalrpc.v1.jobs_pb2 import EvaluateRequest, SubmitJobRequest
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest, Suite

_OF_SUITE: Final = ("harness", "tasks", "num_fewshot", "limit", "gen_kwargs", "task_args", "predict_only", "tasks_separately")
"""What of a request the suite says. Also that samples are logged, since comparisons need them."""

_MERGED: Final = "model_args"
"""The field of `request` that a request of a harness does not replace as a whole, but each argument by itself."""

_REQUEST: Final = "request."


class SuiteJobs:
    """The submissions of all jobs of a suite run, in the order of the entries."""

    def __init__(self, suite: Suite, call: SubmitSuiteRequest) -> None:
        self._suite = suite
        self._call = call
        self.submissions = [self._submission(entry.request) for entry in suite.entries]

    def admit(
        self,
        admission: Admission,
        owner: str,
        gpu_counts: GpuCounts,
        max_gpus: int | None,
        invalid: Iterable[FieldViolation] = (),
    ) -> None:
        """Fill in what is left out, and refuse all that any of the jobs must not have, at once. `invalid`: what else is wrong.

        Raises InvalidRequestError, ExecutorUnsuitableError, SecretNotAllowedError, PolicyViolationError.
        """
        found: dict[type, list[FieldViolation]] = {InvalidRequestError: list(invalid)}
        for index, submission in enumerate(self.submissions):
            for error in admission.judge(submission, owner, gpu_counts, max_gpus):
                found.setdefault(type(error), []).extend(self.located(index, error.violations))
        for kind in (InvalidRequestError, ExecutorUnsuitableError, SecretNotAllowedError, PolicyViolationError):
            require_none(kind, found.get(kind, ()))

    def located(self, index: int, violations: Iterable[FieldViolation]) -> Iterator[FieldViolation]:
        """Yield what is wrong with a job, named by where that stands in the client's message."""
        entry = self._suite.entries[index]
        harness = entry.request.harness
        of_harness = _fields(self._call.harness_requests[harness]) if harness in self._call.harness_requests else ()
        of_entry = _fields(entry.request)
        for field, problem in violations:
            name = field.removeprefix(_REQUEST).partition(".")[0].partition("[")[0]
            if not field.startswith(_REQUEST) or not {name} & {*of_entry, *of_harness}:
                yield FieldViolation(field, problem)
            elif name in of_entry:
                yield FieldViolation("suite", f"its entry {entry.name!r}: {field.removeprefix(_REQUEST)}: {problem}")
            else:
                yield FieldViolation(f"harness_requests[{harness}].{field.removeprefix(_REQUEST)}", problem)

    def _submission(self, of_entry: EvaluateRequest) -> SubmitJobRequest:
        call = self._call
        of_harness = call.harness_requests.get(of_entry.harness, EvaluateRequest())
        replaced = _fields(of_harness) - {_MERGED}  # MergeFrom would add to lists, and to messages within
        request = without(call.request, *replaced)
        request.MergeFrom(of_harness)
        request.MergeFrom(of_entry)
        request.log_samples = True
        return SubmitJobRequest(
            request=request,
            priority=call.priority,
            labels={**call.labels, SUITE_LABEL: self._suite.name},
            timeout=call.timeout if call.HasField("timeout") else None,
            max_attempts=call.max_attempts,
            cache=call.cache,
            preemptible=call.preemptible,
        )


def violations(call: SubmitSuiteRequest, suites: Mapping[str, Suite]) -> Iterator[FieldViolation]:
    """Yield what is wrong with a submission besides what would be of its jobs."""
    suite = suites.get(call.suite)
    if suite is None:
        problem = f"there is no suite {call.suite[:80]!r}" if call.suite else "is required"
        yield FieldViolation("suite", f"{problem}; this server has: {', '.join(suites) or 'none'}")
    yield from _said_by_suite("request", call.request)
    harnesses = {entry.request.harness for entry in suite.entries} if suite else set(call.harness_requests)
    for harness, request in sorted(call.harness_requests.items()):
        if harness not in harnesses:
            problem = f"no entry of the suite has this harness; they have: {', '.join(sorted(harnesses))}"
            yield FieldViolation(f"harness_requests[{harness[:80]}]", problem)
        yield from _said_by_suite(f"harness_requests[{harness[:80]}]", request)


_Refusal = FieldsError


def require_none(kind: type[_Refusal], violations: Iterable[FieldViolation]) -> None:
    """Raise an error of this kind with all violations, each once, if there are any."""
    if found := tuple(dict.fromkeys(violations)):
        raise kind(violations=found)


def _said_by_suite(field: str, request: EvaluateRequest) -> Iterator[FieldViolation]:
    for name in _OF_SUITE:
        if name in _fields(request):
            yield FieldViolation(f"{field}.{name}", "is what the suite says: leave it out")
    if request.HasField("log_samples") and not request.log_samples:
        yield FieldViolation(f"{field}.log_samples", "a decision needs the samples: leave it out")


def _fields(request: EvaluateRequest) -> set[str]:
    """Return the names of the fields that are set."""
    return {field.name for field, _ in request.ListFields()}
