"""What a run may take, as clients and operators see it. `tests/executors/test_run_limits.py` has how it is enforced."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from limiting_cgroups import unit_of_server
from serving import COMPLETED, FAILED, TERMINAL, Api, Launch, ServerHere, ServerThere, Site
from waiting import eventually

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

Serve = Callable[..., ServerHere]
MIB = 1024 * 1024
FEW, MANY = 256 * MIB, 4096 * MIB
HINT = f"this server allows a run {FEW} bytes of memory (max_run_memory_bytes)"


def run_hungry(api: Api, num_gpus: int = 0) -> pb.JobInfo:
    return api.run("hungry", request={"num_gpus": num_gpus})


def reload(server: ServerHere, site: Site) -> None:
    asyncio.run_coroutine_threadsafe(server.server.reload(site.settings), server._loop).result()


@pytest.fixture
def released(site: Site) -> None:
    site.release()


# By rlimits.


@pytest.mark.usefixtures("released")
def test_a_run_past_its_memory_fails_and_is_told_the_limit(serve: Serve, site: Site) -> None:
    site.set_up(max_run_memory_bytes=FEW)
    job = run_hungry(serve().api)
    assert (job.status, job.error.reason, job.error.message) == (FAILED, "OUT_OF_MEMORY", f"MemoryError; {HINT}")


@pytest.mark.usefixtures("released")
def test_a_run_with_gpus_is_not_limited_without_cgroups_and_the_log_warns_of_that(
    serve: Serve, site: Site, launch: Launch
) -> None:
    site.set_up(max_run_memory_bytes=FEW)
    server = launch()
    assert run_hungry(server.api, num_gpus=1).status == COMPLETED
    line = f"memory of runs: at most {FEW} bytes, enforced by rlimits (address space of each process), and not at all for runs"
    eventually(lambda: line in server.log_path.read_text())
    (warning,) = [each for each in server.log_path.read_text().splitlines() if line in each]
    assert "WARNING" in warning


@pytest.mark.usefixtures("released")
def test_a_harness_may_have_a_limit_of_its_own(serve: Serve, site: Site) -> None:
    site.set_up(max_run_memory_bytes=FEW)
    with site.config.open("a") as config:
        config.write(f"max_run_memory_bytes = {MANY}\n")
    assert run_hungry(serve().api).status == COMPLETED


@pytest.mark.usefixtures("released")
def test_a_limit_that_was_changed_holds_for_the_next_run_without_a_restart(
    serve: Serve, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "evalrpc.server.reloading")
    server = serve()
    assert run_hungry(server.api).status == COMPLETED
    plain = site.config.read_text()
    site.set_up(max_run_memory_bytes=FEW)
    reload(server, site)
    assert "changed: max_run_memory_bytes\n" in caplog.text
    assert run_hungry(server.api).error.reason == "OUT_OF_MEMORY"
    site.config.write_text(f"max_run_memory_bytes = {FEW}\n{plain}max_run_memory_bytes = 0\nmax_run_processes = 7\n")
    reload(server, site)
    assert "changed: harnesses.toy.max_run_memory_bytes, harnesses.toy.max_run_processes\n" in caplog.text
    assert run_hungry(server.api).status == COMPLETED
    assert "restart" not in caplog.text


# By cgroups.


@pytest.fixture(scope="module")
def unit() -> Iterator[Path]:
    with unit_of_server() as unit:
        yield unit


@pytest.fixture
def limiting(unit: Path, launch: Launch, site: Site) -> Launch:
    """Start a server whose runs may have little memory, by cgroup."""
    site.set_up(cgroups="auto", max_run_memory_bytes=FEW)

    def start() -> ServerThere:
        server = launch()
        eventually(lambda: f"memory of runs: at most {FEW} bytes, enforced by cgroup" in server.log_path.read_text())
        return server

    return start


KILLED = f"the run needed more than the {FEW} bytes of memory that this server allows (max_run_memory_bytes)"


@pytest.mark.parametrize("num_gpus", [0, 1])
@pytest.mark.usefixtures("released")
def test_a_job_that_is_killed_for_its_memory_fails_with_the_limit(limiting: Launch, num_gpus: int) -> None:
    job = run_hungry(limiting().api, num_gpus)
    assert (job.status, job.error.reason, job.error.message) == (FAILED, "OUT_OF_MEMORY", KILLED)


@pytest.mark.parametrize("is_server_there", [True, False])
def test_a_limit_holds_over_a_restart_of_the_server(limiting: Launch, site: Site, *, is_server_there: bool) -> None:
    server = limiting()
    job = server.api.submit("hungry", request={"num_gpus": 0})
    site.wait_for_log(job.job_id)
    server.kill()
    if not is_server_there:
        site.release()
        eventually(lambda: not processes_of_job(job.job_id), "for the run to be killed")
    api = limiting().api
    site.release()
    job = api.wait_for(job.job_id, *TERMINAL)
    assert (job.status, job.error.reason, job.error.message) == (FAILED, "OUT_OF_MEMORY", KILLED)
