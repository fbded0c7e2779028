"""Arguments of tasks on a real server: what is refused, and what they change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from copier import add_copier
from serving import COMPLETED, Api, ServerHere, Site, fields_of, submission

from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, PolicyViolationError
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest

TASKS = """
from inspect_ai import task

@task
def counted(count=1): ...

@task
def plain(): ...
"""
CONFIG = """
[harnesses.inspect]
kind = "inspect-ai"
python = "/no/such/python"
include_path = ["tasks"]
policy = { task_args_allowed = ["count", "epochs*", "secret_*", "number"] }

[harnesses.lm]
kind = "lm-eval"
python = "/no/such/python"

[suites.repeated]
entries = [{ harness = "inspect", tasks = ["counted"], task_args = { epochs = 2, count = 3 } }]

[suites.odd]
entries = [{ harness = "inspect", tasks = ["plain"], task_args = { count = 3 } }]
"""


@pytest.fixture
def site(site: Site) -> Site:
    (site.folder / "tasks").mkdir()
    (site.folder / "tasks" / "tasks.py").write_text(TASKS)
    add_copier(site)
    site.config.write_text(site.config.read_text() + CONFIG)
    return site


def call_of(harness: str, *tasks: str, task_args: dict[str, Any], **fields: Any) -> pb.SubmitJobRequest:
    model = "mockllm/model" if harness == "inspect" else "good"
    call = submission(model, request={"harness": harness, "tasks": tasks or ["t"]}, **fields)
    call.request.task_args.update(task_args)
    return call


def refused(api: Api, harness: str, *tasks: str, **task_args: Any) -> tuple[list[str], str]:
    with pytest.raises(grpc.RpcError) as error:
        api.SubmitJob(call_of(harness, *tasks, task_args=task_args, validate_only=True))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return fields_of(error.value), str(error.value.details())


def test_an_argument_that_the_harness_does_not_take_is_refused_with_what_it_takes(api: Api) -> None:
    fields, text = refused(api, "lm", epochs=2, seed="x")
    assert fields == ["request.task_args.epochs", "request.task_args.seed"]
    assert "it takes: apply_chat_template, system_instruction, fewshot_as_multiturn, seed, metadata" in text
    fields, text = refused(api, "inspect", "counted", "plain", count=3, number=4, epochs=2)
    assert fields == ["request.task_args.number"]
    assert "no task of the request takes it; inspect-ai takes: epochs, epochs_reducer; the tasks take: count" in text
    assert refused(api, "copier", a=1)[0] == ["request.task_args"]
    assert refused(api, "inspect", "counted", api_key="x", count=1)[0] == ["request.task_args.api_key"]


def test_what_only_the_disk_tells_is_named_at_once(serve: Callable[..., ServerHere], site: Site) -> None:
    with site.config.open("a") as config:
        config.write('[preparations.toy]\ncommand = ["/no/such/program", "{model}", "{output}"]\n')
    call = call_of("inspect", "counted", task_args={"number": 1})
    call.request.preparation = "toy"
    call.request.model_args.update({"pretrained": "/no/such/folder"})
    with pytest.raises(grpc.RpcError) as error:
        serve().api.SubmitJob(call)
    assert fields_of(error.value) == ["request.task_args.number", "request.model_args.pretrained"]


def test_the_operator_decides_which_may_be_given(server: ServerHere) -> None:
    with EvalClient(server.address) as client:
        options = {"harness": "inspect", "num_gpus": 0, "validate_only": True}
        assert not client.evaluate("mockllm/model", "counted", task_args={"count": 2, "epochs": 3}, **options).job_id
        with pytest.raises(InvalidRequestError, match="no task of the request takes it"):
            client.evaluate("mockllm/model", "counted", task_args="secret_number=2", **options)
        with pytest.raises(PolicyViolationError) as caught:
            client.evaluate("mockllm/model", "counted", task_args={"shuffle": True}, **options)
    assert [violation.field for violation in caught.value.violations] == ["request.task_args.shuffle"]


def test_a_program_reads_them_and_the_job_says_them(api: Api, site: Site) -> None:
    given = {"epochs": 2, "table": {"a": [1, None]}, "text": "--x\nb"}
    job = api.SubmitJob(call_of("toy", task_args=given))
    job = api.wait_for(job.job_id, COMPLETED)
    (read,) = (json.loads(path.read_text()) for path in Path(job.attempts[0].output_dir).parent.glob("request.json"))
    assert read["task_args"] == given
    again = api.SubmitJob(pb.SubmitJobRequest(request=job.request))
    assert again.request.task_args == job.request.task_args


def test_with_others_it_is_another_evaluation_and_a_named_difference(api: Api) -> None:
    def run(**task_args: Any) -> pb.JobInfo:
        job = api.SubmitJob(call_of("toy", task_args=task_args, cache=CACHE_MODE_ALLOW))
        return api.wait_for(job.job_id, COMPLETED)

    first, same, other = run(seed=1), run(seed=1), run(seed=2)
    assert (same.cached_from, other.cached_from) == (first.job_id, "")
    answer = api.CompareJobs(baseline_job_id=first.job_id, candidate_job_ids=[same.job_id, other.job_id])
    found = [list(candidate.metrics[0].definition_differences) for candidate in answer.candidates]
    assert found == [[], ["other task_args: seed"]]


def test_a_suite_says_them_and_its_clients_do_not(api: Api, serve: Callable[..., ServerHere]) -> None:
    call = SubmitSuiteRequest(suite="repeated", request=pb.EvaluateRequest(model="mockllm/model", num_gpus=0))
    run = api.SubmitSuite(call)
    assert dict(api.get(run.jobs[0].job_id).request.task_args) == {"epochs": 2, "count": 3}
    call.request.task_args.update({"epochs": 1})
    with pytest.raises(grpc.RpcError) as error:
        api.SubmitSuite(call)
    assert fields_of(error.value) == ["request.task_args"]
    call.request.task_args.Clear()
    call.request.ClearField("task_args")
    call.suite = "odd"
    with pytest.raises(grpc.RpcError, match=r"its entry 'plain': task_args.count: no task of the request takes it") as error:
        api.SubmitSuite(call)
    assert fields_of(error.value) == ["suite"]
