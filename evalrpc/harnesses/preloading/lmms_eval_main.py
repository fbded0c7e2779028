# mypy: ignore-errors
"""`python lmms_eval_main.py ARGS` does what `python -m lmms_eval ARGS` does, in two thirds of the time before the first task.

lmms-eval reads thousands of YAML files for its index of tasks, with PyYAML's parser in Python. Here the one in C (libyaml) does
it, where PyYAML has that. Both build the same values, with the same constructors.

A parent of warm runs does the same, and keeps the index of the built-in tasks. The operator's folders are read anew by every
run.
"""

import os
import pickle
import runpy
import sys


def use_libyaml() -> None:
    """Let `yaml.full_load` parse in C, if it can."""
    import yaml

    if not yaml.__with_libyaml__:
        return

    class Loader(yaml.CFullLoader):
        """Knows the name of its file, as the loader in Python does: `!function` is looked up beside it."""

        def __init__(self, stream: object) -> None:
            super().__init__(stream)
            self.name = getattr(stream, "name", "")

    add_constructor = yaml.add_constructor

    def add_to_both(tag: str, constructor: object, loader: object = None) -> None:
        add_constructor(tag, constructor, loader)
        if loader is None:
            Loader.add_constructor(tag, constructor)

    def full_load(stream: object) -> object:
        return yaml.load(stream, Loader)  # noqa: S506 - what `full_load` allows

    yaml.add_constructor = add_to_both
    yaml.full_load = full_load


def prepare() -> None:
    """Do what a run does before it imports lmms-eval."""
    use_libyaml()


def preload() -> list[str]:
    """Make the index, and give every TaskManager a copy. Return the folder that it is made of."""
    from lmms_eval import tasks
    from lmms_eval.tasks import TaskManager

    built_in = os.path.dirname(os.path.abspath(tasks.__file__)) + "/"
    read = TaskManager._get_task_and_group
    index = pickle.dumps(TaskManager("ERROR")._get_task_and_group(built_in), pickle.HIGHEST_PROTOCOL)

    def index_of(self: TaskManager, folder: str) -> dict:
        return pickle.loads(index) if folder == built_in else read(self, folder)  # noqa: S301 - made above

    TaskManager._get_task_and_group = index_of
    return [built_in]


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as for `python -m`
    use_libyaml()
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
