"""Walks through the arguments of a request as harnesses read them: also into JSON that is given as text.

lmms-eval hands lists and structs to its models as JSON, so a client may write such text itself. Pure.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.jobs.served_models import SERVED_FIELDS
from evalrpc.jobs.size_limits import MAX_ARGS_BYTES
from evalrpc.printable import printable
from evalrpc.v1.jobs_pb2 import EvaluateRequest

_MAX_PATH_KEY: Final = 64  # characters of a name in a path


class Argument(NamedTuple):
    """A value somewhere in the arguments."""

    path: str
    """Where it is, such as `model_args.model_kwargs.dtype`. What is in JSON text has the path of the text and its own."""
    name: str
    """Its own name; empty in a list."""
    nearest_name: str
    """Its own name, or that of the list that it is in."""
    value: object
    """A text, number, boolean or None; a list or dict, whose values follow."""


def argument_fields(request: EvaluateRequest) -> dict[str, Struct]:
    """Return the fields of a request that hold arguments, by path."""
    return {
        "model_args": request.model_args,
        "gen_kwargs": request.gen_kwargs,
        "task_args": request.task_args,
        **{f"{field}.args": getattr(request, field).args for field in SERVED_FIELDS if request.HasField(field)},
    }


def argument_values(request: EvaluateRequest) -> Iterator[Argument]:
    """Yield every value of every field that holds arguments, whatever it is in. Nothing of a field that is too large."""
    for field, struct in argument_fields(request).items():
        if struct.fields and struct.ByteSize() <= MAX_ARGS_BYTES:
            yield from _below(Argument(field, "", "", _of_struct(struct)))


class _Pairs(list[tuple[str, Any]]):
    """A struct, or a JSON object with all its names: of one that is there twice, parsers take the one or the other."""


def _below(top: Argument) -> Iterator[Argument]:
    """Yield what is in a value, without recursion: JSON may be nested in JSON."""
    pending = [top]
    while pending:
        found = list(_in(pending.pop()))
        yield from found
        pending.extend(reversed(found))


def _in(outer: Argument) -> Iterator[Argument]:
    value = parsed_json(outer.value) if isinstance(outer.value, str) else outer.value
    if isinstance(value, _Pairs):
        for key, item in value:
            yield Argument(f"{outer.path}.{printable(key[:_MAX_PATH_KEY])}", key, key, item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield Argument(f"{outer.path}[{index}]", "", outer.nearest_name, item)


def parsed_json(text: str) -> object:
    """Return what a text says as JSON, if that is a list or an object, whose values are among the arguments; otherwise None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None


def _of_struct(struct: Struct) -> _Pairs:
    return _Pairs((key, _of_value(item)) for key, item in sorted(struct.fields.items()))


def _of_value(value: Value) -> object:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _of_struct(value.struct_value)
        case "list_value":
            return [_of_value(item) for item in value.list_value.values]
        case "null_value" | None:
            return None
        case kind:
            found: object = getattr(value, kind)
            return found
