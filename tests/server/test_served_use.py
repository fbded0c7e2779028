"""Which served models a request may name."""

from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from evalrpc.config import EndpointSettings, EngineSettings, HarnessSettings
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.base import Harness, StepsHarness
from evalrpc.harnesses.registry import build_harness
from evalrpc.jobs.defaults import RequestDefaults, gpus_needed
from evalrpc.jobs.served_models import model_of
from evalrpc.server import preparation_use, validation
from evalrpc.testing.harness_contract import NAME
from evalrpc.v1.jobs_pb2 import GPU_MODE_DATA_PARALLEL, EvaluateRequest, ServedModel, SubmitJobRequest

KINDS = ("lmms-eval", "lm-eval", "inspect-ai", "command")
COMMAND = ("serve", "{model}", "{port}")
ARGS = {"dtype": "--dtype", "length": "--max-model-len", "eager": "--enforce-eager"}
ENGINES = {
    "vllm": EngineSettings("vllm", COMMAND, api=("chat", "completions", "log-probabilities"), args=ARGS),
    "chats": EngineSettings("chats", COMMAND),
    "texts": EngineSettings("texts", COMMAND, api=("completions",)),
    "vendor": EndpointSettings("vendor", "https://api.example.com/v1", ("gpt-4o", "gpt-5")),
}


def struct(values: Mapping[str, Any]) -> Struct:
    message = Struct()
    message.update(values)
    return message


def request_of(
    engine: str = "vllm",
    model: str = "acme/tiny",
    args: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    num_gpus: int = 0,
    **fields: Any,
) -> EvaluateRequest:
    served = ServedModel(engine=engine, model=model, args=struct(args or {}), num_gpus=num_gpus)
    return EvaluateRequest(
        **{"harness": NAME, "tasks": ["t"], "num_gpus": 0, **fields}, model_args=struct(model_args or {}), served_model=served
    )


def harness_of(kind: str) -> Harness:
    return build_harness(HarnessSettings(NAME, kind, command=("true",)))


def violations(
    request: EvaluateRequest, kind: str = "lm-eval", harness: Harness | None = None, **options: Any
) -> list[FieldViolation]:
    harnesses = {NAME: harness or harness_of(kind)}
    call = SubmitJobRequest(request=request)
    return list(validation.submission(call, harnesses, (4,), None, **{"engines": ENGINES, **options}))


def refused(request: EvaluateRequest, kind: str = "lm-eval", **options: Any) -> list[str]:
    return [field.removeprefix("request.") for field, _ in violations(request, kind, **options)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "request_",
    [
        request_of(),
        request_of(model="/models/a folder", num_gpus=4),
        request_of(model="é" * 512),
        request_of(args={"dtype": "float32", "length": 2048, "eager": True}),
        request_of(engine="chats", model_args={"num_concurrent": 2}),
    ],
)
def test_every_harness_takes_a_served_model(kind: str, request_: EvaluateRequest) -> None:
    assert violations(request_, kind) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["", " ", "-x", "--port=1", "a\0b", "a\nb", "a\u202eb", "m" * 1025, "é" * 513])
def test_what_is_no_model_is_refused(kind: str, model: str) -> None:
    assert refused(request_of(model=model), kind) == ["served_model.model"]


@pytest.mark.parametrize("engine", ["", "sglang", "x" * 5000, "\x1b[31m"])
def test_an_engine_that_is_not_there_is_refused_saying_which_there_are(engine: str) -> None:
    (field, problem), *others = violations(request_of(engine=engine))
    assert (field, others) == ("request.served_model.engine", [])
    assert problem.endswith("has: chats, texts, vendor, vllm")
    assert problem.isprintable()
    assert len(problem) < 200


def test_a_server_without_engines_says_so() -> None:
    assert violations(request_of(), engines={})[0].description.endswith("it has: none")


@pytest.mark.parametrize("value", [None, [], ["a"], {}, {"a": 1}, "-x", "--trust-remote-code", "a\nb", "a\0b", float("nan")])
def test_a_value_that_is_no_plain_argument_is_refused(value: Any) -> None:
    assert refused(request_of(args={"dtype": value})) == ["served_model.args.dtype"]


def test_an_argument_that_the_operator_does_not_allow_is_refused_saying_which_are_allowed() -> None:
    found = violations(request_of(args={"a": 1, "port": 80, "dtype": "x"}))
    assert [field for field, _ in found] == ["request.served_model.args.a", "request.served_model.args.port"]
    assert all(problem.endswith("it takes: dtype, eager, length") for _, problem in found)


def test_too_many_arguments_are_refused() -> None:
    assert "served_model.args" in refused(request_of(args={f"a{number}": "x" * 1000 for number in range(600)}))


