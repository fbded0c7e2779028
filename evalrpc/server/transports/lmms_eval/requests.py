"""What lmms-eval's clients send, as our requests; and what is wrong with it, in the words of its web framework. Pure."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from evalrpc.errors import FieldViolation
from evalrpc.jobs.argument_text import parse_arguments
from evalrpc.protobuf.structs import wire_text
from evalrpc.v1.jobs_pb2 import EvaluateRequest, SubmitJobRequest

PREPARED: Final = "#"
"""Between a folder and the preparation that it is to have, in the paths that /merge answers with."""

CHECKPOINT_TYPES: Final[Mapping[str, str]] = {"regular": "merge-fsdp2", "ema": "merge-fsdp2-ema"}
"""The preparation for each type of checkpoint, which the operator has to have defined under this name."""

_DICT: Final = "model_attributes_type", "Input should be a valid dictionary or object to extract fields from"
_DIGITS: Final = re.compile(r"\s*[+-]?[0-9]{1,9}\s*")
_BOOLEANS: Final[Mapping[Any, bool]] = {
    **dict.fromkeys((True, "true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys((False, "false", "f", "no", "n", "off", "0"), False),
}
"""What is taken for a boolean. True is also 1, and False 0."""
_MAX_INTEGER: Final = 2**31
_MAX_NUMBER: Final = 1e300
_MAX_SHOWN_BYTES: Final = 64 * 1024
_MISSING: Final = "missing", "Field required"


class UnprocessableError(Exception):
    """The request is not what lmms-eval's server takes. `detail` is what it answers with."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        super().__init__()
        self.detail = detail


class _Field(NamedTuple):
    """A field of a body."""

    read: Callable[[Any], Any]
    """Returns a value as a message takes it. Raises ValueError for one that is none."""
    error: tuple[str, str]
    """The type and the text of the error for a value that is none."""
    required: bool = False


class Merge(NamedTuple):
    """A checkpoint that is to be merged."""

    checkpoint_path: str
    output_path: str
    preparation: str


def _integer(value: Any) -> int:
    """Read a whole number that a field of ours can hold, or the text of one. Raises ValueError."""
    is_whole = _DIGITS.fullmatch(value) if isinstance(value, str) else _finite(value) % 1 == 0 and abs(value) < _MAX_INTEGER
    return int(_require(is_whole, value))


def _finite(value: Any) -> float:
    """Read a number, or the text of one. Raises ValueError."""
    number = float(value) if isinstance(value, str) else value
    return _require(isinstance(number, int | float) and abs(number) < _MAX_NUMBER, number)  # type: ignore[no-any-return]


def _batch_size(value: Any) -> str:
    """Read a number, or text such as `auto`; no number, and 0, mean none. Raises ValueError."""
    size = _text(value) if isinstance(value, str) else str(_integer(value))
    return "" if size == "0" else size


def _text(value: Any) -> str:
    """Read a text. JSON may have halves of surrogate pairs, which are no text. Raises ValueError."""
    return _require(isinstance(value, str) and value == wire_text(value), value)  # type: ignore[no-any-return]


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in _require(isinstance(value, list), value)]


def _dict(value: Any) -> dict[str, Any]:
    return _require(isinstance(value, dict), value)  # type: ignore[no-any-return]


def _boolean(value: Any) -> bool:
    """Read a boolean, or a number or text that means one. Raises ValueError."""
    given = value.lower() if isinstance(value, str) else value
    return _BOOLEANS[_require(isinstance(given, str | int | float) and given in _BOOLEANS, given)]


def _checkpoint_type(value: Any) -> str:
    return _require(isinstance(value, str) and value in CHECKPOINT_TYPES, value)  # type: ignore[no-any-return]


def _require(is_right: object, value: Any) -> Any:
    """Return the value. Raises ValueError for a wrong one."""
    if not is_right:
        raise ValueError
    return value


_TEXT: Final = "string_type", "Input should be a valid string"
_INTEGER: Final = "int_type", "Input should be a valid integer"
_BOOLEAN: Final = "bool_type", "Input should be a valid boolean"

_EVALUATE: Final[Mapping[str, _Field]] = {
    "model": _Field(_text, _TEXT, required=True),
    "tasks": _Field(_texts, ("list_type", "Input should be a valid list of strings"), required=True),
    "model_args": _Field(_dict, ("dict_type", "Input should be a valid dictionary")),
    "num_fewshot": _Field(_integer, _INTEGER),
    "batch_size": _Field(_batch_size, _INTEGER),
    "device": _Field(_text, _TEXT),
    "limit": _Field(_finite, ("float_type", "Input should be a valid number")),
    "gen_kwargs": _Field(_text, _TEXT),
    "log_samples": _Field(_boolean, _BOOLEAN),
    "predict_only": _Field(_boolean, _BOOLEAN),
    "num_gpus": _Field(_integer, _INTEGER),
    "output_dir": _Field(_text, _TEXT),
}
_NEVER_NULL: Final = frozenset({"model", "tasks", "log_samples", "predict_only", "num_gpus"})
_MERGE: Final[Mapping[str, _Field]] = {
    "checkpoint_path": _Field(_text, _TEXT, required=True),
    "output_path": _Field(_text, _TEXT),
    "checkpoint_type": _Field(_checkpoint_type, ("literal_error", "Input should be 'regular' or 'ema'")),
}


