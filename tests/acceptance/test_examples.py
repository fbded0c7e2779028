"""The examples, built as their users build them, against the real server and against one that breaks its streams."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zipfile import ZipFile

import grpc
import pytest
from certificates import Authority
from fake_server import JOB_ID, FakeServer, FakeService, details_of, job_at
from server_process import ServerProcess

from evalrpc.client import EvalClient
from evalrpc.errors import JobNotFoundError, ServerStoppingError
from evalrpc.v1.jobs_pb2 import JobEvent, JobEventType, JobInfo, JobStatus, SubmitJobRequest, WatchJobRequest
from evalrpc.v1.results_pb2 import Metric, ModelResult

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OLDEST = {"protoc": (3, 15), "node": (20,)}
"""Which versions will do. Older ones of protoc refuse `optional`."""

HARNESS = '''
"""Shows progress, waits until it is let go, and leaves a result for every task, or fails for the model `broken`."""

import json, os, sys, time
from pathlib import Path

output_dir, model, tasks, gate = sys.argv[1:]
print("\\rEvaluating:  50%|#####     | 2/4 [00:00<00:00,  5.00it/s]", end="", file=sys.stderr, flush=True)
while not os.path.exists(gate):
    time.sleep(0.02)
print("\\rEvaluating: 100%|##########| 4/4 [00:00<00:00,  5.00it/s]", file=sys.stderr, flush=True)
if model == "broken":
    sys.exit("OSError: no such weights")
metrics = {"acc,none": 0.25, "acc_stderr,none": 0.0993, "exact_match,strict-match": 0.5}
folder = Path(output_dir, model)
folder.mkdir()
results = {task: {"alias": task, **metrics} for task in tasks.split(",")}
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": results}))
'''

METRICS = [
    "first acc,none 0.2500 0.0993",
    "first exact_match,strict-match 0.5000 -",
    "second acc,none 0.2500 0.0993",
    "second exact_match,strict-match 0.5000 -",
]


@dataclass(frozen=True)
class Language:
    """What an example needs on the machine, and how it is built; `build` returns the command that runs it."""

    build: Callable[[Path], Sequence[str]]
    tools: Sequence[str]
    paths: Sequence[str] = ()
    packages: Sequence[str] = ()
    """Of pkg-config."""

    def missing(self) -> str | None:
        """Say what keeps the example from being built here, if anything does."""
        for tool in self.tools:
            if not shutil.which(tool):
                return f"there is no {tool}"
        for path in self.paths:
            if not Path(path).exists():
                return f"there is no {path}"
        for package in self.packages:
            if subprocess.run(["pkg-config", "--exists", package], check=False).returncode:
                return f"pkg-config knows no {package}"
        for tool, oldest in OLDEST.items():
            if tool in self.tools and version_of(tool) < oldest:
                return f"{tool} is too old"
        return None


def version_of(tool: str) -> tuple[int, ...]:
    output = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", output))


def build_node(folder: Path) -> Sequence[str]:
    example = copied("node", folder)
    run_quietly("npm", "ci", "--no-audit", "--no-fund", cwd=example)
    return ("node", str(example / "evaluate.js"))


def build_typescript(folder: Path) -> Sequence[str]:
    example = copied("typescript", folder)
    run_quietly("npm", "ci", "--no-audit", "--no-fund", cwd=example)
    run_quietly("npm", "run", "build", cwd=example)
    return ("node", str(example / "build" / "evaluate.js"))


def build_rust(folder: Path) -> Sequence[str]:
    example = copied("rust", folder)
    fetch_or_skip("cargo", "fetch", "--config", "net.retry=0", cwd=example)
    run_quietly("cargo", "build", "--offline", "--target-dir", str(folder / "target"), cwd=example)
    return (str(folder / "target" / "debug" / "evaluate"),)


def build_csharp(folder: Path) -> Sequence[str]:
    example = copied("csharp", folder)
    fetch_or_skip("dotnet", "restore", cwd=example)
    run_quietly("dotnet", "build", "--no-restore", "--output", str(folder / "build"), cwd=example)
    return ("dotnet", str(folder / "build" / "evaluate.dll"))


def build_python(folder: Path) -> Sequence[str]:
    make("python", folder, f"PYTHON={sys.executable}")
    return (sys.executable, str(folder / "evaluate.py"))


def build_java(folder: Path) -> Sequence[str]:
    make("java", folder)
    return ("java", "-jar", str(folder / "evaluate.jar"))


def build_with_make(name: str) -> Callable[[Path], Sequence[str]]:
    def build(folder: Path) -> Sequence[str]:
        make(name, folder)
        return (str(folder / "evaluate"),)

    return build


def copied(name: str, folder: Path) -> Path:
    """Copy the example and what it reads, since its tools build beside the source."""
    ignored = shutil.ignore_patterns("node_modules", "build", "gen", "target", "bin", "obj", "Cargo.lock")
    shutil.copytree(EXAMPLES / name, folder / "examples" / name, ignore=ignored)
    shutil.copy(EXAMPLES / "error_details.proto", folder / "examples")
    shutil.copytree(ROOT / "protos", folder / "protos")
    return folder / "examples" / name


def make(name: str, folder: Path, *variables: str) -> None:
    run_quietly("make", "-C", str(EXAMPLES / name), f"BUILD={folder}", *variables)


def fetch_or_skip(*command: str, cwd: Path) -> None:
    """Fetch the packages of an example, from a registry that not every machine reaches."""
    done = subprocess.run(command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last_line = done.stdout.strip().rpartition("\n")[2]
        pytest.skip(f"`{' '.join(command[:2])}` gets no packages here: {last_line}")


def run_quietly(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


LANGUAGES = {
    "python": Language(build_python, ("make",)),
    "node": Language(build_node, ("node", "npm")),
    "typescript": Language(build_typescript, ("node", "npm", "protoc")),
    "go": Language(
        build_with_make("go"),
        ("make", "go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"),
        # The second is of the newer of two packages that Debian has for the same import path.
        ("/usr/share/gocode/src/google.golang.org/grpc", "/usr/share/gocode/src/github.com/golang/protobuf/proto/proto.go"),
    ),
    "java": Language(
        build_java,
        ("make", "java", "javac", "jar", "protoc", "grpc_java_plugin"),
        tuple(
            f"/usr/share/java/{name}.jar"
            for name in (
                "grpc-netty",
                "guava",
                "netty-codec-http2",
                "perfmark-api",
                "protobuf",
                "proto-google-common-protos",
                "geronimo-annotation-1.3-spec",
            )
        ),
    ),
    "cpp": Language(
        build_with_make("cpp"), ("make", "g++", "protoc", "grpc_cpp_plugin", "pkg-config"), packages=("grpc++", "protobuf")
    ),
    "rust": Language(build_rust, ("cargo", "protoc")),
    "csharp": Language(build_csharp, ("dotnet",)),
}


def built(name: str, folders: pytest.TempPathFactory) -> Sequence[str]:
    """Build the example of one language, once for all processes of tests, and return the command that runs it."""
    base = folders.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "examples"
    folder.mkdir(exist_ok=True)
    command = folder / f"{name}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not command.exists():
            command.write_text(json.dumps(LANGUAGES[name].build(Path(tempfile.mkdtemp("", name, folder)))))
    return cast("list[str]", json.loads(command.read_text()))


@pytest.fixture(scope="module", params=LANGUAGES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """Build the example of one language, and give the command that runs it."""
    language = LANGUAGES[request.param]
    if missing := language.missing():
        pytest.skip(f"the example for {request.param} can't be built here: {missing}; see examples/README.md")
    return built(request.param, tmp_path_factory)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that lets the harness go on to its end."""
    return tmp_path / "gate"


