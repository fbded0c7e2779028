"""Sees to it that an engine answers for the model of an attempt, and that the harness asks it through the gateway.

    data_dir/jobs/JOB_ID/recording              the answers that the job has got, for its further attempts
    data_dir/jobs/JOB_ID/attempt-N/route        what makes the attempt's URL a secret

The token is written before the harness starts, so an attempt that goes on under another server keeps its URL.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.engines.engine import LOST, Engine
from evalrpc.engines.gateway.contract import Counters, Route
from evalrpc.engines.pool import EnginePool
from evalrpc.errors import GatewayError, RunFailedError
from evalrpc.files.opening import read_note
from evalrpc.files.private import create_private_file
from evalrpc.harnesses.base import Harness, ServedEndpoint, ServedHarness, ServedNeeds
from evalrpc.harnesses.served import served_environment
from evalrpc.jobs.paths import attempt_dir, job_dir
from evalrpc.jobs.served_models import model_name
from evalrpc.scheduling.phase_reports import PhaseReports
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, Progress, Usage

_ROUTE_FILE: Final = "route"
_MAX_TOKEN_BYTES: Final = 256
_COUNT_SECONDS: Final = 2.0

_Reason = TypeVar("_Reason")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What the served models of all jobs share."""

    pool: EnginePool
    clock: Clock
    data_dir: Path
    max_recording_bytes: int = 1 << 30
    observe_answers: Callable[[str, Counters, Counters], None] | None = None
    """Is told, by the configured name of an engine, what the counters of a run were, and are now."""

    def restore(self, jobs: Iterable[JobInfo]) -> None:
        """Take up the engines of an earlier server, and by which addresses its running jobs ask them. Raises OSError."""
        served = [job for job in jobs if job.request.HasField("served_model")]
        self.pool.restore(served)
        for job in served:
            run = ServedRun(self, job, lambda _: None)
            engine = self.pool.engine(job.attempts[-1].engine_id)
            if engine is not None and (route := run.route_to(engine)) is not None:
                self.pool.gateway.expect(route)
        self.pool.begin_restored()