def submission_of(body: bytes, harness: str, gpu_count: int) -> SubmitJobRequest:
    """Return the submission in the body of POST /evaluate. Raises UnprocessableError."""
    given = _read(body, _EVALUATE, _NEVER_NULL)
    request = EvaluateRequest(harness=harness, model=given["model"], tasks=given["tasks"])
    model_args = {name: _number(value) for name, value in given.get("model_args", {}).items() if value is not None}
    request.preparation = _take_preparation(model_args)
    _fill_struct(request, "model_args", model_args)
    _fill_struct(request, "gen_kwargs", _generation(given.get("gen_kwargs", "")))
    if "num_fewshot" in given:
        request.num_fewshot = given["num_fewshot"]
    request.batch_size = given.get("batch_size", "")
    if given.get("limit", 0):
        request.limit = given["limit"]
    request.device = given.get("device", "")
    request.output_dir = given.get("output_dir", "")
    request.log_samples = given.get("log_samples", True)
    request.predict_only = given.get("predict_only", False)
    num_gpus = given.get("num_gpus", 1)
    request.num_gpus = 0 if num_gpus == 1 and not gpu_count else num_gpus
    return SubmitJobRequest(request=request)


def merge_of(body: bytes) -> Merge:
    """Return what the body of POST /merge asks for. Raises UnprocessableError."""
    given = _read(body, _MERGE, frozenset({"checkpoint_path", "checkpoint_type"}))
    kind = given.get("checkpoint_type", "regular")
    return Merge(given["checkpoint_path"], given.get("output_path", ""), CHECKPOINT_TYPES[kind])


def unprocessable(violations: tuple[FieldViolation, ...]) -> UnprocessableError:
    """Return the error for fields that our own rules refuse."""
    return UnprocessableError(
        [
            {
                "type": "value_error",
                "loc": ["body", *violation.field.removeprefix("request.").split(".")],
                "msg": violation.description,
                "input": None,
            }
            for violation in violations
        ]
    )


def no_json(text: bytes) -> UnprocessableError:
    """Return the error for a body of another type."""
    return UnprocessableError([_error(_DICT, ["body"], text.decode(errors="replace"))])


def _read(body: bytes, fields: Mapping[str, _Field], never_null: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a body that are neither absent nor null. Unknown ones are ignored. Raises UnprocessableError."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else 0
        detail = _error(("json_invalid", "JSON decode error"), ["body", place], {})
        raise UnprocessableError([{**detail, "ctx": {"error": str(error)}}]) from None
    if not isinstance(given, dict):
        raise UnprocessableError([_error(_DICT, ["body"], given)])
    found: dict[str, Any] = {}
    errors = []
    for name, field in fields.items():
        if name not in given:
            errors += [_error(_MISSING, ["body", name], given)] if field.required else []
        elif given[name] is None:
            errors += [_error(field.error, ["body", name], None)] if name in never_null else []
        else:
            try:
                found[name] = field.read(given[name])
            except ValueError:
                errors.append(_error(field.error, ["body", name], given[name]))
    if errors:
        raise UnprocessableError(errors)
    return found


def _error(error: tuple[str, str], loc: list[Any], given: Any) -> dict[str, Any]:
    kind, text = error
    return {"type": kind, "loc": loc, "msg": text, "input": _shown(given)}


def _shown(given: Any) -> Any:
    """Return what is wrong, as far as an answer can have it."""
    try:
        return given if len(json.dumps(given)) <= _MAX_SHOWN_BYTES else None
    except RecursionError:
        return None


def _number(value: Any) -> Any:
    """Return a text that is a number as that number."""
    if not isinstance(value, str):
        return value
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return value


def _take_preparation(model_args: dict[str, Any]) -> str:
    """Return the preparation that a path from /merge names, and leave its folder in the arguments."""
    for name, value in model_args.items():
        folder, mark, preparation = str(value).rpartition(PREPARED)
        if mark and preparation in CHECKPOINT_TYPES.values():
            model_args[name] = folder
            return preparation
    return ""


def _generation(text: str) -> dict[str, Any]:
    try:
        return parse_arguments(text)
    except ValueError as error:
        raise UnprocessableError([_error(("value_error", str(error)), ["body", "gen_kwargs"], text)]) from None


def _fill_struct(request: EvaluateRequest, field: str, values: Mapping[str, Any]) -> None:
    if not values:
        return
    try:
        json_format.ParseDict({field: values}, request)
        SubmitJobRequest(request=request)  # which copies it: what is nested too deep for that nobody can read
    except (json_format.ParseError, ValueError, OverflowError) as error:
        raise UnprocessableError([_error(("value_error", str(error)), ["body", field], None)]) from None
    except (DecodeError, RecursionError):
        raise UnprocessableError([_error(("value_error", "is nested too deep"), ["body", field], None)]) from None
