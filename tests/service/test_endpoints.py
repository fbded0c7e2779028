"""Endpoints and judges on a real server: who may ask them, with which key, and that no key is seen anywhere."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from engine_site import ENGINE, add_engine, completed, end_engines, ended
from engine_stub import Asked, EngineStub, completion, engine_stub
from serving import COMPLETED, FAILED, Api, Launch, ServerHere, Site, fields_of, reason_of
from used_folders import contents_below
from waiting import eventually

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.harnesses.base import ServedEndpoint
from evalrpc.harnesses.command import CommandHarness
from evalrpc.v1 import jobs_pb2 as pb

KEY = "sk-of-the-operator-0123456789"
JUDGE = {"engine": "vendor", "model": "acme/judge"}


def vendor(asked: Asked) -> None:
    """A vendor's API, which quotes a key that it refuses."""
    given = asked.headers.get("authorization", "")
    if given != f"Bearer {KEY}":
        asked.answer({"error": f"incorrect key: {given}"}, 401)
    elif asked.path == "/v1/models":
        asked.answer({"object": "list", "data": [{"id": "acme/judge"}, {"id": "acme/other"}]})
    else:
        text = asked.fields["messages"][0]["content"]
        asked.answer(completion(f"answer to {text}"))


@pytest.fixture
def stub() -> Iterator[EngineStub]:
    with engine_stub(vendor) as stub:
        yield stub


@pytest.fixture
def key_file(site: Site) -> Path:
    path = site.folder / "key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def endpoints(site: Site, stub: EngineStub, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configure an engine, an endpoint with a key, one whose key is not for everybody, and a harness that asks."""
    add_engine(site)
    with site.config.open("a") as config:
        config.write(
            f"[secrets.VENDOR_KEY]\nowners = ['*']\nfile = {json.dumps(str(key_file))}\n"
            f"[secrets.ALICES_KEY]\nowners = ['alice']\nfile = {json.dumps(str(key_file))}\n"
            f"[engines.secretive]\ncommand = {json.dumps(ENGINE)}\nargs = {{ behave = '--behave' }}\nsecrets = ['VENDOR_KEY']\n"
            f"[endpoints.vendor]\nurl = '{stub.url}'\nmodels = ['acme/judge', 'acme/gone']\nsecret = 'VENDOR_KEY'\n"
            f"[engines.alices-engine]\ncommand = ['x', '{{model}}', '{{port}}']\nsecrets = ['ALICES_KEY']\n"
            f"[endpoints.alices]\nurl = '{stub.url}'\nmodels = ['acme/judge']\nsecret = 'ALICES_KEY'\n"
        )
    # As lmms-eval and inspect-ai, which are tested with a real judge elsewhere.
    monkeypatch.setattr(CommandHarness, "judge_api", frozenset({"chat"}), raising=False)
    monkeypatch.setattr(CommandHarness, "judge_variables", judge_variables, raising=False)
    yield
    end_engines(site.folder / "data")


def judge_variables(_: CommandHarness, judge: ServedEndpoint) -> dict[str, str]:
    return {"JUDGE_URL": judge.url}


@pytest.fixture
def api(endpoints: None, serve: Callable[..., ServerHere]) -> Api:
    return serve().api


@pytest.fixture
def model(site: Site) -> Path:
    folder = site.folder / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("1")
    return folder


def submit(api: Api, count: int = 2, **models: Any) -> str:
    request = pb.EvaluateRequest(harness="asking", tasks=[str(count)])
    if "served_model" not in models:
        request.model, request.num_gpus = "m", 0
    for field, served in models.items():
        getattr(request, field).MergeFrom(pb.ServedModel(**served))
    return str(api.SubmitJob(request=request).job_id)


def questions(stub: EngineStub) -> list[str]:
    return [asked.fields["messages"][0]["content"] for asked in stub.asked]


