"""Which executors a request may name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evalrpc.config import ExecutorSettings, HarnessSettings, Settings
from evalrpc.errors import ConfigurationError, EvalrpcError, ExecutorUnsuitableError
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.jobs.defaults import request_defaults
from evalrpc.server import executor_use
from evalrpc.server.admission import Admission
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, ServedModel, SubmitJobRequest

CLUSTER = ExecutorSettings("cluster", "slurm", max_gpus=4, owners=("alice",))
GPU_COUNTS = {"": [1], "cluster": [4]}


def command(name: str, *executors: str) -> HarnessSettings:
    return HarnessSettings(name, "command", command=("true",), working_dir=Path("/"), executors=executors)


def settings(default_executor: str = "local") -> Settings:
    harnesses = (command("any"), command("here", "local"), command("there", "cluster"))
    return Settings(
        harnesses={harness.name: harness for harness in harnesses},
        executors={"cluster": CLUSTER},
        default_executor=default_executor,
    )


def admitted(owner: str = "alice", default_executor: str = "local", **fields: object) -> EvaluateRequest:
    used = settings(default_executor)
    request = EvaluateRequest(**{"harness": "any", "model": "m", "tasks": ["t"], **fields})  # type: ignore[arg-type]
    call = SubmitJobRequest(request=request)
    Admission(used, build_harnesses(used), request_defaults(used, 1)).admit(call, owner, GPU_COUNTS)
    return call.request


def refused(**fields: object) -> tuple[str, str]:
    with pytest.raises(EvalrpcError) as caught:
        admitted(**fields)  # type: ignore[arg-type]
    return caught.value.code, caught.value.message


def test_without_one_it_is_the_operators_default_where_the_harness_may_use_that() -> None:
    assert not admitted().executor
    assert admitted(harness="there").executor == "cluster"
    assert admitted(default_executor="cluster").executor == "cluster"
    assert not admitted(harness="here", default_executor="cluster").executor


def test_what_only_the_server_has_makes_it_local() -> None:
    assert not admitted(default_executor="cluster", num_gpus=0).HasField("served_model")
    request = EvaluateRequest(harness="any", preparation="merge")
    request_defaults(settings("cluster"), 1).fill_in(request)
    assert not request.executor


def test_the_number_of_gpus_is_judged_by_the_executor() -> None:
    assert admitted(executor="cluster", num_gpus=4).num_gpus == 4
    assert admitted(executor="local").num_gpus == 1
    code, message = refused(executor="cluster", num_gpus=5)
    assert (code, message) == ("INVALID_ARGUMENT", "request.num_gpus: asks for 5 GPUs, and cluster has 4")
    assert refused(num_gpus=2)[1] == "request.num_gpus: asks for 2 GPUs, and this server has 1"


def test_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert refused(executor="moon") == (
        "INVALID_ARGUMENT",
        "request.executor: this server has no executor 'moon'; it has: local, cluster",
    )


def test_one_that_the_harness_may_not_use_is_refused_with_those_that_it_may() -> None:
    assert refused(harness="here", executor="cluster") == (
        "INVALID_ARGUMENT",
        "request.executor: here may not run on cluster, only on: local",
    )


def test_one_that_is_not_for_the_owner_is_denied() -> None:
    code, message = refused(executor="cluster", owner="bob")
    assert code == "PERMISSION_DENIED"
    assert message == "request.executor: cluster is not for 'bob': its owners are the operator's choice"


@pytest.mark.parametrize("asked", [{"served_model": ServedModel(engine="e")}, {"preparation": "merge"}])
def test_what_only_the_server_has_does_not_go_with_a_cluster(asked: Mapping[str, Any]) -> None:
    (found,) = executor_use.unsuitable(EvaluateRequest(executor="cluster", **asked))
    (field,) = asked
    assert found == (f"request.{field}", "is only for executor local, and not for cluster")
    assert ExecutorUnsuitableError(violations=[found]).code == "FAILED_PRECONDITION"
    assert not list(executor_use.unsuitable(EvaluateRequest(executor="local", **asked)))


def test_settings_name_only_executors_that_are_there() -> None:
    with pytest.raises(EvalrpcError, match=r"default_executor: there is no executor 'moon'; configured are: local, cluster"):
        settings("moon")
    with pytest.raises(EvalrpcError, match=r"harnesses\.h\.executors: there is no executor 'moon'"):
        Settings(harnesses={"h": command("h", "moon")})


def test_an_executor_with_runs_must_be_configured() -> None:
    jobs = [JobInfo(job_id=f"job-{number}", request=EvaluateRequest(executor="cluster")) for number in range(6)]
    local = [JobInfo(request=EvaluateRequest()), JobInfo(request=EvaluateRequest(executor="local"))]
    executor_use.require_executors([*jobs, *local], {"cluster"})
    executor_use.require_executors(local, ())
    with pytest.raises(
        ConfigurationError, match=r"^executors\.cluster: .*: job-0, .*, job-4 and 1 more; put \[executors\.cluster\]"
    ):
        executor_use.require_executors(jobs, {"other"})
