"""The sdist and the wheel: each is installed into a clean environment, away from the repository, and used from there."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from source_copy import ROOT, copy_source

pytestmark = pytest.mark.slow

HARNESS = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "m"
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.0}}}))
"""

BLOCKING = """
import sys
from evalrpc.client import EvalClient
with EvalClient(sys.argv[1]) as client:
    job = client.evaluate("m", ["t"], harness="small", num_gpus=0)
    print(client.wait_for_job(job.job_id).results["m"].metrics[0].value)
"""

ASYNCIO = """
import asyncio, sys
from evalrpc.client import AsyncEvalClient
async def main():
    async with AsyncEvalClient(sys.argv[1]) as client:
        job = await client.evaluate("m", ["t"], harness="small", num_gpus=0)
        print((await client.wait_for_job(job.job_id)).results["m"].metrics[0].value)
asyncio.run(main())
"""

REFLECTION = """
import sys, grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb
for version in ("v1", "v1alpha"):
    with grpc.insecure_channel(sys.argv[1]) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        (answer,) = call(iter([pb.ServerReflectionRequest(file_containing_symbol="evalrpc.v1.EvaluationService")]))
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    comments = [location.leading_comments for location in file.source_code_info.location]
    print(any("Queues model evaluations" in comment for comment in comments))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the sdist, and the wheel from it, of a copy without anything that git ignores."""
    source, dist = copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def run(*command: str, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    output: str = done.stdout
    return output


def names(distribution: Path) -> set[str]:
    """Return the files in it, below its top folder."""
    if distribution.suffix == ".whl":
        return set(zipfile.ZipFile(distribution).namelist())
    with tarfile.open(distribution) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


class Environment:
    """A virtual environment in a folder, used from that folder, with nothing of the repository on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EVALRPC"))}
        venv.create(folder / "env", with_pip=False)

    def install(self, distribution: Path, extra: str = "") -> None:
        """Install with the pip that runs the tests: to install another one first takes longer."""
        pip = (sys.executable, "-m", "pip", "--python", self.path("python"))
        requirement = f"evalrpc{extra} @ {distribution.as_uri()}"
        run(*pip, "install", "--quiet", "--no-compile", requirement, env=self._variables)

    def path(self, name: str) -> str:
        return str(self.folder / "env" / "bin" / name)

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        command = (self.path(name), *arguments)
        return subprocess.Popen(command, cwd=self.folder, env=self._variables, stdout=pipe, stderr=pipe, text=True)

    def run(self, name: str, *arguments: str) -> str:
        """Run a program, which must not fail, and return its output."""
        code, output, errors = self.fail(name, *arguments)
        assert code == 0, errors
        return output

    def fail(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """Run a program, and return its exit code, output and errors."""
        with self.start(name, *arguments) as process:
            output, errors = process.communicate()
        return process.returncode, output, errors


@contextmanager
def serving(environment: Environment) -> Iterator[str]:
    """Run `evalrpc serve`, and yield its address."""
    (environment.folder / "harness.py").write_text(HARNESS)
    (environment.folder / "evalrpc.toml").write_text(
        'data_dir = "data"\nlisten = "127.0.0.1:0"\ngpus = "0"\n[harnesses.small]\nkind = "command"\n'
        f'command = ["{sys.executable}", "harness.py", "{{output_dir}}"]\n'
    )
    with environment.start("evalrpc", "serve") as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_has_what_is_needed_and_nothing_else(distributions: dict[str, Path], kind: str) -> None:
    files = names(distributions[kind])
    assert {"evalrpc/py.typed", "evalrpc/v1/descriptors.binpb", "evalrpc/v1/jobs_pb2.pyi", "evalrpc/client/sync.py"} <= files
    committed = {str(path.relative_to(ROOT)) for path in (ROOT / "evalrpc").rglob("*.py*") if path.suffix in (".py", ".pyi")}
    committed |= {str(path.relative_to(ROOT)) for path in (ROOT / "evalrpc" / "server" / "web").rglob("*") if path.is_file()}
    committed = {name for name in committed if "__pycache__" not in name}
    assert committed <= files
    assert not [name for name in files if name.split("/")[0] in ("tests", "benchmarks", "examples", "demo")]


def assert_everything_works(environment: Environment) -> None:
    """Check the server, reflection with comments, both clients and the command line."""
    assert str(environment.folder) in environment.run("python", "-c", "import evalrpc; print(evalrpc.__file__)")
    with serving(environment) as address:
        assert environment.run("python", "-c", BLOCKING, address) == "0.0\n"
        assert environment.run("python", "-c", ASYNCIO, address) == "0.0\n"
        assert environment.run("python", "-c", REFLECTION, address) == "True\nTrue\n"
        job = ("--harness", "small", "--model", "m", "--tasks", "t", "--num-gpus", "0")
        assert "completed" in environment.run("evalrpc", "--address", address, "submit", *job, "--watch").lower()
        assert len(environment.run("evalrpc", "--address", address, "list", "--json").splitlines()) == 3
        assert "small" in environment.run("python", "-m", "evalrpc", "--address", address, "harnesses")


def test_all_works_from_the_sdist(distributions: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(distributions["sdist"], "[server]")
    assert_everything_works(environment)


def test_the_wheel_has_the_client_and_says_what_else_to_install_until_all_is_there(
    distributions: dict[str, Path], tmp_path: Path
) -> None:
    environment, wheel = Environment(tmp_path), distributions["wheel"]
    environment.install(wheel)
    environment.run("python", "-c", "from evalrpc.client import AsyncEvalClient, EvalClient")
    missing = (2, "", "evalrpc: click is missing; install it: pip install 'evalrpc[cli]'\n")
    assert environment.fail("evalrpc", "list") == missing
    assert environment.fail("python", "-m", "evalrpc") == missing

    environment.install(wheel, "[cli]")
    assert "submit" in environment.run("evalrpc", "--help")
    code, _, errors = environment.fail("evalrpc", "serve")
    assert code == 2
    assert "pip install 'evalrpc[server]'" in errors

    environment.install(wheel, "[server]")
    assert_everything_works(environment)
