"""Real servers, in this process or in their own, and shorthands for calling them."""

import json
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from processes_of_tests import kill_all, kill_runs_with, shims_of_runs
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.clock import Clock, SystemClock
from evalrpc.config import Settings, load_settings
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.testing.server import ServerThread
from evalrpc.v1 import evaluation_service_pb2 as calls
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.jobs_pb2 import SubmitJobRequest

QUEUED, RUNNING = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED
TERMINAL = (COMPLETED, FAILED, CANCELLED)
SNAPSHOT, STATUS = pb.JOB_EVENT_TYPE_SNAPSHOT, pb.JOB_EVENT_TYPE_STATUS
PROGRESS, BOOKMARK = pb.JOB_EVENT_TYPE_PROGRESS, pb.JOB_EVENT_TYPE_BOOKMARK
UPDATED, DELETED = pb.JOB_EVENT_TYPE_UPDATED, pb.JOB_EVENT_TYPE_DELETED

NOWHERE = "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"
PROGRAM = Path(__file__).with_name("harness_program.py")


def copy_toy(folder: Path) -> Path:
    """Copy the toy harness to a folder that every account can list, as imports do, and return its program."""
    copies = folder / "program"
    copies.mkdir()
    copies.chmod(0o755)
    shutil.copy(PROGRAM.with_name("toy_harness.py"), copies)
    return Path(shutil.copy(PROGRAM, copies))


class Site:
    """A data folder, a config file with the toy harness, and the files that the toy harness leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"TOY_MARK={uuid.uuid4()}"
        self.toy_dir = folder / "toy"
        (self.toy_dir / "release").mkdir(parents=True)
        name, _, value = self.mark.partition("=")
        command = [sys.executable, "-S", str(PROGRAM), "{model}", "{output_dir}", "{job_id}", "{tasks}", "{request_json}"]
        self.config = folder / "evalrpc.toml"
        self.config.write_text(
            'data_dir = "data"\nlisten = "127.0.0.1:0"\ngpus = "2"\ngrace_seconds = 0.3\nstop_seconds = 5.0\ncgroups = "off"\n'
            f'[harnesses.toy]\nkind = "command"\ncommand = {json.dumps(command)}\n'
            f"env = {{ TOY_DIR = {json.dumps(str(self.toy_dir))}, {name} = {json.dumps(value)} }}\n"
        )

    def set_up(self, **settings: Any) -> None:
        """Change settings in the config file."""
        kept = [line for line in self.config.read_text().splitlines() if line.partition(" =")[0] not in settings]
        changed = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        self.config.write_text("\n".join([*changed, *kept]) + "\n")

    def settings(self, **flags: Any) -> Settings:
        return load_settings(flags, {}, self.config)

    def release(self, job_id: str = "all") -> None:
        (self.toy_dir / "release" / job_id).touch()

    def starts(self, job_id: str) -> list[str]:
        """Return the attempt that each start of the job's program belonged to."""
        path = self.toy_dir / "starts" / job_id
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def log_of(self, job_id: str) -> str:
        path = self.folder / "data" / "jobs" / job_id / "attempt-1" / "log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, job_id: str, text: str = "ready", times: int = 1) -> None:
        eventually(lambda: self.log_of(job_id).count(text) >= times, f"for {text!r} in the log of {job_id}")

    def kill_runs(self) -> None:
        """Kill all runs, the shims first, so that nobody records how they ended."""
        kill_all(lambda: shims_of_runs(self.folder / "data"))
        kill_runs_with(self.mark)

    def kill_run(self, job_id: str) -> None:
        """Do so with the run of one job."""
        kill_all(lambda: shims_of_runs(self.folder / "data", job_id))
        kill_all(lambda: processes_of_job(job_id))


