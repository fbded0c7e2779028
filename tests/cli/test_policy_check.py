"""`evalrpc policy check`: the exit code and the rule, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from evalrpc.cli import main

CONFIG = """
gpus = "0"
[harnesses.toy]
kind = "command"
command = ["true"]
[harnesses.toy.policy]
models = ["good"]
[harnesses.other]
kind = "command"
command = ["true"]
[secrets.HF_TOKEN]
owners = ["alice"]
variable = "HF_TOKEN"
"""
REQUEST = {"harness": "toy", "model": "good", "tasks": ["t"]}

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    (tmp_path / "evalrpc.toml").write_text(CONFIG)

    def run(request: Any, *flags: str) -> Result:
        (tmp_path / "request.json").write_text(request if isinstance(request, str) else json.dumps(request))
        arguments = ["policy", "check", str(tmp_path / "request.json"), "--config", str(tmp_path / "evalrpc.toml"), *flags]
        return CliRunner().invoke(main, arguments)

    return run


def test_a_request_that_a_server_would_accept_exits_with_0(check: Check) -> None:
    result = check(REQUEST)
    assert (result.exit_code, result.output) == (0, "accepted, for harness toy\n")
    assert check({"request": REQUEST, "timeout": "60s"}).exit_code == 0


def test_one_that_a_rule_refuses_exits_with_1_and_names_the_rule(check: Check) -> None:
    result = check(REQUEST | {"model": "better", "model_args": {"base_url": "http://elsewhere"}})
    assert result.exit_code == 1
    header, *rows = result.stdout.splitlines()
    assert header.split("\t") == ["field", "reason", "problem"]
    assert [row.split("\t")[:2] for row in rows] == [
        ["request.model", "POLICY_VIOLATION"],
        ["request.model_args.base_url", "POLICY_VIOLATION"],
    ]
    assert rows[0].endswith("'better' is not allowed; allowed are good (rule harnesses.toy.policy.models)")
    assert result.stderr == "evalrpc: refused: 2 fields\n"


def test_it_can_be_checked_for_another_harness(check: Check) -> None:
    assert check(REQUEST | {"model": "better"}, "--harness", "other").stdout == "accepted, for harness other\n"


def test_any_number_of_gpus_is_taken_for_possible(check: Check) -> None:
    assert check(REQUEST | {"num_gpus": 8}).exit_code == 0


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"tasks": []}, "INVALID_REQUEST", "request.tasks"),
        ({"harness": "none"}, "INVALID_REQUEST", "request.harness"),
        ({"model_args": {"api_key": "x"}}, "INVALID_REQUEST", "request.model_args.api_key"),
        ({"secrets": ["NONE"]}, "INVALID_REQUEST", "request.secrets[0]"),
        ({"secrets": ["HF_TOKEN"]}, "SECRET_NOT_ALLOWED", "request.secrets[0]"),
    ],
)
def test_whatever_else_a_server_would_refuse_is_told_too(check: Check, change: dict[str, Any], reason: str, field: str) -> None:
    result = check(REQUEST | change, "-o", "jsonl")
    assert result.exit_code == 1
    (row,) = map(json.loads, result.stdout.splitlines())
    assert (row["field"], row["reason"]) == (field, reason)


def test_all_that_a_server_would_name_in_turn_is_told_at_once(check: Check) -> None:
    wrong = {"model": "better", "tasks": ["t", "t"], "secrets": ["HF_TOKEN", "NONE"], "model_args": {"base_url": "x"}}
    rows = map(json.loads, check(REQUEST | wrong, "-o", "jsonl").stdout.splitlines())
    assert [(row["field"], row["reason"]) for row in rows] == [
        ("request.tasks[1]", "INVALID_REQUEST"),
        ("request.secrets[1]", "INVALID_REQUEST"),
        ("request.secrets[0]", "SECRET_NOT_ALLOWED"),
        ("request.model", "POLICY_VIOLATION"),
        ("request.model_args.base_url", "POLICY_VIOLATION"),
    ]


def test_what_is_invalid_is_told_once_whatever_other_rules_it_breaks(check: Check) -> None:
    rows = map(json.loads, check(REQUEST | {"model": ""}, "-o", "jsonl").stdout.splitlines())
    assert [(row["field"], row["reason"]) for row in rows] == [("request.model", "INVALID_REQUEST")]


def test_a_secret_is_checked_for_an_owner(check: Check) -> None:
    assert check(REQUEST | {"secrets": ["HF_TOKEN"]}, "--owner", "alice").exit_code == 0


@pytest.mark.parametrize("request_text", ["{", "[]", '{"model": 5}', '{"no_such_field": 1}'])
def test_a_file_that_is_no_request_exits_with_2(check: Check, request_text: str) -> None:
    result = check(request_text)
    assert result.exit_code == 2
    assert "FILE" in result.stderr


def test_a_file_that_is_not_there_and_settings_that_are_wrong_exit_with_2(check: Check, tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["policy", "check", str(tmp_path / "none.json")]).exit_code == 2
    result = check(REQUEST, "--gpus", "x,")
    assert (result.exit_code, "setting gpus" in result.stderr) == (2, True)
