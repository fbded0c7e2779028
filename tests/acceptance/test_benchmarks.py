"""The benchmarks build on the parts of the server below its API, and must keep up with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from evalrpc.clock import SystemClock
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1.jobs_pb2 import JOB_STATUS_CANCELLED, JOB_STATUS_QUEUED

pytestmark = pytest.mark.slow  # who uses a server needs no benchmark

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from benchmarks.filling import fill
print(len(fill(Path(sys.argv[1]), finished=3, queued=5)))
"""


def test_a_store_is_filled_for_the_benchmarks_as_a_server_would(tmp_path: Path) -> None:
    command = (sys.executable, "-c", PROGRAM, str(tmp_path / "data"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5"
    store = SqliteStore(tmp_path / "data", SystemClock(), 100)
    counts = {status: count for status, count in store.status_counts().items() if count}
    store.close()
    assert counts == {JOB_STATUS_QUEUED: 5, JOB_STATUS_CANCELLED: 3}


def test_every_benchmark_can_be_chosen() -> None:
    done = subprocess.run((sys.executable, "-m", "benchmarks", "--help"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "submit-job" in done.stdout