class Api:
    """The calls of one server, signed in with a token if there is one, over a channel with these further options and
    credentials; without credentials it is insecure."""

    def __init__(
        self, address: str, *options: tuple[str, Any], token: str = "", credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self.address = address
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        # Every answer fits into gRPC's default.
        options = (("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0), *options)
        self.channel = (
            grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
        )
        self.stub = EvaluationServiceStub(self.channel)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return an RPC by name; it takes the fields of its message, or the message itself."""
        method = calls.DESCRIPTOR.services_by_name["EvaluationService"].methods_by_name.get(name)
        if method is None:
            raise AttributeError(name)
        message_class = GetMessageClass(method.input_type)

        def call(message: Message | None = None, /, **fields: Any) -> Any:
            return getattr(self.stub, name)(message or message_class(**fields), timeout=SECONDS, metadata=self.metadata)

        return call

    def submit(self, model: str = "good", **fields: Any) -> pb.JobInfo:
        return self.SubmitJob(submission(model, **fields))

    def get(self, job_id: str) -> pb.JobInfo:
        return self.GetJob(job_id=job_id)

    def wait_for(self, job_id: str, *statuses: int) -> pb.JobInfo:
        """Wait until the job is in one of the statuses."""

        def there() -> pb.JobInfo | None:
            job = self.get(job_id)
            return job if job.status in statuses else None

        job = eventually(there, f"for {job_id} to be in {statuses}")
        assert job is not None
        return job

    def run(self, model: str = "good", **fields: Any) -> pb.JobInfo:
        """Submit a job and wait for its end."""
        return self.wait_for(self.submit(model, **fields).job_id, *TERMINAL)

    def watch(self, job_id: str, **fields: Any) -> Iterator[pb.JobEvent]:
        return self.WatchJob(job_id=job_id, **fields)

    def head(self) -> int:
        return self.GetServerInfo().head_revision

    def close(self) -> None:
        self.channel.close()


def submission(model: str = "good", **fields: Any) -> SubmitJobRequest:
    """Return a valid submission of a job without GPUs; `request` changes the EvaluateRequest."""
    request = {"harness": "toy", "model": model, "tasks": ["t"], "num_gpus": 0} | fields.pop("request", {})
    return SubmitJobRequest(request=pb.EvaluateRequest(**request), **fields)


class MovableClock(SystemClock):
    """The machine's clock, which can be moved ahead so that tests need not wait."""

    def __init__(self) -> None:
        self._ahead_seconds = 0

    def move_ahead(self, seconds: int) -> None:
        self._ahead_seconds += seconds

    def now(self) -> Timestamp:
        now = super().now()
        now.seconds += self._ahead_seconds
        return now

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_seconds


class ServerHere(ServerThread):
    """A server in this process, on an event loop in its own thread."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        super().__init__(settings, clock)
        self.api = Api(self.address)

    def start_no_more(self) -> None:
        """Keep it from starting jobs that are still queued."""
        self.server._scheduler._draining = True

    @property
    def idle(self) -> bool:
        """Whether nothing runs, or it was stopped already."""
        return not self.is_alive or not self.server._scheduler._placed

    def stop(self) -> None:
        self.api.close()
        super().stop()


class ServerThere:
    """A server in its own process."""

    def __init__(self, site: Site, *flags: str) -> None:
        self.log_path = site.folder / "server.log"
        program = "from evalrpc.cli import main; main()"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                (sys.executable, "-c", program, "serve", "--config", str(site.config), *flags),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("evalrpc listening on "):
            self.kill()
            raise AssertionError(f"the server did not start: {line}{self.log_path.read_text()}")
        self.api = Api(line.split()[-1])

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self.process.kill()
        self._end()

    def terminate(self) -> int:
        """Stop it gracefully."""
        self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        code = self.process.wait(SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()
        if hasattr(self, "api"):
            self.api.close()
        return code


Launch = Callable[..., ServerThere]
"""Starts a server process on the site of a test."""


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """Return the google.rpc.Status that came with an error."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status


def detail(error: grpc.RpcError, kind: Any) -> Any:
    """Return the detail of this kind, which must be there exactly once."""
    found = [any_ for any_ in status_of(error).details if any_.Is(kind.DESCRIPTOR)]
    assert len(found) == 1, f"{kind.DESCRIPTOR.name} is there {len(found)} times"
    message = kind()
    found[0].Unpack(message)
    return message


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason in the ErrorInfo that every error carries."""
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info.domain == "evalrpc"
    return info.reason


def fields_of(error: grpc.RpcError) -> list[str]:
    """Return the bad fields that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "INVALID_REQUEST"
    violations = detail(error, error_details_pb2.BadRequest).field_violations
    assert all(violation.description for violation in violations)
    return [violation.field for violation in violations]


def nothing_left_of(job_id: str) -> bool:
    return not processes_of_job(job_id)
