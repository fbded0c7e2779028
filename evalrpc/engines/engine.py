"""One engine: a process that loads a model, answers for it, and is started again if it ends while jobs use it.

    data_dir/engines/ENGINE_ID/engine       what it serves, and on what, for the next server
    data_dir/engines/ENGINE_ID/start-N/     log and traces of the Nth process

Where several servers share the folder, these are in `data_dir/engines/hosts/HOST/` of their machine.

Each has a thread, which alone starts and ends processes. What others may see of it changes under the lock of the pool, as the
table `_NEXT` allows, and `EngineDependencies.on_change` is called after it, without the lock.
"""

import errno
import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.engines.answering import AnsweringProcesses
from evalrpc.engines.definition import HOST, EngineDefinition
from evalrpc.engines.engine_log import bound_log
from evalrpc.engines.gateway.contract import Replica
from evalrpc.engines.gateway_keeper import GatewayKeeper
from evalrpc.engines.holdings import EngineHolding
from evalrpc.engines.ports import hold_port
from evalrpc.engines.probes import probe
from evalrpc.engines.weights import Weights
from evalrpc.errors import GatewayError, RunFailedError
from evalrpc.executors.base import Executor, Resources, RunAccount, RunHandle, RunKey, RunLimits
from evalrpc.files.opening import open_in, read_note
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.harnesses.failures import failure_or_last_line, shorten
from evalrpc.jobs.paths import log_path
from evalrpc.jobs.served_models import is_folder, is_known
from evalrpc.jobs.transitions import ENGINE_LOST_REASON
from evalrpc.secrets.logs import overwrite_values
from evalrpc.secrets.masking import Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.v1.engines_pb2 import (
    ENGINE_STATE_ENDED,
    ENGINE_STATE_READY,
    ENGINE_STATE_STARTING,
    ENGINE_STATE_STOPPING,
    EngineState,
)
from evalrpc.v1.jobs_pb2 import ServedModel

START_FAILED: Final = "ENGINE_START_FAILED"
LOST: Final = ENGINE_LOST_REASON
INCOMPATIBLE: Final = "ENGINE_INCOMPATIBLE"

_NEXT: Final = {
    ENGINE_STATE_STARTING: {ENGINE_STATE_READY, ENGINE_STATE_STOPPING},
    ENGINE_STATE_READY: {ENGINE_STATE_STARTING, ENGINE_STATE_STOPPING},
    ENGINE_STATE_STOPPING: {ENGINE_STATE_ENDED},
    ENGINE_STATE_ENDED: set(),
}
"""Which state may follow which."""

_MAX_RESTARTS: Final = 3
_MAX_PORTS_LOST: Final = 3
_LOOK_SECONDS: Final = 0.25
_PROBE_SECONDS: Final = 5.0
_STATE_FILE: Final = "engine"
_MAX_STATE_BYTES: Final = 2 * 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024
_PORT_IN_USE: Final = ("address already in use", "eaddrinuse")
"""What programs print, in whatever case, where they can't have the port."""

_log = logging.getLogger(__name__)


class _PortLostError(Exception):
    """Another program has the port of an engine."""


@dataclass(frozen=True)
class EngineDependencies:
    """What all engines work with."""

    executor: Executor
    gateway: GatewayKeeper
    clock: Clock
    grace_seconds: float
    secrets: Secrets
    lock: threading.Lock
    """Guards the state of all engines."""
    taken_ports: set[int]
    """The ports of all engines, guarded by the lock: one that is not bound yet is not free for another."""
    limits_of: Callable[[str], RunLimits]
    """What an engine of this name may take."""
    max_log_bytes: int
    """How large the log of one may become. 0: as large as it likes."""
    weights: Weights
    """What is in the folders of models."""
    on_change: Callable[[], None]
    """Called without the lock, after anything that others may wait for."""
    stopping: threading.Event
    keeps_idle: Callable[[], bool]
    """Returns whether jobs may come to an engine that has none: as long as no other server places them."""
    wait_to_start: Callable[[threading.Event], bool]
    """Waits until this server may start processes. Returns False if it stops first."""


