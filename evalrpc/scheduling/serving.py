"""Sees to it that an engine answers for the model of an attempt, and that the harness asks it through the gateway.

    data_dir/jobs/JOB_ID/recording              the answers that the job has got, for its further attempts
    data_dir/jobs/JOB_ID/attempt-N/route        what makes the attempt's URL a secret

The token is written before the harness starts, so an attempt that goes on under another server keeps its URL.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.engines.engine import LOST, Engine
from evalrpc.engines.gateway.contract import Counters, Route
from evalrpc.engines.pool import EnginePool
from evalrpc.errors import GatewayUnavailableError, RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in
from evalrpc.files.private import create_private_file
from evalrpc.harnesses.base import Harness, ServedEndpoint, ServedHarness, ServedNeeds
from evalrpc.harnesses.served import served_environment
from evalrpc.jobs.paths import attempt_dir, job_dir
from evalrpc.jobs.served_models import model_name
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, Progress, Usage

_ROUTE_FILE: Final = "route"
_MAX_TOKEN_BYTES: Final = 256
_ALIVE_SECONDS: Final = 5.0
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


class ServedRun:
    """Has the model of one attempt served. Used by one thread."""

    def __init__(self, serving: Serving, job: JobInfo, publish: Callable[[Progress], None]) -> None:
        self._serving = serving
        self._job = job
        self._publish = publish
        self._published_at = float("-inf")
        self._counted_at = float("-inf")
        self._engine: Engine | None = None
        self._token = ""
        self._url = ""
        self._counters: Counters | None = None

    @property
    def engine_id(self) -> str:
        """The engine that answers; empty before one does."""
        return self._engine.engine_id if self._engine is not None else ""

    def follow(self, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until an engine answers and the harness can ask it; or return the reason to stop, if there is one before. May be
        called again. Raises RunFailedError, OSError."""

        def look() -> _Reason | None:
            self._report()
            return reason_to_stop()

        found = self._serving.pool.lease(self._job, look)
        if not isinstance(found, Engine):
            return found
        self._engine = found
        self._token = self._token or self._read_token() or self._new_token()
        try:
            self._url = self._serving.pool.gateway.put_route(self._route(found))
        except GatewayUnavailableError as error:
            raise RunFailedError(LOST, error.message) from error
        return None

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
        """Raise RunFailedError with reason ENGINE_LOST if there is no engine any more. Counts now and then."""
        assert self._engine is not None  # noqa: S101 - `follow` has returned None
        self._serving.pool.require_there(self._engine)
        now = self._serving.clock.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            self._count()

    def require_sound(self) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if some answers of the harness are failures of the gateway's own."""
        self._count()
        if self._counters is not None and self._counters.gateway_failures + self._counters.unavailable:
            failures = self._counters.gateway_failures + self._counters.unavailable
            raise RunFailedError(
                LOST, f"{failures} questions got no answer, since the engine or the gateway to it was not there"
            )

    def usage(self) -> Usage | None:
        """Return what became of the questions so far; None if that is not known."""
        return _usage(self._counters) if self._counters is not None else None

    def close(self, *, is_over: bool) -> None:
        """End the token and let go of the engine; unless the run goes on without this server."""
        if is_over:
            try:
                self._counters = self._serving.pool.gateway.remove_route(self._token) or self._counters
            except GatewayUnavailableError as error:
                _log.warning("%s", error.message, extra={"job_id": self._job.job_id})
            self._serving.pool.release(self._job.job_id)

    def _count(self) -> None:
        try:
            self._counters = self._serving.pool.gateway.counters(self._token) or self._counters
        except GatewayUnavailableError as error:
            _log.warning("%s", error.message, extra={"job_id": self._job.job_id})

    def _endpoint(self) -> ServedEndpoint:
        assert self._engine is not None  # noqa: S101 - as above
        assert self._engine.definition is not None  # noqa: S101 - it answers
        served = self._job.request.served_model
        return ServedEndpoint(self._url, model_name(served), served.model, self._engine.definition.settings.api)

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
        try:
            with open_in(self._folder, _ROUTE_FILE) as file:
                return file.read(_MAX_TOKEN_BYTES).decode()
        except OSError as error:
            require_no_shortage(error)
            return ""

    def _new_token(self) -> str:
        token = secrets.token_urlsafe(24)
        with create_private_file(self._folder / _ROUTE_FILE) as file:
            file.write(token.encode())
        return token

    def _report(self) -> None:
        """Tell now and then that the engine loads the model."""
        now = self._serving.clock.monotonic()
        if now - self._published_at < _ALIVE_SECONDS:
            return
        self._published_at = now
        progress = Progress(phase=Progress.PHASE_SERVING)
        elapsed_ns = self._serving.clock.now().ToNanoseconds() - self._job.started_at.ToNanoseconds()
        progress.elapsed.FromNanoseconds(max(0, elapsed_ns))
        self._publish(progress)


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
