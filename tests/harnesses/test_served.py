"""How each harness is told where its model is served."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from evalrpc.config import HarnessSettings
from evalrpc.harnesses.arguments import plain_arguments
from evalrpc.harnesses.base import Command, JudgedHarness, Run, ServedEndpoint, ServedHarness
from evalrpc.harnesses.registry import build_harness
from evalrpc.harnesses.served import judge_environment, served_environment
from evalrpc.v1.jobs_pb2 import EvaluateRequest, ServedModel

URL = "http://127.0.0.1:4711/j/token/v1"
CHATS = ServedEndpoint(URL, "tiny", "/models/tiny", ("chat",))
ALL = CHATS._replace(api=("chat", "completions", "log-probabilities"))


def pointed(kind: str, served: ServedEndpoint, **model_args: Any) -> tuple[EvaluateRequest, Command]:
    settings = HarnessSettings(kind, kind, command=("p", "{model}", "{output_dir}"), include_path=())
    harness = build_harness(settings)
    assert isinstance(harness, ServedHarness)
    arguments = Struct()
    arguments.update(model_args)
    request = EvaluateRequest(model_args=arguments, tasks=[] if kind == "inspect-ai" else ["t"])
    changed = harness.with_served_model(request, served)
    return changed, harness.command(Run("j", 1, changed, Path("/attempt"), Path("/output"), num_gpus=0))


def test_lmms_eval_asks_for_chats() -> None:
    request, _ = pointed("lmms-eval", ALL, num_concurrent=4)
    assert request.model == "openai"
    assert plain_arguments(request.model_args) == {"model_version": "tiny", "base_url": URL, "num_concurrent": 4}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        *(("open-o1-7b", "open-o_1-7b"), ("Go3", "Go_3"), ("like-gpt-5", "like-gpt-_5"), ("qwen2.5-vl-7b", "qwen2.5-vl-7b")),
        *(("600", "model_600"), ("1e5", "model_1e5"), ("True", "model_True")),
    ],
)
def test_lmms_eval_takes_no_served_model_for_one_of_openai_which_it_sends_no_temperature(name: str, asked: str) -> None:
    request, _ = pointed("lmms-eval", ALL._replace(name=name))
    assert request.model_args.fields["model_version"].string_value == asked


def test_lm_eval_asks_for_completions_with_a_tokenizer_where_the_engine_knows_log_probabilities() -> None:
    request, command = pointed("lm-eval", ALL)
    assert request.model == "local-completions"
    assert plain_arguments(request.model_args) == {
        "model": "tiny",
        "base_url": f"{URL}/completions",
        "tokenizer": "/models/tiny",
        "tokenizer_backend": "huggingface",
        "num_concurrent": 32,
        "timeout": 3600,
    }
    assert "--apply_chat_template" not in command.argv


def test_lm_eval_asks_for_chats_otherwise_and_applies_the_chat_template() -> None:
    request, command = pointed("lm-eval", CHATS, num_concurrent=2, timeout=60)
    assert request.model == "local-chat-completions"
    expected = {"model": "tiny", "base_url": f"{URL}/chat/completions", "num_concurrent": 2, "timeout": 60}
    assert plain_arguments(request.model_args) == expected
    assert "--apply_chat_template" in command.argv


def test_inspect_ai_asks_for_chats_and_not_for_ever() -> None:
    request, command = pointed("inspect-ai", ALL)
    assert request.model == "openai/tiny"
    assert f"--model-base-url={URL}" in command.argv
    files = {path.name: json.loads(content) for path, content in command.files.items()}
    assert files == {"model.json": {"responses_api": False}, "generate.json": {"max_retries": 10}}


@pytest.mark.parametrize("kind", ["lmms-eval", "lm-eval", "inspect-ai", "command"])
def test_nothing_secret_stands_in_a_command_line(kind: str) -> None:
    secret = ALL._replace(open_url="http://127.0.0.1:4711/v1", key="token")
    request, command = pointed(kind, secret)
    assert not any("token" in argument.replace("tokenizer", "") for argument in command.argv)
    if kind == "inspect-ai":
        assert "--model-base-url=http://127.0.0.1:4711/v1" in command.argv
        (content,) = (content for path, content in command.files.items() if path.name == "model.json")
        assert json.loads(content) == {"api_key": "token", "responses_api": False}
        assert request.model_args.fields["api_key"].string_value == "token"


def test_a_command_is_told_the_name() -> None:
    assert pointed("command", CHATS)[1].argv == ("p", "tiny", "/output")


@pytest.mark.parametrize(
    ("kind", "has_address"), [("lmms-eval", False), ("lm-eval", False), ("inspect-ai", False), ("command", True)]
)
def test_only_what_has_no_argument_for_it_finds_the_address_in_its_environment(kind: str, has_address: bool) -> None:
    harness = build_harness(HarnessSettings(kind, kind, command=("p",)))
    assert isinstance(harness, ServedHarness)
    env = served_environment(harness.served_needs, CHATS, {})
    assert env["OPENAI_API_KEY"]
    assert env.get("OPENAI_BASE_URL") == (URL if has_address else None)


def test_the_server_is_never_asked_through_a_proxy_and_other_exceptions_stay() -> None:
    harness = build_harness(HarnessSettings("c", "command", command=("p",)))
    assert isinstance(harness, ServedHarness)
    env = served_environment(harness.served_needs, CHATS, {"NO_PROXY": "hub.internal", "HTTP_PROXY": "http://proxy"})
    assert env["NO_PROXY"] == "hub.internal,127.0.0.1,localhost"
    assert env["no_proxy"] == "127.0.0.1,localhost"


def judged(kind: str, judge: ServedEndpoint) -> tuple[Command, dict[str, str]]:
    """Return the command of a run with a judge, and what its environment has for that."""
    harness = build_harness(HarnessSettings(kind, kind, include_path=()))
    request = EvaluateRequest(model="openai/m", tasks=[] if kind == "inspect-ai" else ["t"])
    request.judge_model.CopyFrom(ServedModel(engine="judge", model=judge.model))
    run = Run("j", 1, request, Path("/attempt"), Path("/output"), num_gpus=0)
    return harness.command(run), judge_environment(harness, judge, {"NO_PROXY": "hub.internal"})


def test_tasks_of_lmms_eval_find_their_judge_in_all_variables_that_they_read() -> None:
    command, env = judged("lmms-eval", CHATS)
    assert env["OPENAI_API_URL"] == f"{URL}/chat/completions", "most post to this address, and the gateway knows the others"
    assert {env[name] for name in ("MODEL_VERSION", "JUDGE_MODEL_VERSION", "GPT_EVAL_MODEL_NAME")} == {"tiny"}
    assert (env["API_TYPE"], env["OPENAI_API_KEY"], env["NO_PROXY"]) == (
        "openai",
        "evalrpc",
        "hub.internal,127.0.0.1,localhost",
    )
    assert not {"OPENAI_BASE_URL", "OPENAI_API_BASE"}.intersection(env), "where types of models look for the model"
    assert not any("tiny" in argument for argument in command.argv)


@pytest.mark.parametrize(("is_own_name", "name"), [(False, "gpt-_5"), (True, "gpt-5")])
def test_lmms_eval_treats_the_model_of_a_vendor_by_its_name(is_own_name: bool, name: str) -> None:
    judge = CHATS._replace(name="gpt-5", is_own_name=is_own_name)
    assert judged("lmms-eval", judge)[1]["MODEL_VERSION"] == name
    assert pointed("lmms-eval", judge)[0].model_args.fields["model_version"].string_value == name


def test_inspect_ai_has_its_judge_as_grader() -> None:
    command, env = judged("inspect-ai", CHATS)
    (role,) = (argument for argument in command.argv if argument.startswith("--model-role="))
    assert json.loads(role.removeprefix("--model-role=grader=")) == {
        "model": "openai-api/evalrpc-judge/tiny",
        "max_retries": 10,
    }
    assert (env["EVALRPC_JUDGE_BASE_URL"], env["EVALRPC_JUDGE_API_KEY"]) == (URL, "evalrpc")


@pytest.mark.parametrize(("kind", "asks"), [("lmms-eval", True), ("inspect-ai", True), ("lm-eval", False), ("command", False)])
def test_only_some_harnesses_ask_judges(kind: str, asks: bool) -> None:
    assert isinstance(build_harness(HarnessSettings(kind, kind, command=("p",))), JudgedHarness) is asks
