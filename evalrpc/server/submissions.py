"""What a submission comes to, once nothing is wrong with it: a job, or a suite run with its jobs.

Runs on the event loop; what takes long is done by `listers`.
"""

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.errors import FieldViolation, InvalidRequestError, PermissionDeniedError
from evalrpc.harnesses.base import TaskArgsHarness, WarningHarness
from evalrpc.jobs import transitions
from evalrpc.jobs.ids import job_ids
from evalrpc.jobs.served_models import served_models
from evalrpc.jobs.share_policy import URGENT_PRIORITY, Entitlements, is_urgent
from evalrpc.preparations.preparation import Preparation
from evalrpc.protobuf.copies import without
from evalrpc.reading.turns import Turns
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server import preparation_use, suite_submissions, validation
from evalrpc.server.admission import Admission, GpuCounts, gpu_counts
from evalrpc.server.cache_key import cache_key
from evalrpc.server.call import Principal, Role
from evalrpc.server.catalog import Catalog
from evalrpc.server.engine_listing import Engines
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.suite_submissions import SuiteJobs
from evalrpc.store.base import Submission, SuiteSubmission
from evalrpc.uninterruptible import uninterruptible
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, JOB_STATUS_QUEUED, CacheMode, EvaluateRequest, JobInfo, SubmitJobRequest
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest, Suite, SuiteRun

MAX_TASK_WARNINGS: Final = 16
"""How many tasks that the harness does not list a job names in its warnings, which so have room for others."""

_T = TypeVar("_T")


