"""The audit of a real server: who has changed what, and who was refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers import add_token
from click.testing import CliRunner
from serving import Api, Launch, ServerHere, Site, reason_of, submission
from waiting import eventually

from evalrpc.cli import main

Serve = Callable[..., ServerHere]


def entries_of(site: Site) -> list[dict[str, Any]]:
    path = site.folder / "data" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason_of(caught.value)


def known(server: ServerHere, token: str) -> Api:
    """Return calls with a token, once the server knows it."""
    api = Api(server.address, token=token)

    def is_known() -> bool:
        try:
            api.GetCaller()
        except grpc.RpcError:
            return False
        return True

    eventually(is_known, "for the server to know a token")
    return api


def test_every_change_and_every_refusal_is_recorded_with_who_and_what(serve: Serve, site: Site) -> None:
    data = site.folder / "data"
    tokens = {role: add_token(data, owner, role) for owner, role in (("alice", "submitter"), ("bob", "viewer"))}
    server = serve(auth="required", max_running=1)
    alice, bob = known(server, tokens["submitter"]), known(server, tokens["viewer"])
    job = alice.submit("hangs", request_id="r-1")
    alice.get(job.job_id)
    alice.UpdateJob(job_id=job.job_id, priority=3, update_mask={"paths": ["priority"]})
    assert refused(lambda: bob.CancelJob(job_id=job.job_id)) == "PERMISSION_DENIED"
    assert refused(lambda: Api(server.address).GetJob(job_id=job.job_id)) == "UNAUTHENTICATED"
    assert refused(lambda: alice.SubmitJob(submission(request={"tasks": []}))) == "INVALID_REQUEST"
    alice.CancelJob(job_id=job.job_id)
    alice.close()
    bob.close()
    server.stop()
    entries = entries_of(site)
    assert all(entry["peer"].startswith("ipv4:127.0.0.1:") for entry in entries)
    by_alice = ("alice", "submitter", "token", tokens["submitter"].split("_")[1])
    by_bob = ("bob", "viewer", "token", tokens["viewer"].split("_")[1])
    by_nobody = ("", "", "", "")
    columns = ("call", "code", "reason", "job_id", "request_id")
    who = ("owner", "role", "sign_in_method", "token_id")
    found = [(tuple(entry[name] for name in who), tuple(entry[name] for name in columns)) for entry in entries]
    assert [each for each in found if each[1][0] != "GetCaller"] == [
        (by_alice, ("SubmitJob", "OK", "", job.job_id, "r-1")),
        (by_alice, ("UpdateJob", "OK", "", job.job_id, "")),
        (by_bob, ("CancelJob", "PERMISSION_DENIED", "PERMISSION_DENIED", job.job_id, "")),
        (by_nobody, ("GetJob", "UNAUTHENTICATED", "UNAUTHENTICATED", job.job_id, "")),
        (by_alice, ("SubmitJob", "INVALID_ARGUMENT", "INVALID_REQUEST", "", "")),
        (by_alice, ("CancelJob", "OK", "", job.job_id, "")),
    ]
    text = (data / "audit.jsonl").read_text()
    assert not any(token in text or token.split("_", 2)[2] in text for token in tokens.values())


def test_a_suite_run_is_the_target_of_what_makes_and_cancels_it(serve: Serve, site: Site) -> None:
    site.config.write_text(f"{site.config.read_text()}[[suites.release.entries]]\nharness = 'toy'\ntasks = ['t']\n")
    server = serve()
    run = server.api.SubmitSuite(suite="release", request={"model": "hangs", "num_gpus": 0}, request_id="r-1")
    assert refused(lambda: server.api.SubmitSuite(suite="release")) == "INVALID_REQUEST"
    server.api.CancelSuiteRun(suite_run_id=run.suite_run_id)
    server.stop()
    assert [(entry["call"], entry["target"], entry["request_id"]) for entry in entries_of(site)] == [
        ("SubmitSuite", f"suite run {run.suite_run_id}", "r-1"),
        ("SubmitSuite", "suite release", ""),
        ("CancelSuiteRun", f"suite run {run.suite_run_id}", ""),
    ]


def test_an_owner_past_a_limit_is_recorded(serve: Serve, site: Site) -> None:
    server = serve(max_queued=1)
    server.start_no_more()
    server.api.submit()
    assert refused(server.api.submit) == "QUEUE_FULL"
    server.stop()
    assert [(entry["owner"], entry["code"], entry["reason"]) for entry in entries_of(site)] == [
        ("", "OK", ""),
        ("", "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    ]


def test_commands_that_change_tokens_are_recorded_while_the_server_runs(launch: Launch, site: Site) -> None:
    server = launch()

    def token(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, ["token", *arguments, "--json", "--config", str(site.config)])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    created = token("create", "--owner", "alice", "--role", "operator")
    job = server.api.submit()
    eventually(lambda: len(entries_of(site)) == 2, "for the server to have written of the job")
    token("revoke", created["token_id"])
    assert server.terminate() == 0
    entries = entries_of(site)
    assert [(entry["call"], entry["target"] or entry["job_id"]) for entry in entries] == [
        ("token create", f"token {created['token_id']} of alice, operator"),
        ("SubmitJob", job.job_id),
        ("token revoke", f"token {created['token_id']}"),
    ]
    assert {entry["sign_in_method"] for entry in entries} == {"local", "none"}
    assert created["token"].split("_", 2)[2] not in json.dumps(entries)


def test_a_disk_that_takes_no_audit_holds_up_no_call(serve: Serve, site: Site) -> None:
    server = serve(audit_file="/dev/full")
    job = server.api.submit()
    assert server.api.get(job.job_id).job_id == job.job_id


def test_the_command_shows_what_was_recorded(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve(audit_file=str(tmp_path / "elsewhere.jsonl"))
    job = server.api.run()
    with pytest.raises(grpc.RpcError):
        server.api.CancelJob(job_id=job.job_id)
    server.stop()

    def shown(*flags: str) -> list[str]:
        arguments = ["audit", "--audit-file", str(tmp_path / "elsewhere.jsonl"), "-o", "jsonl", *flags]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line)["call"] for line in result.stdout.splitlines()]

    assert shown() == ["SubmitJob", "CancelJob"]
    assert shown("--outcome", "JOB_FINISHED", "--job", job.job_id[:8]) == ["CancelJob"]
