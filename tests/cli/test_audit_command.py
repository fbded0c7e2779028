"""`evalrpc audit`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evalrpc.cli import main
from evalrpc.server.audit_file import AuditEntry, AuditFile

JOB = "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a config file and two files of an audit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evalrpc.toml").write_text('data_dir = "."\naudit_max_bytes = 1000\n')
    file = AuditFile(tmp_path / "audit.jsonl", 1, 4)
    alice = {"owner": "alice", "role": "submitter", "sign_in_method": "token", "peer": "ipv4:10.0.0.7:1", "token_id": "0123"}
    file.append([AuditEntry("2026-02-14T10:00:00.500Z", "SubmitJob", "OK", job_id=JOB, request_id="r", **alice)])
    denied = "PERMISSION_DENIED"
    file.append([AuditEntry("2026-02-14T11:00:00Z", "CancelJob", denied, denied, job_id="other", left_out=7, **alice)])
    file.append([AuditEntry("2026-02-14T12:00:00Z", "token create", "OK", sign_in_method="local", target="token 4567 of bob")])
    full = ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    file.append([AuditEntry("2026-02-14T13:00:00Z", "SubmitJob", *full, owner="bob")])
    return tmp_path


def audit(*flags: str) -> Result:
    return CliRunner().invoke(main, ["audit", *flags], env={"TZ": "UTC"})


def times(*flags: str) -> list[str]:
    """Return the hours of the entries that are shown."""
    result = audit("-o", "jsonl", *flags)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["time"][11:13] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ((), ["10", "11", "12", "13"]),
        (("--owner", "alice"), ["10", "11"]),
        (("--owner", "alice", "--owner", "bob"), ["10", "11", "13"]),
        (("--owner", ""), ["12"]),
        (("--call", "submitjob"), ["10", "13"]),
        (("--call", "token create"), ["12"]),
        (("--job", JOB[:6].upper()), ["10"]),
        (("--outcome", "ok"), ["10", "12"]),
        (("--outcome", "QUOTA_EXCEEDED"), ["13"]),
        (("--outcome", "refused"), ["11", "13"]),
        (("--since", "2026-02-14T11:00Z"), ["11", "12", "13"]),
        (("--since", "2026-02-14T11:00Z", "--outcome", "ok", "--owner", "bob"), []),
    ],
)
def test_filters_select_entries_of_all_files(flags: tuple[str, ...], shown: list[str]) -> None:
    assert times(*flags) == shown


def test_without_a_terminal_it_is_a_table_with_tabs() -> None:
    lines = [line.split("\t") for line in audit().stdout.splitlines()]
    assert lines[0] == ["time", "owner", "call", "code", "reason", "job", "target", "peer"]
    assert lines[1] == ["2026-02-14 10:00:00", "alice", "SubmitJob", "OK", "", JOB, "", "ipv4:10.0.0.7:1"]
    wide = [line.split("\t") for line in audit("-o", "wide").stdout.splitlines()]
    assert wide[0][8:] == ["role", "sign-in", "token", "request id", "left out"]
    assert wide[1][8:] == ["submitter", "token", "0123", "r", "0"]
    assert wide[2][-1] == "7"


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_on_a_terminal_the_columns_stay_below_their_headers(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.cli.output.is_terminal", lambda: True)
    monkeypatch.setattr("evalrpc.cli.output.terminal_cells", lambda: width)
    header, *rows = audit().stdout.splitlines()
    place = header.index("CODE")
    assert [row[place:].split()[0] for row in rows] == ["OK", "PERMISSION_DENIED", "OK", "RESOURCE_EXHAUSTED"]


def test_json_has_what_the_file_has(folder: Path) -> None:
    files = [folder / f"audit.jsonl{end}" for end in (".3", ".2", ".1", "")]
    assert audit("-o", "json").stdout == "".join(file.read_text() for file in files)


def test_what_stands_in_the_file_can_not_act_on_a_terminal(folder: Path) -> None:
    (folder / "audit.jsonl").write_text('{"time": 5, "call": "a\\u001b[31m", "left_out": {}}\n[]\n{"cut')
    result = audit()
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert result.stdout.splitlines()[-1].split("\t")[:3] == ["", "", r"a\x1b[31m"]


def test_without_a_file_there_is_nothing_to_show(folder: Path) -> None:
    assert audit("--data-dir", str(folder / "absent"), "-o", "jsonl").stdout == ""


def test_a_file_that_can_not_be_read_is_named(folder: Path) -> None:
    (folder / "folder").mkdir()
    result = audit("--audit-file", "folder")
    assert result.exit_code == 2
    assert "can't read the audit: " in result.output
    assert "Is a directory" in result.output


def test_a_folder_that_is_not_there_has_no_audit_which_would_look_like_an_empty_one(tmp_path: Path) -> None:
    result = audit("--data-dir", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert result.stderr == f"evalrpc: there is no folder {tmp_path / 'none'}: --data-dir names that of the server\n"
