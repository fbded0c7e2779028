"""The engines of a server: which there are, which jobs use them, and which end to make room for others.

A job comes here twice. The scheduler asks `is_up` before it places the job: with an engine that is up, the job needs no GPUs;
or else it gets those for an engine. `place` notes either, so that nothing ends the engine before the job begins. Then the job's
worker calls `lease`, which starts the engine if nobody has, and `wait`.

Threads: any. One lock guards the state of all engines, held for a few lines; the scheduler calls with its own condition held,
so nothing here calls the scheduler with the lock held.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.config import EndpointSettings
from evalrpc.engines.definition import EngineDefinition
from evalrpc.engines.endpoints import Endpoints, EndpointUse, endpoint_problem
from evalrpc.engines.engine import LOST, START_FAILED, Engine, EngineDependencies
from evalrpc.engines.gateway_keeper import GatewayKeeper
from evalrpc.engines.holdings import EngineHolding
from evalrpc.engines.replicas import WantedReplica, identity_of, users_of, wanted
from evalrpc.engines.restoring import end_engines, restored_engines
from evalrpc.engines.start_breakers import Breaker, StartBreakers
from evalrpc.engines.weights import Weights
from evalrpc.errors import EngineNotFoundError, FieldViolation, GatewayError, InvalidRequestError, RunFailedError
from evalrpc.executors.base import NO_LIMITS, Executor, Resources, RunAccount, RunLimits
from evalrpc.files.private import make_private_folder
from evalrpc.files.trees import remove_tree
from evalrpc.jobs.paths import ENGINES_DIR, engines_dir
from evalrpc.jobs.served_models import SERVED_FIELDS, EngineNeed, engine_ids, identity, replicas_wanted
from evalrpc.jobs.transitions import is_giving_way, shorten
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.v1 import engines_pb2 as pb
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, ServedModel

_GATEWAY_DIR: Final = "gateway"
_WEIGHTS_DIR: Final = "weights"
_KEPT_ENDED: Final = 20
_LOOK_SECONDS: Final = 0.5
_JOIN_SECONDS: Final = 2.0

_Reason = TypeVar("_Reason")
_log = logging.getLogger(__name__)


@dataclass
class _Reserved:
    """Devices that are kept for an engine, until the lease of a job starts it."""

    engine_id: str
    identity: str
    owner: str
    resources: Resources
    first_job_id: str
    users: set[str]

    def holding(self) -> EngineHolding:
        """Return what others have to know of it."""
        return EngineHolding(
            *(self.engine_id, self.identity, "", self.owner, self.first_job_id, self.resources.node, self.resources.devices),
            *(frozenset(self.users), True, False, False, 0.0, 0.0),
        )


class EnginePool:
    """All engines, and the endpoints beside them. `account_of` gives the account of an owner's runs, whose home is there by
    then; with one, an engine answers for its owner alone. `limits_of` gives what an engine of a name may take.

    `host`: the name of this machine, where several servers share the folder: each sees to the engines of its own machine.
    `keeps_idle` returns whether jobs may come to an engine that has none. `wait_to_start` waits until this server may start
    processes, and returns False if it stops first.
    """

    def __init__(
        self,
        definitions: Mapping[str, EngineDefinition],
        endpoints: Mapping[str, EndpointSettings],
        executor: Executor,
        account_of: Callable[[str], RunAccount | None],
        clock: Clock,
        data_dir: Path,
        grace_seconds: float,
        secrets: Secrets,
        *,
        keeps_owners_apart: bool = False,
        limits_of: Callable[[str], RunLimits] = lambda _: NO_LIMITS,
        max_log_bytes: int = 0,
        host: str = "",
        keeps_idle: Callable[[], bool] = lambda: True,
        wait_to_start: Callable[[threading.Event], bool] = lambda stopping: not stopping.is_set(),
    ) -> None:
        self._definitions = definitions
        self._declared_endpoints = endpoints
        self._secrets = secrets
        self._account_of = account_of
        self._clock = clock
        self._folder = engines_dir(data_dir, host)
        self._left_folder = data_dir / ENGINES_DIR if host else None  # by a server that was alone
        self._keeps_owners_apart = keeps_owners_apart
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._lock = threading.Lock()
        self._reserved: list[_Reserved] = []
        self._engines: list[Engine] = []  # in the order of their starts
        self._breakers = StartBreakers(clock)
        self.gateway: Final = GatewayKeeper(executor, clock, self._folder / _GATEWAY_DIR)
        """Passes the questions of jobs on to engines."""
        self._endpoints = Endpoints(endpoints, secrets, self.gateway)
        self.on_change: Callable[[], None] = lambda: None
        """Called without locks whenever devices may have come free, or an engine answers."""
        self._taken_ports: set[int] = set()
        self._weights = Weights(data_dir / ENGINES_DIR / _WEIGHTS_DIR)
        self._dependencies = EngineDependencies(
            executor,
            self.gateway,
            clock,
            grace_seconds,
            secrets,
            self._lock,
            self._taken_ports,
            limits_of,
            max_log_bytes,
            self._weights,
            self._tell_change,
            self._stopping,
            keeps_idle,
            wait_to_start,
        )

    # For the scheduler, which has its condition held.

    def is_up(self, need: EngineNeed, owner: str) -> bool:
        """Return whether a job needs no GPUs for this engine now: it is there, or no start of it is worth a try."""
        with self._lock:
            return self._needs_no_start(need, owner)

    def is_loading(self, need: EngineNeed, owner: str) -> bool:
        """Return whether the engine that a job needs is there, and does not answer."""
        with self._lock:
            there = self._find(need.identity, owner)
            return there is not None and (isinstance(there, _Reserved) or there.state != pb.ENGINE_STATE_READY)

    def place(
        self, job_id: str, owner: str, needs: Iterable[EngineNeed], resources: Resources, run_gpu_count: int
    ) -> tuple[str, ...] | None:
        """Note that a job is about to use the engines that it needs, and keep devices for those that its leases are to start.
        `release` ends either. Return the devices for the job's own run; None, and nothing is noted, if they are too few in all.

        So a job never waits for one engine while it holds another.
        """
        with self._lock:
            missing = [need for need in needs if not self._needs_no_start(need, owner)]
            if len(resources.devices) < run_gpu_count + sum(need.num_gpus for need in missing):
                return None
            left = iter(resources.devices)
            for_run = tuple(islice(left, run_gpu_count))
            for need in needs:
                if need in missing:
                    devices = tuple(islice(left, need.num_gpus))
                    self._reserve(job_id, owner, need, Resources(resources.node, devices))
                elif (there := self._find(need.identity, owner)) is not None:
                    there.users.add(job_id)
            return for_run

    def _needs_no_start(self, need: EngineNeed, owner: str) -> bool:
        is_up = need.engine in self._endpoints or self._find(need.identity, owner) is not None
        return is_up or self._open_breaker(need.identity, owner) is not None  # with which the lease will tell

    def _reserve(self, job_id: str, owner: str, need: EngineNeed, resources: Resources) -> None:
        engine_id, for_whom = f"engine-{uuid.uuid4()}", self._for_whom(owner)
        self._reserved.append(_Reserved(engine_id, need.identity, for_whom, resources, job_id, {job_id}))

    def _for_whom(self, owner: str) -> str:
        """Return the owner whom an engine answers alone; empty if it answers for all."""
        return owner if self._keeps_owners_apart else ""

    def holdings(self) -> Sequence[EngineHolding]:
        """Return what engines hold, in the order of their starts."""
        now = self._clock.now()
        with self._lock:
            there = [each.holding(now) for each in self._engines if _holds(each)]
            return [*there, *(each.holding() for each in self._reserved)]

    def drain(self, engine_ids: Iterable[str]) -> None:
        """Let engines serve no further job, so that they end with the last that they have."""
        named = set(engine_ids)
        with self._lock:
            for engine in self._engines:
                engine.is_retired = engine.is_retired or engine.engine_id in named

    def make_room(self, engine_ids: Iterable[str]) -> None:
        """End idle engines, since a job needs what they hold."""
        named = set(engine_ids)
        with self._lock:
            for engine in self._engines:
                if engine.engine_id in named and engine.is_idle:
                    engine.stop("")

    def wanted_replicas(self) -> Sequence[WantedReplica]:
        """Return the replicas of engines that are missing, and that running jobs may have."""
        with self._lock:
            return list(wanted(self._engines, lambda identity_, owner: self._open_breaker(identity_, owner) is not None))

    def start_replica(self, replica: WantedReplica, devices: tuple[str, ...]) -> None:
        """Start another process beside an engine, which is there. Blocks on the disk, shortly. Raises OSError."""
        engine, number = replica.engine, replica.number
        with self._lock:
            if not engine.is_up:
                return
            users = users_of(engine, number)
            reserved = _Reserved(
                f"engine-{uuid.uuid4()}",
                identity_of(engine, number),
                engine.owner,
                Resources(engine.resources.node, devices),
                min(users, default=""),
                users,
            )
            self._start(
                reserved, engine.definition, engine.served, engine.fingerprint, engine.account, beside=engine, number=number
            )

    # For the workers of jobs.

    def lease(self, job: JobInfo, served: ServedModel) -> Engine | EndpointUse:
        """Return what answers for a model of a job; an engine is started if it was only placed. It stays until `release`.
        Blocks on the disk.

        Raises OSError, and RunFailedError: ENGINE_START_FAILED, ENGINE_INCOMPATIBLE, or ENGINE_LOST where another one may do.
        """
        if served.engine in self._endpoints:
            return self._endpoints.lease(job, served)
        definition = self.definition(served.engine)
        self._secrets.require_may_use(definition.settings.secrets, job.owner)
        fingerprint = definition.fingerprint(served)
        account = self._account_of(job.owner)
        with self._lock:
            engine = self._engine_of(job, served)
            if isinstance(engine, _Reserved):
                engine = self._start(engine, definition, served, fingerprint, account)
            elif self._is_out_of_date(engine, job, fingerprint):
                engine.is_retired = True
                engine.users.discard(job.job_id)
                raise RunFailedError(LOST, f"the model {served.model} may have changed since an engine loaded it")
            engine.users.add(job.job_id)
            self._note_replicas(engine, job)
        if served.max_replicas > 1:
            self.on_change()
        return engine

    def _note_replicas(self, engine: Engine, job: JobInfo) -> None:
        """Note how many processes may answer a job, and that it uses those that are there. Called with the lock held."""
        most = replicas_wanted(job.request, engine.identity, job.job_id)
        engine.max_replicas[job.job_id] = most
        for each in self._engines:
            if each.beside is engine and each.number <= most:
                each.users.add(job.job_id)

    def wait(self, engine: Engine | EndpointUse, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until an engine answers, or there is a reason to stop, and return that. Raises RunFailedError if it won't. An
        endpoint is not waited for."""
        while isinstance(engine, Engine):
            with self._lock:
                if engine.is_ending:
                    raise _failure(engine)
                if engine.state == pb.ENGINE_STATE_READY:
                    return None
            if (reason := reason_to_stop()) is not None:
                return reason
            with self._changed:
                self._changed.wait(_LOOK_SECONDS)
        return None

    def require_there(self, engine: Engine | EndpointUse) -> None:
        """Raise RunFailedError with reason ENGINE_LOST if an engine is gone."""
        with self._lock:
            if isinstance(engine, Engine) and engine.state in (pb.ENGINE_STATE_STOPPING, pb.ENGINE_STATE_ENDED):
                raise RunFailedError(LOST, _failure(engine).message)

    def release(self, job_id: str) -> None:
        """Let go of what answers for a job. May be called again."""
        try:
            self._endpoints.release(job_id)
        except GatewayError as error:
            _log.warning("%s", error.message, extra={"job_id": job_id})
        with self._lock:
            used = [each for each in self._all() if job_id in each.users]
            for each in used:
                each.users.discard(job_id)
                if isinstance(each, Engine):
                    each.max_replicas.pop(job_id, None)
                    each.idle_since = self._clock.monotonic()
            self._reserved = [each for each in self._reserved if each.users]
        if used:
            self._tell_change()

    def definition(self, name: str) -> EngineDefinition:
        """Return an engine of the operator's by name. Raises RunFailedError."""
        if name not in self._definitions:
            raise RunFailedError(START_FAILED, f"this server has no engine {name!r} any more")
        return self._definitions[name]

    def api_of(self, served: ServedModel) -> tuple[str, ...]:
        """Return what answers for a model can answer, as its settings say it. Raises RunFailedError."""
        if served.engine in self._endpoints:
            return self._declared_endpoints[served.engine].api
        return self.definition(served.engine).settings.api

    def find(self, served: ServedModel, engine_id: str) -> Engine | EndpointUse | None:
        """Return what answered for a model under an earlier server; None if it is gone."""
        if served.engine in self._endpoints:
            return EndpointUse(self._declared_endpoints[served.engine], served.model)
        return self.engine(engine_id)

    def engine(self, engine_id: str) -> Engine | None:
        """Return an engine by its id; None if it is forgotten."""
        with self._lock:
            return self._named(engine_id)

    # For calls.

    def listed(self) -> list[pb.Engine]:
        """Return the engines that are there, the oldest first, then those that have ended lately, the latest first."""
        with self._lock:
            there = [each for each in self._engines if _holds(each)]
            ended = [each for each in self._engines if each.state == pb.ENGINE_STATE_ENDED]
            return [_message(each) for each in (*there, *reversed(ended))]

    def stop(self, engine_id: str) -> None:
        """End an engine. Its jobs get another one. Raises EngineNotFoundError."""
        with self._lock:
            engine = self._named(engine_id)
            if engine is None:
                raise EngineNotFoundError(f"there is no engine {engine_id}: ListEngines has those that there are")
            if engine.is_up:
                engine.stop("an operator has ended it")
            if engine.beside is not None:  # which else would be started again
                self._breakers.pause(engine, RunFailedError(LOST, "an operator has ended it"))

    def log_path(self, engine_id: str) -> Path | None:
        """Return the log of an engine; None if it is forgotten."""
        with self._lock:
            engine = self._named(engine_id)
            return engine.log_path if engine is not None else None

    def key(self, served: ServedModel) -> str:
        """Return what is equal as long as the answers of a model are; empty if that can't be told. Blocks on the disk."""
        answers = self.find(served, "")
        if isinstance(answers, EndpointUse):
            return answers.fingerprint
        definition = self._definitions.get(served.engine)
        return definition.key(served, self._weights) if definition is not None else ""

    def pin(self, request: EvaluateRequest) -> None:
        """Replace the revisions of models by the commits that their engines have in their caches, and fill these in. Blocks on
        the disk. Raises InvalidRequestError."""
        unknown: list[FieldViolation] = []
        for field in SERVED_FIELDS:
            served = getattr(request, field)
            definition = self._definitions.get(served.engine)
            has_cache = definition is not None and not self._keeps_owners_apart  # else each owner's runs have one of their own
            commit = definition.commit(served) if definition is not None and has_cache else ""
            if served.revision and not commit:
                problem = f"engine {served.engine} has no such revision of {served.model} as a whole in its cache: leave it out"
                unknown.append(FieldViolation(f"request.{field}.revision", problem))
            elif commit:
                served.revision = commit
        if unknown:
            raise InvalidRequestError(violations=unknown)

    def source(self, served: ServedModel) -> str:
        """Return what answers for a model has loaded it from: a folder, or a name."""
        definition = self._definitions.get(served.engine)
        return definition.source(served) if definition is not None else served.model

    def problems(self) -> Mapping[str, str]:
        """Return, by the name of each engine that is configured, why it can't be started; empty if nothing is missing."""
        engines = {name: definition.problem() for name, definition in self._definitions.items()}
        return engines | {name: endpoint_problem(endpoint) for name, endpoint in self._declared_endpoints.items()}

    def log_mask(self, engine_id: str) -> Mask:
        """Return with what the log of an engine is masked. Blocks if a secret has not been read yet."""
        engine = self.engine(engine_id)
        return engine.mask() if engine is not None else NO_MASK

    # The server's start and stop.

    def restore(self, jobs: Iterable[JobInfo]) -> None:
        """Take up the engines of an earlier server, and which of its running jobs use them. Before any other call.

        Raises OSError.
        """
        if self._left_folder is not None:
            end_engines(self._left_folder, self._dependencies, self._account_of)
            GatewayKeeper(self._dependencies.executor, self._clock, self._left_folder / _GATEWAY_DIR).restore(frozenset())
        jobs = list(jobs)
        users: dict[str, set[str]] = {}
        needed: set[str] = set()
        for job in jobs:
            for engine_id in engine_ids(job):
                users.setdefault(engine_id, set()).add(job.job_id)
                if not is_giving_way(job):
                    needed.add(engine_id)
        for engine in restored_engines(self._folder, self._dependencies, self._definitions, self._account_of):
            engine.users = users.get(engine.engine_id, set())
            engine.is_retired = bool(engine.users) and engine.engine_id not in needed  # it gives way with them
            engine.idle_since = self._clock.monotonic()
            self._taken_ports.add(engine.port)
            self._engines.append(engine)
        for job in jobs:
            for used in [each for each in self._engines if job.job_id in each.users]:
                self._note_replicas(used, job)
        self.gateway.restore({engine.gateway_name for engine in self._engines}, self._endpoints.restore(jobs))

    def begin_restored(self) -> None:
        """Go on with the engines that `restore` has found. Raises OSError."""
        with self._lock:
            for engine in self._engines:
                engine.begin(is_adopted=True)

    def close(self) -> None:
        """Let go of all engines, which go on, and wait for their threads."""
        self._stopping.set()
        with self._lock:
            threads = [engine.thread for engine in self._engines if engine.thread is not None]
        for thread in threads:
            thread.join(_JOIN_SECONDS)  # one that asks an engine for its first answer may wait long, and loses nothing
        self._weights.close()
        self.gateway.close()

    def _engine_of(self, job: JobInfo, served: ServedModel) -> Engine | _Reserved:
        """Return the engine that a job was placed on, or has used before a restart. Raises RunFailedError. Called with the lock
        held."""
        name = identity(served, job.job_id)
        placed = (each for each in self._all() if job.job_id in each.users and each.identity == name)
        engine = next(placed, None) or self._find(name, job.owner)
        if isinstance(engine, Engine) and engine.is_ending:
            raise _failure(engine)
        if engine is not None:
            return engine
        if (breaker := self._open_breaker(name, job.owner)) is not None:
            seconds = max(1, round(breaker.until - self._clock.monotonic()))
            raise _copy(breaker.error, f"; it is not started again for another {seconds} s")
        raise RunFailedError(LOST, "the engine that the job was to use has ended before the job began")

    def _is_out_of_date(self, engine: Engine, job: JobInfo, fingerprint: str) -> bool:
        """Return whether a job that comes new to an engine might get answers of another model than it names."""
        has_asked = engine.engine_id in engine_ids(job)
        is_own = engine.first_job_id == job.job_id
        return not has_asked and not is_own and (not fingerprint or engine.fingerprint != fingerprint)

    def _start(
        self,
        reserved: _Reserved,
        definition: EngineDefinition,
        served: ServedModel,
        fingerprint: str,
        account: RunAccount | None,
        *,
        beside: Engine | None = None,
        number: int = 1,
    ) -> Engine:
        """Start a reserved engine. Raises OSError. Called with the lock held."""
        engine = Engine(
            self._dependencies,
            reserved.engine_id,
            reserved.identity,
            self._folder / reserved.engine_id,
            reserved.resources,
            definition,
            ServedModel(),
            account,
            reserved.owner,
            fingerprint,
            first_job_id=reserved.first_job_id,
            users=reserved.users,
            beside=beside,
            number=number,
        )
        engine.served.CopyFrom(served)
        engine.started_at.CopyFrom(self._clock.now())
        engine.state_since.CopyFrom(engine.started_at)
        make_private_folder(engine.folder)
        engine.begin()
        self._reserved = [each for each in self._reserved if each is not reserved]
        self._engines.append(engine)
        return engine

    def _find(self, identity_: str, owner: str) -> Engine | _Reserved | None:
        """Return the engine that is up for jobs of an identity, or the place of one. Called with the lock held."""
        for_whom = self._for_whom(owner)
        there = (each for each in self._all() if each.identity == identity_ and each.owner == for_whom)
        return next((each for each in there if isinstance(each, _Reserved) or each.is_up), None)

    def _all(self) -> list[Engine | _Reserved]:
        return [*self._reserved, *self._engines]

    def _named(self, engine_id: str) -> Engine | None:
        return next((each for each in self._engines if each.engine_id == engine_id), None)

    def _open_breaker(self, identity_: str, owner: str) -> Breaker | None:
        return self._breakers.open(identity_, self._for_whom(owner))

    def _tell_change(self) -> None:
        """Note what has ended, and wake all who wait. Called without the lock."""
        with self._lock:
            self._breakers.follow(self._engines)
            forgotten = self._forget_ended()
        for engine in forgotten:
            with suppress(OSError):
                remove_tree(engine.folder)
        with self._changed:
            self._changed.notify_all()
        self.on_change()

    def _forget_ended(self) -> list[Engine]:
        """Forget all but the last engines that have ended. Return those."""
        ended = [each for each in self._engines if each.state == pb.ENGINE_STATE_ENDED]
        forgotten = ended[:-_KEPT_ENDED]
        self._engines = [each for each in self._engines if each not in forgotten]
        return forgotten