@dataclass
class Submissions:
    """Makes jobs and suite runs of what clients submit."""

    admission: Admission
    suites: Mapping[str, Suite]
    entitlements: Entitlements
    preparations: Mapping[str, Preparation]
    catalog: Catalog
    engines: Engines
    queue_state: QueueState
    clock: Clock
    listers: Executor
    ids: Iterator[str] = field(default_factory=job_ids)
    large: Turns = field(default_factory=lambda: Turns(1))

    def __post_init__(self) -> None:
        harnesses = self.admission.harnesses.items()  # asked once: of a protocol, isinstance takes longer than most checks
        self._doubting = {name: harness for name, harness in harnesses if isinstance(harness, WarningHarness)}

    async def job(self, request: SubmitJobRequest, principal: Principal) -> JobInfo:
        """Return the job that a call asks for. Raises InvalidRequestError, PermissionDeniedError."""
        counts, max_gpus = self._gpus(principal.owner)
        admit = partial(self.admission.admit, request, principal.owner, counts, max_gpus)
        await self._judge_submission(request, principal.owner, admit)
        require_may_give(request.priority, principal)
        job = _new_job(next(self.ids), request, principal.owner)
        await self._check_on_disk(job)
        return job

    async def suite_run(self, request: SubmitSuiteRequest, principal: Principal, fingerprint: bytes) -> SuiteSubmission:
        """Return the run and the jobs that a call asks for. Raises InvalidRequestError, PermissionDeniedError."""
        counts, max_gpus = self._gpus(principal.owner)
        admit = partial(self._admitted_jobs, request, principal.owner, counts, max_gpus)
        jobs = await self._judge_submission(request, principal.owner, admit)
        suite = self.suites[request.suite]
        require_may_give(request.priority, principal)
        run = SuiteRun(suite_run_id=next(self.ids), suite=suite, submission=request, owner=principal.owner)
        submissions = [await self._suite_job(run, jobs, index) for index in range(len(suite.entries))]
        return SuiteSubmission(run, submissions, request.request_id, fingerprint)

    async def cache_key(self, mode: CacheMode.ValueType, job: JobInfo) -> bytes:
        """Return the key that identical evaluations share; empty if the cache can't be used."""
        if mode != CACHE_MODE_ALLOW:
            return b""
        harness, preparation = self.admission.harnesses[job.request.harness], self.preparations.get(job.request.preparation)
        return await self._look_up(lambda: cache_key(harness, job, preparation, self._judge_key(job.request), self.engines))

    def as_if_submitted(self, job: JobInfo) -> JobInfo:
        """Return what SubmitJob would answer. Without a look into the cache: what that depends on are files, of which whoever
        only asks must not learn whether they are there."""
        job.ClearField("job_id")
        job.attempt = 0
        job.created_at.CopyFrom(self.clock.now())
        job.status = JOB_STATUS_QUEUED
        job.position_in_queue = self.queue_state.position_for(job.priority, job.owner)
        return job

    def run_as_if_submitted(self, run: SuiteRun) -> SuiteRun:
        """Return what SubmitSuite would answer."""
        run.ClearField("suite_run_id")
        run.created_at.CopyFrom(self.clock.now())
        run.status = JOB_STATUS_QUEUED
        for job in run.jobs:
            job.ClearField("job_id")
            job.status = JOB_STATUS_QUEUED
        return run

    def _gpus(self, owner: str) -> tuple[GpuCounts, int | None]:
        """Return how many GPUs each node has, and how many the owner may hold."""
        return gpu_counts(self.queue_state.nodes()), self.entitlements.policy.quota(owner).max_gpus

    async def _judge_submission(
        self, request: SubmitJobRequest | SubmitSuiteRequest, owner: str, judge: Callable[[], _T]
    ) -> _T:
        """Have a submission judged. A large one takes seconds: on a thread, and one at a time, of the owners in turn."""
        if request.ByteSize() <= SMALL_BYTES:
            return judge()
        async with self.large.turn(owner):
            return await uninterruptible(self._look_up(judge))  # whoever leaves keeps the turn while the thread is at work

    def _admitted_jobs(self, request: SubmitSuiteRequest, owner: str, gpu_counts: GpuCounts, max_gpus: int | None) -> SuiteJobs:
        """Return what the jobs of a suite run are to be. Raises what `SuiteJobs.admit` does."""
        bad = [*suite_submissions.violations(request, self.suites), *validation.suite_submission(request)]
        if request.suite not in self.suites:
            validation.require(bad)
        jobs = SuiteJobs(self.suites[request.suite], request)
        jobs.admit(self.admission, owner, gpu_counts, max_gpus, bad)
        return jobs

    async def _suite_job(self, run: SuiteRun, jobs: SuiteJobs, index: int) -> Submission:
        """Add the job of an entry to a new run, and return its submission. Raises InvalidRequestError."""
        call = jobs.submissions[index]
        job = _new_job(next(self.ids), call, run.owner)
        job.suite_run_id = run.suite_run_id
        try:
            await self._check_on_disk(job)
        except InvalidRequestError as error:
            raise InvalidRequestError(violations=jobs.located(index, error.violations)) from error
        run.jobs.add(entry=run.suite.entries[index].name, job_id=job.job_id)
        return Submission(job, cache_key=await self.cache_key(call.cache, job))

    async def _check_on_disk(self, job: JobInfo) -> None:
        """Raise InvalidRequestError with all that only a look at the disk tells is wrong, warn of what may be, and say which
        commits are meant."""
        checks = (self._check_harness, self._check_model, self._check_tasks, self._check_task_args, self._check_preparation)
        found: list[FieldViolation] = []
        for check in (*checks, self._pin_models):
            try:
                await check(job)
            except InvalidRequestError as error:
                found += error.violations
        validation.require(found)

    async def _check_harness(self, job: JobInfo) -> None:
        """Warn of what the harness doubts, and where it is not available."""
        name = job.request.harness
        if (harness := self._doubting.get(name)) and (doubts := list(harness.warnings(job.request))):
            transitions.add_warnings(job, doubts)
        if self.catalog.may_be_unavailable(name):
            info = await self._look_up(lambda: self.catalog.describe(name))
            if not info.available:
                transitions.add_warnings(job, [f"harness {name} is not available: {info.unavailable_reason}"])

    async def _check_model(self, job: JobInfo) -> None:
        """Warn of a model that the harness does not list. It is never refused: harnesses load some that they don't list."""
        harness, model = job.request.harness, job.request.model
        if model and not self.catalog.lists_model(harness, model):
            warning = await self._look_up(lambda: self.catalog.unknown_model(harness, model))
            transitions.add_warnings(job, [warning] if warning else [])

    async def _check_tasks(self, job: JobInfo) -> None:
        """Warn of tasks that the harness does not list, or refuse them, depending on the settings."""
        harness, tasks = job.request.harness, list(job.request.tasks)
        if self.catalog.lists_all(harness, tasks):
            return
        unknown = await self._look_up(lambda: self.catalog.unknown_tasks(harness, tasks))
        if self.admission.settings.unknown_tasks == "refuse":
            validation.require(FieldViolation(f"request.tasks[{index}]", text) for index, text in unknown.items())
        transitions.add_warnings(job, _unlisted_warnings(unknown.values()))

    async def _check_task_args(self, job: JobInfo) -> None:
        """Refuse arguments that none of the tasks takes, as far as the operator's folders tell."""
        request = job.request
        harness = self.admission.harnesses[request.harness]
        if request.task_args.fields and isinstance(harness, TaskArgsHarness):
            unknown = await self._look_up(lambda: list(harness.unknown_task_args(request)))
            validation.require(FieldViolation(f"request.{field}", problem) for field, problem in unknown)

    async def _check_preparation(self, job: JobInfo) -> None:
        """Raise InvalidRequestError if the folder that is to be prepared is not there."""
        request = job.request
        if request.preparation:
            harness = self.admission.settings.harnesses[request.harness]
            await self._look_up(lambda: preparation_use.require_folder(request, harness))

    async def _pin_models(self, job: JobInfo) -> None:
        """Say which commits of its served models a request is about. Raises InvalidRequestError."""
        if served_models(job.request):
            await self._look_up(lambda: self.engines.pin(job.request))

    def _judge_key(self, request: EvaluateRequest) -> str:
        """Return what the answers of the judge of a request depend on, if it has one and that can be told. Blocks."""
        return self.engines.key(request.judge_model) if request.HasField("judge_model") else ""

    async def _look_up(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.listers, read)


