"""What the operator lets requests ask of a harness: the policy in its table. Pure.

It judges the request as the run will get it, with the operator's defaults filled in. A violation names the rule that it breaks,
by its key in the config file.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final

from evalrpc.config import HarnessSettings, PolicySettings
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.inspect_ai.harness import KIND as INSPECT_AI
from evalrpc.jobs.defaults import gpus_field, most_gpus
from evalrpc.jobs.served_models import model_of
from evalrpc.server.argument_values import Argument, parsed_json
from evalrpc.v1.jobs_pb2 import EvaluateRequest, SubmitJobRequest

_WEIGHTS: Final = (
    *("pretrained", "pretrained_*", "peft", "delta", "model", "*_model", "model_name", "model_version"),
    *("model_id", "model_id_name", "*model_path", "*checkpoint*", "ckpt*", "lora_*path", "tokenizer", "tokenizer_*path"),
)
"""The arguments that name weights, adapters or a tokenizer, in one harness or another."""

_MAY_BE_FALSE: Final = "trust_remote_code"
_MAX_SHOWN: Final = 80
_NOTHING: Final = r"(?!)"  # matches no text


def fill_in_timeout(call: SubmitJobRequest, policy: PolicySettings) -> None:
    """Set `timeout` if it is absent and the operator wants one."""
    seconds = policy.default_timeout_seconds or policy.max_timeout_seconds
    if seconds is not None and not call.HasField("timeout"):
        call.timeout.FromNanoseconds(int(seconds * 1e9))


def violations(call: SubmitJobRequest, arguments: Iterable[Argument], harness: HarnessSettings) -> Iterator[FieldViolation]:
    """Yield every field of a submission, with these arguments, that the policy of its harness does not allow."""
    policy = harness.policy
    of_request = _of_request(call.request, arguments, policy, harness.kind)
    for field, rule, problem in (*of_request, *_of_timeout(call, policy)):
        yield FieldViolation(field, f"{problem} (rule harnesses.{harness.name}.policy.{rule})")


_Broken = Iterator[tuple[str, str, str]]
"""Fields, each with the rule that it breaks and what is wrong."""


def _of_request(request: EvaluateRequest, arguments: Iterable[Argument], policy: PolicySettings, kind: str) -> _Broken:
    is_served = request.HasField("served_model")
    model_field, model = "request.served_model.model" if is_served else "request.model", model_of(request)
    yield from _unless_matching(model_field, "models", model, policy.models)
    for index, task in enumerate(request.tasks if policy.tasks is not None else ()):
        yield from _unless_matching(f"request.tasks[{index}]", "tasks", task, policy.tasks)
    if is_served or kind == INSPECT_AI:
        weights = model if is_served else model.partition("/")[2]
        yield from _unless_weights(model_field, weights, policy.pretrained)
    if request.HasField("judge_model"):
        judge = request.judge_model.model
        yield from _unless_matching("request.judge_model.model", "models", judge, policy.models)
        yield from _unless_weights("request.judge_model.model", judge, policy.pretrained)
    for field in ("model_args", "gen_kwargs", "task_args"):
        yield from _unless_allowed(f"request.{field}", getattr(request, field).fields, f"{field}_allowed", policy)
    yield from _of_values(arguments, policy)
    if policy.max_num_gpus is not None and (wanted := most_gpus(request)) > policy.max_num_gpus:
        yield (
            f"request.{gpus_field(request)}",
            "max_num_gpus",
            f"asks for {wanted} GPUs; at most {policy.max_num_gpus} are allowed",
        )


def _of_timeout(call: SubmitJobRequest, policy: PolicySettings) -> _Broken:
    longest = policy.max_timeout_seconds
    if longest is not None and call.timeout.ToNanoseconds() > longest * 1e9:
        yield "timeout", "max_timeout_seconds", f"must be at most {longest:.15g} seconds"


def _unless_allowed(field: str, names: Iterable[str], rule: str, policy: PolicySettings) -> _Broken:
    allowed: tuple[str, ...] | None = getattr(policy, rule)
    if allowed is None:
        return
    for name in sorted(names):
        if not _matches(name, allowed):
            yield f"{field}.{name[:_MAX_SHOWN]}", rule, f"is not allowed; allowed are {_listed(allowed)}"


def _of_values(arguments: Iterable[Argument], policy: PolicySettings) -> _Broken:
    refused = _any_of(policy.arguments_refused)
    in_text = _assignment(policy.arguments_refused)
    for path, name, nearest_name, value in arguments:
        if refused(normal := _normal(name)) and not (normal == _MAY_BE_FALSE and (value is False or value is None)):
            yield f"request.{path}", "arguments_refused", f"{_quote(name)} is refused"
        elif isinstance(value, str) and (found := in_text.search(_normal(value))) and parsed_json(value) is None:
            yield f"request.{path}", "arguments_refused", f"{_quote(found[1])} is refused, in text too"
        if policy.pretrained is not None and isinstance(value, str | float) and _name_weights(_normal(nearest_name)):
            yield from _unless_weights(f"request.{path}", str(value), policy.pretrained)


@lru_cache
def _any_of(globs: tuple[str, ...]) -> Callable[[str], object]:
    """Return what tells whether a text matches one of the globs."""
    return re.compile("|".join(map(translate, globs)) or _NOTHING).match


@lru_cache
def _assignment(refused: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds a refused argument in text that a program may read as arguments: `a=1,b=2`, YAML, a Python dict."""
    names = "|".join(re.escape(name).replace(r"\*", r"\w*").replace(r"\?", r"\w") for name in refused)
    return re.compile(rf"(?<!\w)({names or _NOTHING})[\"']?\s*[=:]")


_name_weights: Final = _any_of(_WEIGHTS)


def _unless_weights(field: str, text: str, patterns: tuple[str, ...] | None) -> _Broken:
    if patterns is not None and ".." in re.split(r"[/\\]", text):
        yield field, "pretrained", f"must have no part `..`: {_quote(text)}"
    else:
        yield from _unless_matching(field, "pretrained", text, patterns)


def _unless_matching(field: str, rule: str, text: str, patterns: tuple[str, ...] | None) -> _Broken:
    if patterns is not None and not _matches(text, patterns):
        yield field, rule, f"{_quote(text)} is not allowed; allowed are {_listed(patterns)}"


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return bool(_any_of(patterns)(text))


def _normal(name: str) -> str:
    """Return the name as programs may read it, whichever of its forms was written."""
    return name.strip().lower().replace("-", "_")


def _listed(patterns: Sequence[str]) -> str:
    return ", ".join(patterns) or "none"


def _quote(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "...")
