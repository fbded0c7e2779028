"""Signing in: `login`, `logout`, the flags of certificates and tokens, and what is said where it fails."""

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from fake_server import FakeServer
from waiting import DEADLINE_SECONDS

from evalrpc import errors
from evalrpc.cli import main

TOKEN = "evr_1_secret"
AUTHORITY = Authority()
NOT_ALLOWED = 4


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any credentials."""
    for name in ("ADDRESS", "TOKEN", "TLS_CA"):
        monkeypatch.delenv(f"EVALRPC_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server with TLS that asks for the token."""
    cert, key = AUTHORITY.issue()
    with FakeServer(grpc.ssl_server_credentials([(key, cert)])) as server:
        server.service.token = TOKEN
        yield server


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return AUTHORITY.write(tmp_path)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def run(*args: object, **options: Any) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert TOKEN not in result.output
    return result


def test_a_token_from_a_pipe_is_tried_and_kept_for_its_server_alone(server: FakeServer, ca: Path, home: Path) -> None:
    address = f"https://{server.address}"

    result = run("login", address, "--tls-ca", ca, input=f"{TOKEN}\nmore\n")

    kept = home / "config/evalrpc/tokens.json"
    assert result.stdout == f"signed in to {server.address} as alice; the token is kept in {kept}\n"
    assert json.loads(kept.read_text()) == {server.address: TOKEN}
    assert run("info", "--address", address, "--tls-ca", ca).exit_code == 0
    assert run("info", "--address", address.replace("127.0.0.1", "localhost"), "--tls-ca", ca).exit_code == NOT_ALLOWED


def test_a_token_that_the_server_refuses_is_not_kept(server: FakeServer, ca: Path, home: Path) -> None:
    result = run("login", f"https://{server.address}", "--tls-ca", ca, input="evr_wrong\n")

    assert (result.exit_code, result.stdout) == (NOT_ALLOWED, "")
    assert "evr_wrong" not in result.output
    assert not (home / "config").exists()


def test_a_server_that_can_not_say_whose_the_token_is_may_still_accept_it(server: FakeServer, ca: Path) -> None:
    server.service.errors["GetCaller"] = [errors.UnimplementedError("no such call")]

    result = run("login", f"https://{server.address}", "--tls-ca", ca, input=TOKEN)

    assert result.stdout.startswith(f"signed in to {server.address}; the token is kept in ")


@pytest.mark.parametrize("typed", ["", "\n", "  \n"])
def test_no_token_is_a_wrong_call(server: FakeServer, typed: str) -> None:
    result = run("login", server.address, input=typed)

    assert (result.exit_code, result.stderr) == (
        2,
        "evalrpc: no token was given: `evalrpc token create`, on the server's machine, makes one\n",
    )


def test_a_token_is_never_sent_in_the_open_to_be_tried() -> None:
    result = run("login", "host.example", input=TOKEN)

    assert result.exit_code == 2
    assert "a token is sent with TLS only" in result.stderr


def test_an_address_that_makes_no_sense_is_said_before_a_token_is_asked_for() -> None:
    result = run("login", "host:port")

    assert result.exit_code == 2
    assert "the address 'host:port'" in result.stderr
    assert "token" not in result.stderr.lower()


def test_logout_forgets_the_token(server: FakeServer, ca: Path) -> None:
    address = f"https://{server.address}"
    run("login", address, "--tls-ca", ca, input=TOKEN)

    assert run("logout", address).stdout == f"signed out of {server.address}\n"
    assert run("logout", address).stdout == f"no token is kept for {server.address}\n"
    assert run("info", "--address", address, "--tls-ca", ca).exit_code == NOT_ALLOWED


