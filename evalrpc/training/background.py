"""Submits the evaluations of checkpoints from within a training loop, which it neither stops nor fails."""

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, NamedTuple, Self, Unpack

from evalrpc.client import EvalClient
from evalrpc.client.core import SuiteOptions, server_address
from evalrpc.errors import EvalrpcError
from evalrpc.training.checkpoints import Checkpoint, fingerprint_of
from evalrpc.training.evaluations import JobEvaluations, SuiteEvaluations, require_placeholder
from evalrpc.training.follower import LATER
from evalrpc.v1.jobs_pb2 import EvaluateRequest

FINISH_SECONDS: Final = 60.0

_MAX_DELAY_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


class Submitted(NamedTuple):
    """A checkpoint whose evaluation is on the server."""

    step: int
    path: Path
    job_id: str
    """Empty for a suite."""
    suite_run_id: str = ""
    """Empty for a job."""


class _Saved(NamedTuple):
    """A checkpoint that is to be submitted."""

    path: Path
    step: int
    quiet_seconds: float


class _End:
    """When one thread has to end. None: not yet."""

    deadline_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is no time left."""
        return self.deadline_seconds is not None and monotonic() >= self.deadline_seconds


class CheckpointEvaluator:
    """Submits a job for each checkpoint that it is told of, or the run of a suite, in a thread of its own.

        request = EvaluateRequest(model="hf", tasks=["gsm8k"], model_args={"pretrained": "{checkpoint}"})
        with CheckpointEvaluator(request, labels={"run": "x"}) as evaluator:
            for step in range(1, 1001):
                ...
                if step % 100 == 0:
                    model.save_pretrained(f"out/step_{step}")
                    evaluator.saved(f"out/step_{step}", step)

    While the server can't be reached, or its queue is full, it tries again, and logs a warning. What it could not submit when
    it is closed is logged as an error; `evalrpc follow` makes up for it.
    """

    def __init__(
        self,
        request: EvaluateRequest,
        *,
        suite: str = "",
        harness_requests: Mapping[str, EvaluateRequest] | None = None,
        baseline_suite_run_id: str = "",
        address: str | None = None,
        retry_seconds: float = 1.0,
        finish_seconds: float = FINISH_SECONDS,
        supersede_key: str = "",
        **options: Unpack[SuiteOptions],
    ) -> None:
        """The request has placeholders, as `evalrpc.training.evaluations` says; `address` and options are those of EvalClient.

        With `suite`, a run of that is submitted for each: then the request, `harness_requests` and `baseline_suite_run_id` are
        those of `EvalClient.submit_suite`.

        The first retry is after `retry_seconds`, each later one after twice as long, up to a minute. `close` waits up to
        `finish_seconds` for submissions that have not been made yet.

        Raises ValueError for an address that makes no sense, for requests without a placeholder, and for what only a job, or
        only a suite has.
        """
        server_address(address)
        require_placeholder([request, *(harness_requests or {}).values()])
        if suite and supersede_key:
            raise ValueError("supersede_key is for jobs: leave it out with a suite")
        if not suite and (harness_requests or baseline_suite_run_id):
            raise ValueError("harness_requests and baseline_suite_run_id are for a suite: name it")
        self.submitted: list[Submitted] = []
        """What is on the server so far, in the order of submission."""
        self._request = request
        self._suite = suite
        self._harness_requests = harness_requests
        self._baseline_suite_run_id = baseline_suite_run_id
        self._address = address
        self._retry_seconds = retry_seconds
        self._finish_seconds = finish_seconds
        self._supersede_key = supersede_key
        self._options = options
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Saved] = deque()
        self._missed: list[_Saved] = []
        self._end = _End()  # of the thread that runs; one that did not end in time keeps its own
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def saved(self, path: str | os.PathLike[str], step: int, quiet_seconds: float = 0.0) -> None:
        """Have a checkpoint evaluated that was saved at this step. Returns at once.

        It is submitted once its files have stayed as they are for `quiet_seconds`: where other processes write to it as well,
        this one can't know when they are done.
        """
        with self._changed:
            self._waiting.append(_Saved(Path(os.path.realpath(path)), step, quiet_seconds))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._end,), name="evalrpc-checkpoints", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait for submissions that are still to be made, and log those that could not be made. Idempotent; checkpoints may be
        saved again after it."""
        with self._changed:
            self._end.deadline_seconds = monotonic() + self._finish_seconds
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(self._finish_seconds)
        with self._changed:
            missed = [*self._missed, *self._waiting]
            self._missed.clear()
            self._waiting.clear()
            self._thread, self._end = None, _End()
        if missed:
            steps = ", ".join(str(saved.step) for saved in missed)
            logger.error("not evaluated: the checkpoints of the steps %s; `evalrpc follow` submits them later", steps)

    def _run(self, end: _End) -> None:
        while saved := self._next(end):
            is_done = False
            try:
                is_done = self._submit(saved, end)
            except (EvalrpcError, OSError, ValueError, TypeError) as error:
                logger.error("can't evaluate %s: %s", saved.path, error)  # noqa: TRY400 - expected, so without a traceback
            except Exception:  # the last resort: the training does not end for a bug in here
                logger.exception("can't evaluate %s", saved.path)
            with self._changed:
                if self._waiting and self._waiting[0] is saved:
                    self._waiting.popleft()
                    if not is_done:
                        self._missed.append(saved)

    def _next(self, end: _End) -> _Saved | None:
        """Wait for the next checkpoint; return None once it is closed and there are no more, or no time is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or end.deadline_seconds is not None)
            return self._waiting[0] if self._waiting and not end.is_over else None

    def _submit(self, saved: _Saved, end: _End) -> bool:
        """Submit the evaluation of a checkpoint, and try again while that may help; return whether it is on the server."""
        fingerprint = self._quiet_fingerprint(saved, end)
        if fingerprint is None:
            logger.error("can't evaluate %s: it is gone, empty, not quiet yet, or can't be looked at", saved.path)
            return False
        checkpoint, delay_seconds = Checkpoint(saved.path, saved.step, fingerprint), self._retry_seconds
        while True:
            try:
                # A connection for each, since a program that forks, as data loaders do, should have none open.
                with EvalClient(self._address) as client:
                    submitted = self._submit_with(client, checkpoint)
            except LATER as error:
                logger.warning("the evaluation of %s is not submitted yet: %s", saved.path, error)
            else:
                self.submitted.append(submitted)
                return True
            if not self._pause(delay_seconds, end):
                return False
            delay_seconds = min(2 * delay_seconds, _MAX_DELAY_SECONDS)

    def _submit_with(self, client: EvalClient, checkpoint: Checkpoint) -> Submitted:
        if not self._suite:
            jobs = JobEvaluations(client, self._request, supersede_key=self._supersede_key, **self._options)
            return Submitted(checkpoint.step, checkpoint.path, jobs.submit(checkpoint).id)
        suite = SuiteEvaluations(
            client,
            self._suite,
            self._request,
            self._harness_requests,
            baseline_suite_run_id=self._baseline_suite_run_id,
            **self._options,
        )
        return Submitted(checkpoint.step, checkpoint.path, "", suite.submit_run(checkpoint).suite_run_id)

    def _quiet_fingerprint(self, saved: _Saved, end: _End) -> str | None:
        fingerprint = fingerprint_of(saved.path)
        while saved.quiet_seconds and fingerprint is not None:
            if not self._pause(saved.quiet_seconds, end):
                return None
            before, fingerprint = fingerprint, fingerprint_of(saved.path)
            if fingerprint == before:
                break
        return fingerprint

    def _pause(self, seconds: float, end: _End) -> bool:
        """Wait so long, but not past the deadline; return whether there is time left."""
        until_seconds = monotonic() + seconds
        with self._changed:
            while (left := min(until_seconds, end.deadline_seconds or until_seconds) - monotonic()) > 0:
                self._changed.wait(left)
            return not end.is_over
