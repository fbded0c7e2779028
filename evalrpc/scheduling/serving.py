"""Sees to it that engines and endpoints answer for the models of an attempt, and that its harness asks through the gateway.

    data_dir/jobs/JOB_ID/recording              the answers that the job has got, for its further attempts
    data_dir/jobs/JOB_ID/attempt-N/route        what makes the attempt's URL a secret
    data_dir/jobs/JOB_ID/attempt-N/gateway      which start of the gateway the attempt began with
    data_dir/jobs/JOB_ID/attempt-N/lenders      the recordings of other jobs that it may take answers from, as JSON

All are written before the harness starts, so an attempt that goes on under another server keeps its URL, and that server
knows whether the gateway was started again meanwhile. A judge has the same, with `judge-` before the names: so what the model
is asked has nothing to do with who judges it.
"""

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.engines.endpoints import EndpointUse, require_usable
from evalrpc.engines.engine import LOST, Engine
from evalrpc.engines.gateway.contract import Counters, Lender, PartCounters, Route, from_json, to_json
from evalrpc.engines.pool import EnginePool
from evalrpc.errors import GatewayError, RunFailedError
from evalrpc.files.opening import read_note
from evalrpc.files.private import create_private_file
from evalrpc.harnesses.bad_answers import BadAnswers
from evalrpc.harnesses.base import Harness, Run, ServedEndpoint, ServedHarness, ServedNeeds
from evalrpc.harnesses.served import judge_environment, served_environment
from evalrpc.jobs import transitions
from evalrpc.jobs.paths import attempt_dir, job_dir
from evalrpc.jobs.served_models import JUDGE_FIELD, SERVED_FIELD, SERVED_FIELDS, model_name, served_models
from evalrpc.scheduling.lending import Lending, Recorded
from evalrpc.scheduling.phase_reports import PhaseReports
from evalrpc.v1.jobs_pb2 import (
    CACHE_MODE_ALLOW,
    JOB_STATUS_COMPLETED,
    EvaluateRequest,
    JobAttempt,
    JobInfo,
    Progress,
    ServedModel,
)
from evalrpc.v1.results_pb2 import Usage

_ENGINE_ID_FIELDS: Final = {SERVED_FIELD: "engine_id", JUDGE_FIELD: "judge_engine_id"}
_UNJUDGED: Final = "most tasks score 0 without one"
_USAGE_FIELDS: Final = {SERVED_FIELD: "usage", JUDGE_FIELD: "judge_usage"}
_REQUESTS: Final = "requests"
_BEFORE_SCORING: Final = frozenset({Progress.PHASE_STARTING, Progress.PHASE_LOADING, Progress.PHASE_EVALUATING})
_ROUTE_FILE: Final = "route"
_GATEWAY_FILE: Final = "gateway"
_LENDERS_FILE: Final = "lenders"
_RECORDING: Final = "recording"
_MAX_LENDERS_BYTES: Final = 64 * 1024
_MAX_NOTE_BYTES: Final = 256
_COUNT_SECONDS: Final = 2.0

