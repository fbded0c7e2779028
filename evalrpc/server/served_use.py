"""Which engines and endpoints a request may name, what it may ask of them, and whether its harness can be pointed at one. Pure.

The paths of fields begin at the request.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.config import EndpointSettings, EngineSettings, ModelServer
from evalrpc.config.engines import APIS
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.base import Harness, JudgedHarness, ServedEndpoint, ServedHarness, ServedNeeds
from evalrpc.jobs.served_models import is_folder, model_name
from evalrpc.printable import first_unprintable, printable
from evalrpc.v1.jobs_pb2 import EvaluateRequest, ServedModel

MAX_MODEL_BYTES: Final = 1024
"""Of the name of a served model, in UTF-8."""

MAX_REPLICAS: Final = 64
"""The most processes that may answer a job for a model."""

_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_SHOWN: Final = 80
_OF_THE_ENGINE: Final = ("model", "device", "batch_size", "gpu_mode", "preparation")
"""The fields that say how a harness loads a model itself."""
_SOMEWHERE: Final = "http://127.0.0.1:1/j/TOKEN/v1"

_Violations = Iterator[FieldViolation]


def violations(request: EvaluateRequest, servers: Mapping[str, ModelServer], harness: Harness | None) -> _Violations:
    """Yield what is wrong with the served model that a request has. `harness`: the request's, None for one that there isn't."""
    server = servers.get(request.served_model.engine)
    yield from _served("served_model", request.served_model, servers)
    for field in _OF_THE_ENGINE:
        if getattr(request, field):
            yield FieldViolation(field, "must be empty with `served_model`: the engine loads the model, and not the harness")
    if request.num_gpus:
        yield FieldViolation("num_gpus", "must be 0 with `served_model`, whose own `num_gpus` says how many the engine gets")
    if harness is not None and not isinstance(harness, ServedHarness):
        yield FieldViolation("served_model", f"harness {harness.name} can't be pointed at a server: leave it out")
    elif harness is not None:
        yield from _not_for(request, harness.served_needs, server)


def judge_violations(request: EvaluateRequest, servers: Mapping[str, ModelServer], harness: Harness | None) -> _Violations:
    """Yield what is wrong with the judge that a request has."""
    if harness is not None and not isinstance(harness, JudgedHarness):
        yield FieldViolation("judge_model", f"harness {harness.name} can't point its tasks at a judge: leave it out")
        return
    server = servers.get(request.judge_model.engine)
    yield from _served("judge_model", request.judge_model, servers)
    if isinstance(harness, JudgedHarness) and server is not None and harness.judge_api.isdisjoint(server.api):
        yield FieldViolation("judge_model.engine", _does_not_answer(server, harness.judge_api, request.harness))


def violations_when_pointed(request: EvaluateRequest, harness: Harness, servers: Mapping[str, ModelServer]) -> _Violations:
    """Yield what the harness can't accept of the request as it will get it. Of what is filled in, only the model is the
    client's."""
    if not isinstance(harness, ServedHarness):
        return
    own = EvaluateRequest()
    own.CopyFrom(request)
    for name in harness.served_needs.arguments:
        own.model_args.fields.pop(name, None)
    server = servers.get(request.served_model.engine)
    api = server.api if server is not None else APIS
    served = request.served_model
    pointed = harness.with_served_model(own, ServedEndpoint(_SOMEWHERE, model_name(served), served.model, api))
    filled_in = {"model", *(f"model_args.{name}" for name in pointed.model_args.fields if name not in own.model_args.fields)}
    found = list(harness.violations(pointed))
    yield from (violation for violation in found if violation.field not in filled_in)
    if problems := [problem for field, problem in found if field in filled_in]:
        yield FieldViolation("served_model.model", f"harness {harness.name} can't be told of it: {problems[0]}")


def _served(field: str, served: ServedModel, servers: Mapping[str, ModelServer]) -> _Violations:
    """Yield what is wrong with what a field says of a model, whoever asks it."""
    if served.HasField("max_replicas") and not 1 <= served.max_replicas <= MAX_REPLICAS:
        yield FieldViolation(f"{field}.max_replicas", f"must be from 1 to {MAX_REPLICAS}, or left out for 1")
    match servers.get(served.engine):
        case None:
            yield FieldViolation(f"{field}.engine", _no_engine(served.engine, servers))
        case EngineSettings() as engine:
            yield from _args(field, served.args, engine)
        case EndpointSettings() as endpoint:
            yield from _of_endpoint(field, served, endpoint)
            return
    if problem := _model_problem(served.model):
        yield FieldViolation(f"{field}.model", problem)
    if served.revision and not _REVISION.fullmatch(served.revision):
        yield FieldViolation(f"{field}.revision", "must be a commit, a branch or a tag: letters, digits, `.`, `_` and `-`")
    elif served.revision and is_folder(served):
        yield FieldViolation(f"{field}.revision", "must be empty: the model is a folder")


def _of_endpoint(field: str, served: ServedModel, endpoint: EndpointSettings) -> _Violations:
    if served.model not in endpoint.models:
        has = ", ".join(endpoint.models)
        yield FieldViolation(
            f"{field}.model", f"endpoint {endpoint.name} has no model {served.model[:_MAX_SHOWN]!r}; it has: {has}"
        )
    if served.args.fields:
        yield FieldViolation(f"{field}.args", f"must be empty: {endpoint.name} is an endpoint, which takes none")
    if served.num_gpus:
        yield FieldViolation(f"{field}.num_gpus", f"must be 0: {endpoint.name} is an endpoint, which needs none")
    if served.revision:
        yield FieldViolation(f"{field}.revision", f"must be empty: {endpoint.name} is an endpoint")
    if served.max_replicas > 1:
        yield FieldViolation(f"{field}.max_replicas", f"must be 1: {endpoint.name} is an endpoint, which is one server")


def _no_engine(name: str, servers: Mapping[str, ModelServer]) -> str:
    has = ", ".join(sorted(servers)) or "none"
    return f"this server has no engine {name[:_MAX_SHOWN]!r}; it has: {has}" if name else f"is required; this server has: {has}"


def _not_for(request: EvaluateRequest, needs: ServedNeeds, server: ModelServer | None) -> _Violations:
    """Yield why a harness with these needs can't ask the server, and the arguments that it has to set itself."""
    if server is not None and needs.api.isdisjoint(server.api):
        yield FieldViolation("served_model.engine", _does_not_answer(server, needs.api, request.harness))
    for name in sorted(needs.arguments.intersection(request.model_args.fields)):
        yield FieldViolation(f"model_args.{name}", "is set by the server with `served_model`: leave it out")


def _does_not_answer(server: ModelServer, api: frozenset[str], harness: str) -> str:
    needed, answers = (", ".join(f"`{word}`" for word in sorted(words)) for words in (api, server.api))
    kind = "endpoint" if isinstance(server, EndpointSettings) else "engine"
    return f"{kind} {server.name} answers {answers}, and harness {harness} needs {needed}"


def _args(of: str, args: Struct, engine: EngineSettings) -> _Violations:
    allowed = ", ".join(sorted(engine.args)) or "none"
    for name, value in sorted(args.fields.items()):
        field = f"{of}.args.{printable(name[:_MAX_SHOWN])}"
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
