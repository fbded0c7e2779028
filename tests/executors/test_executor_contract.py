"""What every executor promises, checked on the local one, on a real Slurm cluster, and on one with two nodes."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from accounts import FIRST_UID, PYTHON, needs_accounts
from slurm_cluster import GPU_COUNT, SlurmCluster, needs_slurm
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.clock import SystemClock
from evalrpc.config import ExecutorSettings
from evalrpc.executors.base import Device, Executor, Node, Resources, RunAccount, RunHandle, RunKey
from evalrpc.executors.group import ExecutorGroup
from evalrpc.executors.hosts import HostExecutor
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.slurm.executor import SlurmExecutor
from evalrpc.harnesses.base import Command, Exit
from evalrpc.testing.executor import TWO_NODES, FakeExecutor


class Site(Protocol):
    """What the promises are checked on: an executor, and runs whose steps end when a test says so."""

    executor: Executor

    def command(self, steps: int) -> Command: ...

    def finish_step(self, run: RunHandle, step: int, code: int) -> None: ...

    def restart(self) -> None:
        """Close the executor and replace it by the one of the next server."""


WAITS = """
import os, sys, time
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
sys.exit(int(open(sys.argv[1]).read()))
"""


class LocalSite:
    python = sys.executable

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.executor = self._executor()

    def restart(self) -> None:
        self.executor.close()
        self.executor = self._executor()

    def _executor(self) -> LocalExecutor:
        return LocalExecutor(devices=[Device("0", "H200"), Device("1", "H200")])

    def command(self, steps: int) -> Command:
        argvs = [(self.python, "-S", "-c", WAITS, str(self._folder / str(step))) for step in range(steps)]
        return Command(argvs[0], further_steps=tuple(argvs[1:]))

    def finish_step(self, run: RunHandle, step: int, code: int) -> None:
        new = self._folder / "new"
        new.write_text(str(code))
        new.rename(self._folder / str(step))


class HostSite(LocalSite):
    """The executor of one of several machines."""

    def _executor(self) -> HostExecutor:  # type: ignore[override]
        return HostExecutor(super()._executor(), "alpha", lambda: (), lambda: True, 4, 2)


class AccountSite(LocalSite):
    """The local executor, where the runs have an account of their own."""

    python = PYTHON

    def finish_step(self, run: RunHandle, step: int, code: int) -> None:
        super().finish_step(run, step, code)
        (self._folder / str(step)).chmod(0o644)


class TwoNodeSite:
    def __init__(self, folder: Path) -> None:
        self.executor = FakeExecutor(TWO_NODES)
        self.executor.can_kill_leftovers = True

    def restart(self) -> None:
        """Keep the executor: it stands for the nodes too."""

    def command(self, steps: int) -> Command:
        return Command(("true",), further_steps=(("true",),) * (steps - 1))

    def finish_step(self, run: RunHandle, step: int, code: int) -> None:
        run.finish(code)  # type: ignore[attr-defined]


class SlurmSite(LocalSite):
    """A real cluster of one machine."""

    python = PYTHON

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self._cluster = cluster
        super().__init__(folder)

    def _executor(self) -> ExecutorGroup:  # type: ignore[override]
        settings = ExecutorSettings("cluster", "slurm", max_gpus=GPU_COUNT, python=PYTHON, poll_seconds=1.0)
        slurm = SlurmExecutor(settings, os.environ, SystemClock(), self._cluster.environment)
        return ExecutorGroup(LocalExecutor(), {"cluster": slurm})


SITES = {"local": LocalSite, "host": HostSite, "accounts": AccountSite, "two nodes": TwoNodeSite}


@pytest.fixture(
    params=[
        "local",
        "host",
        pytest.param("accounts", marks=needs_accounts),
        pytest.param("slurm", marks=needs_slurm),
        "two nodes",
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "slurm":
        site: Site = SlurmSite(tmp_path, request.getfixturevalue("slurm_cluster"))
    else:
        site = SITES[request.param](tmp_path)
    yield site
    site.executor.close()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Take another folder for accounts, which can't get to those of pytest."""
    if "accounts" not in request.node.name:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def key(request: pytest.FixtureRequest, key: RunKey, tmp_path: Path) -> RunKey:
    if "slurm" in request.node.name:
        return replace(key, node="cluster")
    if "accounts" not in request.node.name:
        return key
    key.attempt_dir.mkdir(mode=0o711)
    return replace(key, account=RunAccount(FIRST_UID, (), tmp_path))


@pytest.fixture
def resources(site: Site) -> Resources:
    """The last device of the last node, which nobody gets by default."""
    node = site.executor.nodes()[-1]
    return Resources(node.name, (node.devices[-1].id,))


@pytest.fixture
def run(site: Site, key: RunKey, resources: Resources) -> Iterator[RunHandle]:
    run = start(site, key, resources)
    yield run
    run.end(0.0)
    run.close()


def start(site: Site, key: RunKey, resources: Resources, steps: int = 1) -> RunHandle:
    site.executor.prepare()
    site.executor.make_room(key, steps)
    return site.executor.start(key, site.command(steps), resources)


def found(site: Site, key: RunKey) -> RunHandle:
    run = site.executor.find(key)
    assert run is not None
    return run


def reasons(nodes: Sequence[Node]) -> Mapping[str, str]:
    return {device.id: device.quarantine_reason for node in nodes for device in node.devices}


def test_devices_have_ids_of_their_own_and_can_be_used(site: Site) -> None:
    nodes = site.executor.nodes()
    ids = [device.id for node in nodes for device in node.devices]
    assert len(set(ids)) == len(ids) > 0
    assert len({node.name for node in nodes}) == len(nodes)
    assert not any(reasons(nodes).values())
    assert not site.executor.needs_recheck()


