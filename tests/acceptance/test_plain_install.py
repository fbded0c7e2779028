"""What a plain install says of the parts that it lacks, and that clients need neither Linux nor a server."""

import os
import platform
import subprocess
import tomllib
import venv
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from missing_modules import ROOT, run_without
from source_copy import copy_source

from evalrpc import extras
from evalrpc.cli import main

PROGRAM: Final = "from evalrpc.__main__ import main; main()"
DECLARED: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ONLY_ON_UNIX: Final = {"fcntl", "resource", "pwd", "grp", "termios", "syslog", "posix_ipc"}
ONLY_ON_LINUX: Final = ("pidfd_open", "pidfd_getfd", "memfd_create", "splice", "preadv", "RWF_NOWAIT", "O_TMPFILE", "fork")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("submit", "--model", "m"), ("list",)])
def test_the_command_line_without_click_is_one_sentence_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = run_without({"click", "rich"}, PROGRAM, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "evalrpc: click is missing; install it: pip install '.[cli]'\n"


@pytest.mark.parametrize("arguments", [("serve",), ("doctor",)])
def test_the_server_without_click_asks_for_the_server_at_once(arguments: tuple[str, ...]) -> None:
    done = run_without({"click", "rich", "uvloop"}, PROGRAM, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "evalrpc: click is missing; install it: pip install '.[server]'\n"


@pytest.mark.parametrize("library", ["uvloop", "grpc_health", "grpc_reflection", "sortedcontainers"])
def test_serve_without_a_library_of_the_server_is_one_sentence_and_exit_code_2(tmp_path: Path, library: str) -> None:
    done = run_without({library}, PROGRAM, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--gpus", "0")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"evalrpc: {library} is missing; install it: pip install '.[server]'\n"


def test_pandas_is_asked_for_by_the_name_of_its_extra() -> None:
    done = run_without({"pandas"}, "import evalrpc; evalrpc.to_pandas([])")

    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: pandas is missing; install it: pip install '.[pandas]'\n")


def test_a_module_of_no_extra_is_no_matter_of_installing() -> None:
    error = ModuleNotFoundError("No module named 'evalrpc.cli.typo'", name="evalrpc.cli.typo")

    with pytest.raises(ModuleNotFoundError, match="typo"):
        extras.missing(error)


def test_every_library_is_in_the_extra_that_is_named() -> None:
    distributions = {
        "cryptography": "PyJWT[crypto]",
        "grpc_health": "grpcio-health-checking",
        "grpc_reflection": "grpcio-reflection",
        "jwt": "PyJWT",
        "prometheus_client": "prometheus-client",
        "pynvml": "nvidia-ml-py",
    }
    for library, extra in extras._EXTRAS.items():
        assert any(line.startswith(distributions.get(library, library)) for line in DECLARED[extra]), library


def test_the_command_names_the_checkout_from_anywhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert extras.install_command("cli") == f"pip install '{ROOT}[cli]'"
    monkeypatch.chdir(ROOT)
    assert extras.install_command("cli") == "pip install '.[cli]'"
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "evalrpc" / "extras.py"))
    assert extras.install_command("cli") == "pip install 'evalrpc[cli]'"


def test_importing_the_package_loads_neither_grpc_nor_protobuf_nor_anything_of_the_client() -> None:
    code = "import sys, evalrpc; print(sorted(name for name in sys.modules if name.startswith(('grpc', 'google', 'evalrpc'))))"

    assert run_without(set(), code).stdout == "['evalrpc']\n"


def test_the_names_of_the_package_are_what_the_client_has() -> None:
    code = (
        "from evalrpc import AsyncEvalClient, EvalClient, EvaluateRequest, JobFilter, JobStatus, errors, to_pandas\n"
        "import evalrpc, evalrpc.client, evalrpc.v1.jobs_pb2 as pb\n"
        "assert (EvalClient, AsyncEvalClient) == (evalrpc.client.EvalClient, evalrpc.client.AsyncEvalClient)\n"
        "assert JobStatus is pb.JobStatus and evalrpc.errors.JobFailedError is errors.JobFailedError\n"
        "assert set(evalrpc.__all__) <= set(dir(evalrpc)) and all(hasattr(evalrpc, name) for name in evalrpc.__all__)\n"
        "assert not hasattr(evalrpc, 'nothing')\n"
    )

    done = run_without(set(), code)

    assert (done.returncode, done.stderr) == (0, "")


def test_clients_import_nothing_that_only_linux_or_unix_has() -> None:
    code = (
        "import importlib, pkgutil, signal\n"
        f"for name in {ONLY_ON_LINUX}: getattr(os, name, None) and delattr(os, name)\n"
        "for name in ('SIGKILL', 'SIGHUP', 'SIGUSR1', 'pthread_sigmask'): hasattr(signal, name) and delattr(signal, name)\n"
        "import evalrpc.client, evalrpc.cli, evalrpc.errors, evalrpc.__main__\n"
        "for package in (evalrpc.client, evalrpc.cli):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "print([name for name in sys.modules if name.startswith(('evalrpc.server', 'evalrpc.store', 'evalrpc.executors'))])\n"
    )

    done = run_without(ONLY_ON_UNIX, code)

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_server_elsewhere_says_that_it_needs_linux(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")

    result = CliRunner().invoke(main, [command])

    assert result.exit_code == 2
    assert result.stderr == (
        "evalrpc: the server needs Linux, and this is Darwin; the other commands work here, with --address\n"
    )


@pytest.mark.slow
def test_a_wheel_without_extras_says_what_to_install_and_that_mends_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    program = tmp_path / "env" / "bin" / "evalrpc"

    def run(*command: object) -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [str(word) for word in command]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=clean)

    assert run(python, "-m", "pip", "install", "--quiet", copy_source(tmp_path)).returncode == 0
    without = run(program, "list")
    assert (without.returncode, without.stderr) == (2, "evalrpc: click is missing; install it: pip install 'evalrpc[cli]'\n")
    assert run(python, "-m", "pip", "install", "--quiet", "evalrpc[cli]").returncode == 0
    assert run(program, "--version").returncode == 0
    serve = run(program, "serve")
    assert (serve.returncode, serve.stderr.count("\n")) == (2, 1)
    assert serve.stderr.endswith(" is missing; install it: pip install 'evalrpc[server]'\n")
