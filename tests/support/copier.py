"""A harness whose runs leave a copy of a folder as their output."""

import json
import sys
from pathlib import Path

from serving import COMPLETED, Api, Site

COPIER = """
import shutil, sys
shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)
"""


def add_copier(site: Site) -> None:
    """Add the harness to the configuration of a server that has not started yet."""
    program = site.folder / "copier.py"
    program.write_text(COPIER)
    command = json.dumps([sys.executable, "-S", str(program), "{model}", "{output_dir}"])
    with site.config.open("a") as config:
        config.write(f'[harnesses.copier]\nkind = "command"\ncommand = {command}\n')


def run_copier(api: Api, tree: Path) -> str:
    """Run a job that leaves a copy of a folder, and return its id."""
    job = api.run(tree.name, request={"harness": "copier", "model": str(tree)})
    assert job.status == COMPLETED, job.error
    return job.job_id