def test_a_job_asks_an_endpoint_with_a_key_that_nobody_sees(api: Api, site: Site, stub: EngineStub) -> None:
    job = completed(api, submit(api, served_model=JUDGE))
    assert questions(stub) == ["question 0", "question 1"]
    assert {asked.fields["model"] for asked in stub.asked} == {"acme/judge"}
    assert (job.usage.answered_count, job.attempts[-1].engine_id, list(job.gpus)) == (2, "", [])
    assert job.request.served_model == pb.ServedModel(**JUDGE, num_gpus=0)
    assert not api.ListEngines().engines, "nothing of ours runs for it"
    assert KEY.encode() not in b"".join(contents_below(site.folder / "data").values())
    (gateway,) = (site.folder / "data" / "engines" / "gateway").iterdir()
    eventually(lambda: not processes_of_job(gateway.name), "for the gateway to end, which has nobody to ask any more")


def test_a_job_asks_a_judge_beside_the_model_that_it_evaluates_itself(api: Api, stub: EngineStub) -> None:
    job = completed(api, submit(api, judge_model=JUDGE))
    assert sorted(questions(stub)) == [f"question: is it answer to question {number}?" for number in range(2)]
    assert [metric.value for metric in job.results["m"].metrics] == [1.0]
    assert (job.judge_usage.answered_count, job.HasField("usage")) == (2, False)


def test_a_model_and_its_judge_have_an_engine_each(api: Api, model: Path, stub: EngineStub, site: Site) -> None:
    judge = site.folder / "models" / "judge"
    judge.mkdir()
    (judge / "weights").write_text("2")
    served = {"engine": "stub", "model": str(model), "num_gpus": 1}
    job = completed(api, submit(api, served_model=served, judge_model={**served, "model": str(judge)}))
    attempt = job.attempts[-1]
    engines = {engine.engine_id: engine for engine in api.ListEngines().engines}
    assert engines[attempt.engine_id].served_model.model == str(model)
    assert engines[attempt.judge_engine_id].served_model.model == str(judge)
    assert sorted(gpu for engine in engines.values() for gpu in engine.gpus) == ["0", "1"]
    assert (job.usage.answered_count, job.judge_usage.answered_count) == (2, 2)
    asked = Path(f"{judge}.notes/questions").read_text().splitlines()
    assert asked == [f"question: is it answer to question {number}?" for number in range(2)]


def test_a_model_that_judges_itself_has_one_engine(api: Api, model: Path) -> None:
    served = {"engine": "stub", "model": str(model), "num_gpus": 2}
    job = completed(api, submit(api, served_model=served, judge_model=served))
    assert job.attempts[-1].engine_id == job.attempts[-1].judge_engine_id
    assert len(Path(f"{model}.notes/starts").read_text().splitlines()) == 1


def test_jobs_with_models_and_judges_that_need_all_gpus_end_all(api: Api, site: Site) -> None:
    """Each pair of engines takes both GPUs, so jobs that took one and waited for the other would wait for ever."""
    folders = [site.folder / "models" / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "weights").write_text(folder.name)
    served = [{"engine": "stub", "model": str(folder), "num_gpus": 1} for folder in folders]
    jobs = [submit(api, 1, served_model=one, judge_model=other) for one in served for other in served if one != other]
    assert {completed(api, job_id).status for job_id in jobs} == {COMPLETED}


def test_gpus_of_the_run_and_of_its_judge_are_not_the_same(api: Api, model: Path) -> None:
    request = pb.EvaluateRequest(harness="asking", tasks=["1"], model="m", num_gpus=1)
    request.judge_model.MergeFrom(pb.ServedModel(engine="stub", model=str(model), num_gpus=1))
    job = completed(api, str(api.SubmitJob(request=request).job_id))
    (engine,) = api.ListEngines().engines
    assert sorted((*job.attempts[-1].gpus, *engine.gpus)) == ["0", "1"]