_Reason = TypeVar("_Reason")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What the served models of all jobs share."""

    pool: EnginePool
    clock: Clock
    data_dir: Path
    lending: Lending
    """The recordings of all jobs."""
    max_recording_bytes: int = 1 << 30
    observe_answers: Callable[[str, Counters, Counters], None] | None = None
    """Is told, by the configured name of an engine, what the counters of a run were, and are now."""

    def restore(self, jobs: Iterable[JobInfo]) -> None:
        """Take up the engines of an earlier server, and by which addresses its running jobs ask them. Raises OSError."""
        served = [job for job in jobs if served_models(job.request)]
        self.pool.restore(served)
        for job in served:
            for run in _runs_of(self, job):
                if (route := run.route_to_earlier()) is not None:
                    self.pool.gateway.expect(route)
        self.pool.begin_restored()


class ServedRun:
    """Has the models of one attempt served: the one that is evaluated, the judge, or both. Used by one thread."""

    def __init__(self, serving: Serving, job: JobInfo, publish: Callable[[Progress], None]) -> None:
        self._serving = serving
        self._job = job
        self._reports = PhaseReports(job, Progress.PHASE_SERVING, serving.clock, publish)
        self._runs = _runs_of(serving, job)
        self._parts: Mapping[str, str] = {}  # the tasks by the parts of the route

    def lease(self, *, has_begun: bool) -> None:
        """Take what answers for the job: all engines are started before one is waited for. May be called again. `has_begun`:
        whether the harness runs already, so that what it asked has to be there still.

        Raises RunFailedError, OSError.
        """
        for run in self._runs:
            run.lease(has_begun=has_begun)

    def note_engines(self, attempt: JobAttempt) -> None:
        """Record which engines answer."""
        for run in self._runs:
            if run.engine_id:
                setattr(attempt, _ENGINE_ID_FIELDS[run.field], run.engine_id)

    def follow(self, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until all answer and the harness can ask them; or return the reason to stop, if there is one before. May be
        called again. Raises RunFailedError, OSError."""

        def look() -> _Reason | None:
            self._reports.look()
            return reason_to_stop()

        return next((reason for run in self._runs if (reason := run.follow(look)) is not None), None)

    def recall(self) -> None:
        """Do without engines, for a harness that has ended already, under an earlier server. Raises OSError."""
        for run in self._runs:
            run.recall()

    def pointed(self, harness: Harness, steps: Sequence[Run]) -> Sequence[Run]:
        """Return the steps of the attempt as the harness gets them: several ask below addresses of their own, so that the
        gateway counts for each. Raises RunFailedError for a harness that can't be pointed at a server."""
        if len(steps) == 1:
            return [replace(steps[0], request=self._pointed(harness, steps[0].request, ""))]
        self._parts = {str(number): step.request.tasks[0] for number, step in enumerate(steps, start=1)}
        return [
            replace(step, request=self._pointed(harness, step.request, part))
            for part, step in zip(self._parts, steps, strict=True)
        ]

    def _pointed(self, harness: Harness, request: EvaluateRequest, part: str) -> EvaluateRequest:
        for run in self._runs:
            request = run.pointed(harness, request, part)
        return request

    def note_task_usage(self, job: JobInfo) -> None:
        """Record what became of the questions of each task, as far as that is known."""
        run = next((run for run in self._runs if run.field == SERVED_FIELD), None)
        found = [task for result in job.results.values() for task in result.tasks]
        usages = self._task_usages(run, [task.task for task in found]) if run is not None else {}
        for task in found:
            if task.task in usages:
                task.usage.CopyFrom(usages[task.task])

    def note_judge(self, job: JobInfo) -> None:
        """Warn of answers that the judge of a completed job did not give: its harness may not say so."""
        run = next((run for run in self._runs if run.field == JUDGE_FIELD), None)
        usage = run.usage() if run is not None else None
        if usage is None or job.status != JOB_STATUS_COMPLETED:
            return
        asked = usage.answered_count + usage.failed_count
        bad = BadAnswers(usage.failed_count, usage.empty_count, asked, _UNJUDGED)
        transitions.add_warnings(job, [bad.describe("answers of the judge")] if bad.count else [])

    def _task_usages(self, run: "_ModelRun", found: Sequence[str]) -> Mapping[str, Usage]:
        """Return what became of the questions of each task: the gateway counts for each, or there is only one, by whatever
        name the harness has it in its results. `found`: the names there."""
        asked = self._job.request.tasks
        if len(asked) != 1:
            return {self._parts[name]: usage for name, usage in run.part_usages() if name in self._parts}
        usage = run.usage()
        return {found[0] if len(found) == 1 else asked[0]: usage} if usage is not None else {}

    def environment(self, harness: Harness, others: Mapping[str, str]) -> Mapping[str, str]:
        """Return what the harness's programs need in their environment, besides `others`, which they have otherwise."""
        variables: dict[str, str] = {}
        for run in self._runs:
            variables |= run.environment(harness, others)
        return variables

    def look(self) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness has nobody to ask any more. Counts now and then."""
        for run in self._runs:
            run.look()

    def require_sound(self, harness: Harness) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness may have been refused answers for no fault of its own."""
        for run in self._runs:
            run.require_sound(harness)

    def count_in(self, progress: Progress) -> None:
        """Put the number of answers into the progress, as far as that counts requests, or nothing yet."""
        run = next((run for run in self._runs if run.field == SERVED_FIELD), None)
        usage = run.usage() if run is not None else None
        if usage is None or not usage.answered_count or progress.phase not in _BEFORE_SCORING:
            return
        if not progress.HasField("done"):
            progress.done, progress.unit, progress.phase = usage.answered_count, _REQUESTS, Progress.PHASE_EVALUATING
        elif progress.unit == _REQUESTS and not 0 < progress.total < usage.answered_count:
            progress.done = max(progress.done, usage.answered_count)

    def note_usage(self, job: JobInfo) -> None:
        """Record what became of the questions so far, as far as that is known, and what was found out about the engines."""
        for run in self._runs:
            transitions.add_warnings(job, run.warnings())
            if (usage := run.usage()) is not None:
                getattr(job, _USAGE_FIELDS[run.field]).CopyFrom(usage)

    def close(self, *, is_over: bool) -> None:
        """End the tokens and let go of the engines; unless the run goes on without this server. May be called again."""
        if is_over:
            for run in self._runs:
                run.end()
            self._serving.pool.release(self._job.job_id)