@pytest.fixture
def server(tmp_path: Path, gate: Path, serve: Callable[[str], ServerProcess]) -> ServerProcess:
    return serve(gated_harness(tmp_path, gate))


def gated_harness(folder: Path, gate: Path) -> str:
    """Write the harness into a folder, and return the settings of a server that has it."""
    program = folder / "harness.py"
    program.write_text(HARNESS)
    return f"""
        gpus = "0"
        [harnesses.gated]
        kind = "command"
        command = ["{sys.executable}", "{program}", "{{output_dir}}", "{{model}}", "{{tasks}}", "{gate}"]
    """


class Client:
    """A run of an example."""

    def __init__(self, command: Sequence[str], address: str, variables: Mapping[str, str]) -> None:
        environment = {**os.environ, "EVALRPC_ADDRESS": address, "no_proxy": "127.0.0.1", **variables}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def wait_for_status(self, status: str) -> list[str]:
        """Return the lines up to the one with this status."""
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line.rstrip("\n"))
            if line.split()[1:] == [status]:
                return lines
        raise AssertionError(f"{lines} without {status}; stderr: {self.finish()}")

    def wait_until_it_lost_the_server(self) -> None:
        assert self._process.stderr is not None
        assert any("trying again" in line for line in self._process.stderr)

    def finish(self) -> tuple[int, list[str], str]:
        """Return the exit code, the remaining lines of stdout, and the rest of stderr."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        lines = self._process.stdout.read().splitlines()
        return self._process.wait(), lines, self._process.stderr.read()

    def clean_up(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        with self._process:  # closes the pipes and waits
            pass


class UnsteadyService(FakeService):
    """Breaks its streams: as a proxy does, without a reason, and once as a server that stops; sends a heartbeat, a status that
    no client knows yet, and then the end."""

    def WatchJob(self, request: WatchJobRequest, context: grpc.ServicerContext) -> Iterator[JobEvent]:  # noqa: N802
        self._take(request, context)
        match len(self.received["WatchJob"]):
            case 1:
                yield JobEvent(type=JobEventType.JOB_EVENT_TYPE_BOOKMARK, revision=1)
                context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")
            case 2:
                yield status_event(job_at(JobStatus.JOB_STATUS_RUNNING, 2))
                context.set_trailing_metadata((("grpc-status-details-bin", details_of(STOPPING)),))
                context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING.message)
            case 3:
                yield status_event(job_at(99, 3))  # type: ignore[arg-type]
                context.abort(grpc.StatusCode.CANCELLED, "the proxy is restarted")
            case _:
                metric = Metric(task="t", metric="acc", value=0.0, standard_error=0.0)
                result = {"m": ModelResult(metrics=[metric])}
                yield status_event(job_at(JobStatus.JOB_STATUS_COMPLETED, 4, results=result))


STOPPING = ServerStoppingError("the server is stopping", retry_delay_seconds=0.2)


def status_event(job: JobInfo) -> JobEvent:
    is_last = job.status == JobStatus.JOB_STATUS_COMPLETED
    return JobEvent(type=JobEventType.JOB_EVENT_TYPE_STATUS, revision=job.revision, job=job, terminal=is_last)


@pytest.fixture
def unsteady() -> Iterator[FakeServer]:
    with FakeServer() as server:
        server.kill()
        server.service = UnsteadyService()
        server.start()
        yield server


AUTHORITY = Authority()


@pytest.fixture
def tls(request: pytest.FixtureRequest) -> None:
    """Skip a language that can't speak TLS here."""
    if request.node.callspec.params["example"] == "java":
        with ZipFile("/usr/share/java/netty-handler.jar") as netty:
            if not any("JdkAlpn" in name for name in netty.namelist()):
                pytest.skip("the Netty of this machine has no ALPN, so no TLS for gRPC; see examples/README.md")