class ServedRun:
    """Has the model of one attempt served. Used by one thread."""

    def __init__(self, serving: Serving, job: JobInfo, publish: Callable[[Progress], None]) -> None:
        self._serving = serving
        self._job = job
        self._reports = PhaseReports(job, Progress.PHASE_SERVING, serving.clock, publish)
        self._counted_at = float("-inf")
        self._engine: Engine | None = None
        self._token = ""
        self._url = ""
        self._counters: Counters | None = None
        self._observed: Counters | None = None  # None: of a run that an earlier server may have told of

    @property
    def engine_id(self) -> str:
        """The engine that answers; empty before one does."""
        return self._engine.engine_id if self._engine is not None else ""

    def lease(self) -> None:
        """Take the engine that answers for the job. May be called again. Raises RunFailedError, OSError."""
        self._engine = self._serving.pool.lease(self._job)

    def follow(self, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until the engine answers and the harness can ask it; or return the reason to stop, if there is one before. May
        be called again. Raises RunFailedError, OSError."""

        def look() -> _Reason | None:
            self._reports.look()
            return reason_to_stop()

        engine = self._leased()
        if (reason := self._serving.pool.wait(engine, look)) is not None:
            return reason
        self._token = self._token or self._read_token() or self._new_token()
        try:
            self._url = self._serving.pool.gateway.put_route(self._route(engine))
        except GatewayError as error:
            raise RunFailedError(LOST, error.message) from error
        return None

    def recall(self) -> None:
        """Do without an engine, for a harness that has ended already, under an earlier server. Raises OSError."""
        self._token = self._read_token()
        self._url = self._serving.pool.gateway.url(self._token)

    def route_to(self, engine: Engine) -> Route | None:
        """Return how the attempt asks an engine; None if it has not got so far. Raises OSError."""
        self._token = self._read_token()
        return self._route(engine) if self._token else None

    def pointed(self, harness: Harness, request: EvaluateRequest) -> EvaluateRequest:
        """Return the request as the harness gets it. Raises RunFailedError for a harness that can't be pointed at a server."""
        if not isinstance(harness, ServedHarness):
            raise RunFailedError("HARNESS_UNAVAILABLE", f"harness {harness.name} can't be pointed at a served model")
        return harness.with_served_model(request, self._endpoint())

    def environment(self, harness: Harness, others: Mapping[str, str]) -> Mapping[str, str]:
        """Return what the harness's programs need in their environment, besides `others`, which they have otherwise."""
        needs = harness.served_needs if isinstance(harness, ServedHarness) else ServedNeeds(frozenset())
        return served_environment(needs, self._endpoint(), others)

    def look(self) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness has nobody to ask any more. Counts now and then."""
        self._serving.pool.require_there(self._leased())
        now = self._serving.clock.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            self._count()
            self._require_same_address()

    def require_sound(self) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness may have been refused answers for no fault of its own."""
        self._count()
        self._require_same_address()
        counters = self._counters
        if counters is None:
            raise RunFailedError(
                LOST, "it is not known whether all questions were answered, since the gateway was started anew"
            )
        if counters.failed and (counters.gateway_failures or counters.unavailable):
            raise RunFailedError(LOST, f"{counters.failed} questions got no answer, since no engine was there to give it")

    def usage(self) -> Usage | None:
        """Return what became of the questions so far; None if that is not known."""
        return _usage(self._counters) if self._counters is not None else None

    def close(self, *, is_over: bool) -> None:
        """End the token and let go of the engine; unless the run goes on without this server. May be called again."""
        if is_over:
            try:
                self._take(self._serving.pool.gateway.remove_route(self._token))
            except GatewayError as error:
                _log.warning("%s", error.message, extra={"job_id": self._job.job_id})
            self._serving.pool.release(self._job.job_id)

    def _require_same_address(self) -> None:
        """A gateway whose socket was lost has another address, at which nobody asks it."""
        if self._serving.pool.gateway.url(self._token) != self._url:
            raise RunFailedError(LOST, "the gateway to the engines has another address than the harness knows")

    def _count(self) -> None:
        try:
            self._take(self._serving.pool.gateway.counters(self._token))
        except GatewayError as error:
            _log.warning("%s", error.message, extra={"job_id": self._job.job_id})

    def _take(self, counters: Counters | None) -> None:
        """Note what has become of the questions, if that is known."""
        if counters is None:
            return
        if self._observed is not None and self._serving.observe_answers is not None:
            before = self._observed if counters.answered >= self._observed.answered else Counters()  # it counts anew
            self._serving.observe_answers(self._job.request.served_model.engine, before, counters)
        self._counters = self._observed = counters

    def _leased(self) -> Engine:
        assert self._engine is not None  # noqa: S101 - `lease` has been called
        return self._engine

    def _endpoint(self) -> ServedEndpoint:
        served = self._job.request.served_model
        api = self._serving.pool.definition(served.engine).settings.api
        return ServedEndpoint(self._url, model_name(served), served.model, api)

    def _route(self, engine: Engine) -> Route:
        return Route(
            self._token,
            engine.engine_id,
            job_id=self._job.job_id,
            attempt=str(self._job.attempt),
            key_prefix=engine.fingerprint,
            recording=str(job_dir(self._serving.data_dir, self._job.job_id) / "recording") if engine.fingerprint else "",
            max_recording_bytes=self._serving.max_recording_bytes,
        )

    @property
    def _folder(self) -> Path:
        return attempt_dir(self._serving.data_dir, self._job.job_id, self._job.attempt)

    def _read_token(self) -> str:
        return (read_note(self._folder, _ROUTE_FILE, _MAX_TOKEN_BYTES) or b"").decode()

    def _new_token(self) -> str:
        token = secrets.token_urlsafe(24)
        self._observed = Counters()
        with create_private_file(self._folder / _ROUTE_FILE) as file:
            file.write(token.encode())
        return token


def _usage(counters: Counters) -> Usage:
    return Usage(
        answered_count=counters.answered,
        truncated_count=counters.truncated,
        empty_count=counters.empty,
        failed_count=counters.failed,
        retried_count=counters.retried,
        replayed_count=counters.replayed,
        prompt_token_count=counters.prompt_tokens,
        completion_token_count=counters.completion_tokens,
    )
