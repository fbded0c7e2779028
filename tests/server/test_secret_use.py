"""Which secrets a request may name, and that it has none in its arguments."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from evalrpc.config import SecretSettings
from evalrpc.errors import FieldViolation
from evalrpc.server import secret_use
from evalrpc.server.argument_values import argument_values
from evalrpc.v1.jobs_pb2 import EvaluateRequest

KNOWN = {
    "OPENAI_API_KEY": SecretSettings(owners=("alice", "bob"), variable="A"),
    "HF_TOKEN": SecretSettings(owners=("*",), variable="B"),
}


def problems_of(request: EvaluateRequest, known: Mapping[str, SecretSettings], owner: str) -> Iterator[FieldViolation]:
    return secret_use.violations(request, argument_values(request), known, owner)


def request_of(*secrets: str, **arguments: dict[str, Any]) -> EvaluateRequest:
    request = EvaluateRequest(secrets=secrets)
    for name, values in arguments.items():
        struct: Struct = getattr(request, name)
        struct.update(values)
    return request


def bad_fields(request: EvaluateRequest, owner: str = "alice") -> list[str]:
    return [violation.field for violation in problems_of(request, KNOWN, owner)]


@pytest.mark.parametrize("field", ["model_args", "gen_kwargs", "task_args"])
@pytest.mark.parametrize("name", ["api_key", "openai_api_key", "hf_token", "password", "secret", "token"])
def test_an_argument_that_holds_a_secret_is_refused_with_what_to_use_instead(field: str, name: str) -> None:
    ((found, problem),) = problems_of(request_of(**{field: {name: "sk-1"}}), KNOWN, "alice")
    assert found == f"request.{field}.{name}"
    assert "`secrets`" in problem
    assert "sk-1" not in problem


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"client": {"api_key": "sk-1"}}, "client.api_key"),
        ({"clients": [{"token": "t"}]}, "clients[0].token"),
        ({"client": '{"password": "p"}'}, "client.password"),
        ({"token": "true"}, "token"),
        ({"token": None}, "token"),
        ({"api_key": False}, "api_key"),
    ],
)
def test_at_any_depth_and_in_json_that_is_given_as_text(values: dict[str, Any], path: str) -> None:
    assert bad_fields(request_of(model_args=values)) == [f"request.model_args.{path}"]


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"token": True},
            {"token": False},
            {"tokenizer": "gpt2"},
            {"max_new_tokens": 16},
            {"tokens": 1},
            {"add_bos_token": True},
        ),
        *({"api_keys": 1}, {"secrets": ["A"]}, {"secret_name": "A"}, {"API_KEY": "x"}, {"prompt": "password: none"}),
    ],
    ids=str,
)
def test_no_other_argument_is_refused(values: dict[str, Any]) -> None:
    assert bad_fields(request_of(model_args=values, gen_kwargs=values)) == []


def test_a_secret_that_there_is_not_is_refused_and_those_that_may_be_used_are_named() -> None:
    request = request_of("HF_TOKEN", "hf_token", "OPENAI_API_KEY", "HF_TOKEN", "")
    assert bad_fields(request) == ["request.secrets[1]", "request.secrets[3]", "request.secrets[4]"]
    problems = {owner: next(v.description for v in problems_of(request, KNOWN, owner)) for owner in ("alice", "")}
    assert problems["alice"] == "this server has no secret 'hf_token'; 'alice' may use: HF_TOKEN, OPENAI_API_KEY"
    assert problems[""] == "this server has no secret 'hf_token'; who is not signed in may use: HF_TOKEN"
    assert bad_fields(request_of(*["HF_TOKEN"] * 65)) == ["request.secrets"]


@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_an_owner_may_use_a_secret(owner: str) -> None:
    assert list(secret_use.not_allowed(request_of("OPENAI_API_KEY", "HF_TOKEN"), KNOWN, {}, owner)) == []


@pytest.mark.parametrize("owner", ["carol", "", "*", "Alice"])
def test_others_may_use_only_those_for_everybody(owner: str) -> None:
    assert list(secret_use.not_allowed(request_of("HF_TOKEN"), KNOWN, {}, owner)) == []
    (violation,) = secret_use.not_allowed(request_of("HF_TOKEN", "OPENAI_API_KEY"), KNOWN, {}, owner)
    assert violation.field == "request.secrets[1]"
    assert "alice" not in violation.description