def test_the_nodes_stay_the_same_object_until_something_changes(site: Site, key: RunKey, resources: Resources) -> None:
    nodes = site.executor.nodes()
    assert site.executor.nodes() is nodes
    site.executor.quarantine(key, resources.devices, "why")
    assert site.executor.nodes() is not nodes
    assert site.executor.nodes() is site.executor.nodes()


def test_a_run_says_where_it_was_placed_and_how_it_ended(site: Site, run: RunHandle, resources: Resources) -> None:
    assert (run.node, run.devices) == (resources.node, resources.devices)
    assert not run.wait(0)
    site.finish_step(run, 0, 3)
    assert run.wait(SECONDS)
    assert run.exit_status() == Exit(code=3)


def test_a_wait_ends_when_it_is_interrupted_also_before_it_begins(run: RunHandle) -> None:
    run.interrupt()
    assert not run.wait(SECONDS)
    assert not run.wait(0)


def test_each_step_has_an_end_and_the_next_one_follows_whatever_it_was(site: Site, key: RunKey, resources: Resources) -> None:
    run = start(site, key, resources, steps=3)
    for step, code in enumerate((3, 0)):
        site.finish_step(run, step, code)
        eventually(lambda count=step + 1: len(run.step_ends()) == count, "for the end of a step")
        assert run.exit_status(step) == Exit(code=code)
    assert not run.wait(0)
    site.finish_step(run, 2, 5)
    assert run.wait(SECONDS)
    assert run.exit_status(2) == Exit(code=5)
    run.close()


def test_an_ended_run_starts_no_further_step(site: Site, key: RunKey, resources: Resources) -> None:
    run = start(site, key, resources, steps=2)
    run.end(0.0)
    assert run.wait(SECONDS)
    assert len(run.step_ends()) <= 1
    run.end(0.0)
    run.close()


def test_what_never_started_is_not_found_though_room_was_made_for_it(site: Site, key: RunKey) -> None:
    assert site.executor.find(key) is None
    site.executor.make_room(key, 1)
    site.executor.make_room(key, 2)
    assert site.executor.find(key) is None


def test_another_attempt_is_not_found(site: Site, key: RunKey, run: RunHandle, tmp_path: Path) -> None:
    site.finish_step(run, 0, 0)
    assert run.wait(SECONDS)
    run.end(0.0)
    assert site.executor.find(RunKey(key.job_id, 2, tmp_path / "attempt-2", node=key.node)) is None


def test_the_next_server_finds_a_run_where_it_is_and_sees_its_end(site: Site, key: RunKey, resources: Resources) -> None:
    run = start(site, key, resources)
    run.close()
    site.restart()
    run = found(site, key)
    assert (run.node, run.devices) == (resources.node, resources.devices)
    assert not run.wait(0)
    site.finish_step(run, 0, 7)
    assert run.wait(SECONDS)
    assert run.exit_status() == Exit(code=7)
    run.close()


def test_the_next_server_finds_a_run_that_has_ended(site: Site, key: RunKey, run: RunHandle, resources: Resources) -> None:
    site.finish_step(run, 0, 7)
    assert run.wait(SECONDS)
    site.restart()
    again = found(site, key)
    assert (again.node, again.devices) == (resources.node, resources.devices)
    assert again.wait(SECONDS)
    assert again.exit_status() == Exit(code=7)
    again.close()


def test_the_next_server_can_end_a_run(site: Site, key: RunKey, run: RunHandle) -> None:
    site.restart()
    again = found(site, key)
    again.end(0.0)
    again.close()
    assert run.wait(SECONDS)


def test_a_job_has_processes_until_its_run_is_ended(site: Site, key: RunKey, run: RunHandle) -> None:
    wait_for_processes(site, key)
    run.end(0.0)
    assert key.job_id not in site.executor.jobs_with_processes()


def test_devices_can_be_used_again_after_an_end(site: Site, run: RunHandle) -> None:
    run.end(0.0)
    assert not any(reasons(site.executor.nodes()).values())


def test_only_the_devices_of_a_run_that_is_left_are_quarantined_and_they_come_back_when_it_is_gone(
    site: Site, key: RunKey, run: RunHandle, resources: Resources
) -> None:
    wait_for_processes(site, key)
    site.executor.quarantine(key, resources.devices, "process 7 could not be killed")
    told = reasons(site.executor.nodes())
    assert {id_ for id_, reason in told.items() if reason} == set(resources.devices)
    assert told[resources.devices[0]] == "process 7 could not be killed"
    recheck_until_all_is_well(site)
    assert run.wait(SECONDS), "what was left was killed"
    assert not any(reasons(site.executor.nodes()).values())


def test_what_is_left_of_a_run_without_devices_is_killed_too(site: Site, key: RunKey, resources: Resources) -> None:
    run = start(site, key, resources._replace(devices=()))
    assert run.devices == ()
    wait_for_processes(site, key)
    site.executor.quarantine(key, (), "process 7 could not be killed")
    assert not any(reasons(site.executor.nodes()).values())
    recheck_until_all_is_well(site)
    assert run.wait(SECONDS)
    run.close()


def wait_for_processes(site: Site, key: RunKey) -> None:
    eventually(lambda: key.job_id in site.executor.jobs_with_processes(), "for the program of the run")


def recheck_until_all_is_well(site: Site) -> None:
    assert site.executor.needs_recheck()

    def well() -> bool:
        site.executor.recheck()
        return not site.executor.needs_recheck()

    eventually(well, "for nothing to be left")
