"""All that a server is made of, its start and its stop."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evalrpc import extras
from evalrpc.analysis.comparer import Comparer
from evalrpc.clock import Clock, SystemClock
from evalrpc.config import Settings
from evalrpc.config.listeners import Listener, http_listeners_of, listeners_of
from evalrpc.engines.definition import build_engines
from evalrpc.engines.pool import EnginePool
from evalrpc.errors import ConfigurationError
from evalrpc.executors.base import Executor
from evalrpc.executors.group import ExecutorGroup
from evalrpc.executors.hosts import HostExecutor
from evalrpc.executors.local.cgroups import find_cgroups
from evalrpc.executors.local.environment import inherited_variables
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.gpus import find_gpus
from evalrpc.executors.local.warm_parents import WarmLimits
from evalrpc.executors.slurm.executor import SlurmExecutor
from evalrpc.files.output_access import OutputAccess, output_access
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.jobs.defaults import request_defaults
from evalrpc.jobs.paths import PREPARATIONS_DIR
from evalrpc.jobs.share_policy import Entitlements, policy_of
from evalrpc.preparations.preparation import build_preparations
from evalrpc.preparations.prepared_models import PreparedModels
from evalrpc.reading.artifacts import ArtifactReader
from evalrpc.reading.document_media import DocumentMedia
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.logs import LogReader
from evalrpc.reading.metrics import MetricLister
from evalrpc.reading.processes import ReadingProcesses
from evalrpc.reading.sample_media import MediaThreads, Places, SampleMediaReader
from evalrpc.reading.samples import SampleLister
from evalrpc.scheduling import capacity
from evalrpc.scheduling.duty import Duty, SharedDuty
from evalrpc.scheduling.lending import Lending
from evalrpc.scheduling.preparing import Preparing
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.scheduling.run_accounts import RunAccounts, account_pool, describe_accounts, require_way
from evalrpc.scheduling.run_bounds import RunBounds
from evalrpc.scheduling.run_limits import RunLimitsPolicy, describe_limits
from evalrpc.scheduling.scheduler import Scheduler
from evalrpc.scheduling.serving import Serving
from evalrpc.scheduling.supervisor import RunDependencies
from evalrpc.secrets.registry import Secrets
from evalrpc.server import health, hosts, reflection
from evalrpc.server.admission import Admission
from evalrpc.server.audit import Audit
from evalrpc.server.audit_file import audit_file
from evalrpc.server.auth.authenticator import Authenticator
from evalrpc.server.auth.rights import Guard
from evalrpc.server.catalog import Catalog
from evalrpc.server.certificates import Certificate
from evalrpc.server.executor_use import require_executors
from evalrpc.server.handlers import Handler, handlers_of
from evalrpc.server.health import Health
from evalrpc.server.hosts import NodeDescription, OtherNodes, host_name
from evalrpc.server.housekeeping import Housekeeper
from evalrpc.server.limits import Limits
from evalrpc.server.memory import Memory
from evalrpc.server.operations import Operations
from evalrpc.server.queue_listing import QueueListing
from evalrpc.server.reflection import Reflection
from evalrpc.server.reloading import Reloading
from evalrpc.server.running import Running, Sharing
from evalrpc.server.service import MAX_INLINE_MEDIA_BYTES, EvaluationService
from evalrpc.server.stores import open_store, progress_of, shared_store, store_of_runner
from evalrpc.server.submissions import Submissions
from evalrpc.server.suite_definitions import build_suites
from evalrpc.server.threads import MAX_COMPARISONS, MAX_LONG_COMPARISONS, MAX_PARSERS, start_pools
from evalrpc.server.tracing import untraced
from evalrpc.server.transports.connections import close_connections
from evalrpc.server.transports.grpc import anonymous, dialogue_handler, generic_handler
from evalrpc.server.transports.grpc_listener import GrpcListener
from evalrpc.server.unread import UnreadBytes
from evalrpc.server.write_check import WriteCheck
from evalrpc.store.base import Change
from evalrpc.v1 import evaluation_service_pb2
from evalrpc.v1.jobs_pb2 import JOB_STATUS_RUNNING, JobInfo
from evalrpc.watching.feed import Feed

if TYPE_CHECKING:
    from evalrpc.server.telemetry.metrics import Metrics
    from evalrpc.server.telemetry.snapshot import Observed
    from evalrpc.server.telemetry.traces import Traces
    from evalrpc.server.transports.http.listener import HttpListener
    from evalrpc.server.transports.http_server import HttpServer
    from evalrpc.store.postgres.progress import JobProgress
    from evalrpc.store.postgres.store import PostgresStore

SERVICE: Final = evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"]

_REFUSAL_SECONDS: Final = 0.1

_log = logging.getLogger(__name__)

_Listeners = Sequence[tuple[Listener, Certificate | None]]


class Server:
    """A running server. Created by `running_server`."""

    def __init__(self, settings: Settings, clock: Clock, environment: Mapping[str, str], secrets: Secrets) -> None:
        self._settings = settings
        self._secrets = secrets
        # Check everything that settings can get wrong before opening anything.
        listeners = _with_certificates(listeners_of(settings))
        http_listeners = _with_certificates(http_listeners_of(settings))
        devices = find_gpus(settings.gpus, environment)
        self._gpu_count = len(devices)
        self.harnesses = harnesses = build_harnesses(settings)
        self._preparations = build_preparations(settings.preparations)
        self._suites = build_suites(settings.suites)
        self._defaults = request_defaults(settings, len(devices))
        pool = account_pool(settings.run_as_uids, settings.run_as_groups)
        require_way(pool, settings.data_dir)
        access = output_access(settings.output_root, settings.output_mode, settings.output_group)
        access = replace(access, is_passable=pool is not None)
        self._authenticator = Authenticator(settings, clock)
        self._metrics = self._build_metrics(clock)
        self._traces = self._build_traces()
        entitlements = Entitlements(policy_of(settings))
        self._store = open_store(settings, clock, entitlements)
        self._audit = Audit(audit_file(settings), clock, secrets.mask_text)
        self._pools = start_pools()
        self._parsing = ReadingProcesses(self._pools.parsers, MAX_PARSERS)
        self._comparing = ReadingProcesses(self._pools.comparers, MAX_COMPARISONS)
        data_dir = settings.data_dir.absolute()
        cgroups = find_cgroups(settings.cgroups)
        controllers = cgroups.cgroups.controllers if cgroups.cgroups else frozenset[str]()
        self.limits_of_runs = list(describe_limits(settings, controllers, has_gpus=bool(devices)))
        """By what the limits of runs are enforced."""
        self.isolation = {"accounts of runs": describe_accounts(pool), "cgroups": cgroups.detail}
        """By what runs are kept apart, or why not."""
        inherited = inherited_variables(environment, settings.inherit_env)
        warm_limits = WarmLimits(settings.warm_idle_seconds, settings.warm_max_bytes)
        local = LocalExecutor(inherited, devices, cgroups=cgroups.cgroups, warm_limits=warm_limits)
        shared = shared_store(self._store)
        host = self._host_executor(local, shared, len(devices)) if shared is not None else None
        self._executor = executor_of_settings(settings, host or local, inherited, environment, clock)
        self._duty = self._shared_duty(shared) if shared is not None else Duty()
        accounts = RunAccounts(self._store, data_dir, access, pool)
        run_limits = RunLimitsPolicy(settings)
        self._engines = self._build_engines(
            inherited, accounts, run_limits, clock, data_dir, keeps_owners_apart=pool is not None
        )
        queue_state = self._build_queue_state(entitlements, clock)
        self._feed = Feed(self._store, queue_state, clock, self._pools.readers)
        self._prepared_models = PreparedModels(data_dir / PREPARATIONS_DIR, clock)
        dependencies = self._build_run_dependencies(queue_state, access, accounts, run_limits, clock, data_dir)
        self._scheduler = Scheduler(dependencies, settings.reservation_seconds)
        self._engines.on_change = self._scheduler.engines_changed
        self._follow_store(queue_state)
        self._catalog = Catalog(harnesses, self._executor, data_dir, secrets.mask_text)
        self._housekeeper = self._build_housekeeper(entitlements, clock, data_dir)
        sharing = self._sharing(shared, host, queue_state) if shared is not None and host is not None else None
        self._running = Running(self._executor, self._scheduler, self._duty, self._housekeeper.run, sharing)
        self._service = self._build_service(queue_state, entitlements, clock, data_dir)
        self._reloading = self._build_reloading(entitlements, run_limits)
        self._reload_lock = asyncio.Lock()
        self._health = Health((SERVICE.full_name,))
        self._write_check = WriteCheck(self._store, data_dir, self._health, self._pools.readers)
        self._write_checks: asyncio.Task[None] | None = None
        self._open_to_callers(listeners, http_listeners, clock)
        if self._metrics is not None:
            self._metrics.observe(self._observed(queue_state))

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT or unix:PATH; if at several addresses, the first."""
        return self.listeners[0].address

    @property
    def metrics_address(self) -> str:
        """Where the metrics are, as HOST:PORT; empty where nothing is measured."""
        return self._metrics.address if self._metrics is not None else ""

    async def start(self) -> None:
        """Bind the ports, take over what an earlier server left, and serve. Raises ConfigurationError if one is taken, or the
        executor of a run is not configured any more."""
        await asyncio.get_running_loop().run_in_executor(self._pools.waiters, self._running.require_own_name)
        require_executors((listed.job for listed in self._store.running_jobs()), self._settings.executors)
        for listener in self._all_listeners:
            listener.bind()
        if self._metrics is not None:
            self._metrics.bind()
        self._running.begin()
        await self._authenticator.start()
        await asyncio.gather(*(listener.start() for listener in self._all_listeners))
        self._write_checks = asyncio.create_task(self._write_check.run())
        self._pools.catalogers.submit(self._catalog.load)
        if self._metrics is not None:
            self._metrics.start()

    async def reload(self, load: Callable[[], Settings]) -> None:
        """Take up what has changed in the settings, as far as that takes no restart. See `evalrpc.server.reloading`."""
        async with self._reload_lock:
            if not self._service.stopping:
                await self._reloading.reload(load)

    async def drain(self) -> None:
        """Refuse new jobs, start no queued ones, and wait up to `drain_seconds` until all runs have ended."""
        _log.info("draining: waiting for the runs to end")
        self._service.stopping = True
        self._health.refuse()
        await asyncio.get_running_loop().run_in_executor(
            self._pools.waiters, self._scheduler.drain, self._settings.drain_seconds
        )

    async def stop(self) -> None:
        """Refuse new jobs, end the streams, detach from the runs, which continue, and close the store."""
        self._service.stopping = True
        if self._metrics is not None:
            await self._metrics.stop()
        self._health.stop()
        self._feed.stop()
        if self._write_checks is not None:
            self._write_checks.cancel()
        self._running.cease()
        self._housekeeper.stop()
        loop = asyncio.get_running_loop()
        # Calls made just as gRPC stops get CANCELLED without a reason: so answer with the reason for a moment first.
        await asyncio.gather(loop.run_in_executor(self._pools.waiters, self._running.stop), asyncio.sleep(_REFUSAL_SECONDS))
        await asyncio.gather(*(listener.stop(self._settings.stop_seconds) for listener in self._all_listeners))
        if self._http:
            self._http.close()
        self._authenticator.stop()
        # Only now: calls may have waited for a short command.
        await loop.run_in_executor(self._pools.waiters, self._executor.close)
        await loop.run_in_executor(self._pools.waiters, self._audit.close)
        self._parsing.close()
        self._comparing.close()
        self._pools.shut_down()
        self._store.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    @property
    def what_is_broken(self) -> str:
        """Why it stopped by itself, once `wait_broken` has returned."""
        if self._running.lost:
            return self._running.lost
        return "a bug has stopped it; its log has the traceback"

    async def wait_broken(self) -> None:
        """Wait until a bug keeps the store from writing, or the scheduler from starting jobs."""
        loop, waits = asyncio.get_running_loop(), (self._store.wait_closed, self._running.wait_over)
        await first_of(*(loop.run_in_executor(self._pools.waiters, wait) for wait in waits))

    def _open_to_callers(self, listeners: _Listeners, http_listeners: _Listeners, clock: Clock) -> None:
        """Make what calls come by, at all addresses. Raises ConfigurationError if a library for HTTP is missing."""
        self.limits = Limits(self._settings, clock.monotonic, self._disconnect)
        """What callers of the evaluation service take."""
        self.open_limits = Limits(replace(self._settings, max_calls_per_second=0), clock.monotonic, self._disconnect)
        """The same for health and reflection: who is past a limit keeps nobody from asking how the server is."""
        guard = Guard(self._store, self._pools.readers, self._settings.visibility)
        self.handlers = handlers_of(SERVICE, self._service, self.limits, guard.check)
        """The handlers of all calls, by method, as every transport serves them."""
        self.listeners = [GrpcListener(*listener, self._settings) for listener in listeners]
        """Where it listens, and how."""
        health_handlers = handlers_of(health.SERVICE, self._health, self.open_limits)
        self._add_handlers(health_handlers)
        self._http = self._build_http(http_listeners, health_handlers, clock) if http_listeners else None
        self.http_listeners: Sequence[HttpListener] = self._http.listeners if self._http else ()
        """Where it listens for HTTP, and how."""

    def _follow_store(self, queue_state: QueueState) -> None:
        """Load the queue and follow the changes, the queue first so that the others find it up to date."""
        position = self._store.position
        uses = self._store.attempt_uses(queue_state.uses_since_ns)
        queue_state.load(self._store.queued_rows(), self._store.running_jobs(), uses)
        for listener in (queue_state.apply, self._scheduler.on_changes, self._feed.publish):
            self._store.follow(position, listener)
        if (shared := shared_store(self._store)) is not None:
            self._store.follow(position, partial(self._forget_progress, shared))
            shared.share_progress(partial(self._hear_progress, queue_state))
        if self._metrics is not None:
            self._metrics.jobs.load(self._store.queued_rows())
            self._store.follow(position, self._metrics.jobs.apply)
            self._store.observe_commit = self._metrics.observe_commit
        if self._traces is not None:
            self._store.follow(position, self._traces.apply)

    def _host_executor(self, local: Executor, store: "PostgresStore", device_count: int) -> HostExecutor:
        """Return the executor of this machine, one of several."""
        name, slots = host_name(self._settings), capacity.slots(device_count, self._settings.max_running)
        if name in (*self._settings.executors, capacity.ALONE):
            raise ConfigurationError(f"setting host_name: {name!r} is the name of an executor: give this machine another one")
        others = OtherNodes(lambda: store.hosts.hosts, name)
        return HostExecutor(local, name, others, store.is_trusted, slots.total, slots.without_gpus)

    def _shared_duty(self, store: "PostgresStore") -> SharedDuty:
        """Return which jobs this server, one of several, sees to."""
        known = lambda: {node.name for node in self._executor.nodes()}  # noqa: E731 - it is short
        return SharedDuty(host_name(self._settings), set(self._settings.executors), known, store.is_trusted)

    def _sharing(self, store: "PostgresStore", executor: HostExecutor, queue_state: QueueState) -> Sharing:
        """Return how this server takes part where there are several. Hears of the others' machines from now on."""
        store.hosts.on_change = partial(self._nodes_changed, queue_state)
        held = lambda: {device for each in self._engines.holdings() for device in each.devices}  # noqa: E731 - it is short
        machine = hosts.machine_id()
        describe = NodeDescription(machine, lambda: executor.own_node, held, lambda: queue_state.draining)
        return Sharing(
            store, host_name(self._settings), describe, partial(hosts.is_elsewhere, machine), self._settings.lease_seconds
        )

    def _may_get_served_jobs(self) -> bool:
        """Return whether jobs may come to the engines of this machine: they do to those of the scheduler's."""
        shared = shared_store(self._store)
        return shared is None or not shared.hosts.is_other_scheduling(host_name(self._settings))

    def _publish_progress(self, job: JobInfo) -> None:
        """Tell watchers how far a running job has come, those at other servers too."""
        self._feed.publish_progress(job)
        if (shared := shared_store(self._store)) is not None:
            shared.say_progress(progress_of(job))

    def _hear_progress(self, queue_state: QueueState, progress: "JobProgress") -> bool:
        """Tell watchers what another server says of a running job. Return whether that runs."""
        job = queue_state.take_progress(progress.job_id, progress.attempt, progress.unstored)
        if job is not None:
            self._feed.publish_progress(job)
        return job is not None

    def _nodes_changed(self, queue_state: QueueState) -> None:
        """Take note that other machines have come, gone, or changed."""
        for job in queue_state.nodes_changed():
            self._feed.publish_progress(job)
        self._scheduler.nodes_changed()

    def _forget_progress(self, store: "PostgresStore", changes: Sequence[Change]) -> None:
        """Let other servers forget the progress of jobs that run no more."""
        for change in changes:
            if change.previous == JOB_STATUS_RUNNING and change.status_changed and self._duty.sees_to(change.job):
                store.forget_progress(change.job.job_id)

    def _build_metrics(self, clock: Clock) -> "Metrics | None":
        """Return what measures, if it is to. Raises ConfigurationError if the library for that is missing."""
        if not self._settings.metrics_listen:
            return None
        try:
            from evalrpc.server.telemetry.metrics import Metrics
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"setting metrics_listen: {extras.missing(error, 'metrics')}") from error
        return Metrics(self._settings, clock)

    def _build_traces(self) -> "Traces | None":
        """Return what records spans, if it is to. Raises ConfigurationError if the library for that is missing."""
        if self._settings.traces == "off":
            return None
        try:
            from evalrpc.server.telemetry.traces import Traces
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"setting traces: {extras.missing(error, 'otel')}") from error
        return Traces()

    def _observed(self, queue_state: QueueState) -> "Observed":
        from evalrpc.server.telemetry.snapshot import Observed

        engines = tuple(sorted(self._settings.engines))
        return Observed(self._store, queue_state, self._engines, engines, self._feed, self.limits, self._health, self._duty)

    def _build_engines(
        self,
        inherited: Mapping[str, str],
        accounts: RunAccounts,
        run_limits: RunLimitsPolicy,
        clock: Clock,
        data_dir: Path,
        *,
        keeps_owners_apart: bool,
    ) -> EnginePool:
        settings = self._settings
        return EnginePool(
            build_engines(settings.engines, inherited),
            settings.endpoints,
            self._executor,
            accounts.ready_for,
            clock,
            data_dir,
            settings.grace_seconds,
            self._secrets,
            keeps_owners_apart=keeps_owners_apart,
            limits_of=run_limits.of_engine,
            max_log_bytes=settings.max_log_bytes,
            host="" if shared_store(self._store) is None else host_name(settings),
            keeps_idle=self._may_get_served_jobs,
            wait_to_start=self._duty.wait_until_trusted,
        )

    def _build_queue_state(self, entitlements: Entitlements, clock: Clock) -> QueueState:
        settings = self._settings
        return QueueState(
            self._executor.nodes,
            settings.max_running,
            clock,
            entitlements=entitlements,
            half_life_seconds=settings.share_half_life_seconds,
            preemption_interval_seconds=settings.preemption_interval_seconds,
            holds=lambda: self._store.holds,
            engines=self._engines,
            max_running_served=settings.max_running_served,
        )

    def _build_run_dependencies(
        self,
        queue_state: QueueState,
        access: OutputAccess,
        accounts: RunAccounts,
        run_limits: RunLimitsPolicy,
        clock: Clock,
        data_dir: Path,
    ) -> RunDependencies:
        settings = self._settings
        return RunDependencies(
            store=store_of_runner(self._store),
            queue_state=queue_state,
            executor=self._executor,
            harnesses=self.harnesses,
            harness_settings=settings.harnesses,
            clock=clock,
            data_dir=data_dir,
            output_root=settings.output_root,
            output_access=access,
            accounts=accounts,
            preparing=Preparing(
                self._preparations,
                self._prepared_models,
                self._executor,
                accounts,
                clock,
                data_dir,
                settings.max_log_bytes,
            ),
            serving=Serving(
                self._engines,
                clock,
                data_dir,
                Lending(data_dir),
                observe_answers=self._metrics.observe_answers if self._metrics else None,
            ),
            grace_seconds=settings.grace_seconds,
            run_bounds=RunBounds(settings.max_log_bytes, settings.max_output_bytes),
            measurer=self._pools.measurers,
            publish_progress=self._publish_progress,
            duty=self._duty,
            limits_of=run_limits.of,
            secrets=self._secrets,
        )

    def _build_housekeeper(self, entitlements: Entitlements, clock: Clock, data_dir: Path) -> Housekeeper:
        return Housekeeper(
            self._store,
            clock,
            data_dir,
            self._settings,
            self._pools.removers,
            entitlements,
            self._prepared_models,
            Memory(lambda: self._service.forget_unused()),
        )

    def _build_reloading(self, entitlements: Entitlements, run_limits: RunLimitsPolicy) -> Reloading:
        return Reloading(
            self._settings,
            self._service,
            entitlements,
            run_limits,
            self._secrets,
            self._authenticator,
            self._audit,
            self._scheduler.choose_anew,
            self._pools.readers,
        )

    def _build_service(
        self, queue_state: QueueState, entitlements: Entitlements, clock: Clock, data_dir: Path
    ) -> EvaluationService:
        results, pools = JobResults(data_dir), self._pools
        return EvaluationService(
            store=self._store,
            feed=self._feed,
            logs=LogReader(self._feed, data_dir, pools.readers, self._secrets),
            artifacts=ArtifactReader(self._feed, data_dir, pools.readers, pools.listers, pools.hashers),
            metrics=MetricLister(self._feed, results, pools.listers),
            samples=SampleLister(self._feed, data_dir, self.harnesses, self._settings.harnesses, pools.listers, self._parsing),
            media=SampleMediaReader(
                self._feed,
                Places(data_dir, self._settings.media_roots),
                self.harnesses,
                self._settings.harnesses,
                DocumentMedia(self.harnesses, self._executor, self._secrets.mask_text),
                MediaThreads(pools.readers, pools.listers, pools.askers),
                self._parsing,
            ),
            inline_media=UnreadBytes(MAX_INLINE_MEDIA_BYTES, self._disconnect),
            comparer=Comparer(data_dir, self._settings.harnesses, self._comparing, MAX_LONG_COMPARISONS),
            results=results,
            queue_state=queue_state,
            queue=QueueListing(self._store, queue_state, self._engines, self._settings.max_queued),
            harnesses=self.harnesses,
            settings=self._settings,
            defaults=self._defaults,
            submissions=Submissions(
                Admission(self._settings, self.harnesses, self._defaults),
                self._suites,
                entitlements,
                self._preparations,
                self._catalog,
                self._engines,
                queue_state,
                clock,
                pools.listers,
            ),
            clock=clock,
            pools=pools,
            engines=self._engines,
            catalog=self._catalog,
            operations=Operations(self._store, queue_state, self._scheduler.choose_anew),
            remove_files_of=self._housekeeper.remove_files_of,
            started_at=clock.now(),
            trace_submission=self._traces.submission if self._traces is not None else untraced,
        )

    @property
    def _all_listeners(self) -> Sequence["GrpcListener | HttpListener"]:
        return (*self.listeners, *self.http_listeners)

    def _build_http(self, listeners: _Listeners, health_handlers: Mapping[str, Handler], clock: Clock) -> "HttpServer":
        """Return what serves the same calls over HTTP. Raises ConfigurationError if a library for that is missing."""
        try:
            from evalrpc.server.transports.http_server import HttpServer
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"setting http_listen: {extras.missing(error, 'http')}") from error
        evaluation, health_service = (SERVICE, self.handlers), (health.SERVICE, health_handlers)
        meters, readers = self._metrics.calls if self._metrics else None, self._pools.readers
        callers = self._authenticator, self._audit, meters
        return HttpServer(
            listeners,
            self._settings,
            evaluation,
            health_service,
            *callers,
            readers,
            self._gpu_count,
            clock,
            self._disconnect,
        )

    def _add_handlers(self, health_handlers: Mapping[str, Handler]) -> None:
        """Serve the same calls at every address."""
        answer = Reflection((health.SERVICE.file,)).answer
        meters = self._metrics.calls if self._metrics is not None else None
        for listener in self.listeners:
            authenticate = self._authenticator.for_listener(requires_sign_in=listener.listener.requires_sign_in)
            listener.add(
                generic_handler(SERVICE, self.handlers, authenticate, self._audit, meters),
                generic_handler(health.SERVICE, health_handlers, anonymous),
                *(dialogue_handler(name, reflection.METHOD, answer, self.open_limits) for name in reflection.SERVICES),
            )

    def _disconnect(self, peers: Collection[str]) -> None:
        self._pools.readers.submit(close_connections, peers)


def executor_of_settings(
    settings: Settings, local: Executor, inherited: Mapping[str, str], environment: Mapping[str, str], clock: Clock
) -> Executor:
    """Return the executor of the server's own machine, together with those of its clusters if there are any."""
    clusters = {name: SlurmExecutor(each, inherited, clock, environment) for name, each in settings.executors.items()}
    return ExecutorGroup(local, clusters) if clusters else local


@asynccontextmanager
async def running_server(
    settings: Settings, clock: Clock | None = None, environment: Mapping[str, str] = os.environ, secrets: Secrets | None = None
) -> AsyncIterator[Server]:
    """Start a server, yield it, and stop it gracefully. Runs inherit some of `environment`. `secrets`: those of the settings,
    where the caller needs to mask them, too. Raises ConfigurationError."""
    server = Server(settings, clock or SystemClock(), environment, secrets or Secrets(settings.secrets, environment))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def _with_certificates(listeners: Iterable[Listener]) -> list[tuple[Listener, Certificate | None]]:
    """Read the certificates of those that have TLS. Raises ConfigurationError."""
    return [(listener, listener.tls and Certificate(listener.tls)) for listener in listeners]


async def first_of(*waits: Awaitable[object]) -> None:
    """Wait until the first of these is over, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
