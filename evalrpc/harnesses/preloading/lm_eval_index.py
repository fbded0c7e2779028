# mypy: ignore-errors
"""Keeps lm-eval's index of its built-in tasks in a parent of warm runs. The operator's folders are read anew by every run."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path

from lm_eval import tasks


def preload() -> list[str]:
    """Make the index, and give every TaskManager a copy. Return the folder that it is made of; none for a version of lm-eval
    whose index is another."""
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
