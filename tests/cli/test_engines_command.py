"""`evalrpc engines`, and what other commands say of served models."""

from collections.abc import Callable

import pytest
from click.testing import Result
from fake_server import JOB_ID, FakeService, job_at
from google.protobuf import json_format

from evalrpc.client.views import describe
from evalrpc.v1.engines_pb2 import ENGINE_STATE_READY, Engine, EngineKind, ListEnginesResponse
from evalrpc.v1.jobs_pb2 import JobStatus, ServedModel
from evalrpc.v1.queue_pb2 import Gpu

Run = Callable[..., Result]


@pytest.fixture
def engine(service: FakeService) -> Engine:
    """An engine that is there, beside a kind that was never started."""
    engine = Engine(engine_id="e-1", state=ENGINE_STATE_READY, gpus=["0", "1"], job_count=3)
    engine.served_model.CopyFrom(ServedModel(engine="vllm", model="acme/tiny\x1b[31m"))
    engine.served_model.args.update({"dtype": "float32"})
    engine.start_duration.FromSeconds(75)
    engine.state_since.FromSeconds(1_900_000_000)
    service.engines.engines.append(engine)
    service.engines.kinds.extend([EngineKind(name="sglang", unavailable_reason="no program"), EngineKind(name="vllm")])
    return engine


def test_engines_are_a_table_of_those_that_are_there_and_those_that_may_be_named(run: Run, engine: Engine) -> None:
    result = run("engines")
    assert result.exit_code == 0
    header, there, other = (line.split("\t") for line in result.stdout.splitlines())
    shown, named = dict(zip(header, there, strict=True)), dict(zip(header, other, strict=True))
    assert (shown["engine"], shown["name"], shown["state"], shown["jobs"], shown["gpus"]) == (
        "e-1",
        "vllm",
        "READY",
        "3",
        "0,1",
    )
    assert shown["model"] == r"acme/tiny\x1b[31m", "no control character reaches a terminal"
    assert shown["detail"] == "started in 1m15s, dtype=float32"
    assert (named["engine"], named["name"], named["state"], named["detail"]) == ("", "sglang", "UNAVAILABLE", "no program")


def test_an_engine_that_is_not_up_says_so(run: Run, service: FakeService) -> None:
    service.engines.kinds.append(EngineKind(name="vllm", args=["dtype"]))
    assert run("engines").stdout.splitlines()[1].split("\t")[:2] == ["vllm", "NOT UP"]


def test_engines_are_json_for_programs(run: Run, service: FakeService, engine: Engine) -> None:
    assert json_format.Parse(run("engines", "-o", "json").stdout, ListEnginesResponse()) == service.engines
    lines = run("engines", "-o", "jsonl").stdout.splitlines()
    assert json_format.Parse(lines[0], Engine()) == engine
    assert len(lines) == 2


def test_an_engine_is_ended_by_its_id(run: Run, service: FakeService) -> None:
    result = run("engines", "stop", "e-1")
    assert (result.exit_code, result.stdout) == (0, "e-1 is being ended\n")
    assert run("engines", "stop", "e-1", "--json").stdout == '{"engine_id": "e-1"}\n'
    assert [request.engine_id for request in service.received["StopEngine"]] == ["e-1"] * 2  # type: ignore[attr-defined]
    assert not service.received["ListEngines"]


def test_an_engine_is_named_by_the_beginning_of_its_id(run: Run, service: FakeService) -> None:
    ids = [f"engine-{number}-4f2c-9d5e-8f1a-0b54e7a63a51" for number in ("0b54e7a6", "0b54ffff")]
    service.engines.engines.extend(Engine(engine_id=engine_id) for engine_id in ids)
    for text in ("0b54e", "engine-0b54e", ids[0]):
        assert run("engines", "stop", text).stdout == f"{ids[0]} is being ended\n"
    result = run("engines", "stop", "0b54")
    assert (result.exit_code, "several engines begin with 0b54" in result.stderr) == (2, True)
    result = run("engines", "stop", "engine-ffff")
    assert (result.exit_code, "there is no engine whose id begins with engine-ffff" in result.stderr) == (2, True)
    assert [request.engine_id for request in service.received["StopEngine"]] == [ids[0]] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [["engines", "stop"], ["engines", "start"], ["logs", JOB_ID, "--engine", "x"]])
def test_a_wrong_call_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_logs_ask_for_the_engines_log(run: Run, service: FakeService) -> None:
    service.change(job_at(JobStatus.JOB_STATUS_COMPLETED, attempt=1))
    assert run("logs", JOB_ID, "--engine").exit_code == 0
    assert [request.engine for request in service.received["ReadLog"]] == [True]  # type: ignore[attr-defined]


def test_a_job_is_shown_with_the_model_that_is_served(run: Run, service: FakeService) -> None:
    job = job_at(JobStatus.JOB_STATUS_COMPLETED, attempt=1)
    job.request.served_model.CopyFrom(ServedModel(engine="vllm", model="acme/tiny"))
    job.attempts.add(number=1, engine_id="e-1")
    service.change(job)
    facts = dict(line.split("\t", 1) for line in run("get", JOB_ID).stdout.splitlines())
    assert (facts["model"], facts["engine"]) == ("acme/tiny", "vllm e-1")
    assert "acme/tiny" in run("list").stdout
    assert "acme/tiny on" in describe(job)


def test_the_queue_says_which_engine_holds_a_gpu(run: Run, service: FakeService) -> None:
    service.queue.gpus.append(Gpu(id="2", held=True, engine_id="e-1"))
    assert "GPU 2\te-1" in run("queue").stdout
