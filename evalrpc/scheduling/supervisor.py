"""One attempt of one job, from its start to its outcome. Each runs on a worker thread of its own.

The job in the store is the truth. A supervisor begins the attempt, has the model prepared if it is to be (`preparing.py`),
starts the harness, follows its log, ends what is left of it, and commits the outcome. When the server stops it lets go, and the
run goes on; the next server finds it and supervises on.

What the server lacks for a while, such as descriptors, is no fault of the run: supervising is tried again, as after a restart.
What does not pass, or is a bug, ends the run and fails the job (`abandon`).
"""

import enum
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as ThreadExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock, Stopwatch
from evalrpc.config import HarnessSettings
from evalrpc.errors import ConflictError, IllegalTransitionError, JobNotFoundError, RunFailedError, StoreUnavailableError
from evalrpc.executors.base import NO_LIMITS, Executor, Resources, RunHandle, RunKey, RunLimits
from evalrpc.files.errnos import is_shortage
from evalrpc.files.output_access import OutputAccess
from evalrpc.harnesses.base import Harness, ParallelHarness, ProgressWords, Run
from evalrpc.harnesses.failures import without_listing
from evalrpc.harnesses.steps import command_of, steps_of
from evalrpc.jobs import trace_context, transitions
from evalrpc.jobs.paths import attempt_dir, attempt_output_dir, job_output_dir
from evalrpc.jobs.served_models import served_models
from evalrpc.scheduling.capacity import resources_of
from evalrpc.scheduling.duty import Duty
from evalrpc.scheduling.interruptible import InterruptibleReader
from evalrpc.scheduling.kept_steps import RunSteps, keep_steps
from evalrpc.scheduling.log_tail import LogFollower, read_tail
from evalrpc.scheduling.preparing import ModelPreparation, Preparing
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.scheduling.results_reader import ResultsReader
from evalrpc.scheduling.run_accounts import RunAccounts
from evalrpc.scheduling.run_bounds import BoundsWatch, RunBounds
from evalrpc.scheduling.run_progress import RunProgress
from evalrpc.scheduling.run_results import RunResults
from evalrpc.scheduling.serving import ServedRun, Serving
from evalrpc.secrets.logs import overwrite_values
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.store.base import ANY, Expected, Store
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

PROGRESS_SECONDS: Final = 0.5
"""How often the log is looked at."""

_RETRY_SECONDS: Final = 1.0
_TRIES: Final = 10
_LAST_LOOK_SECONDS: Final = 0.5
_LACKS: Final = (OSError, MemoryError)
"""What says that the server can't do something at present."""

_MEMORY_SETTING: Final = "max_run_memory_bytes"
_ENDED_BY_OTHERS: Final = (ConflictError, IllegalTransitionError, JobNotFoundError)
"""What says that the job was cancelled, deleted or ended meanwhile, so that there is nothing left to commit."""

_log = logging.getLogger(__name__)

_Change = Callable[[pb.JobInfo], None]


@dataclass(frozen=True)
class RunDependencies:
    """What every supervisor works with."""

    store: Store
    queue_state: QueueState
    executor: Executor
    harnesses: Mapping[str, Harness]
    harness_settings: Mapping[str, HarnessSettings]
    clock: Clock
    data_dir: Path
    output_root: Path | None
    output_access: OutputAccess
    accounts: RunAccounts
    preparing: Preparing
    serving: Serving
    grace_seconds: float
    run_bounds: RunBounds
    measurer: ThreadExecutor
    publish_progress: Callable[[pb.JobInfo], None]
    duty: Duty = field(default_factory=Duty)
    limits_of: Callable[[str], RunLimits] = lambda _: NO_LIMITS
    """What a run of a harness may take, when it starts."""
    secrets: Secrets = field(default_factory=Secrets)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run_key(self, job: pb.JobInfo) -> RunKey:
        """Return which run the latest attempt of a job is. Raises what `RunAccounts.of` raises."""
        folder = attempt_dir(self.data_dir, job.job_id, job.attempt)
        return RunKey(
            job.job_id, job.attempt, folder, tuple(job.attempts[-1].gpus), self.accounts.of(job.owner), job.attempts[-1].node
        )

    def quarantine_attempt(self, job: pb.JobInfo, attempt: pb.JobAttempt, problem: str) -> None:
        """Do the same for an earlier attempt."""
        folder = attempt_dir(self.data_dir, job.job_id, attempt.number)
        devices, account = tuple(attempt.gpus), self.accounts.of(job.owner)
        key = RunKey(job.job_id, attempt.number, folder, devices, account, attempt.node)
        self.executor.quarantine(key, devices, f"job {job.job_id}: {problem}")

    def quarantine(self, job: pb.JobInfo, problem: str) -> None:
        """Give the devices of a job's latest attempt to nobody until nothing is left of it."""
        self.executor.quarantine(self.run_key(job), job.attempts[-1].gpus, f"job {job.job_id}: {problem}")


