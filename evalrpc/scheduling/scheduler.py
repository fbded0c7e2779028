"""The threads that run jobs: one dispatcher chooses what starts next, and a worker thread supervises each run.

Threads: `on_changes` runs on the store's writer thread, the dispatcher on its own, each Supervisor on a worker. `_condition`
guards `_placed`, the jobs that a worker has, with their place: from the moment of the choice until the worker is done. A
device is free when neither `_placed` nor a running job of this server in the store holds it.

A running job that is to give way to another is asked to through the store, as a cancel is: so whatever happens to this server,
the next one sees to it. `_asked` has those whose request is not committed yet.

Where no thread can be started at present, a queued job stays QUEUED, a run of an earlier server goes on by itself, and both are
tried again.
"""

import logging
import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future
from functools import partial
from typing import Final

from evalrpc.errors import EvalrpcError, JobNotFoundError, StoreUnavailableError
from evalrpc.executors.base import Resources
from evalrpc.jobs import transitions
from evalrpc.jobs.defaults import executor_of
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.jobs.served_models import needs_of
from evalrpc.scheduling.capacity import resources_of
from evalrpc.scheduling.duty import node_of
from evalrpc.scheduling.placement import Choice, Eviction, Preemption, QueuedJob
from evalrpc.scheduling.supervisor import RunDependencies, Supervisor
from evalrpc.store.base import Change, Expected
from evalrpc.v1.jobs_pb2 import JOB_STATUS_RUNNING, JobError, JobInfo

