"""What a client of a real server sees of the operator's policy."""

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import COMPLETED, ServerHere, Site, detail, reason_of

from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, PermissionDeniedError, PolicyViolationError

POLICY = """
[harnesses.toy.policy]
models = ["good", "slow"]
tasks = ["t*"]
max_num_gpus = 1
max_timeout_seconds = 3600
default_timeout_seconds = 1800
"""


@pytest.fixture
def server(site: Site, serve: Callable[..., ServerHere]) -> ServerHere:
    with site.config.open("a") as config:
        config.write(POLICY)
    return serve(default_num_gpus=2)


def test_every_refused_field_is_named_at_once_in_the_details(server: ServerHere) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit("better", request={"tasks": ["t", "u"], "num_gpus": 2}, timeout={"seconds": 7200})
    error = caught.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(error) == "POLICY_VIOLATION"
    assert detail(error, error_details_pb2.ErrorInfo).metadata == {"harness": "toy"}
    named = [violation.field for violation in detail(error, error_details_pb2.BadRequest).field_violations]
    assert named == ["request.model", "request.tasks[1]", "request.num_gpus", "timeout"]
    assert "rule harnesses.toy.policy.tasks" in str(error.details())


def test_the_python_client_raises_it_with_the_fields(server: ServerHere) -> None:
    with EvalClient(server.address) as client, pytest.raises(PolicyViolationError) as caught:
        client.evaluate("good", ["t"], {"trust_remote_code": True}, harness="toy", num_gpus=0)
    assert [violation.field for violation in caught.value.violations] == ["request.model_args.trust_remote_code"]
    assert isinstance(caught.value, PermissionDeniedError)


def test_a_repeated_request_id_gets_its_job_though_a_newer_policy_would_refuse_it(
    site: Site, serve: Callable[..., ServerHere]
) -> None:
    server = serve()
    job = server.api.submit("better", request_id="r1")
    server.stop()
    with site.config.open("a") as config:
        config.write(POLICY)
    api = serve(default_num_gpus=2).api
    assert api.submit("better", request_id="r1").job_id == job.job_id
    for other in ({"request_id": "r2"}, {"request_id": "r1", "priority": 1}, {}):
        with pytest.raises(grpc.RpcError) as caught:
            api.submit("better", **other)
        assert reason_of(caught.value) == "POLICY_VIOLATION"


def test_the_policy_judges_what_the_operators_defaults_make_of_a_request(server: ServerHere) -> None:
    with EvalClient(server.address) as client:
        with pytest.raises(PolicyViolationError, match=r"request\.num_gpus: asks for 2 GPUs; at most 1 are allowed"):
            client.evaluate("good", ["t"])
        with pytest.raises(PolicyViolationError, match=r"request\.num_gpus"):
            client.evaluate("good", ["t"], validate_only=True)


def test_a_job_without_a_timeout_has_the_operators(server: ServerHere) -> None:
    job = server.api.run("good")
    assert (job.status, job.timeout.seconds) == (COMPLETED, 1800)
    assert server.api.run("good", timeout={"seconds": 3600}).timeout.seconds == 3600


def test_a_request_that_makes_no_sense_is_an_invalid_one_whatever_the_policy(server: ServerHere) -> None:
    with EvalClient(server.address) as client, pytest.raises(InvalidRequestError, match=r"request\.tasks: at least one"):
        client.evaluate("better", [], num_gpus=0)


def test_an_argument_that_holds_a_secret_is_an_invalid_one(server: ServerHere) -> None:
    with EvalClient(server.address) as client, pytest.raises(InvalidRequestError) as caught:
        client.evaluate("good", ["t"], {"api_key": "sk-123"}, gen_kwargs={"token": "t"}, num_gpus=0)
    assert [violation.field for violation in caught.value.violations] == [
        "request.model_args.api_key",
        "request.gen_kwargs.token",
    ]
    assert "sk-123" not in str(caught.value)
