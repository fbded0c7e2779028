"""A server for the tests of other packages: real, on a free port, and gone with all its runs when the test is over."""

import sys
from pathlib import Path

import pytest
from processes_of_tests import is_alive
from waiting import eventually

from evalrpc.client import EvalClient
from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError, UnavailableError
from evalrpc.testing.server import ServerThread, running_server
from evalrpc.v1.jobs_pb2 import JOB_STATUS_CANCELLED, JOB_STATUS_COMPLETED, JOB_STATUS_RUNNING

SLEEPER = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('pid', os.getpid()); time.sleep(1000)"
WRITER = "import sys; open(sys.argv[1] + '/20260214_103045_results.json', 'w').write('{\"results\": {\"t\": {\"acc\": 1}}}')"


def settings_of(folder: Path, program: str, kind: str = "command") -> Settings:
    harness = HarnessSettings("toy", kind, command=(sys.executable, "-c", program, "{output_dir}"))
    return Settings(data_dir=folder / "data", gpus="0", max_running=1, grace_seconds=0.1, harnesses={"toy": harness})


def evaluate(client: EvalClient) -> str:
    return client.evaluate("m", ["t"], harness="toy", num_gpus=0).job_id


def test_it_runs_a_whole_evaluation(tmp_path: Path) -> None:
    with running_server(settings_of(tmp_path, WRITER)) as client:
        job = client.wait_for_job(evaluate(client))
    assert job.status == JOB_STATUS_COMPLETED
    assert [metric.value for metric in job.results["m"].metrics] == [1.0]


def pid_in_log(client: EvalClient, job_id: str) -> int:
    """Wait until the job's program has printed its process id."""
    eventually(lambda: client.get_job(job_id).status == JOB_STATUS_RUNNING)
    words = eventually(lambda: (found := b"".join(client.logs(job_id)).split())[1:] and found)
    return int(words[1])


def test_no_run_outlives_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, SLEEPER)
    with running_server(settings) as client:
        running, waiting = evaluate(client), evaluate(client)
        pid = pid_in_log(client, running)
    assert not is_alive(pid)
    with running_server(settings) as client:
        assert [client.get_job(job_id).status for job_id in (running, waiting)] == [JOB_STATUS_CANCELLED] * 2


def test_no_run_outlives_a_test_that_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with running_server(settings_of(tmp_path, SLEEPER)) as client:
            pids.append(pid_in_log(client, evaluate(client)))
            client.close()
            raise AssertionError("as tests do")

    with pytest.raises(AssertionError, match="as tests do"):
        fail()
    assert not is_alive(*pids)


def test_it_is_gone_when_the_test_is_over(tmp_path: Path) -> None:
    with running_server(settings_of(tmp_path, WRITER)) as client:
        assert client.is_healthy()
        address = client.address
    with EvalClient(address) as late, pytest.raises(UnavailableError):
        late.get_server_info()


def test_settings_with_which_no_server_starts_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"harnesses\.toy\.kind: nosuch is unknown"),
        running_server(settings_of(tmp_path, WRITER, kind="nosuch")),
    ):
        raise AssertionError("it started")


def test_a_run_goes_on_from_one_server_to_the_next(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, SLEEPER)
    server = ServerThread(settings)
    with EvalClient(server.address) as client:
        job_id = evaluate(client)
        pid = pid_in_log(client, job_id)
    server.stop()
    assert is_alive(pid)
    with running_server(settings) as client:
        assert client.get_job(job_id).status == JOB_STATUS_RUNNING
    assert not is_alive(pid)