@pytest.fixture
def signed_in() -> Iterator[FakeServer]:
    """A server with TLS, where each call needs a token, and which completes every job at once."""
    cert, key = AUTHORITY.issue()
    with FakeServer(grpc.ssl_server_credentials([(key, cert)])) as server:
        server.service.token = "evr_1_secret"
        server.service.on_submit = lambda: server.service.change(job_at(JobStatus.JOB_STATUS_COMPLETED, 2))
        yield server


@pytest.fixture
def run(example: Sequence[str]) -> Iterator[Callable[..., Client]]:
    """Start the example with an address, flags and variables; it is ended with the test."""
    with ExitStack() as stack:

        def start(address: str, *flags: str, **variables: str) -> Client:
            client = Client((*example, *flags), address, variables)
            stack.callback(client.clean_up)
            return client

        yield start


@pytest.fixture
def evaluate(run: Callable[..., Client], server: ServerProcess) -> Callable[..., Client]:
    """Start the example against the real server."""

    def start(model: str = "m", *flags: str) -> Client:
        return run(server.address, "--model", model, "--tasks", "first,second", *flags)

    return start


def assert_statuses(lines: Sequence[str], server: ServerProcess, *expected: str) -> None:
    """Check that the statuses are complete and in order, and that the server's own record ends with the same revision."""
    revisions = [int(line.split()[0]) for line in lines]
    assert [line.split()[1] for line in lines] == list(expected)
    assert revisions == sorted(set(revisions))
    with EvalClient(server.address) as client:
        (job,) = client.list_jobs()
    assert revisions[-1] == job.revision