REFUSED: Final = (
    ({"served_model": {**JUDGE, "model": "gpt"}}, ["served_model.model"]),
    ({"served_model": {**JUDGE, "num_gpus": 1}}, ["served_model.num_gpus"]),
    ({"judge_model": {"engine": "nothing", "model": "m"}}, ["judge_model.engine"]),
    (
        {"judge_model": {**JUDGE, "model": ""}, "served_model": {"engine": "stub"}},
        ["judge_model.model", "served_model.model"],
    ),
    ({"judge_model": {"engine": "stub", "model": "m", "num_gpus": 3}}, ["judge_model.num_gpus"]),
)


def test_what_no_server_could_answer_is_refused_naming_the_field(api: Api) -> None:
    for models, bad in REFUSED:
        with pytest.raises(grpc.RpcError) as caught:
            submit(api, **models)
        assert sorted(fields_of(caught.value)) == [f"request.{field}" for field in bad]


def test_who_may_not_use_a_secret_may_not_use_what_takes_it(api: Api) -> None:
    for field, name in (("served_model", "alices"), ("judge_model", "alices"), ("served_model", "alices-engine")):
        with pytest.raises(grpc.RpcError) as caught:
            submit(api, **{field: {**JUDGE, "engine": name}})
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert reason_of(caught.value) == "SECRET_NOT_ALLOWED"
        assert f"request.{field}.engine: {name} takes ALICES_KEY" in (caught.value.details() or "")


def test_an_endpoint_that_refuses_the_key_fails_its_jobs_before_a_harness_starts(api: Api, key_file: Path, site: Site) -> None:
    key_file.write_text("sk-of-somebody-else")
    job = ended(api, submit(api, served_model=JUDGE))
    assert (job.status, job.error.reason) == (FAILED, "ENGINE_INCOMPATIBLE")
    assert "endpoint vendor refuses the secret VENDOR_KEY: 401" in job.error.message
    assert "sk-of-somebody-else" not in str(job)
    assert not site.log_of(job.job_id)


def test_an_endpoint_without_the_model_fails_its_jobs(api: Api) -> None:
    job = ended(api, submit(api, served_model={**JUDGE, "model": "acme/gone"}))
    assert job.error.reason == "ENGINE_INCOMPATIBLE"
    assert "has no model acme/gone; it has: acme/judge, acme/other" in job.error.message


def test_an_engine_gets_its_secrets_which_its_log_does_not_show(api: Api, model: Path, site: Site) -> None:
    served = {"engine": "secretive", "model": str(model)}
    job = completed(api, submit(api, served_model=served))
    assert Path(f"{model}.notes/key").read_text() == KEY
    log = b"".join(chunk.data for chunk in api.ReadLog(job_id=job.job_id, engine=True))
    assert b"my key is " + b"*" * len(KEY) in log
    failed = ended(api, submit(api, served_model={**served, "args": {"behave": "dies"}}))
    assert "*" * len(KEY) in failed.error.message
    assert KEY not in str(failed)
    (dead,) = (engine for engine in api.ListEngines().engines if engine.error)
    kept = b"".join(contents_below(site.folder / "data" / "engines" / dead.engine_id).values())
    assert KEY.encode() not in kept, "it is overwritten"


def test_endpoints_are_listed_without_their_keys(api: Api) -> None:
    kinds = {kind.name: kind for kind in api.ListEngines().kinds}
    assert (kinds["vendor"].endpoint, list(kinds["vendor"].models)) == (True, ["acme/judge", "acme/gone"])
    assert (kinds["stub"].endpoint, list(kinds["stub"].models)) == (False, [])


def test_a_job_goes_on_asking_an_endpoint_under_the_next_server(
    site: Site, endpoints: None, launch: Launch, stub: EngineStub
) -> None:
    is_held = [True]

    def slow(asked: Asked) -> None:
        if asked.method == "POST":
            eventually(lambda: not is_held[0])
        vendor(asked)

    stub.behave = slow
    server = launch()
    job_id = submit(server.api, served_model=JUDGE)
    eventually(lambda: stub.asked, "for a question")
    server.kill()
    is_held[0] = False
    job = completed(launch().api, job_id)
    assert (job.attempt, job.usage.answered_count) == (1, 2)
