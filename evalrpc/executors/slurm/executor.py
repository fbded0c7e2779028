"""Hand runs over to a Slurm cluster. Nodes and the server share the disk with the data directory, under the same paths.

A cluster is one node to the scheduler, with as many devices as the operator lets this server use there at once: which GPU a run
gets is Slurm's choice. In its folder a run leaves what a local one does (`local/traces.py`), since its batch script is the same
shim; besides, SUBMITTED_FILE says that it may have been submitted, and with which devices.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.config.executors import ExecutorSettings
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import NO_WARM_RUNS, CommandOutput, Device, Node, Resources, RunKey, WarmState
from evalrpc.executors.local import shim
from evalrpc.executors.local.orders import order_of
from evalrpc.executors.local.traces import make_room, read_exits, traces_dir
from evalrpc.executors.slurm.batch import CLAIM_FILE, ORDER_FILE
from evalrpc.executors.slurm.cluster import Cluster, Submission
from evalrpc.executors.slurm.commands import SlurmCommands
from evalrpc.executors.slurm.run import SlurmRun
from evalrpc.executors.slurm.script import batch_script
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_regular_file
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.harnesses.base import Command

SUBMITTED_FILE: Final = "slurm.json"
PREFIX: Final = "evalrpc-"
_MAX_FILE_BYTES: Final = 1 << 20


class _Left(NamedTuple):
    key: RunKey
    devices: tuple[str, ...]
    reason: str


class SlurmExecutor:
    """The executor of one `[executors.NAME]` table. `environment` is what runs inherit, `own_environment` the server's, by
    which its commands find the cluster. May be used from several threads."""

    def __init__(
        self,
        settings: ExecutorSettings,
        environment: Mapping[str, str],
        clock: Clock,
        own_environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._cluster = Cluster(SlurmCommands(own_environment, settings.command_seconds), clock, settings.poll_seconds)
        self._lock = threading.Lock()  # held while quarantines change
        self._left: list[_Left] = []
        self._nodes = self._build_nodes()
        self._closing = threading.Event()

    def prepare(self) -> None:
        """Start the thread that speaks with Slurm."""
        self._cluster.start()

    def nodes(self) -> Sequence[Node]:
        """Return the cluster as one node: the same object until something changes."""
        return self._nodes

    def needs_recheck(self) -> bool:
        """Tell whether anything is quarantined."""
        return bool(self._left)

    def recheck(self) -> None:
        """Kill what is left of quarantined runs, and let their devices be used once nothing is."""
        for left in list(self._left):
            if (run := self._run_of(left.key)) is None or _is_ended(run):
                with self._lock:
                    self._left = [each for each in self._left if each is not left]
                    self._nodes = self._build_nodes()

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Make the folder of a run's traces, with space reserved for them. Raises OSError."""
        make_room(traces_dir(key.attempt_dir), step_count)

    def start(self, key: RunKey, command: Command, resources: Resources) -> SlurmRun:
        """Have a run submitted. While Slurm does not answer it waits for that. Raises RunFailedError with reason START_FAILED,
        OSError; what only Slurm finds wrong is raised by `exit_status`."""
        self._cluster.start()
        folder = traces_dir(key.attempt_dir)
        order = order_of(key, command, resources, self._environment, ())  # which GPUs it sees, only the node knows
        try:
            make_private_folder(folder)
            if (failure := shim.write_files(order)) is not None:
                raise RunFailedError("START_FAILED", f"the run could not be started: {failure.removeprefix('error ')}")
            _write(folder / ORDER_FILE, {**order, "files": {}, "has_devices": bool(resources.devices)})
            options = self._options(key, order["cwd"], resources)
            _write(folder / SUBMITTED_FILE, {"devices": resources.devices, "options": options})
        except OSError as error:
            require_no_shortage(error)
            raise RunFailedError("START_FAILED", f"the run could not be started: {error}") from error
        submission = Submission(_job_name(key), options, self._script(key))
        run = self._run(key, resources.devices, submission)
        self._cluster.submit(submission)
        return run

    def find(self, key: RunKey) -> SlurmRun | None:
        """Find a run that an earlier server has submitted, or was about to. None: Slurm has never taken it. Raises OSError."""
        facts = _read(traces_dir(key.attempt_dir) / SUBMITTED_FILE)
        if facts is None:
            return None
        submission = self._cluster.submitted_earlier(_job_name(key), facts.get("options", ()), self._script(key))
        run = self._run(key, tuple(facts["devices"]), submission)
        if read_exits(traces_dir(key.attempt_dir)).none_left or (traces_dir(key.attempt_dir) / CLAIM_FILE).exists():
            return run
        try:
            if _job_name(key) in self._cluster.ask().jobs:
                return run
        except OSError:
            run.close()
            raise
        run.close()
        return None

    def jobs_with_processes(self) -> set[str]:
        """Return the ids of the jobs that have runs in Slurm which have not ended. Raises OSError."""
        return {name.removeprefix(PREFIX).rpartition("-")[0] for name in self._cluster.living() if name.startswith(PREFIX)}

    def quarantine(self, key: RunKey, devices: Sequence[str], reason: str) -> None:
        """Keep other runs from as many devices until nothing is left of this one; `recheck` kills what is left."""
        with self._lock:
            self._left = [*self._left, _Left(key, tuple(devices), reason)]
            self._nodes = self._build_nodes()

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:  # noqa: ARG002 - none
        """Not offered: short commands run on the server's own machine. Raises OSError."""
        raise OSError(f"executor {self._settings.name} runs no commands of the server")

    def warm_state(self, harness_name: str) -> WarmState:  # noqa: ARG002 - the same of all
        """No run on a cluster is warm."""
        return NO_WARM_RUNS

    def begin_close(self) -> None:
        """Make each `end` that waits for Slurm return."""
        self._closing.set()

    def close(self) -> None:
        """Stop the thread; runs go on."""
        self._closing.set()
        self._cluster.close()

    def _build_nodes(self) -> Sequence[Node]:
        name, reasons = self._settings.name, {id_: left.reason for left in self._left for id_ in left.devices}
        ids = (f"{name}/{number}" for number in range(self._settings.max_gpus))
        devices = tuple(Device(id_, "", reasons.get(id_, "")) for id_ in ids)
        return (Node(name, devices, executor=name, max_runs=self._settings.max_submitted),)

    def _run(self, key: RunKey, devices: tuple[str, ...], submission: Submission) -> SlurmRun:
        settings = self._settings
        return SlurmRun(settings.name, key, devices, self._cluster, submission, self._closing.is_set, settings.start_seconds)

    def _run_of(self, key: RunKey) -> SlurmRun | None:
        try:
            return self.find(key)
        except OSError:
            return self._run(key, (), self._cluster.submitted_earlier(_job_name(key)))

    def _options(self, key: RunKey, cwd: str, resources: Resources) -> Sequence[str]:
        settings = self._settings
        options = {
            "job-name": _job_name(key),
            "dependency": "singleton",
            "comment": f"evalrpc:{key.job_id}/{key.attempt}",
            "output": str(traces_dir(key.attempt_dir) / "slurm.log"),
            "open-mode": "append",
            "export": "NIL",
            "chdir": cwd,
            "nodes": "1",
            "ntasks": "1",
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "time": str(ceil(settings.time_limit_seconds / 60)) if settings.time_limit_seconds else "",
            "gpus": str(len(resources.devices)) if resources.devices else "",
            "mem": f"{ceil(resources.limits.memory_bytes / 2**20)}M" if resources.limits.memory_bytes else "",
        }
        return ["--no-requeue", *(f"--{name}={value}" for name, value in options.items() if value), *settings.args]

    def _script(self, key: RunKey) -> str:
        return batch_script(self._settings.python, traces_dir(key.attempt_dir).absolute())


def _is_ended(run: SlurmRun) -> bool:
    with closing(run):
        try:
            return run.kill()
        except OSError:
            return False


def _job_name(key: RunKey) -> str:
    return f"{PREFIX}{key.job_id}-{key.attempt}"


def _write(path: Path, value: object) -> None:
    """Write a file at once, since a submission of an earlier server may be about to read it. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with create_private_file(new) as file:
        file.write(json.dumps(value).encode())
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def _read(path: Path) -> dict[str, list[str]] | None:
    """Return what `_write` wrote; None if there is nothing, or something else. Raises OSError."""
    try:
        with open_regular_file(path) as descriptor:
            value = None if descriptor is None else json.loads(os.pread(descriptor, _MAX_FILE_BYTES, 0))
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        require_no_shortage(error)
        return None
    is_sound = isinstance(value, dict) and all(isinstance(value.get(name, []), list) for name in ("devices", "options"))
    return value if is_sound else None