def test_it_submits_watches_and_prints_the_metrics(evaluate: Callable[..., Client], server: ServerProcess, gate: Path) -> None:
    gate.touch()
    code, lines, errors = evaluate().finish()
    assert (code, lines[3:]) == (0, METRICS), errors
    assert_statuses(lines[:3], server, "QUEUED", "RUNNING", "COMPLETED")


def test_a_job_that_fails_is_reported_with_its_reason(
    evaluate: Callable[..., Client], server: ServerProcess, gate: Path
) -> None:
    gate.touch()
    code, lines, errors = evaluate("broken").finish()
    assert code == 1
    assert_statuses(lines, server, "QUEUED", "RUNNING", "FAILED")
    assert "evaluate: FAILED HARNESS_FAILED: OSError: no such weights\n" in errors


def test_a_watch_goes_on_where_it_was_when_the_server_is_killed_and_comes_back(
    evaluate: Callable[..., Client], server: ServerProcess, gate: Path
) -> None:
    client = evaluate()
    lines = client.wait_for_status("RUNNING")
    server.kill()
    client.wait_until_it_lost_the_server()
    server.start()
    gate.touch()
    code, more_lines, errors = client.finish()
    lines += more_lines
    assert (code, lines[3:]) == (0, METRICS), errors
    assert_statuses(lines[:3], server, "QUEUED", "RUNNING", "COMPLETED")


def test_a_change_while_there_is_no_server_is_not_missed(
    evaluate: Callable[..., Client], server: ServerProcess, gate: Path
) -> None:
    client = evaluate()
    lines = client.wait_for_status("RUNNING")
    server.kill()
    gate.touch()
    client.wait_until_it_lost_the_server()
    server.start()
    code, more_lines, errors = client.finish()
    lines += more_lines
    assert (code, lines[3:]) == (0, METRICS), errors
    assert_statuses(lines[:3], server, "QUEUED", "RUNNING", "COMPLETED")


def test_a_submission_waits_for_a_server_that_comes_late(
    evaluate: Callable[..., Client], server: ServerProcess, gate: Path
) -> None:
    server.kill()
    client = evaluate()
    client.wait_until_it_lost_the_server()
    gate.touch()
    server.start()
    code, lines, errors = client.finish()
    assert code == 0, errors
    assert_statuses(lines[:3], server, "QUEUED", "RUNNING", "COMPLETED")


def test_a_request_that_the_server_refuses_is_a_wrong_call_and_every_bad_field_is_named(
    evaluate: Callable[..., Client],
) -> None:
    code, lines, errors = evaluate("", "--num-gpus", "9", "--harness", "other").finish()
    assert (code, lines) == (2, [])
    assert "evaluate: INVALID_REQUEST: " in errors
    assert all(f"request.{field}: " in errors for field in ("model", "num_gpus", "harness"))


@pytest.mark.parametrize("flags", [("--unheard-of", "1"), ("--num-gpus", "many")])
def test_a_flag_that_is_wrong_is_a_wrong_call(evaluate: Callable[..., Client], flags: tuple[str, str]) -> None:
    code, lines, errors = evaluate("m", *flags).finish()
    assert (code, lines) == (2, [])
    assert errors


def test_a_server_that_stays_away_is_given_up(evaluate: Callable[..., Client], server: ServerProcess) -> None:
    server.kill()
    code, lines, errors = evaluate("m", "--patience", "0").finish()
    assert (code, lines) == (3, [])
    assert "evaluate: no server: " in errors


def test_a_stream_that_breaks_for_whatever_reason_is_resumed_and_a_status_of_a_newer_server_is_shown(
    run: Callable[..., Client], unsteady: FakeServer
) -> None:
    code, lines, errors = run(unsteady.address, "--model", "m", "--tasks", "t").finish()
    assert (code, lines) == (0, ["1 QUEUED", "2 RUNNING", "3 99", "4 COMPLETED", "t acc 0.0000 0.0000"]), errors
    watches = unsteady.service.received["WatchJob"]
    assert watches == [WatchJobRequest(job_id=JOB_ID, after_revision=revision) for revision in (1, 1, 2, 3)]


