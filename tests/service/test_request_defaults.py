"""What a request that leaves out the harness or the GPUs gets from the server, and what the job then says."""

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import CANCELLED, COMPLETED, RUNNING, Api, ServerHere, Site, detail, fields_of

from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, EvaluateRequest, SubmitJobRequest

Serve = Callable[..., ServerHere]


def plain(model: str = "good", **fields: object) -> SubmitJobRequest:
    """Return a submission with nothing but what is required."""
    return SubmitJobRequest(request=EvaluateRequest(model=model, tasks=["t"]), **fields)


def add_harness(site: Site, name: str) -> None:
    with site.config.open("a") as config:
        config.write(f'[harnesses.{name}]\nkind = "command"\ncommand = ["true"]\n')


def test_a_plain_request_runs_on_a_server_without_gpus(site: Site, serve: Serve) -> None:
    site.set_up(gpus="0")
    api = serve().api
    job = api.wait_for(api.SubmitJob(plain()).job_id, COMPLETED)
    assert job.request == EvaluateRequest(harness="toy", model="good", tasks=["t"], num_gpus=0)


def test_a_plain_request_gets_one_gpu_where_there_are_some(api: Api) -> None:
    job = api.SubmitJob(plain("slow"))
    assert job.request == EvaluateRequest(harness="toy", model="slow", tasks=["t"], num_gpus=1)
    assert len(api.wait_for(job.job_id, RUNNING).gpus) == 1


def test_the_operator_chooses_the_defaults(site: Site, serve: Serve) -> None:
    add_harness(site, "lmms-eval")
    site.set_up(default_harness="toy", default_num_gpus=2)
    api = serve().api
    info = api.GetServerInfo()
    assert (info.default_harness, info.default_num_gpus) == ("toy", 2)
    job = api.SubmitJob(plain("slow"))
    assert (job.request.harness, job.request.num_gpus) == ("toy", 2)
    assert len(api.wait_for(job.job_id, RUNNING).gpus) == 2


def test_what_a_request_says_wins(site: Site, serve: Serve) -> None:
    add_harness(site, "other")
    site.set_up(default_harness="other", default_num_gpus=2)
    job = serve().api.run("good")
    assert (job.request.harness, job.request.num_gpus, job.status) == ("toy", 0, COMPLETED)


def test_a_queued_job_waits_for_as_many_gpus_as_it_got_by_default(site: Site, serve: Serve) -> None:
    site.set_up(default_num_gpus=2)
    api = serve().api
    api.wait_for(api.submit("hangs", request={"num_gpus": 1}).job_id, RUNNING)
    assert "needs 2 GPUs, 1 free" in api.get(api.SubmitJob(plain()).job_id).wait_reason


def test_the_server_says_its_defaults_of_its_own_accord(api: Api) -> None:
    info = api.GetServerInfo()
    assert (info.default_harness, info.default_num_gpus) == ("toy", 1)


def test_without_a_default_a_request_must_name_one_of_the_harnesses(site: Site, serve: Serve) -> None:
    add_harness(site, "other")
    api = serve().api
    assert api.GetServerInfo().default_harness == ""
    for call, field in (
        (lambda: api.SubmitJob(plain()), "request.harness"),
        (api.ListTasks, "harness"),
        (api.ListModels, "harness"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert fields_of(error.value) == [field]
        (violation,) = detail(error.value, error_details_pb2.BadRequest).field_violations
        assert violation.description == "must name one of this server's harnesses: other, toy"


def test_names_are_listed_of_the_default_harness(site: Site, serve: Serve) -> None:
    python = site.folder / "python"
    python.write_text('#!/bin/sh\necho \'{"tasks": ["gsm8k"], "models": ["hf"]}\'\n')
    python.chmod(0o755)
    with site.config.open("a") as config:
        config.write(f'[harnesses.lm-eval]\npython = "{python}"\n')
    site.set_up(default_harness="lm-eval")
    api = serve().api
    assert (list(api.ListTasks().tasks), list(api.ListModels().models)) == (["gsm8k"], ["hf"])


def test_a_retry_is_the_same_job_though_the_defaults_have_changed_since(site: Site, serve: Serve) -> None:
    first = serve()
    job = first.api.SubmitJob(plain("hangs", request_id="r"))
    first.api.CancelJob(job_id=job.job_id)
    first.api.wait_for(job.job_id, CANCELLED)
    first.stop()
    site.set_up(default_num_gpus=2)
    again = serve().api.SubmitJob(plain("hangs", request_id="r"))
    assert (again.job_id, again.request.num_gpus) == (job.job_id, 1)


def test_an_evaluation_is_identical_whether_it_names_the_defaults_or_leaves_them_out(api: Api) -> None:
    first = api.SubmitJob(plain(cache=CACHE_MODE_ALLOW))
    api.wait_for(first.job_id, COMPLETED)
    named = plain(cache=CACHE_MODE_ALLOW)
    named.request.harness, named.request.num_gpus = "toy", 1
    again = api.SubmitJob(named)
    assert first.job_id in (again.job_id, again.cached_from)


@pytest.mark.parametrize("num_gpus", [1, 3])
def test_gpus_that_the_server_does_not_have_are_refused(site: Site, serve: Serve, num_gpus: int) -> None:
    site.set_up(gpus="0")
    with pytest.raises(grpc.RpcError) as error:
        serve().api.submit(request={"num_gpus": num_gpus})
    assert fields_of(error.value) == ["request.num_gpus"]


def test_a_missing_request_is_still_missing(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as error:
        api.SubmitJob()
    assert fields_of(error.value) == ["request"]
