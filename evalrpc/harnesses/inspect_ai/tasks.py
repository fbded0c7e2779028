"""Finds tasks in an operator's folders by inspect-ai's own rule: top-level functions decorated with `@task`."""

import ast
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

_SKIPPED_NAMES: Final = frozenset({"env", "venv", "tests"})


class TaskFunction(NamedTuple):
    """A function that makes a task."""

    path: Path
    """The file that defines it."""
    parameters: frozenset[str] | None
    """The names of what it takes; None: anything, as far as the file tells."""


def task_functions(folders: Iterable[Path]) -> dict[str, TaskFunction]:
    """Return the function of every task by its name. If two have the same name, the first counts, by order of folders and
    paths."""
    functions: dict[str, TaskFunction] = {}
    for folder in folders:
        for path in sorted(_python_files(folder)):
            for name, function in _tasks(path):
                functions.setdefault(name, TaskFunction(path, _parameters(function)))
    return functions


def task_files(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the file of every task by its name, as `task_functions`."""
    return {name: function.path for name, function in task_functions(folders).items()}


def _python_files(folder: Path) -> Iterator[Path]:
    for directory, folder_names, file_names in os.walk(folder):
        folder_names[:] = [name for name in folder_names if not _is_skipped(name)]
        yield from (Path(directory, name) for name in file_names if name.endswith(".py") and not _is_skipped(name))


def _is_skipped(name: str) -> bool:
    return name.startswith(("_", ".")) or name in _SKIPPED_NAMES


def _tasks(path: Path) -> list[tuple[str, ast.FunctionDef]]:
    """Return the names of a file's tasks, with their functions. A file that can't be read or parsed has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        (name, function)
        for function in functions
        for decorator in function.decorator_list
        if (name := _name(function, decorator))
    ]


def _parameters(function: ast.FunctionDef) -> frozenset[str] | None:
    """Return the names of a function's parameters; None if it takes any, or another decorator may change what it takes."""
    arguments = function.args
    if arguments.kwarg is not None or len(function.decorator_list) > 1:
        return None
    return frozenset(argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _name(function: ast.FunctionDef, decorator: ast.expr) -> str | None:
    """Return the task name that a decorator gives; None for any other decorator."""
    if isinstance(decorator, ast.Call) and _is_task(decorator.func):
        given = [keyword.value for keyword in decorator.keywords if keyword.arg == "name"]
        named = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return named[0] if named else function.name
    return function.name if _is_task(decorator) else None


def _is_task(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Name) and expression.id == "task"
