# mypy: ignore-errors
"""Keeps lmms-eval's index of its built-in tasks in a parent of warm runs. The operator's folders are read anew by every run."""

import os
import pickle

from lmms_eval import tasks
from lmms_eval.tasks import TaskManager


def preload() -> list[str]:
    """Make the index, and give every TaskManager a copy. Return the folder that it is made of."""
    built_in = os.path.dirname(os.path.abspath(tasks.__file__)) + "/"
    read = TaskManager._get_task_and_group
    index = pickle.dumps(TaskManager("ERROR")._get_task_and_group(built_in), pickle.HIGHEST_PROTOCOL)

    def index_of(self: TaskManager, folder: str) -> dict:
        return pickle.loads(index) if folder == built_in else read(self, folder)  # noqa: S301 - made above

    TaskManager._get_task_and_group = index_of
    return [built_in]