def test_a_submission_is_repeated_with_its_own_request_id_and_what_is_left_out_is_absent(
    run: Callable[..., Client], unsteady: FakeServer
) -> None:
    unsteady.service.errors["SubmitJob"] = [STOPPING, STOPPING]
    code, _, errors = run(unsteady.address, "--model", "m", "--tasks", "t").finish()
    assert code == 0, errors
    first, second, third = (call for call in unsteady.service.received["SubmitJob"] if isinstance(call, SubmitJobRequest))
    assert first == second == third
    assert first.request_id
    assert (first.request.harness, first.request.HasField("num_gpus")) == ("", False)


def test_a_refusal_by_the_server_itself_ends_a_watch(run: Callable[..., Client], unsteady: FakeServer) -> None:
    unsteady.service.errors["WatchJob"] = [JobNotFoundError("there is no such job")]
    code, lines, errors = run(unsteady.address, "--model", "m", "--tasks", "t").finish()
    assert (code, lines) == (2, ["1 QUEUED"])
    assert "evaluate: JOB_NOT_FOUND: there is no such job" in errors


def test_it_speaks_tls_and_sends_a_token_with_every_call(
    tls: None, run: Callable[..., Client], signed_in: FakeServer, tmp_path: Path
) -> None:
    variables = {"EVALRPC_TLS_CA": str(AUTHORITY.write(tmp_path)), "EVALRPC_TOKEN": "evr_1_secret"}
    code, lines, errors = run(f"https://{signed_in.address}", "--model", "m", "--tasks", "t", **variables).finish()
    assert (code, lines) == (0, ["1 QUEUED", "2 COMPLETED"]), errors
    assert signed_in.service.authorizations == ["Bearer evr_1_secret"] * 2
    assert "evr_" not in errors


def test_a_token_that_the_server_does_not_accept_is_refused_at_once(
    tls: None, run: Callable[..., Client], signed_in: FakeServer, tmp_path: Path
) -> None:
    variables = {"EVALRPC_TLS_CA": str(AUTHORITY.write(tmp_path)), "EVALRPC_TOKEN": "evr_1_wrong"}
    code, lines, errors = run(f"https://{signed_in.address}", "--model", "m", "--tasks", "t", **variables).finish()
    assert (code, lines) == (2, [])
    assert errors.endswith("evaluate: UNAUTHENTICATED: sign in\n")
    assert "evr_" not in errors


def test_a_server_that_the_certificates_do_not_vouch_for_gets_no_token(
    tls: None, run: Callable[..., Client], signed_in: FakeServer, tmp_path: Path
) -> None:
    variables = {"EVALRPC_TLS_CA": str(Authority("other").write(tmp_path)), "EVALRPC_TOKEN": "evr_1_secret"}
    client = run(f"https://{signed_in.address}", "--model", "m", "--tasks", "t", "--patience", "0", **variables)
    assert client.finish()[0] == 3
    assert signed_in.service.authorizations == []


def test_without_tls_no_token_is_sent(run: Callable[..., Client], unsteady: FakeServer) -> None:
    code, _, errors = run(unsteady.address, "--model", "m", "--tasks", "t", EVALRPC_TOKEN="evr_1_secret").finish()
    assert code == 0, errors
    assert unsteady.service.authorizations == []


def test_a_file_of_certificates_that_is_not_there_is_a_wrong_call(run: Callable[..., Client]) -> None:
    client = run("https://127.0.0.1:1", "--model", "m", "--tasks", "t", EVALRPC_TLS_CA="/none/ca.pem")
    code, lines, errors = client.finish()
    assert (code, lines) == (2, [])
    assert errors.startswith("evaluate: ")


def test_a_real_server_with_tls_is_watched_to_the_end(
    tls: None, run: Callable[..., Client], serve: Callable[[str], ServerProcess], gate: Path, tmp_path: Path
) -> None:
    gate.touch()
    cert, key = AUTHORITY.issue().write(tmp_path)
    server = serve(f'tls_cert = "{cert}"\ntls_key = "{key}"\n{gated_harness(tmp_path, gate)}')
    client = run(
        f"https://{server.address}", "--model", "m", "--tasks", "first,second", EVALRPC_TLS_CA=str(AUTHORITY.write(tmp_path))
    )
    code, lines, errors = client.finish()
    assert (code, lines[3:]) == (0, METRICS), errors
    assert [line.split()[1] for line in lines[:3]] == ["QUEUED", "RUNNING", "COMPLETED"]
