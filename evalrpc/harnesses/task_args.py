"""What a harness takes in `task_args`: by name, each with what its values are. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from evalrpc.errors import FieldViolation
from evalrpc.harnesses.arguments import plain
from evalrpc.printable import printable
from evalrpc.v1.jobs_pb2 import EvaluateRequest

_MAX_SHOWN: Final = 64  # characters of a name
_MAX_SEED: Final = 2**32 - 1  # NumPy's


class TaskArg(NamedTuple):
    """What the values of an argument are."""

    expected: str
    """In words, such as `true or false`."""
    is_valid: Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Return whether a value is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def is_integer(value: Any, minimum: int, maximum: int) -> bool:
    """Return whether a value is a whole number in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


BOOLEAN: Final = TaskArg("true or false", lambda value: isinstance(value, bool))
TEXT: Final = TaskArg("a text that is not empty", is_text)
SEED: Final = TaskArg(f"a whole number from 0 to {_MAX_SEED}", lambda value: is_integer(value, 0, _MAX_SEED))
TABLE: Final = TaskArg("a table of values by name", lambda value: isinstance(value, dict))


def field_of(name: str) -> str:
    """Return the path of an argument, from the request on, as errors name it."""
    return f"task_args.{printable(name[:_MAX_SHOWN])}"


def violations(
    request: EvaluateRequest, known: Mapping[str, TaskArg], title: str, operators_args: Sequence[str]
) -> Iterator[FieldViolation]:
    """Yield every argument that is not among those known, has a value that it can't have, or stands in the operator's own
    command line, which would win. `title` is the harness's display name."""
    for name, value in sorted(request.task_args.fields.items()):
        if name not in known:
            yield FieldViolation(field_of(name), f"{title} takes no such argument; it takes: {', '.join(known)}")
        elif not known[name].is_valid(plain(value)):
            yield FieldViolation(field_of(name), f"must be {known[name].expected}")
        elif has_option(operators_args, f"--{name}"):
            yield FieldViolation(field_of(name), "is the operator's choice for this harness (`args`): leave it out")


def has_option(arguments: Sequence[str], *options: str) -> bool:
    """Return whether a command line has one of these options, with or without a value."""
    return any(argument.partition("=")[0] in options for argument in arguments)
