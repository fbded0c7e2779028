"""Accounts of runs: what tests of them need."""

import os
import subprocess
from pathlib import Path

import pytest

UIDS = "200000-200999"
FIRST_UID = 200_000
PYTHON = "/usr/bin/python3"
"""An interpreter that every account may run; that of the tests may lie in a private folder."""


def is_runnable() -> bool:
    """Tell whether processes with these accounts can run the interpreter."""
    if os.geteuid() or not Path(PYTHON).exists():
        return False
    probe = subprocess.run(
        (PYTHON, "-S", "-c", ""), user=FIRST_UID, group=FIRST_UID, extra_groups=(), cwd="/", capture_output=True, check=False
    )
    return probe.returncode == 0


needs_accounts = pytest.mark.skipif(not is_runnable(), reason=f"needs root, and {PYTHON} that every account may run")
