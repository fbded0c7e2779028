"""What the operator's policy lets requests ask of a harness, however they say it."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from evalrpc.config import HarnessSettings, PolicySettings
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.registry import build_harness
from evalrpc.server import policy
from evalrpc.server.argument_values import argument_values
from evalrpc.v1.jobs_pb2 import EvaluateRequest, ServedModel, SubmitJobRequest

KINDS = ("lmms-eval", "lm-eval", "inspect-ai", "command")
MODELS = {"inspect-ai": "openai/gpt-4o"}


def struct(values: dict[str, Any]) -> Struct:
    message = Struct()
    message.update(values)
    return message


def call_of(kind: str = "lm-eval", timeout_seconds: int | None = None, **request: Any) -> SubmitJobRequest:
    fields = {"model": MODELS.get(kind, "hf"), "tasks": ["t"], "num_gpus": 0} | request
    for name in ("model_args", "gen_kwargs", "task_args"):
        fields[name] = struct(fields.get(name, {}))
    timeout = None if timeout_seconds is None else Duration(seconds=timeout_seconds)
    return SubmitJobRequest(request=EvaluateRequest(harness=kind, **fields), timeout=timeout)


def harness(kind: str = "lm-eval", **keys: Any) -> HarnessSettings:
    return HarnessSettings(kind, kind, command=("true",), policy=PolicySettings(**keys))


def broken(call: SubmitJobRequest, settings: HarnessSettings) -> list[tuple[str, str]]:
    """Return the fields that are refused, with the rule that they break."""
    return [(violation.field, rule_of(violation)) for violation in violations_of(call, settings)]


def violations_of(call: SubmitJobRequest, settings: HarnessSettings) -> list[FieldViolation]:
    return list(policy.violations(call, argument_values(call.request), settings))


def rule_of(violation: FieldViolation) -> str:
    assert " (rule harnesses." in violation.description
    return violation.description.rpartition(".policy.")[2].rstrip(")")


def accepts(kind: str, call: SubmitJobRequest) -> bool:
    """Tell whether the harness itself could run the request."""
    return not list(build_harness(HarnessSettings(kind, kind, command=("true",))).violations(call.request))


def served_call(kind: str, model: str, num_gpus: int = 0, **args: Any) -> SubmitJobRequest:
    served = ServedModel(engine="vllm", model=model, args=struct(args), num_gpus=num_gpus)
    return call_of(kind, model="", served_model=served)


# What an engine serves is judged like what a harness loads.


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_model_keeps_the_rules_on_models_and_weights(kind: str) -> None:
    named = "request.served_model.model"
    call = served_call(kind, "evil/model")
    assert broken(call, harness(kind, models=("acme/*",))) == [(named, "models")]
    assert broken(call, harness(kind, pretrained=("acme/*",))) == [(named, "pretrained")]
    assert broken(served_call(kind, "acme/../evil"), harness(kind, pretrained=("acme/*",))) == [(named, "pretrained")]
    assert broken(served_call(kind, "acme/model"), harness(kind, models=("acme/*",), pretrained=("acme/*",))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_of_an_engine_keep_the_rules_on_arguments(kind: str) -> None:
    call = served_call(kind, "acme/model", trust_remote_code=True, tokenizer="evil/tokenizer")
    rules = [
        ("request.served_model.args.tokenizer", "pretrained"),
        ("request.served_model.args.trust_remote_code", "arguments_refused"),
    ]
    assert broken(call, harness(kind, pretrained=("acme/*",))) == rules


def test_the_gpus_of_an_engine_are_limited() -> None:
    assert broken(served_call("lm-eval", "m", num_gpus=3), harness(max_num_gpus=2)) == [
        ("request.served_model.num_gpus", "max_num_gpus")
    ]


def test_the_gpus_of_replicas_are_limited_too() -> None:
    call = served_call("lm-eval", "m", num_gpus=1)
    call.request.served_model.max_replicas = 3
    assert broken(call, harness(max_num_gpus=3)) == []
    assert broken(call, harness(max_num_gpus=2)) == [("request.served_model.num_gpus", "max_num_gpus")]


# What is refused by default.

BYPASSES: list[dict[str, Any]] = [
    {"trust_remote_code": True},
    {"trust_remote_code": "True"},
    {"trust_remote_code": "false"},  # a text, which is true to Python
    {"trust_remote_code": "yes"},
    {"trust_remote_code": 1},
    {"trust_remote_code": [False]},
    {"trust_remote_code": {}},
    {"model_kwargs": {"trust_remote_code": True}},
    {"model_kwargs": {"deep": [{"trust_remote_code": True}]}},
    {"model_kwargs": '{"trust_remote_code": true}'},  # lmms-eval's vllm parses it
    {"model_kwargs": ' {"trust_remote_code": true}'},
    {"model_kwargs": '{"\\u0074rust_remote_code": true}'},
    {"model_kwargs": '{"trust_remote_code": true, "trust_remote_code": false}'},
    {"model_kwargs": '{"trust_remote_code": false, "trust_remote_code": true}'},
    {"model_kwargs": ['{"a": "{\\"trust_remote_code\\": true}"}']},
    {"hf_overrides": "{'trust_remote_code': True}"},
    {"dtype": '"float16,trust_remote_code=True"'},  # the quotes make it one argument for lmms-eval
    {"dtype": "[float16,trust_remote_code=True]"},
    {"base_url": "http://elsewhere/v1"},
    {"base_url": None},
    {"client": {"base_url": "http://elsewhere/v1"}},
    {"client": '{"base_url": "http://elsewhere/v1"}'},
    {"nim_base_url": "http://elsewhere"},
    {"azure_endpoint": "http://elsewhere"},
    {"reasoner_server_url": "http://elsewhere"},
    {"api_url": "http://elsewhere"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["model_args", "gen_kwargs", "task_args"])
@pytest.mark.parametrize("arguments", BYPASSES, ids=str)
def test_remote_code_and_other_addresses_are_refused_by_default(kind: str, field: str, arguments: dict[str, Any]) -> None:
    found = broken(call_of(kind, **{field: arguments}), harness(kind))
    assert found
    assert {rule for _, rule in found} == {"arguments_refused"}
    assert all(name.startswith(f"request.{field}.") for name, _ in found)


@pytest.mark.parametrize("key", ["Trust_Remote_Code", "trust-remote-code", " trust_remote_code", "BASE_URL", "base-url"])
def test_another_spelling_which_a_program_may_normalise_is_refused_too(key: str) -> None:
    assert [rule for _, rule in broken(call_of("command", model_args={key: "x"}), harness("command"))] == ["arguments_refused"]


HARMLESS: list[dict[str, Any]] = [
    {},
    {"trust_remote_code": False},
    {"trust_remote_code": None},
    {"model_kwargs": {"trust_remote_code": False}},
    {"model_kwargs": '{"trust_remote_code": false}'},
    {"pretrained": "acme/trust_remote_code", "dtype": "float32", "my_base_urls": 1, "url": "x", "device_map": {"": "cpu"}},
    {"prompt": "What is base_url? {not json}", "list": [1, None, True, "[", "{"]},
    {"until": ["\n\n", "Question:"], "temperature": 0, "max_new_tokens": 16},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", HARMLESS, ids=str)
def test_by_default_all_else_is_allowed(kind: str, arguments: dict[str, Any]) -> None:
    call = call_of(kind, 366 * 24 * 3600, model_args=arguments, gen_kwargs=arguments, num_gpus=64)
    assert broken(call, harness(kind)) == []


def test_the_operator_can_allow_them() -> None:
    call = call_of(model_args={"base_url": "http://127.0.0.1/v1", "trust_remote_code": True})
    assert broken(call, harness(arguments_refused=())) == []
    assert broken(call, harness(arguments_refused=("trust_remote_code",))) == [
        ("request.model_args.trust_remote_code", "arguments_refused")
    ]


@pytest.mark.parametrize("kind", ["lmms-eval", "lm-eval", "inspect-ai"])
@pytest.mark.parametrize(
    "key", ["trust_remote_code=True,x", "x,trust_remote_code", "trust_remote_code ", "\uff54rust_remote_code"]
)
def test_a_name_that_is_none_of_an_argument_gets_to_no_harness(kind: str, key: str) -> None:
    assert not accepts(kind, call_of(kind, model_args={key: True}))


@pytest.mark.parametrize("text", ["float16,trust_remote_code=True", "a=b,base_url=http://elsewhere"])
def test_no_text_becomes_another_argument_of_lmms_eval(text: str) -> None:
    call = call_of("lmms-eval", model_args={"dtype": text})
    assert not accepts("lmms-eval", call)
    assert broken(call, harness("lmms-eval"))


# Names of arguments.


def test_only_the_allowed_arguments_may_be_given() -> None:
    call = call_of(model_args={"dtype": "x", "max_length": 1, "peft": "y"}, gen_kwargs={"temperature": 0, "do_sample": True})
    call.request.task_args.update({"epochs": 2, "count": 1})
    keys = {"model_args_allowed": ("dtype", "max_*"), "gen_kwargs_allowed": (), "task_args_allowed": ("epochs",)}
    assert broken(call, harness(**keys)) == [
        ("request.model_args.peft", "model_args_allowed"),
        ("request.gen_kwargs.do_sample", "gen_kwargs_allowed"),
        ("request.gen_kwargs.temperature", "gen_kwargs_allowed"),
        ("request.task_args.count", "task_args_allowed"),
    ]


def test_what_is_refused_stays_so_if_it_is_allowed_too() -> None:
    call = call_of(model_args={"base_url": "x"})
    assert broken(call, harness(model_args_allowed=("base_url",))) == [("request.model_args.base_url", "arguments_refused")]


# Weights.


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": "acme/tiny"},
        {"pretrained": "/models/team/a"},
        {"pretrained": "acme/tiny", "peft": "acme/adapter", "tokenizer": "acme/tiny"},
        {"dtype": "elsewhere/model"},
        {"parallelize": True, "gptqmodel": True},
    ],
    ids=str,
)
def test_weights_from_where_the_operator_allows_are_allowed(arguments: dict[str, Any]) -> None:
    assert broken(call_of(model_args=arguments), harness(pretrained=("acme/*", "/models/*"))) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": "evil/model"},
        {"pretrained": "ACME/tiny"},
        {"pretrained": ""},
        {"pretrained": 7},
        {"pretrained": " acme/tiny"},
        {"pretrained": "/models/../home/evil"},
        {"pretrained": "/models/a/.."},
        {"pretrained": "acme/..\\evil"},
        {"pretrained": ["acme/tiny", "evil/model"]},
        {"peft": "evil/adapter"},
        {"delta": "evil/delta"},
        {"model": "evil/model"},
        {"model_version": "gpt-4o"},
        {"model_path": "/home/evil"},
        {"tokenizer": "evil/model"},
        {"tokenizer_path": "/home/evil"},
        {"speculative_config": {"model": "evil/draft"}},
        {"speculative_config": '{"model": "evil/draft"}'},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_refused(kind: str, arguments: dict[str, Any]) -> None:
    settings = harness(kind, pretrained=("acme/*", "/models/*", "gpt-4o-mini", "openai/*"))
    call = call_of(kind, model_args=arguments, **({"model": "hf/acme/tiny"} if kind == "inspect-ai" else {}))
    assert {rule for _, rule in broken(call, settings)} == {"pretrained"}


def test_the_weights_of_inspect_are_in_its_model() -> None:
    settings = harness("inspect-ai", pretrained=("acme/*",))
    assert broken(call_of("inspect-ai", model="hf/acme/tiny"), settings) == []
    assert broken(call_of("inspect-ai", model="hf/evil/tiny"), settings) == [("request.model", "pretrained")]


# All else.


def test_every_refused_field_is_named_at_once_with_its_rule() -> None:
    settings = harness(models=("hf",), tasks=("mmlu_*",), max_num_gpus=2, max_timeout_seconds=60.0, pretrained=("acme/*",))
    tasks = ["mmlu_law", "gsm8k", "MMLU_law"]
    call = call_of(model="vllm", tasks=tasks, num_gpus=3, timeout_seconds=61, model_args={"pretrained": "a/b", "base_url": "x"})
    assert broken(call, settings) == [
        ("request.model", "models"),
        ("request.tasks[1]", "tasks"),
        ("request.tasks[2]", "tasks"),
        ("request.model_args.base_url", "arguments_refused"),
        ("request.model_args.pretrained", "pretrained"),
        ("request.num_gpus", "max_num_gpus"),
        ("timeout", "max_timeout_seconds"),
    ]
    descriptions = {violation.field: violation.description for violation in violations_of(call, settings)}
    assert descriptions["request.model"].startswith("'vllm' is not allowed; allowed are hf")
    assert "rule harnesses.lm-eval.policy.max_num_gpus" in descriptions["request.num_gpus"]


def test_a_long_time_is_written_out() -> None:
    (violation,) = violations_of(call_of(timeout_seconds=31_622_401), harness(max_timeout_seconds=31_622_400.0))
    assert violation.description.startswith("must be at most 31622400 seconds")


def test_an_empty_list_allows_nothing() -> None:
    assert broken(call_of(), harness(models=(), tasks=())) == [("request.model", "models"), ("request.tasks[0]", "tasks")]


@pytest.mark.parametrize(
    ("keys", "submitted", "expected"),
    [
        ({}, None, None),
        ({}, 5, 5),
        ({"max_timeout_seconds": 60.0}, None, 60),
        ({"max_timeout_seconds": 60.0, "default_timeout_seconds": 30.0}, None, 30),
        ({"default_timeout_seconds": 30.0}, None, 30),
        ({"default_timeout_seconds": 30.0}, 90, 90),
    ],
)
def test_a_job_without_a_timeout_gets_the_operators(
    keys: dict[str, float], submitted: int | None, expected: int | None
) -> None:
    call, settings = call_of(timeout_seconds=submitted), harness(**keys)
    policy.fill_in_timeout(call, settings.policy)
    assert (call.timeout.seconds if call.HasField("timeout") else None) == expected
    assert broken(call, settings) == []
