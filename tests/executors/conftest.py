"""Fixtures for the tests of executors."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_of_tests import kill_job
from running import SECONDS, Runs
from slurm_cluster import slurm_cluster

from evalrpc.executors.base import RunKey
from evalrpc.executors.local import executor, leftovers, run

__all__ = ["slurm_cluster"]


@pytest.fixture
def key(tmp_path: Path) -> Iterator[RunKey]:
    key = RunKey(str(uuid.uuid4()), 1, tmp_path / "attempt-1")
    yield key
    kill_job(key.job_id)


@pytest.fixture(autouse=True)
def long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give shims all the time that they need on a busy machine."""
    monkeypatch.setattr(leftovers, "_START_SECONDS", SECONDS)
    for module in (executor, run):
        monkeypatch.setattr(module, "SHIM_SECONDS", SECONDS)


@pytest.fixture
def runs(key: RunKey) -> Iterator[Runs]:
    runs = Runs(key)
    yield runs
    runs.close()