def _holds(engine: Engine) -> bool:
    return engine.state != pb.ENGINE_STATE_ENDED


def _failure(engine: Engine) -> RunFailedError:
    """Return why a job that waits for an engine can't use it."""
    if engine.error is not None:
        return _copy(engine.error)
    return RunFailedError(LOST, f"the engine has ended: {engine.stop_reason or 'it was not needed any more'}")


def _copy(error: RunFailedError, more: str = "") -> RunFailedError:
    """Return the same for another job, with the end of the engine's log. `more` is added to its message."""
    copy = RunFailedError(error.job_error.reason, error.message + more)
    copy.job_error.MergeFrom(error.job_error)
    copy.job_error.message += more
    return copy


def _message(engine: Engine) -> pb.Engine:
    message = pb.Engine(
        engine_id=engine.engine_id,
        served_model=engine.served,
        state=engine.state,
        state_since=engine.state_since,
        started_at=engine.started_at,
        gpus=engine.resources.devices,
        node=engine.resources.node,
        job_count=len(engine.users),
        restart_count=engine.restart_count,
        error=shorten(engine.error.message) if engine.error is not None else "",
        owner=engine.owner,
        warnings=engine.warnings,
        replica_of=engine.beside.engine_id if engine.beside is not None else "",
    )
    if engine.start_seconds is not None:
        message.start_duration.FromNanoseconds(int(engine.start_seconds * 1e9))
    return message
