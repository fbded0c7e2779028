"""`make demo-training`: from a folder that a real training run writes to a GO and a NO_GO, in three real harnesses."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "demo/training/demo_training.py"

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("lmms_python", "lm_eval_python", "inspect_python")
def test_a_training_run_is_followed_to_a_go_and_a_no_go() -> None:
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {(row[0], row[1]) for row in rows if row[1:2] in (["GO"], ["NO_GO"])} == {("400", "GO"), ("430", "NO_GO")}