class _Ending(enum.Enum):
    """Why a supervisor stopped following a run."""

    BY_ITSELF = "it ended by itself"
    CANCELLED = "a cancel was asked for"
    PREEMPTED = "it is to give way to another job"
    TIMED_OUT = "its time was up"
    TOO_LARGE = "what it left was too large"
    LET_GO = "the server stops"
    GIVEN_UP = "another server has ended the attempt, since this machine was given up"


class Supervisor:
    """Takes one job through one attempt. `run` or `resume` is called once, on the worker thread, and `abandon` if it raised."""

    def __init__(self, dependencies: RunDependencies, job_id: str) -> None:
        self._dependencies = dependencies
        self._job_id = job_id
        self._lock = threading.Lock()  # guards the handle against an interrupt while it is closed
        self._reader = InterruptibleReader()
        self._handle: RunHandle | None = None
        self._preparation: ModelPreparation | None = None
        self._served: ServedRun | None = None
        self._resources = Resources(node="")
        self._may_have_begun = False
        self._ending: _Ending | None = None
        self._stopwatch: Stopwatch
        self._progress: RunProgress | None = None
        self._results_reader: ResultsReader | None = None
        self._found: RunResults | None = None
        self._bounds: BoundsWatch | None = None
        self._kept: Mapping[str, ModelResult] = {}
        self._expected = ANY  # what the job is as long as nobody else has ended it
        self._committed = False

    def run(self, resources: Resources) -> None:
        """Begin a new attempt on these devices and see it through. Does nothing if the job is not QUEUED any more."""
        job = self._place(resources)
        if job is not None:
            self._see_through(job)

    def hand_over(self, resources: Resources) -> None:
        """Begin a new attempt, for the server of another machine to start and see through."""
        self._place(resources)

    def _place(self, resources: Resources) -> pb.JobInfo | None:
        """Begin a new attempt, and return the job, if that came about."""
        self._resources = resources
        try:
            run = self._prepare(len(resources.devices))
            self._expected = Expected(pb.JOB_STATUS_QUEUED, run.attempt - 1)
            return self._update(lambda job: self._begin(job, run))
        except _ENDED_BY_OTHERS:
            pass  # cancelled or deleted meanwhile
        except RunFailedError as error:
            failure = error.job_error
            self._commit(lambda job: transitions.fail(job, failure, self._dependencies.clock.now()))
        except StoreUnavailableError as error:
            _log.warning("can't start the job yet: %s", error, extra={"job_id": self._job_id})
            self._dependencies.stopping.wait(_RETRY_SECONDS)
        return None

    def resume(self, job: pb.JobInfo) -> None:
        """See through the attempt of this job that an earlier server began, or that the scheduler placed here."""
        self._may_have_begun = True
        self._resources = resources_of(job, self._dependencies.executor.nodes())
        self._see_through(job)

    def interrupt(self) -> None:
        """Make the supervisor look at once whether to stop. May be called from any thread."""
        self._reader.interrupt()
        with self._lock:
            if self._handle is not None:
                self._handle.interrupt()

    def abandon(self, cause: Exception) -> None:
        """End the run and fail the job, where it can't be supervised. The last resort: whatever else fails, the job ends."""
        if self._committed:
            return
        error = pb.JobError(reason="SERVER_ERROR", message=_describe(cause))
        job = self._dependencies.queue_state.running_job(self._job_id)
        if job is not None:
            error = self._end_for_good(job) or error
        if not self._dependencies.stopping.is_set():
            self._commit(lambda job: transitions.fail(job, error, self._dependencies.clock.now()))

    def _end_for_good(self, job: pb.JobInfo) -> pb.JobError | None:
        """End the run. Return why it can't be ended, if it can't: then its GPUs go to nobody until nothing is left of it."""
        key, problem = self._dependencies.run_key(job), ""
        for _ in range(_TRIES):
            try:
                self._dependencies.preparing.end(job, self._dependencies.grace_seconds)
                handle = self._dependencies.executor.find(key)
                if handle is not None:
                    with closing(handle):
                        self._end(handle, job, self._dependencies.grace_seconds)
            except RunFailedError as error:
                return error.job_error
            except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the GPUs must not go to others
                problem = f"it is unknown whether processes of the run are left: {_reason(error)}"
                _log.warning("%s", problem, extra={"job_id": self._job_id})
                if self._dependencies.stopping.wait(_RETRY_SECONDS):
                    return None
            else:
                return None
        self._dependencies.quarantine(job, problem)
        return pb.JobError(reason=transitions.UNKILLABLE_REASON, message=transitions.shorten(problem))

    def _prepare(self, num_gpus: int) -> Run:
        """Return the job's next attempt, with its folders made. So a job for which there is no room on the disk stays QUEUED.

        Raises RunFailedError, StoreUnavailableError, JobNotFoundError.
        """
        job = self._dependencies.store.job(self._job_id).parse()
        attempt = job.attempt + 1
        self._dependencies.accounts.of(job.owner)  # a job for which none can be had at present stays QUEUED, too
        output_base = job_output_dir(self._dependencies.data_dir, self._dependencies.output_root, job)
        output_dir = attempt_output_dir(self._dependencies.data_dir, output_base, job, attempt)
        folder = attempt_dir(self._dependencies.data_dir, self._job_id, attempt)
        try:
            run = Run(self._job_id, attempt, self._request_of(job, attempt), folder, output_dir, num_gpus)
            steps = steps_of(run)
            self._make_folders(steps)
            self._keep_steps(job, steps)
            self._dependencies.executor.make_room(RunKey(self._job_id, attempt, folder, node=self._resources.node), len(steps))
        except OSError as error:
            message = f"the folder of the run can't be made: {_reason(error)}"
            raise (StoreUnavailableError(message) if is_shortage(error) else RunFailedError("START_FAILED", message)) from error
        return run

    def _request_of(self, job: pb.JobInfo, attempt: int) -> pb.EvaluateRequest:
        """Return the request as the harness gets it. Raises RunFailedError, StoreUnavailableError, OSError."""
        return self._dependencies.preparing.request_of(job, attempt, self._working_dir(job))

    def _working_dir(self, job: pb.JobInfo) -> Path:
        """Return the folder in which the harness of a job runs."""
        settings = self._dependencies.harness_settings.get(job.request.harness)
        return settings.working_dir if settings is not None else Path()

    def _keep_steps(self, job: pb.JobInfo, steps: Sequence[Run]) -> None:
        """Take over what earlier attempts of the job have finished of these steps."""
        harness = self._dependencies.harnesses.get(job.request.harness)
        is_served = job.request.HasField("served_model")  # by weights that may have changed; and no question is asked again
        if harness is None or len(steps) == 1 or not job.attempts or is_served:
            return
        earlier = [
            steps_of(
                Run(
                    self._job_id,
                    attempt.number,
                    job.request,
                    attempt_dir(self._dependencies.data_dir, self._job_id, attempt.number),
                    Path(attempt.output_dir),
                    steps[0].num_gpus,
                )
            )
            for attempt in job.attempts
        ]
        keep_steps(harness, steps, earlier)

    def _begin(self, job: pb.JobInfo, run: Run) -> None:
        harness: object = self._dependencies.harnesses.get(job.request.harness)
        gpu_mode = harness.gpu_mode(run) if isinstance(harness, ParallelHarness) else pb.GPU_MODE_UNSPECIFIED
        now = self._dependencies.clock.now()
        node = self._resources.node
        transitions.begin_attempt(job, self._resources.devices, str(run.output_dir), now, gpu_mode, node)
        trace_context.begin_attempt(job)

    def _see_through(self, job: pb.JobInfo) -> None:
        """Supervise the attempt to its end and commit its outcome, or leave it to the next server."""
        with trace_context.within(trace_context.attempt_of(job)):
            self._see_traced_through(job)

    def _see_traced_through(self, job: pb.JobInfo) -> None:
        self._expected = Expected(pb.JOB_STATUS_RUNNING, job.attempt)
        self._stopwatch = Stopwatch(self._dependencies.clock, job.started_at.ToNanoseconds())
        try:
            outcome = self._try_for_outcome(job, self._dependencies.run_key(job))
            if outcome is not None:
                if self._served is not None:
                    self._served.close(is_over=True)
                self._commit(self._noting_use(outcome))
        finally:
            if self._served is not None:
                self._served.close(is_over=not self._dependencies.stopping.is_set())
            if self._results_reader is not None:
                self._results_reader.close()
            with self._lock:
                handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()
            if self._preparation is not None:
                self._preparation.close()
            # These refer to this supervisor, and would keep all results until garbage is collected.
            self._found = self._progress = self._bounds = None

    def _noting_use(self, outcome: _Change) -> _Change:
        """Return a change that says, besides the outcome, whether the run was warm, and what it asked an engine."""
        warm = self._handle is not None and self._handle.is_warm
        served = self._served
        engine_gpu_seconds = self._dependencies.queue_state.engine_gpu_seconds(self._job_id) if served is not None else 0.0

        def change(job: pb.JobInfo) -> None:
            job.attempts[-1].warm = warm
            if served is not None:
                served.note_engines(job.attempts[-1])
                served.note_usage(job)
                job.attempts[-1].engine_gpu_seconds = round(engine_gpu_seconds, 3)
            outcome(job)
            if served is not None:
                served.note_task_usage(job)
                served.note_judge(job)

        return change

    def _try_for_outcome(self, job: pb.JobInfo, key: RunKey) -> _Change | None:
        """Return the change to commit, or None if the run is left to the next server.

        Raises OSError and MemoryError for a lack that does not pass.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._outcome(job, key)
            except _LACKS as error:
                _log.warning("can't supervise the run: %r", error, extra={"job_id": self._job_id})
                if not tries_left:
                    raise
                if self._dependencies.stopping.wait(_RETRY_SECONDS):
                    break
        return None

    def _outcome(self, job: pb.JobInfo, key: RunKey) -> _Change | None:
        """Do the same once. May be called again: what is known of the run is then read anew, as after a restart."""
        try:
            return self._supervise(job, key)
        except RunFailedError as error:
            return self._failure(error.job_error, key, job)

    def _supervise(self, job: pb.JobInfo, key: RunKey) -> _Change | None:
        """Start the run, unless it has begun, and follow it to its end. Raises RunFailedError, OSError."""
        self._find(key)
        harness = self._harness_of(job)
        if self._ending is None and (ending := self._prepare_model(job) or self._serve_or_end(job)) is not None:
            return self._ended_early(ending, job, {})
        output_dir, request = Path(job.attempts[-1].output_dir), self._request_of(job, job.attempt)
        run = Run(job.job_id, job.attempt, request, key.attempt_dir, output_dir, len(job.gpus))
        is_last_attempt = not job.preemptible and transitions.counted_attempts(job) >= job.max_attempts
        all_steps = steps_of(run) if self._served is None else self._served.pointed(harness, steps_of(run))
        steps = RunSteps(harness, all_steps, is_last_attempt=is_last_attempt)
        if self._handle is None and not self._dependencies.duty.wait_until_trusted(self._dependencies.stopping):
            return None
        handle = self._handle = self._handle or self._start(harness, run, steps.to_run, key, job.owner)
        reader = self._results_reader = self._results_reader or ResultsReader(
            harness, self._dependencies.harness_settings[job.request.harness]
        )
        found = self._found = RunResults(run, reader, steps, handle, key.log_path, self._mask(job))
        progress = self._progress = self._new_progress(job, harness, steps.to_run, handle, key)
        bounds = self._bounds = self._bounds or self._new_bounds(run, key)
        try:
            ending = self._ending = self._ending or self._follow(handle, job, progress, found, bounds)
        except RunFailedError:  # there is no engine any more that it could ask
            self._end(handle, job, self._dependencies.grace_seconds)
            raise
        if ending is _Ending.LET_GO:
            return None
        self._end(handle, job, 0.0 if ending is _Ending.BY_ITSELF else self._dependencies.grace_seconds)
        if self._served is not None and ending is _Ending.BY_ITSELF:
            self._served.require_sound(harness)
        return self._conclude(ending, job, found, progress, bounds)

    def _harness_of(self, job: pb.JobInfo) -> Harness:
        """Return the harness of a job. Raises RunFailedError if there is none any more: then nothing is left of the run."""
        harness = self._dependencies.harnesses.get(job.request.harness)
        if harness is None:
            self._dependencies.preparing.end(job, self._dependencies.grace_seconds)
            if self._handle is not None:
                self._end(self._handle, job, self._dependencies.grace_seconds)
            raise RunFailedError("HARNESS_UNAVAILABLE", f"this server has no harness {job.request.harness!r} any more")
        return harness

    def _conclude(
        self, ending: _Ending, job: pb.JobInfo, found: RunResults, progress: RunProgress, bounds: BoundsWatch
    ) -> _Change | None:
        """Read what a run has left of which no process is left, and return the change to commit. Raises RunFailedError."""
        read = partial(_finish, found, bounds) if ending is _Ending.BY_ITSELF else found.look
        timeout_seconds = _LAST_LOOK_SECONDS if ending in (_Ending.CANCELLED, _Ending.PREEMPTED) else None
        ending = self._reader.read(read, self._reason_to_read_no_more, timeout_seconds) or ending
        if ending is _Ending.BY_ITSELF and bounds.failure is None:
            return self._completion(found.results, progress.finish())
        if bounds.failure is not None and ending in (_Ending.BY_ITSELF, _Ending.TOO_LARGE):
            raise bounds.failure
        return self._ended_early(ending, job, found.results)

    def _prepare_model(self, job: pb.JobInfo) -> _Ending | None:
        """Wait until the model is prepared, if that is asked for. Return why the job is to be followed no more, if that comes
        first: then nothing is left of its preparation, unless the next server goes on with it. Raises RunFailedError, OSError.
        """
        if not job.request.preparation:
            return None
        preparation = self._preparation = self._preparation or ModelPreparation(
            self._dependencies.preparing,
            job,
            self._working_dir(job),
            Resources(self._resources.node, limits=self._dependencies.limits_of(job.request.harness)),
            self._publish,
            may_have_begun=self._may_have_begun,
        )
        if self._handle is not None:  # the harness has begun, so it is there
            preparation.use()
            return None
        try:
            ending = preparation.follow(partial(self._reason_to_prepare_no_more, job))
        except RunFailedError:
            preparation.end(self._dependencies.grace_seconds)
            raise
        if ending not in (None, _Ending.LET_GO):
            preparation.end(self._dependencies.grace_seconds)
        return ending

    def _serve_or_end(self, job: pb.JobInfo) -> _Ending | None:
        """Do what `_serve_model` does. If nothing comes of it, nothing is left of a harness that runs already, unless the next
        server goes on with it."""
        try:
            ending = self._serve_model(job)
        except RunFailedError:
            if self._handle is not None:
                self._end(self._handle, job, self._dependencies.grace_seconds)
            raise
        if self._handle is not None and ending not in (None, _Ending.LET_GO):
            self._end(self._handle, job, self._dependencies.grace_seconds)
        return ending

    def _serve_model(self, job: pb.JobInfo) -> _Ending | None:
        """Wait until an engine answers for the model, if that is asked for. Return why the job is to be followed no more, if
        that comes first. Raises RunFailedError, OSError."""
        if not served_models(job.request):
            return None
        served = self._served = self._served or ServedRun(self._dependencies.serving, job, self._publish)
        if self._handle is not None and self._handle.wait(0):
            served.recall()
            return None
        served.lease(has_begun=self._handle is not None)
        noted = pb.JobAttempt()
        noted.CopyFrom(job.attempts[-1])
        served.note_engines(noted)
        if noted != job.attempts[-1]:
            try:
                self._update(lambda job: transitions.note_engines(job, noted.engine_id, noted.judge_engine_id))
            except StoreUnavailableError as error:  # `_noting_use` says it at the end
                _log.warning("can't commit the engine yet: %s", error, extra={"job_id": self._job_id})
        return served.follow(partial(self._reason_to_prepare_no_more, job))

    def _reason_to_prepare_no_more(self, job: pb.JobInfo) -> _Ending | None:
        is_over = job.HasField("timeout") and self._stopwatch.elapsed_ns() >= job.timeout.ToNanoseconds()
        return self._reason_to_stop() or (_Ending.TIMED_OUT if is_over else None)

    def _ended_early(self, ending: _Ending, job: pb.JobInfo, results: Mapping[str, ModelResult]) -> _Change | None:
        """Return the change to commit where the run did not come to its end. Raises RunFailedError."""
        match ending:
            case _Ending.CANCELLED:
                return self._ended_on_request(results, transitions.cancel)
            case _Ending.PREEMPTED:
                return self._ended_on_request(results, transitions.preempt)
            case _Ending.LET_GO | _Ending.GIVEN_UP:
                return None
        took = f"the run took longer than its timeout of {job.timeout.ToTimedelta()}"
        raise RunFailedError("TIMED_OUT", f"{took}: submit it with a longer one, or with a limit of documents")

    def _find(self, key: RunKey) -> None:
        """Take hold of the run if it has begun, under an earlier server or in an earlier try."""
        if self._handle is None and self._may_have_begun:
            self._handle = self._dependencies.executor.find(key)

    def _start(self, harness: Harness, run: Run, steps: Sequence[Run], key: RunKey, owner: str) -> RunHandle:
        if not run.output_dir.exists():  # a power cut has taken the folders
            with suppress(OSError):  # what this means to the run, the run will tell
                self._make_folders(steps)
        secrets = self._dependencies.secrets.read(run.request.secrets, owner)
        umask = self._dependencies.output_access.umask_in(run.output_dir)
        command = replace(command_of(harness, steps), umask=umask, secrets=secrets)
        if self._served is not None:
            command = replace(command, env={**command.env, **self._served.environment(harness, command.env)})
        if (trace := trace_context.current_trace()) is not None:
            command = replace(command, env={**command.env, trace_context.TRACEPARENT_VARIABLE: str(trace)})
        self._dependencies.accounts.hand_over(key.account, steps)
        resources = self._resources._replace(limits=self._dependencies.limits_of(run.request.harness))
        place = {"node": self._resources.node, "gpus": self._resources.devices}
        _log.info("starting %s", command.argv[0], extra={"job_id": run.job_id, "attempt": run.attempt, **place})
        self._may_have_begun = True
        try:
            return self._dependencies.executor.start(key, command, resources)
        except RunFailedError:  # nothing of it runs
            self._dependencies.accounts.take_back(owner, run.output_dir, run.job_id)
            raise

    def _make_folders(self, steps: Sequence[Run]) -> None:
        """Make the folders of a run. Raises OSError."""
        for step in steps:
            step.attempt_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._dependencies.output_access.make_folder(step.output_dir)

    def _end(self, handle: RunHandle, job: pb.JobInfo, grace_seconds: float) -> None:
        """End all that is left of the run, and mask its log. The devices of one that can't be ended are quarantined."""
        try:
            handle.end(grace_seconds)
        except RunFailedError as error:
            self._dependencies.quarantine(job, error.message)
            raise
        self._dependencies.accounts.take_back(job.owner, Path(job.attempts[-1].output_dir), job.job_id)
        try:
            if job.request.secrets:
                overwrite_values(self._dependencies.run_key(job).attempt_dir, self._mask(job))
        except OSError as error:  # it is still masked whenever it is read
            _log.warning("can't mask the log: %s", _reason(error), extra={"job_id": self._job_id})

    def _mask(self, job: pb.JobInfo) -> Mask:
        """Return with what all that comes from the run is masked; with nothing before it has begun."""
        return self._dependencies.secrets.mask(job.request.secrets) if self._may_have_begun else NO_MASK

    def _new_progress(
        self, job: pb.JobInfo, harness: Harness, steps: Sequence[Run], handle: RunHandle, key: RunKey
    ) -> RunProgress:
        tasks = [step.request.tasks[0] for step in steps] if len(job.request.tasks) > len(steps[0].request.tasks) else [""]
        words = harness.progress_words if isinstance(harness, ProgressWords) else ()
        log = LogFollower(key.log_path, self._mask(job), words)
        return RunProgress(
            job,
            log,
            harness,
            self._dependencies.clock,
            self._publish,
            tasks,
            handle.step_ends,
            self._stopwatch,
            lambda: handle.waits_for,
            lambda: handle.begun_ns,
        )

    def _new_bounds(self, run: Run, key: RunKey) -> BoundsWatch:
        dependencies = self._dependencies
        return BoundsWatch(
            dependencies.run_bounds,
            key.log_path,
            run.output_dir,
            dependencies.clock,
            dependencies.measurer,
            dependencies.stopping.is_set,
        )

    def _follow(
        self, handle: RunHandle, job: pb.JobInfo, progress: RunProgress, found: RunResults, bounds: BoundsWatch
    ) -> _Ending:
        """Wait for a reason to stop, and report progress meanwhile."""
        while not handle.wait(PROGRESS_SECONDS if progress.started else 0):
            if reason := self._reason_to_stop():
                return reason
            if self._served is not None:
                self._served.look()
                usage = pb.JobInfo()
                self._served.note_usage(usage)
                self._dependencies.queue_state.set_usage(self._job_id, usage)
            with suppress(*_LACKS):  # nothing can be read at present, which is no reason to end the run
                progress.look()
                if reason := self._reader.read(found.look, self._reason_to_stop):
                    return reason
            self._keep(found.results)
            if job.HasField("timeout") and progress.elapsed_ns() >= job.timeout.ToNanoseconds():
                return _Ending.TIMED_OUT
            if bounds.look():
                return _Ending.TOO_LARGE
        return _Ending.BY_ITSELF

    def _reason_to_stop(self) -> _Ending | None:
        """Return why the run, which goes on, is not to be followed any more."""
        current = self._dependencies.queue_state.running_job(self._job_id)
        if current is not None and current.HasField("cancel_requested_at"):
            return _Ending.CANCELLED
        if current is not None and transitions.is_giving_way(current):
            return _Ending.PREEMPTED
        if self._dependencies.duty.is_shared and (current is None or current.attempt != self._expected.attempt):
            return _Ending.GIVEN_UP
        return _Ending.LET_GO if self._dependencies.stopping.is_set() else None

    def _reason_to_read_no_more(self) -> _Ending | None:
        """Do the same of a run that has ended, which so has given way."""
        reason = self._reason_to_stop()
        return None if reason is _Ending.PREEMPTED else reason

    def _keep(self, results: Mapping[str, ModelResult]) -> None:
        """Commit what has finished, if there is more of it. Whoever watches gets it at once, as progress."""
        if results is self._kept or not results:
            return
        try:
            self._update(lambda job: transitions.keep_results(job, results))
        except StoreUnavailableError as error:
            _log.warning("can't commit results yet: %s", error, extra={"job_id": self._job_id})
        else:
            self._kept = results

    def _completion(self, results: Mapping[str, ModelResult], progress: pb.Progress) -> _Change:
        def complete(job: pb.JobInfo) -> None:
            job.progress.CopyFrom(progress)
            transitions.complete(job, results, self._dependencies.clock.now())

        return complete

    def _ended_on_request(self, results: Mapping[str, ModelResult], end: Callable[[pb.JobInfo, Timestamp], None]) -> _Change:
        def end_job(job: pb.JobInfo) -> None:
            transitions.keep_results(job, results)
            end(job, self._dependencies.clock.now())

        return end_job

    def _failure(self, error: pb.JobError, key: RunKey, job: pb.JobInfo) -> _Change:
        mask = self._mask(job)
        error.message = transitions.shorten(f"{mask.text(error.message)}{self._memory_hint(error, job)}")
        if not error.log_tail:  # of a step it has its own
            error.log_tail[:] = map(without_listing, read_tail(key.log_path, mask=mask))
        progress = self._progress.finish() if self._progress is not None else None

        def fail(job: pb.JobInfo) -> None:
            if progress is not None:
                job.progress.CopyFrom(progress)
            if self._found is not None:
                transitions.keep_results(job, self._found.results)
            transitions.fail(job, error, self._dependencies.clock.now())

        return fail

    def _memory_hint(self, error: pb.JobError, job: pb.JobInfo) -> str:
        """Return what the error of a run without GPUs is to say besides, if the harness itself reports that memory ran out."""
        limit_bytes = self._dependencies.limits_of(job.request.harness).memory_bytes
        if error.reason != "OUT_OF_MEMORY" or job.gpus or not limit_bytes or _MEMORY_SETTING in error.message:
            return ""
        return f"; this server allows a run {limit_bytes} bytes of memory ({_MEMORY_SETTING})"

    def _publish(self, progress: pb.Progress, wait_reason: str = "") -> None:
        if self._served is not None:
            self._served.count_in(progress)
        job = self._dependencies.queue_state.set_progress(self._job_id, progress, wait_reason)
        if job is not None:
            self._dependencies.publish_progress(job)

    def _commit(self, change: _Change) -> None:
        """Commit the outcome, and try again for as long as the store does not take it: an outcome is never dropped. One that
        this server can't commit is seen again by the next."""
        while True:
            try:
                job = self._update(change)
            except StoreUnavailableError as error:
                _log.warning("can't commit the outcome yet: %s", error, extra={"job_id": self._job_id})
                if self._dependencies.stopping.wait(_RETRY_SECONDS):
                    return
            except _ENDED_BY_OTHERS:
                return
            else:
                self._committed = True
                _log.info("attempt ended", extra={"job_id": self._job_id, "status": pb.JobStatus.Name(job.status)})
                return

    def _update(self, change: _Change) -> pb.JobInfo:
        """Commit a change of the job, unless it has been ended, or is in another attempt. Raises what `Store.update` raises."""
        return self._dependencies.store.update(self._job_id, change, self._expected).result()


def _finish(found: RunResults, bounds: BoundsWatch) -> None:
    """Read the results of a run that has ended by itself, unless it has left too much: then no more than of any that failed."""
    bounds.look_closely()
    if bounds.failure is None:
        found.finish()
    else:
        found.look()


def _describe(cause: Exception) -> str:
    """Say why a run could not be supervised."""
    if isinstance(cause, _LACKS):
        return transitions.shorten(f"the server could not supervise the run: {_reason(cause)}")
    return "a bug of the server stopped this job; its log has the traceback"


def _reason(cause: Exception) -> str:
    """Say what went wrong, without paths, which are the server's own business."""
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