@dataclass
class Engine:
    """An engine. Everything but what never changes is guarded by the lock of the pool."""

    dependencies: EngineDependencies
    engine_id: str
    identity: str
    """That of the jobs that it may serve: see `jobs.served_models.identity`."""
    folder: Path
    resources: Resources
    definition: EngineDefinition
    served: ServedModel
    account: RunAccount | None = None
    owner: str = ""
    """For whom alone it answers; empty: for everybody."""
    fingerprint: str = ""
    """What is equal as long as its answers are; empty: that can't be told."""
    state: "EngineState.ValueType" = ENGINE_STATE_STARTING
    state_since: Timestamp = field(default_factory=Timestamp)
    started_at: Timestamp = field(default_factory=Timestamp)
    start_seconds: float | None = None
    restart_count: int = 0
    start_count: int = 0
    port: int = 0
    first_job_id: str = ""
    """The job that it was started for."""
    users: set[str] = field(default_factory=set)
    """The jobs that use it, by id."""
    max_replicas: dict[str, int] = field(default_factory=dict)
    """By the id of each of these jobs, how many processes may answer it."""
    beside: "Engine | None" = None
    """The engine that it is a replica of; None: it is none."""
    number: int = 1
    """Of a replica, from 2 on."""
    idle_since: float = 0.0
    """By the clock's monotonic time, while it has no users."""
    is_retired: bool = False
    """Whether no further job may use it, since its model has changed, or another job waits for its devices."""
    warnings: tuple[str, ...] = ()
    """What was found when it was asked first, and does not keep jobs from using it."""
    stop_reason: str | None = None
    """Why it is to end; None: it is not. Empty: since nobody needs it."""
    error: RunFailedError | None = None
    """Why it has ended, unless that was asked for."""
    is_judged: bool = False
    """Whether the pool has taken note of how it has ended."""
    thread: threading.Thread | None = None
    answering: AnsweringProcesses = field(init=False)
    """What the gateway knows of it and its replicas."""
    _handle: RunHandle | None = field(default=None, init=False)
    """Its process. Used by the thread alone, as what follows."""
    _held_port: socket.socket | None = field(default=None, init=False)
    """Keeps its port for it until it listens there."""
    _ports_lost: int = field(default=0, init=False)
    """How often in a row it could not have its port."""

    def __post_init__(self) -> None:
        beside = self.beside
        self.answering = beside.answering if beside else AnsweringProcesses(self.engine_id, self.dependencies.gateway)

    @property
    def is_up(self) -> bool:
        """Whether further jobs may use it, at once or soon."""
        return not self.is_ending and not self.is_retired

    @property
    def is_ending(self) -> bool:
        """Whether it answers no more, or not for long."""
        return self.stop_reason is not None or self.state in (ENGINE_STATE_STOPPING, ENGINE_STATE_ENDED)

    @property
    def is_idle(self) -> bool:
        """Whether no job is lost by its end, and it could end at once."""
        return self.is_up and (self.beside is not None or not self.users) and self.thread is not None

    @property
    def gateway_name(self) -> str:
        """What the gateway knows it by."""
        return self.answering.name

    @property
    def log_path(self) -> Path:
        """The log of its latest process."""
        return log_path(self._start_dir)

    @property
    def _start_dir(self) -> Path:
        return self.folder / f"start-{self.start_count}"

    @property
    def _key(self) -> RunKey:
        return RunKey(self.engine_id, self.start_count, self._start_dir, self.resources.devices, self.account)

    def holding(self, now: Timestamp) -> EngineHolding:
        """Return what others have to know of it. Called with the lock held."""
        is_loading = self.state == ENGINE_STATE_STARTING
        loading_ns = now.ToNanoseconds() - self.state_since.ToNanoseconds() if is_loading and self.thread is not None else 0
        return EngineHolding(
            self.engine_id,
            self.identity,
            self.served.model,
            self.owner,
            self.first_job_id,
            self.resources.node,
            self.resources.devices,
            frozenset(self.users),
            is_loading,
            self.start_seconds is not None,
            not self.is_up,
            self.start_seconds or 0.0,
            max(0, loading_ns) / 1e9,
            self.beside.engine_id if self.beside is not None else "",
        )

    def begin(self, *, is_adopted: bool = False) -> None:
        """Start the thread. Called with the lock held. `is_adopted`: a process of an earlier server may be there.

        Raises OSError where there can be no thread at present.
        """
        thread = threading.Thread(target=self._run, args=(is_adopted,), name=self.engine_id, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no thread can be started") from error
        self.thread = thread

    def stop(self, reason: str) -> None:
        """Have it end. Called with the lock held; may be called again."""
        if self.stop_reason is None:
            self.stop_reason = reason

    # On its thread.

    def _run(self, is_adopted: bool) -> None:
        try:
            self._serve(is_adopted)
        except RunFailedError as error:
            self._note_failure(error)
        except GatewayError as error:
            self._note_failure(RunFailedError(LOST, error.message))
        except OSError as error:  # the server lacks something
            self._note_failure(RunFailedError(LOST, f"the engine can't be supervised: {error.strerror or error}"))
        except Exception as error:  # noqa: BLE001 - the last resort: its devices must not hang on it, nor the jobs that wait
            _log.exception("a bug ends an engine", extra={"engine_id": self.engine_id})
            self._note_failure(RunFailedError(START_FAILED, f"{self.engine_id} can't be supervised: {error!r}"))
        if not self.dependencies.stopping.is_set():
            self._end()
        else:  # it goes on, for the next server
            self._let_go_of_port()
            if self._handle is not None:
                self._handle.close()

    def _serve(self, is_adopted: bool) -> None:
        """Start it, and again where that helps, until it is to end. Raises RunFailedError, GatewayUnavailableError."""
        if is_adopted:
            self._handle = self.dependencies.executor.find(self._key)
            if self._handle is not None and self._handle.wait(0) and not self._is_needed():
                return
        while not self._is_over():
            handle = self._handle
            is_new = handle is None or handle.wait(0)
            if handle is None or is_new:
                self._end_process()
                self._require_same_model()
                if not self.dependencies.wait_to_start(self.dependencies.stopping):
                    return
                self._handle = handle = self._start()
            try:
                if not self._wait_until_ready(handle):
                    return
            except _PortLostError as error:
                self._note_port_lost(error)
                continue
            except RunFailedError as error:
                if error.job_error.reason != LOST or not self._may_restart():
                    raise
                self._note_restart()
                continue
            if is_new:
                self._require_same_model()
            self._note_ready()
            if not self._watch(handle):
                return
            self._note_restart()

    def _require_same_model(self) -> None:
        """Raise RunFailedError if the model has changed since the first job came, which would get answers of two models."""
        if self.fingerprint and self.definition.fingerprint(self.served) != self.fingerprint:
            raise RunFailedError(LOST, f"the model {self.served.model} has changed while an engine loaded it")

    def _start(self) -> RunHandle:
        secrets = self.dependencies.secrets.values(self.definition.settings.secrets)
        with self.dependencies.lock:
            self.start_count += 1
            self.dependencies.taken_ports.discard(self.port)
            held = hold_port(self.dependencies.taken_ports)
            self.port = held.getsockname()[1]
            self.dependencies.taken_ports.add(self.port)
        if self._ports_lost:  # perhaps since the program binds no port that is bound, even where nobody listens
            held.close()
        self._held_port = held
        command = replace(self.definition.command(self.served, self.port), secrets=secrets)
        executor, key = self.dependencies.executor, self._key
        _log.info("starting engine %s for %s", self.definition.name, self.served.model, extra=self._place())
        try:
            make_private_folder(self._start_dir)
            self.remember()
            executor.make_room(key, 1)
            limits = self.dependencies.limits_of(self.definition.name)
            return executor.start(key, command, self.resources._replace(limits=limits))
        except OSError as error:
            raise RunFailedError(START_FAILED, f"the engine could not be started: {error.strerror or error}") from error
        except RunFailedError as error:
            raise RunFailedError(START_FAILED, f"the engine could not be started: {error.message}") from error

    def _wait_until_ready(self, handle: RunHandle) -> bool:
        """Wait until it answers. Return whether it does; it is to end otherwise. Raises RunFailedError, _PortLostError."""
        settings, clock = self.definition.settings, self.dependencies.clock
        deadline = clock.monotonic() + settings.start_timeout_seconds
        while not self._is_over():
            if handle.wait(_LOOK_SECONDS):
                self._require_port(handle, has_ended=True)
                self._fail_to_start(f"it ended before it answered: {self._last_words()}")
            if self._require_port(handle) and _answers(self.port, settings.ready):
                is_known = self.start_seconds is not None and self.state_since == self.started_at  # by an earlier server
                if not is_known:
                    self._probe(handle)
                self._ports_lost = 0
                self._let_go_of_port()
                return True
            if clock.monotonic() > deadline:
                waited = f"it did not answer {settings.ready} within {settings.start_timeout_seconds:.15g} seconds"
                self._fail_to_start(f"{waited}: {self._last_words()}")
        return False

    def _probe(self, handle: RunHandle) -> None:
        """Ask it what jobs will rely on. Raises RunFailedError."""
        found = probe(self.port, self.definition, self.served)
        if found.problem and handle.wait(0):
            self._fail_to_start(f"it ended at its first question: {self._last_words()}")
        if found.problem:
            raise RunFailedError(INCOMPATIBLE, f"engine {self.definition.name} ({self.engine_id}): {found.problem}")
        with self.dependencies.lock:
            self.warnings = found.warnings

    def _require_port(self, handle: RunHandle, *, has_ended: bool = False) -> bool:
        """Return whether it listens at its port. Raises _PortLostError where another program does, or made it end."""
        owns_port = handle.owns_port(self.port)
        if owns_port is False:
            raise _PortLostError(f"another program listens at its port {self.port}")
        if has_ended and any(words in line.lower() for line in self.log_tail() for words in _PORT_IN_USE):
            raise _PortLostError(f"it could not have its port {self.port}: {self._last_words()}")
        return bool(owns_port)

    def _note_port_lost(self, error: "_PortLostError") -> None:
        """End its process, so that the next one gets another port. Raises RunFailedError if that has not helped."""
        self._ports_lost += 1
        if self._ports_lost >= _MAX_PORTS_LOST:
            self._fail_to_start(str(error))
        _log.warning("engine %s is started again: %s", self.definition.name, error, extra=self._place())
        self._end_process()

    def _let_go_of_port(self) -> None:
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    def _fail_to_start(self, why: str) -> None:
        reason = START_FAILED if self.start_seconds is None else LOST  # one that has answered before may do so again
        raise RunFailedError(reason, shorten(f"engine {self.definition.name} ({self.engine_id}): {why}"))

    def _watch(self, handle: RunHandle) -> bool:
        """Wait until it ends by itself or is to end. Return whether it is to be started again."""
        while not self._is_over():
            if handle.wait(_LOOK_SECONDS):
                return self._is_needed()
        return False

    def _is_needed(self) -> bool:
        """Return whether jobs use it, which has ended by itself, and that has not happened too often."""
        words = self._last_words()
        if self._may_restart():
            return True
        with self.dependencies.lock:
            ends = f"ended {self.restart_count + 1} times, the last time with" if self.users else "ended by itself"
        self._note_failure(RunFailedError(LOST, shorten(f"the engine {ends}: {words}")))
        return False

    def _may_restart(self) -> bool:
        """Return whether jobs use it, and it was not started again too often. What has kept it from answering again, such as
        memory that was not free yet, may have passed."""
        with self.dependencies.lock:
            return bool(self.users) and self.restart_count < _MAX_RESTARTS

    def _is_over(self) -> bool:
        """Return whether it is to be followed no more: it is to end, or this server does."""
        dependencies = self.dependencies
        with suppress(OSError):  # it is looked at again
            bound_log(self.log_path, dependencies.max_log_bytes)
        with dependencies.lock:
            if self.stop_reason is None and self._has_done():
                self.stop_reason = ""
            return self.stop_reason is not None or dependencies.stopping.is_set()

    def _has_done(self) -> bool:
        """Return whether nobody needs it any more. Called with the lock held."""
        beside = self.beside
        if beside is not None and (self.is_retired or beside.is_ending):
            return True
        is_retired = self.is_retired or (beside is not None and beside.is_retired)
        return not self.users and (is_retired or self._has_rested())

    def _has_rested(self) -> bool:
        """Return whether it has been without jobs for as long as it may. Called with the lock held."""
        idle_seconds = self.definition.settings.idle_seconds
        if not idle_seconds or not is_known(self.served) or not self.dependencies.keeps_idle():  # nobody else will use it
            return True
        return self.state == ENGINE_STATE_READY and self.dependencies.clock.monotonic() - self.idle_since >= idle_seconds

    def _note_ready(self) -> None:
        replica = Replica(self._url, self.definition.settings.max_in_flight)
        self.answering.put(self.engine_id, replica, self._asked_name)
        with self.dependencies.lock:
            self._move(ENGINE_STATE_READY)
            if self.start_seconds is None:
                self.start_seconds = (self.state_since.ToNanoseconds() - self.started_at.ToNanoseconds()) / 1e9
            if not self.users:
                self.idle_since = self.dependencies.clock.monotonic()
        with suppress(OSError):  # then the next server takes it for one that has not answered yet
            self.remember()
        if is_folder(self.served) and self.beside is None:
            self.dependencies.weights.begin(Path(self.served.model))  # now, while it is in memory
        _log.info("engine %s answers for %s", self.definition.name, self.served.model, extra=self._place())
        self.dependencies.on_change()

    def _note_restart(self) -> None:
        with suppress(GatewayError):  # requests fail there, and are tried again
            self.answering.remove(self.engine_id, self._asked_name)
        with self.dependencies.lock:
            self.restart_count += 1
            if self.state != ENGINE_STATE_STARTING:
                self._move(ENGINE_STATE_STARTING)
        _log.warning("engine %s has ended while jobs use it, and is started again", self.definition.name, extra=self._place())
        self.dependencies.on_change()

    def _note_failure(self, error: RunFailedError) -> None:
        _log.warning("%s", error.message, extra=self._place())
        error.job_error.log_tail[:] = self.log_tail()
        with self.dependencies.lock:
            self.error = error
            self.stop_reason = self.stop_reason or ""

    def _end(self) -> None:
        """End what is left of it, and let its devices be used by others."""
        with self.dependencies.lock:
            self._move(ENGINE_STATE_STOPPING)
        self.dependencies.on_change()
        try:
            if self.beside is not None:  # first, so that it is asked nothing more
                self.answering.remove(self.engine_id, self._asked_name)
                self._let_answer(self.beside)
        except GatewayError as error:
            _log.warning("%s", error.message, extra=self._place())
        try:
            self._end_process()
            if self.beside is None:
                self.answering.end()
        except GatewayError as error:
            _log.warning("%s", error.message, extra=self._place())
        finally:
            with self.dependencies.lock:
                self.dependencies.taken_ports.discard(self.port)
                self._move(ENGINE_STATE_ENDED)
            with suppress(OSError):  # else the next server finds that nothing of it is there
                (self.folder / _STATE_FILE).unlink(missing_ok=True)
            _log.info("engine %s has ended", self.definition.name, extra=self._place())
            self.dependencies.on_change()

    def _let_answer(self, engine: "Engine") -> None:
        """Wait until a replica has answered what it was asked, for as long as a run that is to end may take. Raises
        GatewayError."""
        deadline = self.dependencies.clock.monotonic() + self.dependencies.grace_seconds
        while (handle := self._handle) is not None and not self._is_alone(engine) and self.answering.is_asked(self._url):
            seconds = min(_LOOK_SECONDS, deadline - self.dependencies.clock.monotonic())
            if seconds <= 0 or handle.wait(seconds):
                return

    def _is_alone(self, engine: "Engine") -> bool:
        """Return whether nobody waits for what a replica answers, or this server stops."""
        with self.dependencies.lock:
            return engine.is_ending or self.dependencies.stopping.is_set()

    def _end_process(self) -> None:
        """End its process, with all that it has started, if there is one."""
        self._let_go_of_port()
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with closing(handle):
            try:
                handle.end(self.dependencies.grace_seconds)
            except (RunFailedError, OSError) as error:
                problem = f"{self.engine_id}: {error}"
                self.dependencies.executor.quarantine(self._key, self.resources.devices, problem)
                _log.warning("%s", problem, extra=self._place())
                return
        if self.definition.settings.secrets:
            with suppress(OSError):  # it is still masked whenever it is read
                overwrite_values(self._start_dir, self.mask())

    @property
    def _url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    @property
    def _asked_name(self) -> str:
        return self.definition.asked_name(self.served)

    def _move(self, state: "EngineState.ValueType") -> None:
        assert state in _NEXT[self.state], f"{self.state} to {state}"  # noqa: S101 - a bug, which ends the engine
        self.state = state
        self.state_since = self.dependencies.clock.now()

    def _last_words(self) -> str:
        return failure_or_last_line(self.log_tail()) or "its log is empty"

    def mask(self) -> Mask:
        """Return with what its log is masked. Blocks if a secret has not been read yet, as after a restart."""
        return self.dependencies.secrets.mask(self.definition.settings.secrets)

    def log_tail(self) -> list[str]:
        """Return the last lines of the log of its latest process."""
        try:
            mask = self.mask()
            with open_in(self._start_dir, "log") as file:
                size = file.seek(0, 2)
                file.seek(begin := max(0, size - _TAIL_BYTES))
                data = b"" if mask.unreadable else mask.data(file.read(_TAIL_BYTES))
                lines = data.decode(errors="replace").splitlines()
                return lines[1:] if begin else lines  # the first one may begin within a secret
        except OSError:  # what it says is worth no more
            return []

    def _place(self) -> dict[str, object]:
        return {"engine_id": self.engine_id, "node": self.resources.node, "gpus": self.resources.devices}

    def remember(self) -> None:
        """Write down what the next server has to know. Raises OSError."""
        facts = {
            "identity": self.identity,
            "served_model": json_format.MessageToDict(self.served),
            "fingerprint": self.fingerprint,
            "owner": self.owner,
            "first_job_id": self.first_job_id,
            "node": self.resources.node,
            "devices": self.resources.devices,
            "start_count": self.start_count,
            "restart_count": self.restart_count,
            "port": self.port,
            "started_ns": self.started_at.ToNanoseconds(),
            "start_seconds": self.start_seconds,
            "warnings": self.warnings,
            "replica_of": self.beside.engine_id if self.beside is not None else "",
            "number": self.number,
        }
        with create_private_file(self.folder / f"{_STATE_FILE}.new") as file:
            file.write(json.dumps(facts).encode())
        (self.folder / f"{_STATE_FILE}.new").replace(self.folder / _STATE_FILE)


def remembered(folder: Path) -> dict[str, object] | None:
    """Return what an engine's folder says of one that has not ended; None where it says nothing.

    Raises OSError for a shortage.
    """
    note = read_note(folder, _STATE_FILE, _MAX_STATE_BYTES)
    try:
        facts = json.loads(note or b"")
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _answers(port: int, path: str) -> bool:
    """Return whether what listens at a port answers a path with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
