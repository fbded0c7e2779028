"""A person who debugs with a generic client and has no schema at hand: the real grpcurl, and `buf curl`."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from server_process import EVALRPC, ServerProcess
from serving import NOWHERE

from evalrpc.v1.evaluation_service_pb2 import DESCRIPTOR

SERVICE = DESCRIPTOR.services_by_name["EvaluationService"]
LISTED = {
    SERVICE.full_name,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}

PROGRAM = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "m"
folder.mkdir()
results = {"t": {"acc,none": 0.25, "acc_stderr,none": 0.125, "zero,none": 0.0, "zero_stderr,none": 0.0}}
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": results}))
(folder / "20260214_103045_samples_t.jsonl").write_text('{"doc_id": 0, "acc": 1.0}\\n')
print("done")
"""

SUITE = "[[suites.release.entries]]\nharness = 'small'\ntasks = ['t']\n"

VALUES = [["acc", 0.25, 0.125], ["zero", 0, 0]]


def program(name: str) -> str:
    """Return the path of a program that is installed beside Python, or skip the test."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"there is no {name}: `make setup` installs it, except on processors that it is not made for")
    return str(path)


class GenericClient:
    """Calls methods with JSON, and has only reflection to know them by."""

    def __init__(self, server: ServerProcess) -> None:
        self._address = server.address

    def call(self, method: str, message: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the decoded messages of an answer."""
        done = self.run(method, message or {})
        assert done.returncode == 0, done.stderr
        return decoded(done.stdout)

    def run(self, method: str, message: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        raise NotImplementedError

    def services(self) -> set[str]:
        raise NotImplementedError

    def methods(self) -> set[str]:
        raise NotImplementedError

    def details(self, method: str, message: Mapping[str, Any]) -> str:
        """Return what a failed call prints of its error's details."""
        raise NotImplementedError

    def mask(self, path: str) -> Any:
        """Return a FieldMask as this client reads it."""
        return path


class Grpcurl(GenericClient):
    def mask(self, path: str) -> Any:
        return {"paths": [path]}  # this release does not know the JSON form of a FieldMask

    def run(self, method: str, message: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        return self.grpcurl("-d", json.dumps(message), self._address, method)

    def services(self) -> set[str]:
        return set(self.grpcurl(self._address, "list").stdout.split())

    def methods(self) -> set[str]:
        return set(self.grpcurl(self._address, "list", SERVICE.full_name).stdout.split())

    def details(self, method: str, message: Mapping[str, Any]) -> str:
        return json.dumps(json.loads(self.run(method, message).stderr)["details"])

    def describe(self, symbol: str) -> str:
        done = self.grpcurl(self._address, "describe", symbol)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def grpcurl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(program("grpcurl"), "-plaintext", "-format-error", *arguments)


class BufCurl(GenericClient):
    def run(self, method: str, message: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        return self.buf("--data", json.dumps(message), path=f"/{method}")

    def services(self) -> set[str]:
        return set(self.buf("--list-services").stdout.split())

    def methods(self) -> set[str]:
        listed = self.buf("--list-methods").stdout.split()
        return {name.replace("/", ".") for name in listed if name.startswith(SERVICE.full_name)}

    def details(self, method: str, message: Mapping[str, Any]) -> str:
        """buf leaves the details in base64, whatever reflection knows."""
        details = json.loads(self.run(method, message).stderr)["details"]
        return " ".join(f"{detail['type']} {base64.b64decode(detail['value'] + '==')!r}" for detail in details)

    def buf(self, *arguments: str, path: str = "") -> "subprocess.CompletedProcess[str]":
        options = ("curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect")
        return run(program("buf"), *options, *arguments, f"http://{self._address}{path}")


def run(*command: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, input=text)


def decoded(text: str) -> list[Any]:
    decoder, messages = json.JSONDecoder(), []
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:]
    return messages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests here, since none minds the jobs of another."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "program.py").write_text(PROGRAM)
    command = f'["{sys.executable}", "program.py", "{{output_dir}}"]'
    server = ServerProcess(folder / "data", f'gpus = "0"\n[harnesses.small]\nkind = "command"\ncommand = {command}\n{SUITE}')
    try:
        yield server.start()
    finally:
        server.clean_up()


@pytest.fixture(params=[Grpcurl, BufCurl], ids=["grpcurl", "buf"])
def client(request: pytest.FixtureRequest, server: ServerProcess) -> GenericClient:
    client: GenericClient = request.param(server)
    return client


@pytest.fixture
def grpcurl(server: ServerProcess) -> Grpcurl:
    return Grpcurl(server)


def evaluated(client: GenericClient) -> dict[str, Any]:
    """Submit a job, watch it to its end, and return it."""
    request = {"harness": "small", "model": "m", "tasks": ["t"], "numGpus": 0}
    (job,) = client.call(f"{SERVICE.full_name}/SubmitJob", {"request": request})
    events = client.call(f"{SERVICE.full_name}/WatchJob", {"jobId": job["jobId"]})
    assert events[0]["type"] == "JOB_EVENT_TYPE_SNAPSHOT"
    assert events[-1]["terminal"]
    assert events[-1]["job"]["status"] == "JOB_STATUS_COMPLETED", events[-1]
    finished: dict[str, Any] = events[-1]["job"]
    return finished


def test_services_and_methods_are_listed_without_a_schema(client: GenericClient) -> None:
    assert client.services() == LISTED
    assert client.methods() == {method.full_name for method in SERVICE.methods}


def test_everything_is_described_with_its_comments(grpcurl: Grpcurl) -> None:
    service = grpcurl.describe(SERVICE.full_name)
    assert "// Queues model evaluations, runs each as a process of a real harness" in service
    assert "// Retry: safe on UNAVAILABLE and DEADLINE_EXCEEDED with a `request_id`" in service
    assert "rpc WatchJob ( .evalrpc.v1.WatchJobRequest ) returns ( stream .evalrpc.v1.JobEvent )" in service
    assert "// Returns a job as it stands now." in grpcurl.describe(f"{SERVICE.full_name}.GetJob")
    assert "// The last revision that the client saw; 0 begins with a snapshot." in grpcurl.describe(
        "evalrpc.v1.WatchJobRequest"
    )
    for kind in ("JobInfo", "JobStatus", "JobFilter", "Metric"):
        assert "  // " in grpcurl.describe(f"evalrpc.v1.{kind}")
    assert "// Represents a JSON object." in grpcurl.describe("google.protobuf.Struct")
    for name in sorted(LISTED - {SERVICE.full_name}):
        assert f"service {name.rpartition('.')[2]}" in grpcurl.describe(name)


def test_what_is_not_there_is_said_in_a_sentence(grpcurl: Grpcurl) -> None:
    done = grpcurl.grpcurl(grpcurl._address, "describe", "evalrpc.v1.Nothing")
    assert done.returncode != 0
    assert "Symbol not found: evalrpc.v1.Nothing" in done.stderr


REFUSED = {
    "CancelJob": "JOB_FINISHED",
    "CancelSuiteRun": "JOB_FINISHED",
    "ListTasks": "CATALOG_UNAVAILABLE",
    "ListModels": "CATALOG_UNAVAILABLE",
    **dict.fromkeys(("PauseQueue", "ResumeQueue", "CordonGpu", "UncordonGpu", "StopEngine"), "PERMISSION_DENIED"),
}
"""The calls that this server has a reason to refuse."""


@pytest.mark.slow
def test_every_unary_call_of_the_server_is_answered(client: GenericClient) -> None:
    job_id = evaluated(client)["jobId"]
    (info,) = client.call(f"{SERVICE.full_name}/GetServerInfo")
    request = {"harness": "small", "model": "m", "tasks": ["t"], "numGpus": 0}
    of_suite = {"suite": "release", "request": {"model": "m", "numGpus": 0}}
    (run,) = client.call(f"{SERVICE.full_name}/SubmitSuite", of_suite)
    suite_run = {"suiteRunId": run["suiteRunId"]}
    assert client.call(f"{SERVICE.full_name}/WatchSuiteRun", suite_run)[-1]["terminal"]
    messages: dict[str, dict[str, Any]] = {
        "SubmitSuite": of_suite,
        "GetSuiteRun": suite_run | {"view": "SUITE_RUN_VIEW_DECISION"},
        "CancelSuiteRun": suite_run,
        "SubmitJob": {"request": request, "validateOnly": True, "labels": {"run": "x"}},
        "CompareJobs": {"baselineJobId": job_id, "candidateJobIds": [evaluated(client)["jobId"]]},
        "PlanComparison": {"difference": 0.01, "baselineJobId": job_id},
        "ListFlips": {"baselineJobId": job_id, "candidateJobId": evaluated(client)["jobId"], "metric": {"metric": "acc"}},
        "ListSamples": {"jobId": job_id, "model": "m", "task": "t"},
        "UpdateJob": {"jobId": job_id, "labels": {"run": "y"}, "updateMask": client.mask("labels")},
        "ListTasks": {"harness": "small"},
        "ListModels": {"harness": "small"},
    }
    unary = [name for name in info["capabilities"] if not SERVICE.methods_by_name[name].server_streaming]
    for name in sorted(unary, key=lambda name: name == "DeleteJob"):  # last, since the others need the job
        fields = SERVICE.methods_by_name[name].input_type.fields_by_name
        message = messages.get(name, {"jobId": job_id} if "job_id" in fields else {})
        if name in REFUSED:
            assert REFUSED[name] in client.details(f"{SERVICE.full_name}/{name}", message)
        else:
            assert len(client.call(f"{SERVICE.full_name}/{name}", message)) == 1, name


def test_streams_are_read_to_their_end(client: GenericClient) -> None:
    job_id = evaluated(client)["jobId"]
    chunks = client.call(f"{SERVICE.full_name}/ReadLog", {"jobId": job_id, "follow": True})
    assert [(chunk["data"], chunk["offset"], chunk["attempt"]) for chunk in chunks] == [("ZG9uZQo=", "0", 1)]
    name = "m/20260214_103045_results.json"
    (file,) = client.call(f"{SERVICE.full_name}/ReadArtifact", {"jobId": job_id, "name": name})
    assert file["data"]
    (event,) = client.call(f"{SERVICE.full_name}/WatchJob", {"jobId": job_id})
    assert event["terminal"]


@pytest.mark.parametrize(
    ("method", "message", "text", "details"),
    [
        (
            "SubmitJob",
            {"request": {"harness": "small", "model": "m"}},
            "request.tasks",
            ("ErrorInfo", "INVALID_REQUEST", "BadRequest", "request.tasks"),
        ),
        ("GetJob", {"jobId": NOWHERE}, "there is no job", ("JOB_NOT_FOUND", "evalrpc", "ResourceInfo", NOWHERE)),
        ("WatchJob", {"jobId": NOWHERE, "afterRevision": 1}, "there is no job", ("JOB_NOT_FOUND", NOWHERE)),
        ("WatchJobs", {"afterRevision": 10**9}, "revision", ("REVISION_IN_FUTURE", "head_revision")),
    ],
)
def test_an_error_is_readable_with_its_details(
    client: GenericClient, method: str, message: dict[str, Any], text: str, details: Sequence[str]
) -> None:
    done = client.run(f"{SERVICE.full_name}/{method}", message)
    assert done.returncode != 0
    assert text in json.loads(done.stderr)["message"]
    shown = client.details(f"{SERVICE.full_name}/{method}", message)
    assert [detail for detail in details if detail not in shown] == []


def test_health_is_reported_to_a_generic_client(client: GenericClient) -> None:
    assert client.call("grpc.health.v1.Health/Check") == [{"status": "SERVING"}]


def test_jq_finds_every_metric_zeros_too_in_whatever_prints_json(client: GenericClient, server: ServerProcess) -> None:
    if not shutil.which("jq"):
        pytest.skip("there is no jq")
    job_id = evaluated(client)["jobId"]
    theirs = client.run(f"{SERVICE.full_name}/GetJob", {"jobId": job_id}).stdout
    ours = run(EVALRPC, "--address", server.address, "get", job_id, "--json").stdout
    for text, standard_error in ((theirs, "standardError"), (ours, "standard_error")):
        query = f"[.results.m.metrics[] | [.metric, .value, .{standard_error}]] | sort"
        found = run("jq", "--compact-output", query, text=text)
        assert json.loads(found.stdout) == VALUES, found.stderr + text


def test_grpcurl_calls_a_server_with_tls_as_the_documents_say(serve: Callable[[str], ServerProcess], tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue().write(tmp_path)
    server = serve(f'gpus = "0"\ntls_cert = "{cert}"\ntls_key = "{key}"\n')
    flags = ("-cacert", str(authority.write(tmp_path)), "-H", "authorization: Bearer evr_1_secret")

    done = run(program("grpcurl"), *flags, server.address, f"{SERVICE.full_name}/GetQueue")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queuedCount"] == "0"
