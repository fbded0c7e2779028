"""`evalrpc token` and `evalrpc whoami`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from clocks import ManualClock
from fake_server import FakeService

from evalrpc.cli import main, token
from evalrpc.errors import UnauthenticatedError
from evalrpc.server.auth.token_format import parse_token
from evalrpc.server.auth.token_store import FILE_NAME, TokenStore
from evalrpc.v1.callers_pb2 import CALLER_ROLE_SUBMITTER, SIGN_IN_METHOD_NONE, GetCallerResponse

Run = Callable[..., Result]
NOW_SECONDS = 1_800_000_000


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(NOW_SECONDS)
    monkeypatch.setattr(token, "clock", clock)
    return clock


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the config file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evalrpc.toml").write_text('data_dir = "data"\n')
    return tmp_path / "data"


def invoke(*args: str) -> Result:
    result = CliRunner().invoke(main, ["token", *args], env={"TZ": "UTC"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def create(*args: str, owner: str = "alice", role: str = "submitter") -> Result:
    return invoke("create", "--owner", owner, "--role", role, *args)


def test_the_token_alone_is_on_stdout_and_its_digest_alone_in_the_store(data_dir: Path) -> None:
    result = create("--expires", "90d", owner="team@example.org", role="operator")
    assert result.exit_code == 0
    parts = parse_token(result.stdout.removesuffix("\n"))
    assert parts is not None
    (stored,) = TokenStore(data_dir).tokens()
    assert (stored.token_id, stored.digest) == parts
    assert (stored.owner, stored.role, stored.created_ns) == ("team@example.org", "operator", NOW_SECONDS * 10**9)
    assert stored.expires_ns == (NOW_SECONDS + 90 * 86400) * 10**9
    assert parts.token_id in result.stderr
    assert result.stdout.strip() not in result.stderr
    assert "shown only now" in result.stderr


def test_as_json_they_are_one_document_each(data_dir: Path) -> None:
    created = json.loads(create("--json").stdout)
    parts = parse_token(created["token"])
    assert parts is not None
    assert (created["token_id"], created["owner"], created["state"]) == (parts.token_id, "alice", "active")
    revoked = json.loads(invoke("revoke", parts.token_id, "--json").stdout)
    assert revoked == {"token_id": parts.token_id, "state": "revoked"}


def test_the_data_folder_is_that_of_the_flag_or_of_the_config_file(data_dir: Path, tmp_path: Path) -> None:
    create()
    create("--data-dir", str(tmp_path / "flag"))
    (tmp_path / "other.toml").write_text('data_dir = "config"\n')
    create("--config", str(tmp_path / "other.toml"))
    assert [len(TokenStore(tmp_path / name).tokens()) for name in ("data", "flag", "config")] == [1, 1, 1]


def test_tokens_are_listed_with_their_state_and_without_secrets(data_dir: Path, clock: ManualClock) -> None:
    secrets = [create(*args).stdout.strip() for args in ((), ("--expires", "1h"), ())]
    ids = [secret.split("_")[1] for secret in secrets]
    assert invoke("revoke", ids[2]).stdout == f"token {ids[2]} is revoked\n"
    clock.seconds += 3600
    output = invoke("list").stdout
    rows = sorted(line.split("\t") for line in output.splitlines()[1:])
    expected = [(ids[0], "active", ""), (ids[1], "expired", "2027-01-15 09:00:00"), (ids[2], "revoked", "")]
    assert [(row[0], row[3], row[5]) for row in rows] == sorted(expected)
    assert {(row[1], row[2]) for row in rows} == {("alice", "submitter")}
    documents = {each["token_id"]: each for each in map(json.loads, invoke("list", "-o", "json").stdout.splitlines())}
    assert documents[ids[1]] == {
        "token_id": ids[1],
        "owner": "alice",
        "role": "submitter",
        "state": "expired",
        "created_at": "2027-01-15T08:00:00Z",
        "expires_at": "2027-01-15T09:00:00Z",
    }
    assert documents[ids[0]]["expires_at"] is None
    assert not any(secret.split("_", 2)[2] in output for secret in secrets)


def test_there_may_be_no_tokens(data_dir: Path) -> None:
    assert invoke("list").exit_code == 2, "there is no folder"
    data_dir.mkdir()
    assert invoke("list").stdout.splitlines() == ["token\towner\trole\tstate\tcreated\texpires"]
    assert not list(data_dir.iterdir())


def test_an_unknown_id_can_not_be_revoked(data_dir: Path) -> None:
    create()
    result = invoke("revoke", "x" * 16)
    assert result.exit_code == 2
    assert result.stderr == f"evalrpc: there is no token {'x' * 16}: `evalrpc token list` lists them\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"owner": "a b"}, "must be 1 to 63 of the characters"),
        ({"owner": ""}, "must be 1 to 63 of the characters"),
        ({"owner": "x" * 64}, "must be 1 to 63 of the characters"),
        ({"role": "root"}, "is not one of 'viewer', 'submitter', 'operator'"),
        ({"expires": "0"}, "must be more than nothing"),
        ({"expires": "-1"}, "must be more than nothing"),
        ({"expires": "200000d"}, "must be more than nothing and at most 36500d"),
        ({"expires": "tomorrow"}, "is no duration"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_made(data_dir: Path, args: dict[str, Any], words: str) -> None:
    expires = ["--expires", args.pop("expires")] if "expires" in args else []
    result = create(*expires, **args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not data_dir.exists()


@pytest.mark.parametrize("command", [["list"], ["revoke", "x"], ["create", "--owner", "a", "--role", "viewer"]])
def test_a_store_that_can_not_be_used_is_reported_in_a_sentence(data_dir: Path, command: list[str]) -> None:
    data_dir.mkdir()
    (data_dir / FILE_NAME).write_bytes(b"no database" * 1000)
    result = invoke(*command)
    assert result.exit_code == 2
    assert FILE_NAME in result.stderr
    assert "not a database" in result.stderr


def test_whoami_says_who_one_is(run: Run, service: FakeService) -> None:
    assert "owner\talice\nrole\tsubmitter\nsigned in by\ttoken\nexpires\t2030" in run("whoami").stdout
    service.caller = GetCallerResponse(role=CALLER_ROLE_SUBMITTER, sign_in_method=SIGN_IN_METHOD_NONE)
    assert run("whoami").stdout.endswith("owner\tnobody: anonymous\nrole\tsubmitter\nsigned in by\tnone\n")
    service.caller = GetCallerResponse(owner="x", role=77, sign_in_method=99)
    assert run("whoami").stdout.endswith("owner\tx\nrole\t77\nsigned in by\t99\n")


def test_whoami_exits_with_4_without_a_good_token(run: Run, service: FakeService) -> None:
    service.errors["GetCaller"] = [UnauthenticatedError("the token has expired")]
    result = run("whoami")
    assert result.exit_code == 4
    assert "not signed in to the server at" in result.stderr
