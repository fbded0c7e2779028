"""Environments like those of the real harnesses, in which a harness has few tasks of its own.

A process that runs one reads the files of all its tasks before it does anything. Those of lm-eval are 13,000, which takes it
twenty seconds of a processor.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

KEPT = ("hellaswag", "mme")
"""A folder of tasks of each harness."""


def with_few_tasks(python: Path, package: str, folder: Path) -> Path:
    """Link an environment into an empty folder, except for most tasks of a package. Return its interpreter."""
    environment = python.parent.parent
    (tasks,) = environment.glob(f"lib/python*/site-packages/{package}/tasks")
    _link(environment, folder, tasks.relative_to(environment).parts)
    return folder / "bin" / python.name


def remove_most_tasks(environment: Path, package: str) -> None:
    """Leave few tasks of a package in an environment."""
    (tasks,) = environment.glob(f"lib/python*/site-packages/{package}/tasks")
    for path in tasks.iterdir():
        if not _stays(path):
            shutil.rmtree(path)


def _link(source: Path, target: Path, tasks: Sequence[str]) -> None:
    """Link what a folder has. `tasks` is the path from it to the folder of the tasks, of which few are linked."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if tasks[:1] == (path.name,):
            _link(path, target / path.name, tasks[1:])
        elif not tasks and path.name in KEPT:
            shutil.copytree(path, target / path.name)  # harnesses look for tasks in no folder that is a link
        elif tasks or _stays(path):
            (target / path.name).symlink_to(path)


def _stays(path: Path) -> bool:
    return path.name in KEPT or path.name.startswith("_") or not path.is_dir()