class _ModelRun:
    """Has one model of an attempt served."""

    def __init__(self, serving: Serving, job: JobInfo, field: str) -> None:
        """`field`: the one of the request that names the model."""
        self.field = field
        self._serving = serving
        self._job = job
        self._served: ServedModel = getattr(job.request, field)
        self._counted_at = float("-inf")
        self._engine: Engine | EndpointUse | None = None
        self._token = ""
        self._began_with = ""
        self._lenders: tuple[Lender, ...] = ()
        self._url = ""
        self._counters: Counters | None = None
        self._observed: Counters | None = None  # None: of a run that an earlier server may have told of

    def lease(self, *, has_begun: bool) -> None:
        """Take what answers for the model. Raises RunFailedError, with reason ENGINE_LOST if a harness that runs has lost its
        engine: meanwhile the gateway may have refused what it asked; OSError."""
        if has_begun and self._engine is None and self.route_to_earlier() is None:
            raise RunFailedError(LOST, "the engine that it asked was gone when a server took the run over")
        self._engine = self._serving.pool.lease(self._job, self._served)

    def follow(self, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until it answers and the harness can ask it; or return the reason to stop, if there is one before. Raises
        RunFailedError, OSError."""
        engine = self._leased()
        if (reason := self._serving.pool.wait(engine, reason_to_stop)) is not None:
            return reason
        self._token = self._token or self._note(_ROUTE_FILE)
        if self._token:
            self._lenders = self._noted_lenders()
        else:
            self._lenders = self._new_lenders(engine)
            self._token = self._new_token()
        gateway = self._serving.pool.gateway
        try:
            self._url = gateway.put_route(self._route(engine))
            self._began_with = self._note(_GATEWAY_FILE) or self._new_note(_GATEWAY_FILE, gateway.instance())
        except GatewayError as error:
            raise RunFailedError(LOST, error.message) from error
        if isinstance(engine, EndpointUse):
            require_usable(engine, self._url)
        return None

    def recall(self) -> None:
        """Do without an engine. Raises OSError."""
        self._token, self._began_with = self._note(_ROUTE_FILE), self._note(_GATEWAY_FILE)
        self._url = self._serving.pool.gateway.url(self._token)

    def route_to_earlier(self) -> Route | None:
        """Return how the attempt asks, if it began under an earlier server and what it asks is there. Raises OSError."""
        self._token, self._lenders = self._note(_ROUTE_FILE), self._noted_lenders()
        engine = self._serving.pool.find(self._served, getattr(self._job.attempts[-1], _ENGINE_ID_FIELDS[self.field]))
        return self._route(engine) if self._token and engine is not None else None

    def pointed(self, harness: Harness, request: EvaluateRequest, part: str) -> EvaluateRequest:
        """Return the request as the harness gets it, which asks below a part of the route, or below that itself. Raises
        RunFailedError for a harness that can't be pointed at a server."""
        if self.field == JUDGE_FIELD:
            return request  # its name is there, and its address is in the environment
        if not isinstance(harness, ServedHarness):
            raise RunFailedError("HARNESS_UNAVAILABLE", f"harness {harness.name} can't be pointed at a served model")
        return harness.with_served_model(request, self._endpoint(part))

    def environment(self, harness: Harness, others: Mapping[str, str]) -> Mapping[str, str]:
        """Return what the harness's programs need in their environment, besides `others`, which they have otherwise."""
        if self.field == JUDGE_FIELD:
            return judge_environment(harness, self._endpoint(), others)
        return served_environment(_needs(harness), self._endpoint(), others)

    def look(self) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness has nobody to ask any more. Counts now and then."""
        self._serving.pool.require_there(self._leased())
        now = self._serving.clock.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            self._count()
            self._require_same_address()

    def require_sound(self, harness: Harness) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if the harness may have been refused answers for no fault of its own."""
        counters = self._count()  # what was counted before says nothing of the last questions
        self._require_same_address()
        if not _needs(harness).asks_again:
            self._require_same_gateway()
        if counters is None:
            why = "the gateway does not know the attempt any more, as after the end of its engine"
            raise RunFailedError(LOST, f"it is not known whether all questions were answered: {why}")
        if counters.failed and (counters.gateway_failures or counters.unavailable):
            raise RunFailedError(LOST, f"{counters.failed} questions got no answer, since no engine was there to give it")

    def warnings(self) -> list[str]:
        """Return what those should know who use the engine."""
        engine = self._engine
        return [f"engine {engine.definition.name}: {each}" for each in engine.warnings] if isinstance(engine, Engine) else []

    def usage(self) -> Usage | None:
        """Return what became of the questions so far; None if that is not known."""
        return _usage(self._counters) if self._counters is not None else None

    def part_usages(self) -> Iterator[tuple[str, Usage]]:
        """Yield what became of the questions of each part of the route, as far as that is known."""
        for part in self._counters.parts if self._counters is not None else ():
            yield part.name, _usage(part)

    @property
    def engine_id(self) -> str:
        """The engine that answers; empty before one does, and of an endpoint."""
        return self._engine.engine_id if self._engine is not None else ""

    def end(self) -> None:
        """End the token. May be called again."""
        try:
            self._take(self._serving.pool.gateway.remove_route(self._token))
        except GatewayError as error:
            _log.warning("%s", error.message, extra={"job_id": self._job.job_id})

    def _require_same_address(self) -> None:
        """A gateway whose socket was lost has another address, at which nobody asks it."""
        if self._serving.pool.gateway.url(self._token) != self._url:
            raise RunFailedError(LOST, "the gateway to the engines has another address than the harness knows")

    def _require_same_gateway(self) -> None:
        """One that was started again has broken off what it was asked, which a harness may have taken for an answer."""
        try:
            instance = self._serving.pool.gateway.instance()
        except GatewayError as error:
            raise RunFailedError(LOST, error.message) from error
        if instance != self._began_with:
            raise RunFailedError(LOST, "the gateway to the engines was started again, so questions may have got no answer")

    def _count(self) -> Counters | None:
        """Note what has become of the questions by now, and return it; None where that is not known."""
        try:
            counters = self._serving.pool.gateway.counters(self._token)
        except GatewayError as error:
            _log.warning("%s", error.message, extra={"job_id": self._job.job_id})
            return None
        self._take(counters)
        return counters

    def _take(self, counters: Counters | None) -> None:
        """Note what has become of the questions, if that is known."""
        if counters is None:
            return
        if self._observed is not None and self._serving.observe_answers is not None:
            before = self._observed if counters.answered >= self._observed.answered else Counters()  # it counts anew
            self._serving.observe_answers(self._served.engine, before, counters)
        self._counters = self._observed = counters

    def _leased(self) -> Engine | EndpointUse:
        assert self._engine is not None  # noqa: S101 - `lease` has been called
        return self._engine

    def _endpoint(self, part: str = "") -> ServedEndpoint:
        served, pool = self._served, self._serving.pool
        is_own_name = isinstance(pool.find(served, ""), EndpointUse)
        open_url, api = _below(pool.gateway.open_url(), part), pool.api_of(served)
        url = _below(self._url, part)
        return ServedEndpoint(url, model_name(served), pool.source(served), api, open_url, self._token, is_own_name)

    def _route(self, engine: Engine | EndpointUse) -> Route:
        recording = job_dir(self._serving.data_dir, self._job.job_id) / f"{self._prefix}{_RECORDING}"
        return Route(
            self._token,
            engine.gateway_name,
            job_id=self._job.job_id,
            attempt=str(self._job.attempt),
            key_prefix=engine.fingerprint,
            recording=str(recording) if engine.fingerprint else "",
            max_recording_bytes=self._serving.max_recording_bytes,
            lenders=self._lenders,
        )

    @property
    def _prefix(self) -> str:
        """How the names of the files of a judge begin."""
        return "judge-" if self.field == JUDGE_FIELD else ""

    @property
    def _folder(self) -> Path:
        return attempt_dir(self._serving.data_dir, self._job.job_id, self._job.attempt)

    def _new_lenders(self, engine: Engine | EndpointUse) -> tuple[Lender, ...]:
        """Choose the recordings that the attempt may take answers from, and lend the job's own. Raises OSError."""
        job, lending = self._job, self._serving.lending
        key = self._serving.pool.key(self._served) if job.cache == CACHE_MODE_ALLOW and engine.fingerprint else ""
        if not key:
            return ()
        lenders = lending.lenders(job.owner, key, job.job_id)
        if lenders:
            self._new_note(_LENDERS_FILE, json.dumps([to_json(each) for each in lenders]))
        lending.add(job.owner, key, Recorded(job.job_id, f"{self._prefix}{_RECORDING}", engine.fingerprint))
        return lenders

    def _noted_lenders(self) -> tuple[Lender, ...]:
        """Return what an earlier server has chosen: others would be another route to the gateway. Raises OSError."""
        note = read_note(self._folder, self._prefix + _LENDERS_FILE, _MAX_LENDERS_BYTES) or b"[]"
        try:
            return tuple(from_json(Lender, each) for each in json.loads(note))
        except ValueError:
            return ()

    def _new_token(self) -> str:
        self._observed = Counters()
        return self._new_note(_ROUTE_FILE, secrets.token_urlsafe(24))

    def _note(self, name: str) -> str:
        """Return what was written down in a file of the attempt; empty if there is nothing."""
        return (read_note(self._folder, self._prefix + name, _MAX_NOTE_BYTES) or b"").decode()

    def _new_note(self, name: str, text: str) -> str:
        with create_private_file(self._folder / (self._prefix + name)) as file:
            file.write(text.encode())
        return text


def _needs(harness: Harness) -> ServedNeeds:
    return harness.served_needs if isinstance(harness, ServedHarness) else ServedNeeds(frozenset())


def _runs_of(serving: Serving, job: JobInfo) -> list[_ModelRun]:
    return [_ModelRun(serving, job, field) for field in SERVED_FIELDS if job.request.HasField(field)]


def _below(url: str, part: str) -> str:
    """Return the address of a part of a route. `url`: that of the route, which ends in `/v1`."""
    return f"{url.removesuffix('/v1')}/t/{part}/v1" if part else url


def _usage(counters: Counters | PartCounters) -> Usage:
    return Usage(
        answered_count=counters.answered,
        truncated_count=counters.truncated,
        empty_count=counters.empty,
        failed_count=counters.failed,
        retried_count=counters.retried if isinstance(counters, Counters) else None,
        replayed_count=counters.replayed,
        prompt_token_count=counters.prompt_tokens,
        completion_token_count=counters.completion_tokens,
    )
