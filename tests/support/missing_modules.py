"""Runs Python without modules that another machine may lack."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from waiting import DEADLINE_SECONDS

ROOT: Final = Path(__file__).parents[2]

_WITHOUT: Final = """
import os, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {modules}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
{code}
"""


def run_without(modules: set[str], code: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run code in a new interpreter that has none of these modules."""
    program = _WITHOUT.format(modules=sorted(modules), code=code)
    return subprocess.run(
        (sys.executable, "-W", "error", "-c", program, *arguments),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": "/nonexistent"},
    )
