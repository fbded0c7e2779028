"""What is submitted for each checkpoint: a job, or a run of a suite.

In the texts of a request, `{checkpoint}` stands for the path of the checkpoint, `{name}` for the last part of that, and
`{step}` for its step. The `request_id` is made of path, fingerprint and request, and of the suite and its baseline, so the same
checkpoint is submitted once, however often and by whatever process.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Unpack

from google.protobuf import json_format

from evalrpc.client import EvalClient
from evalrpc.client.core import SubmitOptions, SuiteOptions
from evalrpc.errors import EvalrpcError, JobFinishedError, JobNotFoundError, JobNotQueuedError, SuiteRunNotFoundError
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.training.checkpoints import Checkpoint
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED, EvaluateRequest, JobInfo
from evalrpc.v1.suites_pb2 import SuiteRun

STEP_LABEL: Final = "step"
FOLLOW_LABEL: Final = "evalrpc.follow"
"""Tells the suite runs of one command that follows a folder, so that it has the same baseline when it is started again."""

_PLACEHOLDER: Final = re.compile(r"\{(checkpoint|name|step)\}")
_NAMESPACE: Final = uuid.UUID("6b0f7c0e-3c55-4d0b-9a0e-2f2f6f0f5a11")


class Evaluation(NamedTuple):
    """How far the evaluation of a checkpoint is."""

    id: str
    """Of the job or the suite run."""
    has_ended: bool
    """Whether its result is final: what it is compared with has ended, too."""
    message: JobInfo | SuiteRun


class Evaluations(Protocol):
    """What is submitted for each checkpoint. Every method raises what the client's calls do."""

    def submit(self, checkpoint: Checkpoint) -> Evaluation:
        """Submit the evaluation, or return that which was submitted before for this very checkpoint."""

    def look(self, evaluation_id: str) -> Evaluation:
        """Return how far an evaluation is."""

    def give_up(self, evaluation_id: str, reason: str) -> bool:
        """Cancel an evaluation that has not started; return whether that is so."""


class JobEvaluations:
    """A job for each checkpoint."""

    def __init__(self, client: EvalClient, request: EvaluateRequest, **options: Unpack[SubmitOptions]) -> None:
        """The placeholders in the request are filled in. Raises ValueError if it has none that tells checkpoints apart."""
        require_placeholder([request])
        self._client = client
        self._request = request
        self._options = options

    def submit(self, checkpoint: Checkpoint) -> Evaluation:
        """Submit the job, with the label `step`."""
        request = _filled_in(self._request, checkpoint)
        options: SubmitOptions = {
            **self._options,
            "request_id": _request_id(checkpoint, request),
            "labels": _labels(self._options.get("labels"), checkpoint),
        }
        return _of_job(self._client.submit(request, **options))

    def look(self, evaluation_id: str) -> Evaluation:
        """Return the job."""
        return _of_job(self._client.get_job(evaluation_id))

    def give_up(self, evaluation_id: str, reason: str) -> bool:
        """Cancel the job if it is still queued."""
        try:
            self._client.cancel_job(evaluation_id, reason, queued_only=True)
        except (JobNotFoundError, JobFinishedError, JobNotQueuedError):
            return False
        return True


