"""How a server stops: it announces it first, stops within a bounded time, and loses nothing, whatever hangs."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import CANCELLED, COMPLETED, RUNNING, SECONDS, TERMINAL, Api, Launch, Site, detail, nothing_left_of, reason_of
from waiting import eventually


def health(api: Api) -> int:
    stub = health_pb2_grpc.HealthStub(api.channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status


def test_a_draining_server_says_so_to_everyone_and_goes_on_answering(launch: Launch, site: Site) -> None:
    site.set_up(drain=True)
    server = launch()
    running = server.api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(running.job_id)
    waiting = server.api.submit("good", request={"num_gpus": 1})
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: health(server.api) == health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit("good")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "SERVER_STOPPING"
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert server.api.get(running.job_id).status == RUNNING
    assert "after the restart" in server.api.get(waiting.job_id).wait_reason
    assert server.api.CancelJob(job_id=waiting.job_id).status == CANCELLED
    site.release()
    assert server._end() == 0


def test_told_to_stop_once_more_a_draining_server_does_so_at_once(launch: Launch, site: Site) -> None:
    site.set_up(drain=True)
    server = launch()
    job = server.api.submit("hangs")
    site.wait_for_log(job.job_id)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.log_path.read_text())
    assert server.terminate() == 0
    assert not nothing_left_of(job.job_id), "the run is left to the next server"
    assert launch().api.get(job.job_id).status == RUNNING


def test_a_drain_that_takes_too_long_leaves_the_runs_to_the_next_server(launch: Launch, site: Site) -> None:
    site.set_up(drain=True, drain_seconds=0.2)
    server = launch()
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    assert server.terminate() == 0
    api = launch().api
    site.release()
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    assert site.starts(job.job_id) == ["1"]


def test_clients_that_never_read_do_not_hold_up_a_stop(launch: Launch, site: Site) -> None:
    site.set_up(stop_seconds=0.2)
    server = launch()
    for _ in range(20):
        server.api.submit("good", request={"num_gpus": 2}, labels={str(number): "x" * 255 for number in range(60)})
    streams = [server.api.WatchJobs(after_revision=1) for _ in range(20)]
    next(iter(streams[-1]))
    assert server.terminate() == 0
    for stream in streams:
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.slow
def test_a_run_that_does_not_end_does_not_hold_up_a_stop_and_the_next_server_ends_it(launch: Launch, site: Site) -> None:
    site.set_up(stop_seconds=0.2, grace_seconds=60.0)
    server = launch()
    job = server.api.submit("stubborn")
    site.wait_for_log(job.job_id, times=3)
    server.api.CancelJob(job_id=job.job_id)
    assert server.terminate() == 1
    site.set_up(grace_seconds=0.1)
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert ended.status == CANCELLED
    assert nothing_left_of(job.job_id)


# Stopped during startup, and by a bug.


@pytest.fixture
def popen(site: Site) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start a server in a process that first runs some code of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str = "") -> "subprocess.Popen[str]":
        program = f"{code}\nfrom evalrpc.cli import main; main()"
        command = (sys.executable, "-c", program, "serve", "--config", str(site.config))
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_told_to_stop_while_it_starts_does_so(popen: Callable[[str], "subprocess.Popen[str]"], site: Site) -> None:
    server = popen("")
    eventually(Path(site.folder / "data" / "lock").exists)
    server.send_signal(signal.SIGTERM)
    _, errors = server.communicate(timeout=SECONDS)
    assert server.returncode == 0, errors
    assert "Traceback" not in errors


def submit_without_end(api: Api) -> None:
    while True:
        api.submit("good", request={"num_gpus": 1})


@pytest.mark.parametrize(
    "code",
    [
        "from evalrpc.scheduling.queue_state import QueueState; QueueState.choose = lambda *_, **__: 1 / 0",
        "from evalrpc.store.transaction import Transaction; Transaction.submit = lambda *_: 1 / 0",
    ],
)
def test_a_bug_that_ends_a_thread_ends_the_server_loudly(popen: Callable[[str], "subprocess.Popen[str]"], code: str) -> None:
    server = popen(code)
    assert server.stdout is not None
    api = Api(server.stdout.readline().split()[-1])
    with pytest.raises(grpc.RpcError) as caught:
        submit_without_end(api)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    api.close()
    _, errors = server.communicate(timeout=SECONDS)
    assert server.returncode == 2
    assert "ZeroDivisionError" in errors
    assert "a bug has stopped it" in errors
