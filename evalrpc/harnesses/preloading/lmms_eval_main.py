# mypy: ignore-errors
"""`python lmms_eval_main.py ARGS` does what `python -m lmms_eval ARGS` does, in two thirds of the time before the first task.

lmms-eval reads thousands of YAML files for its index of tasks, with PyYAML's parser in Python. Here the one in C (libyaml) does
it, where PyYAML has that. Both build the same values, with the same constructors.
"""

import os
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


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as for `python -m`
    use_libyaml()
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