def test_every_bad_field_is_named_at_once() -> None:
    request = request_of("nothing", "", model_args={"base_url": "http://elsewhere/v1"}, tasks=["a,b"], device="cuda")
    request.model, request.batch_size, request.preparation = "hf", "8", "merge"
    request.gpu_mode, request.num_gpus = GPU_MODE_DATA_PARALLEL, 1
    assert set(refused(request)) == {
        *("served_model.engine", "served_model.model", "model", "device", "batch_size", "preparation", "gpu_mode", "num_gpus"),
        *("tasks[0]", "model_args.base_url"),
    }
    assert list(preparation_use.violations(request, {})) == [], "which would be a second violation of the same field"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("lm-eval", ("model", "pretrained", "base_url", "tokenizer", "tokenizer_backend", "auth_token", "header")),
        ("lmms-eval", ("model", "model_version", "base_url", "api_key", "azure_openai")),
        ("inspect-ai", ("base_url", "api_key", "responses_api")),
    ],
)
def test_arguments_that_say_where_the_server_is_are_refused(kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert refused(request_of(model_args={name: "x"}), kind) == [f"model_args.{name}"]


@pytest.mark.parametrize(("kind", "takes"), [("lmms-eval", False), ("inspect-ai", False), ("lm-eval", True), ("command", True)])
def test_an_engine_has_to_answer_what_the_harness_asks(kind: str, takes: bool) -> None:
    assert refused(request_of("texts"), kind) == ([] if takes else ["served_model.engine"])


def test_a_harness_that_loads_models_only_itself_takes_none() -> None:
    class Old:
        """A harness of another package."""

        name, kind = NAME, "old"
        _command = harness_of("command")

        def __getattr__(self, name: str) -> Any:
            if name in ("served_needs", "with_served_model"):
                raise AttributeError(name)
            return getattr(self._command, name)

    old: Any = Old()
    assert not isinstance(old, StepsHarness)
    assert refused(request_of(), harness=old) == ["served_model"]
    assert refused(request_of(engine="", model=""), harness=old) == [
        *("served_model.engine", "served_model.model", "served_model"),
    ]


def test_what_the_harness_itself_refuses_is_refused_here_too() -> None:
    assert refused(request_of(num_fewshot=2), "inspect-ai") == ["num_fewshot"]
    assert refused(request_of(model=".."), "lm-eval") == ["served_model.model"]


def test_the_gpus_are_those_of_the_engine() -> None:
    for number in (-1, 5):
        assert refused(request_of(num_gpus=number)) == ["served_model.num_gpus"]
    assert refused(request_of(num_gpus=4), max_gpus=2) == ["served_model.num_gpus"]


def test_defaults_are_filled_in_for_the_engine_and_the_run_gets_no_gpu() -> None:
    request = EvaluateRequest(model="")
    request.served_model.model = "acme/tiny"
    RequestDefaults("lm-eval", num_gpus=1).fill_in(request)
    assert request.HasField("num_gpus")
    assert (request.num_gpus, request.served_model.num_gpus) == (0, 1)
    assert (gpus_needed(request), model_of(request)) == (1, "acme/tiny")

    request.served_model.num_gpus = 0
    RequestDefaults("lm-eval", num_gpus=1).fill_in(request)
    assert gpus_needed(request) == 0


def judged_by(engine: str = "vendor", model: str = "gpt-4o", **fields: Any) -> EvaluateRequest:
    request = EvaluateRequest(harness=NAME, tasks=["t"], model="openai", num_gpus=0)
    request.judge_model.CopyFrom(ServedModel(engine=engine, model=model, **fields))
    return request


@pytest.mark.parametrize(("kind", "model"), [("lmms-eval", "openai"), ("inspect-ai", "openai/m")])
def test_some_harnesses_take_a_judge_with_and_without_a_served_model(kind: str, model: str) -> None:
    for judged in (judged_by(), judged_by("vllm", "acme/judge", args=struct({"dtype": "x"}), num_gpus=4)):
        judged.model = model
        assert violations(judged, kind) == []
    both = request_of(num_gpus=2)
    both.judge_model.CopyFrom(ServedModel(engine="vllm", model="acme/judge", num_gpus=2))
    assert violations(both, kind) == []


@pytest.mark.parametrize("kind", ["lm-eval", "command"])
def test_others_refuse_a_judge(kind: str) -> None:
    assert refused(judged_by(), kind) == ["judge_model"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (judged_by("nothing"), "judge_model.engine"),
        (judged_by("texts", "m"), "judge_model.engine"),
        (judged_by(model="acme/other"), "judge_model.model"),
        (judged_by("vllm", "-x"), "judge_model.model"),
        (judged_by(args=struct({"dtype": "x"})), "judge_model.args"),
        (judged_by("vllm", "m", args=struct({"tp": 2})), "judge_model.args.tp"),
        (judged_by(num_gpus=1), "judge_model.num_gpus"),
        (judged_by("vllm", "m", num_gpus=-1), "judge_model.num_gpus"),
        (judged_by("vllm", "m", num_gpus=5), "judge_model.num_gpus"),
    ],
)
def test_a_bad_judge_is_refused_naming_the_field(request_: EvaluateRequest, field: str) -> None:
    assert refused(request_, "lmms-eval") == [field]


def test_the_gpus_of_both_are_counted_together_and_those_of_one_model_once() -> None:
    request = request_of(num_gpus=3)
    request.judge_model.CopyFrom(ServedModel(engine="vllm", model="acme/judge", num_gpus=2))
    (violation,) = violations(request, "lmms-eval")
    assert violation.field == "request.served_model.num_gpus"
    assert "asks for 5 GPUs together with the judge" in violation.description
    request.judge_model.CopyFrom(request.served_model)
    assert violations(request, "lmms-eval") == []


@pytest.mark.parametrize("count", [0, -1, 65])
def test_the_number_of_replicas_has_bounds(count: int) -> None:
    request = request_of()
    request.served_model.max_replicas = count
    assert [each.field for each in violations(request, "lmms-eval")] == ["request.served_model.max_replicas"]


def test_an_endpoint_has_no_replicas() -> None:
    request = judged_by()
    request.judge_model.max_replicas = 2
    assert "request.judge_model.max_replicas" in [each.field for each in violations(request, "lmms-eval")]


def test_an_endpoint_takes_no_gpus_by_default() -> None:
    request = judged_by()
    RequestDefaults("lmms-eval", num_gpus=1, endpoints=frozenset({"vendor"})).fill_in(request)
    assert (request.judge_model.num_gpus, gpus_needed(request)) == (0, 0)
