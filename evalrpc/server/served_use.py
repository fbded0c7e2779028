"""Which engines a request may name, what it may ask of them, and whether its harness can be pointed at one. Pure.

The paths of fields begin at the request.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.config import EngineSettings
from evalrpc.config.engines import APIS
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.base import Harness, ServedEndpoint, ServedHarness, ServedNeeds
from evalrpc.jobs.served_models import model_name
from evalrpc.printable import first_unprintable, printable
from evalrpc.v1.jobs_pb2 import EvaluateRequest

MAX_MODEL_BYTES: Final = 1024
"""Of the name of a served model, in UTF-8."""

_MAX_SHOWN: Final = 80
_OF_THE_ENGINE: Final = ("model", "device", "batch_size", "gpu_mode", "preparation")
"""The fields that say how a harness loads a model itself."""
_SOMEWHERE: Final = "http://127.0.0.1:1/j/TOKEN/v1"

_Violations = Iterator[FieldViolation]


def violations(request: EvaluateRequest, engines: Mapping[str, EngineSettings], harness: Harness | None) -> _Violations:
    """Yield what is wrong with the served model that a request has. `harness`: the request's, None for one that there isn't."""
    served, engine = request.served_model, engines.get(request.served_model.engine)
    if engine is None:
        yield FieldViolation("served_model.engine", _no_engine(served.engine, engines))
    else:
        yield from _args(served.args, engine)
    if problem := _model_problem(served.model):
        yield FieldViolation("served_model.model", problem)
    for field in _OF_THE_ENGINE:
        if getattr(request, field):
            yield FieldViolation(field, "must be empty with `served_model`: the engine loads the model, and not the harness")
    if request.num_gpus:
        yield FieldViolation("num_gpus", "must be 0 with `served_model`, whose own `num_gpus` says how many the engine gets")
    if harness is not None and not isinstance(harness, ServedHarness):
        yield FieldViolation("served_model", f"harness {harness.name} can't be pointed at a server: leave it out")
    elif harness is not None:
        yield from _not_for(request, harness.served_needs, engine)


def violations_when_pointed(request: EvaluateRequest, harness: Harness, engines: Mapping[str, EngineSettings]) -> _Violations:
    """Yield what the harness can't accept of the request as it will get it. Of what is filled in, only the model is the
    client's."""
    if not isinstance(harness, ServedHarness):
        return
    own = EvaluateRequest()
    own.CopyFrom(request)
    for name in harness.served_needs.arguments:
        own.model_args.fields.pop(name, None)
    engine = engines.get(request.served_model.engine)
    api = engine.api if engine is not None else APIS
    served = request.served_model
    pointed = harness.with_served_model(own, ServedEndpoint(_SOMEWHERE, model_name(served), served.model, api))
    filled_in = {"model", *(f"model_args.{name}" for name in pointed.model_args.fields if name not in own.model_args.fields)}
    found = list(harness.violations(pointed))
    yield from (violation for violation in found if violation.field not in filled_in)
    if problems := [problem for field, problem in found if field in filled_in]:
        yield FieldViolation("served_model.model", f"harness {harness.name} can't be told of it: {problems[0]}")


def _no_engine(name: str, engines: Mapping[str, EngineSettings]) -> str:
    has = ", ".join(sorted(engines)) or "none"
    return f"this server has no engine {name[:_MAX_SHOWN]!r}; it has: {has}" if name else f"is required; this server has: {has}"


def _not_for(request: EvaluateRequest, needs: ServedNeeds, engine: EngineSettings | None) -> _Violations:
    """Yield why a harness with these needs can't ask the engine, and the arguments that it has to set itself."""
    if engine is not None and needs.api.isdisjoint(engine.api):
        needed, answers = (", ".join(f"`{word}`" for word in sorted(words)) for words in (needs.api, engine.api))
        problem = f"engine {engine.name} answers {answers}, and harness {request.harness} needs {needed}"
        yield FieldViolation("served_model.engine", problem)
    for name in sorted(needs.arguments.intersection(request.model_args.fields)):
        yield FieldViolation(f"model_args.{name}", "is set by the server with `served_model`: leave it out")


def _args(args: Struct, engine: EngineSettings) -> _Violations:
    allowed = ", ".join(sorted(engine.args)) or "none"
    for name, value in sorted(args.fields.items()):
        field = f"served_model.args.{printable(name[:_MAX_SHOWN])}"
        if name not in engine.args:
            yield FieldViolation(field, f"engine {engine.name} takes no such argument from requests; it takes: {allowed}")
        elif problem := _value_problem(value):
            yield FieldViolation(field, problem)


def _value_problem(value: Value) -> str | None:
    match value.WhichOneof("kind"):
        case "string_value":
            return _text_problem(value.string_value)
        case "number_value" | "bool_value":
            return None
        case _:
            return "must be a text, a number, true or false"


def _model_problem(model: str) -> str | None:
    if not model.strip():
        return "must not be empty"
    if (size_bytes := len(model.encode())) > MAX_MODEL_BYTES:
        return f"has {size_bytes} bytes; at most {MAX_MODEL_BYTES} are allowed"
    return _text_problem(model)


def _text_problem(text: str) -> str | None:
    """Say why a text can't be an argument of a program; None if it can."""
    if text.startswith("-"):
        return "must not begin with `-`"
    if (character := first_unprintable(text)) is not None:
        return f"must have no control or invisible characters, and has {character}"
    return None
