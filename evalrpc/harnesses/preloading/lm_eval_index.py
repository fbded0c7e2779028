# mypy: ignore-errors
"""Keeps lm-eval's index of its built-in tasks, and the list of installed packages, in a parent of warm runs. The operator's
folders are read anew by every run."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path


def preload() -> list[str]:
    """Keep both. Return the folder that the index is made of; none for a version of lm-eval whose index is another."""
    keep_packages()
    return keep_index()


def keep_packages() -> None:
    """Ask for the packages once: every run notes them in its results, and starts pip for that. A parent is out of date as soon
    as another one is installed."""
    try:
        from torch.utils import collect_env

        packages = collect_env.get_pip_packages(collect_env.run)
    except (ImportError, AttributeError):  # another version of torch, or none
        return
    collect_env.get_pip_packages = lambda *_: packages


def keep_index() -> list[str]:
    """Make the index, and give every TaskManager a copy."""
    from lm_eval import tasks

    try:
        from lm_eval.tasks._index import TaskIndex, log
    except ImportError:
        return []
    built_in = Path(tasks.__file__).parent
    build = TaskIndex.build
    index = pickle.dumps(build([built_in]), pickle.HIGHEST_PROTOCOL)

    def build_on_built_in(paths: Iterable[Path], *, resolve_includes: bool = True) -> dict:
        """Do what lm-eval's own does, which lets later folders override earlier ones."""
        first, *others = paths
        if first != built_in or not resolve_includes:
            return build([first, *others], resolve_includes=resolve_includes)
        found = pickle.loads(index)  # noqa: S301 - made above
        for name, entry in build(others).items():
            if name in found:
                overridden = found[name].yaml_path
                log.warning("Task '%s' from %s overrides existing task from %s", name, entry.yaml_path, overridden)
            found[name] = entry
        return found

    TaskIndex.build = staticmethod(build_on_built_in)
    return [os.fspath(built_in)]
