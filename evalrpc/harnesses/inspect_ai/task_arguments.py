"""`task_args` as inspect-ai takes them: what the functions of tasks take (`-T`), and how often each sample is evaluated.

inspect-ai itself only logs a warning of an argument that a task does not take.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from evalrpc.errors import FieldViolation
from evalrpc.harnesses.arguments import plain_arguments
from evalrpc.harnesses.failures import shorten
from evalrpc.harnesses.inspect_ai.logs import Log
from evalrpc.harnesses.inspect_ai.tasks import TaskFunction
from evalrpc.harnesses.task_args import field_of, has_option, is_integer
from evalrpc.results.metrics import mapping
from evalrpc.v1.jobs_pb2 import EvaluateRequest

MAX_EPOCHS: Final = 10_000

_EPOCHS: Final = "epochs"
_REDUCER: Final = "epochs_reducer"
_OWN: Final = (_EPOCHS, _REDUCER)
"""What inspect-ai takes itself, for all tasks: they never get arguments of these names."""
_REDUCER_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_NEEDS_EPOCHS: Final = re.compile(r"(?:at_least|pass_at|pass_k)_([0-9]{1,9})")


def violations(request: EvaluateRequest, operators_args: Sequence[str]) -> Iterator[FieldViolation]:
    """Yield what can't be, whatever the tasks take."""
    given = plain_arguments(request.task_args)
    by_operator = set(_set_by_operator(operators_args))
    has_config = has_option(operators_args, "--task-config", "--run-config")
    for name in given:
        if name in by_operator or (name not in _OWN and has_config):
            yield FieldViolation(field_of(name), "is the operator's choice for this harness (`args`): leave it out")
        elif not (name.isascii() and name.isidentifier()):
            yield FieldViolation(field_of(name), "is not the name of an argument: letters, digits and `_`")
    if _EPOCHS in given and not is_integer(given[_EPOCHS], 1, MAX_EPOCHS):
        yield FieldViolation(field_of(_EPOCHS), f"must be a whole number from 1 to {MAX_EPOCHS:,}")
    elif _REDUCER in given and (problem := _reducer_problem(given[_REDUCER], given.get(_EPOCHS))):
        yield FieldViolation(field_of(_REDUCER), problem)


def unknown(request: EvaluateRequest, functions: Mapping[str, TaskFunction]) -> Iterator[FieldViolation]:
    """Yield the arguments that no task of the request takes. Nothing if there is no function of one of them, or one may take
    anything."""
    taken = [functions[task].parameters if task in functions else None for task in request.tasks]
    known = frozenset().union(*(parameters for parameters in taken if parameters is not None))
    if None in taken:
        return
    others = f"the tasks take: {', '.join(sorted(known))}" if known else "the tasks take none"
    for name in of_tasks(request):
        if name not in known:
            problem = f"no task of the request takes it; inspect-ai takes: {', '.join(_OWN)}; {others}"
            yield FieldViolation(field_of(name), shorten(problem))


def of_tasks(request: EvaluateRequest) -> dict[str, Any]:
    """Return what the functions of the tasks get, by name."""
    return {name: value for name, value in plain_arguments(request.task_args).items() if name not in _OWN}


def options(request: EvaluateRequest) -> Iterator[str]:
    """Yield the options that say how often each sample is evaluated."""
    given = plain_arguments(request.task_args)
    if _EPOCHS in given:
        yield f"--epochs={given[_EPOCHS]}"
    if _REDUCER in given:
        yield f"--epochs-reducer={','.join(_reducers(given[_REDUCER]))}"


def ignored(request: EvaluateRequest, logs: Mapping[str, Log]) -> Iterator[str]:
    """Yield a warning for each argument that some tasks have not taken, by what their logs say."""
    ignoring = defaultdict[str, list[str]](list)
    for task, log in logs.items():
        taken = mapping(log.spec.get("task_args")).keys() | mapping(log.spec.get("task_args_passed")).keys()
        for name in of_tasks(request):
            if name not in taken:
                ignoring[name].append(task)
    for name, tasks in sorted(ignoring.items()):
        yield shorten(f"task_args: {name} was not taken by: {', '.join(sorted(tasks))}")


def _reducers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reducer_problem(value: Any, epochs: int | None) -> str | None:
    names = _reducers(value)
    if not names or not all(isinstance(name, str) and _REDUCER_NAME.fullmatch(name) for name in names):
        return "must be the name of a reducer, such as mean or at_least_2, or a list of them"
    if epochs is None:
        return "needs `task_args.epochs`"
    too_many = [name for name in names if (match := _NEEDS_EPOCHS.fullmatch(name)) and int(match[1]) > epochs]
    return f"{too_many[0]} needs more than {epochs} epochs" if too_many else None


def _set_by_operator(operators_args: Sequence[str]) -> Iterator[str]:
    """Yield the names of the arguments that the operator's command line sets."""
    yield from (name for name in _OWN if has_option(operators_args, f"--{name.replace('_', '-')}"))
    if has_option(operators_args, "--no-epochs-reducer"):
        yield _REDUCER
    for argument, following in pairwise((*operators_args, "")):
        if argument.startswith("-T"):
            yield (argument[2:] or following).partition("=")[0].replace("-", "_")
