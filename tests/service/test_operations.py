"""What operators do by hand: they pause the queue, and keep GPUs from being assigned."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from callers import add_token
from click.testing import CliRunner, Result
from serving import COMPLETED, QUEUED, RUNNING, Api, ServerHere, Site, fields_of
from waiting import eventually

from evalrpc.cli import main
from evalrpc.jobs.holds import NO_HOLDS

Serve = Callable[..., ServerHere]


@pytest.fixture
def token(site: Site) -> str:
    return add_token(site.folder / "data", "olga", "operator")


def operator(server: ServerHere, token: str) -> Api:
    """Return calls of an operator, once the server knows the token."""
    api = Api(server.address, token=token)

    def is_known() -> bool:
        try:
            return bool(api.GetCaller().owner)
        except grpc.RpcError:
            return False

    eventually(is_known, "for the server to know a token")
    return api


def test_a_paused_queue_starts_nothing_until_it_is_resumed_also_after_a_restart(serve: Serve, site: Site, token: str) -> None:
    server = serve()
    running = server.api.submit("hangs")
    server.api.wait_for(running.job_id, RUNNING)
    site.wait_for_log(running.job_id)
    operator(server, token).PauseQueue()
    job = server.api.submit()
    assert server.api.GetQueue().paused
    server.stop()
    again = serve()
    told = again.api.get(job.job_id)
    assert (told.status, told.wait_reason) == (QUEUED, "an operator has paused the queue")
    assert again.api.get(running.job_id).status == RUNNING
    again.api.submit("good")
    assert again.api.GetQueue().running_count == 1
    api = operator(again, token)
    api.ResumeQueue()
    api.ResumeQueue()  # once more changes nothing
    again.api.wait_for(job.job_id, COMPLETED)
    assert not again.api.GetQueue().paused


def test_a_cordoned_gpu_is_assigned_no_more_and_its_job_goes_on(serve: Serve, site: Site, token: str) -> None:
    server = serve()
    holder = server.api.submit("hangs", request={"num_gpus": 1})
    (gpu,) = server.api.wait_for(holder.job_id, RUNNING).gpus
    operator(server, token).CordonGpu(gpu_id=gpu)
    site.wait_for_log(holder.job_id)
    assert server.api.get(holder.job_id).status == RUNNING  # it goes on
    site.kill_run(holder.job_id)
    eventually(lambda: server.api.get(holder.job_id).status != RUNNING)
    wide = server.api.submit(request={"num_gpus": 2})
    narrow = server.api.submit(request={"num_gpus": 1})
    assert server.api.wait_for(narrow.job_id, COMPLETED).gpus != [gpu]
    queue = server.api.GetQueue()
    assert [(each.id, each.cordoned) for each in queue.gpus] == [(each.id, each.id == gpu) for each in queue.gpus]
    assert queue.free_gpu_count == 1
    assert server.api.get(wide.job_id).wait_reason == "needs 2 GPUs, 1 free, 1 cordoned, see GetQueue"
    server.stop()
    again = serve()
    assert [each.id for each in again.api.GetQueue().gpus if each.cordoned] == [gpu]
    assert again.api.get(wide.job_id).status == QUEUED
    operator(again, token).UncordonGpu(gpu_id=gpu)
    again.api.wait_for(wide.job_id, COMPLETED)


def test_a_gpu_that_there_is_not_is_named(serve: Serve, token: str) -> None:
    api = operator(serve(), token)
    for call in (api.CordonGpu, api.UncordonGpu):
        with pytest.raises(grpc.RpcError) as caught:
            call(gpu_id="7")
        assert fields_of(caught.value) == ["gpu_id"]
        assert "it has: 0, 1" in (caught.value.details() or "")


def test_a_cordon_is_lifted_also_when_the_gpu_is_gone(serve: Serve, token: str) -> None:
    server = serve()
    operator(server, token).CordonGpu(gpu_id="1")
    server.stop()
    again = serve(gpus="1")
    operator(again, token).UncordonGpu(gpu_id="1")
    assert again.server._store.holds == NO_HOLDS


def test_whoever_is_not_signed_in_is_told_how_to_be_an_operator(serve: Serve) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        serve().api.PauseQueue()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "that takes an operator; sign in as one: `evalrpc token create`" in (caught.value.details() or "")


def test_commands_of_operators_are_carried_out_and_recorded(
    serve: Serve, site: Site, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    operator(server, token)
    monkeypatch.setenv("EVALRPC_TOKEN", token)

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(main, [*arguments, "--address", server.address])
        assert result.exit_code == 0, result.output
        return result

    run("cordon", "1")
    run("pause")
    shown = run("queue").stdout
    assert "; the queue is paused" in shown
    assert "GPU 1\tcordoned" in shown
    run("resume")
    run("uncordon", "1")
    server.stop()
    lines = (site.folder / "data" / "audit.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(entry["owner"], entry["call"], entry["target"]) for entry in entries if entry["code"] == "OK"] == [
        ("olga", "CordonGpu", "gpu 1"),
        ("olga", "PauseQueue", ""),
        ("olga", "ResumeQueue", ""),
        ("olga", "UncordonGpu", "gpu 1"),
    ]