_RECHECK_SECONDS: Final = 5.0
_PREEMPTION_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Scheduler:
    """Starts queued jobs as GPUs come free. It changes jobs through the store alone, and hears of changes from it.

    It sees through the running jobs that `QueueState.owns` accepts, and leaves all others alone.
    """

    def __init__(self, dependencies: RunDependencies, reservation_seconds: float) -> None:
        self._dependencies = dependencies
        self._engines = dependencies.serving.pool
        self._reservation_seconds = reservation_seconds
        self._condition = threading.Condition()
        self._placed: dict[str, Resources] = {}
        self._asked: set[str] = set()
        self._supervisors: dict[str, Supervisor] = {}
        self._workers: dict[str, threading.Thread] = {}
        self._to_resume: list[JobInfo] = []
        self._duty = dependencies.duty
        self._ours: set[str] = set()  # the running jobs that this server sees to, where there are others
        self._may_be_lost = False
        self._lacks_threads = False
        self._dirty = True
        self._draining = False
        self.may_have_leftovers = True
        """Whether it is not known yet what processes are left of runs that have ended."""
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Take up the runs that an earlier server left, then start what is queued, if this server places jobs."""
        queue_state = self._dependencies.queue_state
        self._to_resume = [job for job in queue_state.own_running_jobs() if self._duty.sees_to(job)]
        self.look_for_leftovers()
        self._dependencies.serving.restore(self._to_resume)
        self._dependencies.preparing.restore(self._to_resume)  # all, before one of them begins to prepare what another does
        with self._condition:
            self._resume_all()
            self._note_ours(queue_state.running_jobs())
        self._dispatcher.start()

    def begin_placing(self) -> None:
        """See to what is the scheduler's, from now on. What other servers have committed before is known."""
        running = self._dependencies.queue_state.running_jobs()
        self._dependencies.preparing.keep(job for job in running if job.job_id not in self._ours)
        with self._condition:
            self._note_ours(running)
        self.may_have_leftovers = True  # on clusters, which are this server's from now on
        self.nodes_changed()

    def nodes_changed(self) -> None:
        """Look again whether a job may start, and whether one is lost, since machines have come or gone. Thread-safe."""
        with self._condition:
            self._may_be_lost = True
        self.choose_anew()

    def drain(self, timeout_seconds: float) -> bool:
        """Start nothing more, and wait until all runs have ended. Tell whether they have, in that time."""
        with self._condition:
            self._draining = self._dependencies.queue_state.draining = True
            stopping = self._dependencies.stopping
            is_done = lambda: not (self._placed or self._to_resume) or stopping.is_set()  # noqa: E731 - it is short
            return self._condition.wait_for(is_done, timeout_seconds)

    def stop(self) -> None:
        """Let go of all runs, which go on, and wait for the threads."""
        self._dependencies.stopping.set()
        self._dependencies.executor.begin_close()
        with self._condition:
            self._condition.notify_all()
        if self._dispatcher.is_alive():
            self._dispatcher.join()  # first, so that no worker is added
        with self._condition:
            supervisors, workers = list(self._supervisors.values()), list(self._workers.values())
        for supervisor in supervisors:
            supervisor.interrupt()
        for worker in workers:
            worker.join()
        self._engines.close()

    def let_go(self) -> None:
        """Begin no more, and commit no more outcomes, since another server runs the jobs now. Does not block. `stop` does the
        rest."""
        self._dependencies.stopping.set()
        self.choose_anew()

    def wait_stopped(self) -> None:
        """Block until nothing is started any more: after `stop`, or because of a bug."""
        self._dispatcher.join()

    def has_runs_on(self, node: str) -> bool:
        """Return whether any job runs on a node."""
        return any(node_of(job) == node for job in self._dependencies.queue_state.running_jobs())

    def on_changes(self, changes: Sequence[Change]) -> None:
        """Hear of a commit. A listener of the store, behind the QueueState."""
        with self._condition:
            to_end = [
                supervisor
                for change in changes
                if (change.job.HasField("cancel_requested_at") or transitions.is_giving_way(change.job))
                and (supervisor := self._supervisors.get(change.job.job_id)) is not None
            ]
            if self._duty.is_shared:
                self._note_changes(changes)
            self._dirty = True
            self._condition.notify_all()
        for supervisor in to_end:
            supervisor.interrupt()

    def _note_changes(self, changes: Sequence[Change]) -> None:
        """Note which runs have come to this server, and which have left it. Called with the condition held."""
        for change in changes:
            if change.job.status == JOB_STATUS_RUNNING and not change.deleted:
                self._note_ours([change.job])
            elif change.previous == JOB_STATUS_RUNNING:
                self._ours.discard(change.job.job_id)
                if change.job.request.preparation and change.job.job_id not in self._supervisors:
                    self._dependencies.preparing.models.release(change.job.job_id)

    def _note_ours(self, running: Sequence[JobInfo]) -> None:
        if self._duty.is_shared:
            self._ours.update(job.job_id for job in running if self._duty.sees_to(job))
            self._may_be_lost = self._may_be_lost or any(map(self._duty.is_lost, running))

    def _take_up_placed(self) -> None:
        """Hand the runs to workers that this server sees to and that have none yet. Called with the condition held."""
        known = {job.job_id for job in self._to_resume}
        for job_id in self._ours - self._supervisors.keys() - known:
            job = self._dependencies.queue_state.running_job(job_id)
            if job is not None:
                self._to_resume.append(job)

    def _fail_lost(self) -> None:
        """Fail the jobs whose machine was given up, so that they are tried again. Not called with the condition held."""
        if not self._may_be_lost:
            return
        self._may_be_lost = False
        for job in filter(self._duty.is_lost, self._dependencies.queue_state.running_jobs()):
            node, now = node_of(job), self._dependencies.clock.now()
            error = JobError(reason="RUN_LOST", message=f"host {node} was given up, and its runs with it")
            _log.warning("host %s was given up, and the run with it", node, extra={"job_id": job.job_id})
            change, expected = partial(transitions.fail, error=error, now=now), Expected(JOB_STATUS_RUNNING, job.attempt)
            try:
                self._dependencies.store.update(job.job_id, change, expected).result()
            except EvalrpcError as refusal:
                _log.info("can't fail the job yet: %s", refusal, extra={"job_id": job.job_id})
                self._may_be_lost = True  # or it has ended meanwhile

    def engines_changed(self) -> None:
        """Look again whether a job may start, since an engine answers, or its devices came free. Thread-safe."""
        self._dependencies.queue_state.engines_changed()
        self.choose_anew()

    def choose_anew(self) -> None:
        """Look again whether a job may start, since what owners may have has changed. Thread-safe."""
        with self._condition:
            self._dirty = True
            self._condition.notify_all()

    def look_for_leftovers(self) -> None:
        """Quarantine the devices of runs that have ended while processes of theirs are left, which an earlier server could not
        end; or that Slurm takes for running. They are ended then. May be called again, on any thread."""
        try:
            self._quarantine_left(self._dependencies.executor.jobs_with_processes())
        except (OSError, StoreUnavailableError) as error:
            _log.warning("can't look for processes that earlier runs have left: %s", error)
        else:
            self.may_have_leftovers = False
            self.choose_anew()

    def _quarantine_left(self, found: Set[str]) -> None:
        """Do so with those of the jobs with processes that do not run. Raises OSError, StoreUnavailableError."""
        store, has_begun = self._dependencies.store, self._dispatcher.is_alive()
        running = {job.job_id for job in self._dependencies.queue_state.running_jobs()}  # read last: none begins in between
        for job_id in store.known_jobs(sorted(found - running)):
            try:
                job = store.job(job_id).parse()
            except JobNotFoundError:  # it was deleted just now
                continue
            if has_begun and not executor_of(job.request) and job.status not in TERMINAL:
                continue  # it may get another attempt on this machine meanwhile
            here = [attempt for attempt in job.attempts if self._duty.starts_on(attempt.node)]
            if here and self._dependencies.queue_state.owns(job):
                _log.warning("processes are left of a run that has ended", extra={"job_id": job_id})
                for attempt in here if executor_of(job.request) else here[-1:]:  # a cluster may have forgotten an earlier end
                    self._dependencies.quarantine_attempt(job, attempt, "processes of it are left")

    def _dispatch(self) -> None:
        """Run on the dispatcher thread: whenever something changed, start all that can start. What is raised here is a bug: it
        ends the thread, and with it the server."""
        while not self._dependencies.stopping.is_set():
            self._fail_lost()
            with self._condition:
                self._lacks_threads = False
                self._take_up_placed()
                self._resume_all()
                now_seconds = self._dependencies.queue_state.now_seconds()
                while self._start_next(now_seconds):
                    pass
                self._adjust_replicas()
                self._dirty = False
                patience = self._patience_seconds()
                self._condition.wait_for(lambda: self._dirty or self._dependencies.stopping.is_set(), patience)
            if self._dependencies.executor.needs_recheck():
                self._dependencies.executor.recheck()

    def _patience_seconds(self) -> float | None:
        """Return how long nothing can change by itself: until a job is ready, what is quarantined may be usable again, or the
        order of service has changed, so that one job may have to give way to another."""
        waits = [self._dependencies.queue_state.seconds_until_ready()]
        if self._dependencies.executor.needs_recheck():
            waits.append(_RECHECK_SECONDS)
        if self._dependencies.queue_state.may_preempt_later():
            waits.append(_PREEMPTION_SECONDS)
        if self._lacks_threads or self._may_be_lost:
            waits.append(_RETRY_SECONDS)
        return min((wait for wait in waits if wait is not None), default=None)

    def _start_next(self, now_seconds: float) -> bool:
        """Hand the next job to a worker, if one can start now, or ask others to give way to it. Called with the condition
        held."""
        queue_state = self._dependencies.queue_state
        if not self._duty.places_jobs:
            return False
        chosen = self._choose(now_seconds)
        if chosen is None or self._draining or queue_state.is_paused or self._dependencies.stopping.is_set():
            return False
        if isinstance(chosen, Eviction):
            _log.info("engines end, since job %s needs their GPUs: %s", chosen.job.job_id, ", ".join(chosen.engine_ids))
            self._engines.make_room(chosen.engine_ids)
            return True
        if isinstance(chosen, Preemption):
            return self._ask_to_give_way(chosen)
        resources = Resources(chosen.node, chosen.devices)
        if chosen.job.engine:
            return self._hand_over_served(chosen.job, resources)
        task = Supervisor.run if self._duty.starts_on(chosen.node) else Supervisor.hand_over
        return self._hand_over(chosen.job.job_id, resources, partial(task, resources=resources))

    def _choose(self, now_seconds: float) -> Choice | None:
        """Choose what to do next, and have engines serve no further job whose GPUs another one has long waited for."""
        queue_state = self._dependencies.queue_state
        free = queue_state.free(self._placed)
        chosen = queue_state.choose(free, self._reservation_seconds, self._placed, now_seconds, self._asked)
        if not (self._draining or queue_state.is_paused):
            self._engines.drain(queue_state.engines_to_drain())
        return chosen

    def _adjust_replicas(self) -> None:
        """Start replicas of engines on what no queued job waits for, and end those with which an owner has too many GPUs.
        Called with the condition held."""
        queue_state = self._dependencies.queue_state
        self._engines.make_room(queue_state.replicas_over_quota())
        if self._draining or queue_state.is_paused or not self._duty.places_jobs or self._dependencies.stopping.is_set():
            return
        for replica in self._engines.wanted_replicas():
            engine = replica.engine
            devices = queue_state.devices_for_replica(
                engine.resources.node, len(engine.resources.devices), replica.users, self._placed
            )
            if devices is None:
                continue
            try:
                self._engines.start_replica(replica, devices)
            except OSError as error:
                _log.warning("a replica can't be started yet: %s", error, extra={"engine_id": engine.engine_id})

    def _hand_over_served(self, job: QueuedJob, resources: Resources) -> bool:
        """Do the same for a job with models that engines serve, which get the devices that the run itself does not need. Return
        whether to go on choosing. Called with the condition held."""
        needs = needs_of(job.engine)
        run_gpu_count = self._dependencies.queue_state.width_of(job.job_id) - sum(need.num_gpus for need in needs)
        devices = self._engines.place(job.job_id, job.owner, needs, resources, max(0, run_gpu_count))
        if devices is None:
            return True  # an engine has ended just now, so it is chosen anew, with GPUs
        own = Resources(resources.node, devices)
        if self._hand_over(job.job_id, own, partial(Supervisor.run, resources=own)):
            return True
        self._engines.release(job.job_id)
        return False

    def _ask_to_give_way(self, preemption: Preemption) -> bool:
        """Ask running jobs to give way to a queued one. Return whether that was possible. Called with the condition held."""
        self._engines.drain(victim.engine_id for victim in preemption.victims)
        for victim in (job for each in preemption.victims for job in each.jobs):
            job = self._dependencies.queue_state.running_job(victim.job_id)
            if job is None:
                return False  # it has ended meanwhile, so there is more to choose from shortly
            _log.info("gives way to job %s", preemption.job.job_id, extra={"job_id": victim.job_id})
            expected = Expected(JOB_STATUS_RUNNING, job.attempt)
            try:
                write = self._dependencies.store.update(victim.job_id, transitions.request_preemption, expected)
            except StoreUnavailableError:
                return False
            self._asked.add(victim.job_id)
            write.add_done_callback(partial(self._note_answer, victim.job_id))
        return True

    def _note_answer(self, job_id: str, write: Future[JobInfo]) -> None:
        """Note that the request to give way is committed, or was refused: then it may be made again."""
        if error := write.exception():
            _log.info("does not give way: %s", error, extra={"job_id": job_id})
        with self._condition:
            self._asked.discard(job_id)

    def _resume_all(self) -> None:
        """Hand the runs of an earlier server to workers, as far as these can be started. Called with the condition held."""
        while self._to_resume and not self._dependencies.stopping.is_set():
            job = self._to_resume[0]
            resources = resources_of(job, self._dependencies.executor.nodes())
            if not self._hand_over(job.job_id, resources, partial(Supervisor.resume, job=job)):
                break
            _log.info("restoring a run of an earlier server", extra={"job_id": job.job_id})
            del self._to_resume[0]

    def _hand_over(self, job_id: str, resources: Resources, task: Callable[[Supervisor], None]) -> bool:
        """Start a worker for a job. Return whether that was possible. Called with the condition held."""
        supervisor = Supervisor(self._dependencies, job_id)
        worker = threading.Thread(target=self._work, args=(job_id, supervisor, task), name=f"run_{job_id}")
        self._placed[job_id] = resources
        self._supervisors[job_id] = supervisor
        self._workers[job_id] = worker
        try:
            worker.start()
        except (RuntimeError, MemoryError) as error:
            self._forget(job_id)
            self._lacks_threads = True
            _log.warning("can't start a thread for the job yet: %s", error, extra={"job_id": job_id})
            return False
        return True

    def _forget(self, job_id: str) -> None:
        """Take a job for one that no worker has. Called with the condition held."""
        del self._placed[job_id]
        del self._supervisors[job_id]
        del self._workers[job_id]

    def _work(self, job_id: str, supervisor: Supervisor, task: Callable[[Supervisor], None]) -> None:
        """Run on a worker thread."""
        try:
            task(supervisor)
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the job must not hang on it, nor its GPUs
            bug = None if isinstance(error, OSError | MemoryError) else error
            _log.error("supervising the job failed: %s", error, exc_info=bug, extra={"job_id": job_id})
            supervisor.abandon(error)
        finally:
            if not self._dependencies.stopping.is_set():
                self._engines.release(job_id)
            self._take_back(job_id)

    def _take_back(self, job_id: str) -> None:
        with self._condition:
            self._forget(job_id)
            self._dirty = True
            self._condition.notify_all()
