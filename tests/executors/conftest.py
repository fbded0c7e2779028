"""Fixtures for the tests of executors."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_of_tests import kill_job
from running import Runs

from evalrpc.executors.base import RunKey


@pytest.fixture
def key(tmp_path: Path) -> Iterator[RunKey]:
    key = RunKey(str(uuid.uuid4()), 1, tmp_path / "attempt-1")
    yield key
    kill_job(key.job_id)


@pytest.fixture
def runs(key: RunKey) -> Iterator[Runs]:
    runs = Runs(key)
    yield runs
    runs.close()