def _new_job(job_id: str, call: SubmitJobRequest, owner: str) -> JobInfo:
    job = JobInfo(
        job_id=job_id,
        request=call.request,
        labels=call.labels,
        priority=call.priority,
        max_attempts=call.max_attempts or 1,
        supersede_key=call.supersede_key,
        owner=owner,
        preemptible=call.preemptible,
        cache=call.cache,
    )
    if call.HasField("timeout"):
        job.timeout.CopyFrom(call.timeout)
    return job


def _unlisted_warnings(warnings: Collection[str]) -> Iterator[str]:
    """Yield the first warnings, and how many more there are: a job takes them along in every message."""
    shown = list(islice(warnings, MAX_TASK_WARNINGS))
    yield from shown
    if len(warnings) > len(shown):
        yield f"and {len(warnings) - len(shown)} more tasks that the harness does not list"


def require_may_give(priority: int, principal: Principal) -> None:
    """Raise PermissionDeniedError for a priority that puts a job before those of all other owners, but for operators."""
    if is_urgent(principal.owner, priority) and principal.role is not Role.OPERATOR:
        raise PermissionDeniedError(
            f"priority: {priority} is more than {URGENT_PRIORITY}, which only operators may give",
            metadata={"field": "priority"},
        )


def fingerprint_of(call: SubmitJobRequest | SubmitSuiteRequest) -> bytes:
    """Return a digest that is equal for submissions with equal contents; empty without a request_id."""
    if not call.request_id:
        return b""
    contents = without(call, "request_id")
    return hashlib.sha256(contents.SerializeToString(deterministic=True)).digest()