def test_both_say_in_json_what_they_did(server: FakeServer, ca: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALRPC_ADDRESS", f"https://{server.address}")

    login, logout = run("login", "--json", "--tls-ca", ca, input=TOKEN), run("logout", "--json")

    kept = str(home / "config/evalrpc/tokens.json")
    assert json.loads(login.stdout) == {"address": server.address, "owner": "alice", "file": kept}
    assert json.loads(logout.stdout) == {"address": server.address, "was_kept": True}


def test_a_broken_file_of_tokens_is_named(home: Path) -> None:
    path = home / "config/evalrpc/tokens.json"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    path.write_text("{")

    for command in (("logout", "a:1"), ("info", "--address", "a:1")):
        result = run(*command)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert str(path) in result.stderr


def test_what_is_typed_at_a_terminal_is_not_shown(server: FakeServer, ca: Path, home: Path) -> None:
    master, slave = pty.openpty()
    command = (sys.executable, "-m", "evalrpc", "--tls-ca", str(ca), "login", f"https://{server.address}")
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        shown = read_until(master, b"Token: ")
        os.write(master, f"{TOKEN}\n".encode())
        shown += read_until(master, b"is kept in")
        assert process.wait(DEADLINE_SECONDS) == 0
    os.close(master)

    assert TOKEN.encode() not in shown
    assert json.loads((home / "config/evalrpc/tokens.json").read_text()) == {server.address: TOKEN}


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what a program shows, up to this text."""
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], DEADLINE_SECONDS)[0], shown
        shown += os.read(terminal, 4096)
    return shown


# Flags


def test_the_flags_stand_before_the_command_or_after_it(server: FakeServer, ca: Path, token_file: Path) -> None:
    flags = ("--tls-ca", ca, "--token-file", token_file)
    address = ("--address", f"https://{server.address}")

    assert run(*address, *flags, "info").exit_code == 0
    assert run("info", *address, *flags).exit_code == 0
    assert run(*flags, "info", *address).exit_code == 0
    assert run("--tls-ca", "/none", "info", *address, *flags).exit_code == 0, "the nearest one counts"


@pytest.mark.parametrize("flag", ["--tls-ca", "--tls-cert", "--tls-key", "--token-file"])
def test_an_empty_flag_is_a_wrong_call(server: FakeServer, flag: str) -> None:
    result = run(flag, "", "info", "--address", f"https://{server.address}")

    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': is empty: name a file, or leave it out" in result.stderr


def test_mutual_tls_by_flags(ca: Path, tmp_path: Path) -> None:
    clients, (cert, key) = Authority("clients"), AUTHORITY.issue()
    own_cert, own_key = clients.issue("alice").write(tmp_path, "alice")
    with FakeServer(grpc.ssl_server_credentials([(key, cert)], clients.pem, True)) as server:
        result = run(
            "--address", f"https://{server.address}", "--tls-ca", ca, "info", "--tls-cert", own_cert, "--tls-key", own_key
        )

    assert result.exit_code == 0, result.stderr


def test_completion_signs_in_too(server: FakeServer, ca: Path, token_file: Path) -> None:
    before = ["--tls-ca", str(ca), "tasks", "--address", f"https://{server.address}", "--token-file", str(token_file)]

    items = ShellComplete(main, {}, "evalrpc", "_EVALRPC_COMPLETE").get_completions([*before, "--harness"], "")

    assert "lmms-eval" in [item.value for item in items]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tls-ca", "/none"), "/none: No such file or directory"),
        (("--token-file", "/none"), "/none: No such file or directory"),
        (("--tls-cert", "/none"), "tls_cert and tls_key belong together"),
    ],
)
def test_a_file_that_is_not_there_is_a_wrong_call(flags: tuple[str, str], said: str) -> None:
    result = run("info", "--address", "https://127.0.0.1:1", *flags)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


# What is said where it fails


def test_whoever_is_not_signed_in_reads_how_to_and_gets_4(server: FakeServer, ca: Path) -> None:
    result = run("list", "--address", f"https://{server.address}", "--tls-ca", ca)

    assert result.exit_code == NOT_ALLOWED
    assert result.stderr == f"evalrpc: not signed in to the server at {server.address}: sign in; `evalrpc login` signs in\n"


def test_whoever_is_not_allowed_gets_4(server: FakeServer, ca: Path, token_file: Path) -> None:
    server.service.errors["ListJobs"] = [errors.PermissionDeniedError("operators only")]

    result = run("list", "--address", f"https://{server.address}", "--tls-ca", ca, "--token-file", token_file)

    assert result.exit_code == NOT_ALLOWED
    assert result.stderr == f"evalrpc: not allowed by the server at {server.address}: operators only\n"


def test_a_handshake_that_fails_is_one_line_and_none_of_grpc(server: FakeServer, tmp_path: Path) -> None:
    ca = Authority("other").write(tmp_path, "other.pem")
    command = (sys.executable, "-m", "evalrpc", "list", "--address", f"https://{server.address}", "--tls-ca", str(ca))

    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)

    assert done.returncode == 3
    assert done.stderr == (
        f"evalrpc: can't reach the server at {server.address}: its certificate is signed by nobody whom this client trusts; "
        "tls_ca names whom to trust\n"
    )