class SuiteEvaluations:
    """A run of a suite for each checkpoint."""

    def __init__(
        self,
        client: EvalClient,
        suite: str,
        request: EvaluateRequest,
        harness_requests: Mapping[str, EvaluateRequest] | None = None,
        *,
        baseline_suite_run_id: str = "",
        **options: Unpack[SuiteOptions],
    ) -> None:
        """The placeholders in the requests are filled in. Raises ValueError if there is none that tells checkpoints apart."""
        require_placeholder([request, *(harness_requests or {}).values()])
        self._client = client
        self._suite = suite
        self._request = request
        self._harness_requests = dict(harness_requests or {})
        self._baseline_suite_run_id = baseline_suite_run_id
        self._options = options

    def submit(self, checkpoint: Checkpoint) -> Evaluation:
        """Submit the suite; its jobs have the label `step`."""
        run = self.submit_run(checkpoint)
        try:
            return self._of_run(run)
        except (EvalrpcError, TimeoutError):  # it is submitted all the same; what hinders the decision is raised by `look`
            return Evaluation(run.suite_run_id, False, run)

    def submit_run(self, checkpoint: Checkpoint) -> SuiteRun:
        """Submit the suite, without a look at what has become of it."""
        request = _filled_in(self._request, checkpoint)
        of_harnesses = {name: _filled_in(each, checkpoint) for name, each in self._harness_requests.items()}
        plain_of_harnesses = {name: _plain(each) for name, each in of_harnesses.items()}
        options: SuiteOptions = {
            **self._options,
            "request_id": _request_id(checkpoint, request, self._suite, plain_of_harnesses, self._baseline_suite_run_id),
            "labels": _labels(self._options.get("labels"), checkpoint),
        }
        return self._client.submit_suite(
            self._suite, request, of_harnesses, baseline_suite_run_id=self._baseline_suite_run_id, **options
        )

    def look(self, evaluation_id: str) -> Evaluation:
        """Return the suite run, with the decision once it has ended."""
        return self._of_run(self._client.get_suite_run(evaluation_id))

    def give_up(self, evaluation_id: str, reason: str) -> bool:
        """Cancel the suite run if none of its jobs has started."""
        try:
            if self._client.get_suite_run(evaluation_id).status != JOB_STATUS_QUEUED:
                return False
            self._client.cancel_suite_run(evaluation_id, reason)
        except (SuiteRunNotFoundError, JobFinishedError):
            return False
        return True

    def _of_run(self, run: SuiteRun) -> Evaluation:
        has_ended = run.status in TERMINAL and self._has_baseline_ended()
        return Evaluation(run.suite_run_id, has_ended, self._client.decide_suite_run(run.suite_run_id) if has_ended else run)

    def _has_baseline_ended(self) -> bool:
        """Return whether there is nothing to wait for: the baseline's run has ended, there is none, or it was deleted."""
        if not self._baseline_suite_run_id:
            return True
        try:
            return self._client.get_suite_run(self._baseline_suite_run_id).status in TERMINAL
        except SuiteRunNotFoundError:
            return True


def pin_of(folder: Path, suite: str, requests: Iterable[EvaluateRequest], baseline: str) -> str:
    """Return the value of FOLLOW_LABEL for following a folder with a baseline whose name may come to name another run."""
    content = [os.path.realpath(folder), suite, *map(_plain, requests), baseline]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True)))


def pinned_baseline(client: EvalClient, suite: str, pin: str) -> str:
    """Return the baseline of the suite runs that were submitted with this pin; empty if there are none, or it is gone."""
    for run in client.list_suite_runs(suite, label_selector=f"{FOLLOW_LABEL}={pin}", page_size=1):
        with suppress(SuiteRunNotFoundError):
            return client.get_suite_run(run.submission.baseline_suite_run_id).suite_run_id
        break
    return ""


def _of_job(job: JobInfo) -> Evaluation:
    return Evaluation(job.job_id, job.status in TERMINAL, job)


def _labels(labels: Mapping[str, object] | None, checkpoint: Checkpoint) -> dict[str, object]:
    return {**(labels or {}), STEP_LABEL: checkpoint.step}


def _request_id(checkpoint: Checkpoint, request: EvaluateRequest, *others: Any) -> str:
    """Return an id that is the same for the same checkpoint and evaluation, in every process: a UUID of version 5."""
    content = [os.fspath(checkpoint.path), checkpoint.fingerprint, _plain(request), *others]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True)))


def require_placeholder(requests: Iterable[EvaluateRequest]) -> None:
    """Raise ValueError unless something in one of the requests tells checkpoints apart."""
    if not any(_PLACEHOLDER.search(json.dumps(_plain(request))) for request in requests):
        raise ValueError("nothing in the request names the checkpoint; put {checkpoint}, {name} or {step} into it")


def _filled_in(request: EvaluateRequest, checkpoint: Checkpoint) -> EvaluateRequest:
    """Return the request with the placeholders in its texts replaced. Other braces stay as they are."""
    values = {"checkpoint": os.fspath(checkpoint.path), "name": checkpoint.path.name, "step": str(checkpoint.step)}

    def fill_in(value: Any) -> Any:
        match value:
            case str():
                return _PLACEHOLDER.sub(lambda match: values[match[1]], value)
            case list():
                return [fill_in(item) for item in value]
            case dict():
                return {key: fill_in(item) for key, item in value.items()}
        return value

    return json_format.ParseDict(fill_in(_plain(request)), EvaluateRequest())


def _plain(request: EvaluateRequest) -> dict[str, Any]:
    return json_format.MessageToDict(request, preserving_proto_field_name=True)
