"""What is wrong with the arguments of a request: how large they are, how deep, and what no program takes."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from evalrpc.errors import FieldViolation
from evalrpc.jobs.size_limits import MAX_ARGS_BYTES, MAX_SERVED_ARGS_BYTES
from evalrpc.printable import first_unprintable, printable
from evalrpc.server.validation.fields import Violations, unprintable

MAX_ARG_VALUES: Final = 100_000
"""Values of all fields with arguments together: each element of a list and of a struct is one."""
MAX_NESTING: Final = 16
_MAX_PATH_KEY: Final = 64  # characters of a key in the path of a field


def all_arguments(arguments: Mapping[str, Struct]) -> Violations:
    """Yield what is wrong with the arguments of a request, by field."""
    left = MAX_ARG_VALUES
    for field, struct in arguments.items():
        size_bytes, most = struct.ByteSize(), MAX_SERVED_ARGS_BYTES if field.endswith(".args") else MAX_ARGS_BYTES
        if size_bytes > most:
            yield FieldViolation(field, f"has {size_bytes} bytes when serialised; at most {most} are allowed")
            continue
        checked = _Arguments(field, struct, left)
        yield from checked.violations
        left -= checked.value_count
        if left < 0:
            together = " and ".join(name for name, struct in arguments.items() if struct.fields)
            yield FieldViolation(field, f"has too many values: at most {MAX_ARG_VALUES} are allowed in {together} together")
            return


class _Arguments:
    """Looks into all values of a struct, up to a number of them, without recursion."""

    def __init__(self, field: str, struct: Struct, max_values: int) -> None:
        self.violations: list[FieldViolation] = []
        self.value_count = 0
        """How many values there are; more than `max_values` if there are more."""
        is_deep = False
        pending = [iter(_fields_of(field, struct))]  # of the struct or list that a value is in, and of all around it
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            path, key, value = found
            self.value_count += 1
            if self.value_count > max_values:
                return
            is_deep = is_deep or len(pending) > MAX_NESTING
            if len(pending) <= MAX_NESTING:
                kind = value.WhichOneof("kind")
                self._look_at(path, key, value, kind)
                if kind == "struct_value":
                    pending.append(_fields_of(path, value.struct_value))
                elif kind == "list_value":
                    pending.append(_items_of(path, value.list_value))
        if is_deep:  # clients could not decode it in a list of jobs
            self.violations = [FieldViolation(field, f"is nested more than {MAX_NESTING} deep")]

    def _look_at(self, path: str, key: str, value: Value, kind: str | None) -> None:
        if (character := first_unprintable(key)) is not None:
            self.violations.append(FieldViolation(printable(path), unprintable(character)))
        if kind == "string_value" and "\0" in value.string_value:  # no program takes it; others are data
            self.violations.append(FieldViolation(printable(path), unprintable("\\x00")))
        elif kind == "number_value" and not math.isfinite(value.number_value):
            self.violations.append(FieldViolation(path, "must be finite"))


def _fields_of(path: str, struct: Struct) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}.{key[:_MAX_PATH_KEY]}", key, value) for key, value in struct.fields.items())


def _items_of(path: str, values: ListValue) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}[{index}]", "", value) for index, value in enumerate(values.values))
