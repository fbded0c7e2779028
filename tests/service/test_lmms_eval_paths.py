"""lmms-eval's own clients, unchanged, against a real server; and what its server answers that no client of its own shows."""

import asyncio
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from http_calls import JSON, Answer, HttpApi, http_of
from serving import NOWHERE, RUNNING, ServerHere, Site

from evalrpc.config import load_settings
from evalrpc.config.listeners import http_listeners_of
from evalrpc.errors import ConfigurationError
from evalrpc.server.transports.lmms_eval.requests import submission_of

Serve = Callable[..., ServerHere]
PYTHON = os.environ.get("EVALRPC_TEST_LMMS_PYTHON", "")
PREPARATIONS = '[preparations.merge-fsdp2]\ncommand = ["true", "{model}", "{output}"]\n'


@pytest.fixture
def server(site: Site) -> Iterator[ServerHere]:
    table = '[[http_listen]]\naddress = "127.0.0.1:0"\nlmms_eval_paths = true\nowner = "legacy"\n'
    site.config.write_text(f"{site.config.read_text()}{PREPARATIONS}{table}")
    here = ServerHere(site.settings(gpus="0", default_harness="toy"))
    yield here
    site.release()
    here.start_no_more()
    site.kill_runs()
    here.stop()


@pytest.fixture
def http(server: ServerHere) -> HttpApi:
    return http_of(server)


def post(http: HttpApi, path: str, body: Any) -> Answer:
    return http.request("POST", path, json.dumps(body).encode(), JSON)


def evaluate(http: HttpApi, model: str = "good", **fields: Any) -> str:
    return str(post(http, "/evaluate", {"model": model, "tasks": ["t"], **fields}).json["job_id"])


# Its own clients


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """The module of lmms-eval with its clients, from its own package. The rest of that package takes long to import."""
    if not PYTHON:
        pytest.skip("EVALRPC_TEST_LMMS_PYTHON is not set")
    (path,) = Path(PYTHON).parents[1].glob("lib/python*/site-packages/lmms_eval/entrypoints/client.py")
    spec = importlib.util.spec_from_file_location("lmms_eval_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_client_evaluates_waits_and_reads(theirs: ModuleType, http: HttpApi, server: ServerHere, site: Site) -> None:
    with theirs.EvalClient(http.url) as client:
        assert client.is_healthy()
        job = client.evaluate("slow", ["t"], {"pretrained": "m", "n": "4"}, limit=4, gen_kwargs="do_sample=False,top_p=0.5")
        assert job["status"] == "queued"
        server.api.wait_for(job["job_id"], RUNNING)
        client.evaluate("hangs", ["t"])
        assert client.get_queue_status()["running_job"] == job["job_id"]
        site.release(job["job_id"])
        done = client.wait_for_job(job["job_id"], poll_interval=0.01, verbose=False)
        assert done["result"]["toy"]["results"].endswith("_results.json")
        assert len(done["result"]["toy"]["samples"]) == 1
        assert done["request"]["model_args"] == {"pretrained": "m", "n": 4}
        assert done["request"]["gen_kwargs"] == "do_sample=False,top_p=0.5"
        assert client.list_tasks() == []
        assert client.list_models() == []
        failed = client.evaluate("fails", ["t"])
        with pytest.raises(RuntimeError, match=r"Job failed: .+"):
            client.wait_for_job(failed["job_id"], poll_interval=0.01, verbose=False)
        with pytest.raises(theirs.httpx.HTTPStatusError, match="404"):
            client.get_job(NOWHERE)
        with pytest.raises(theirs.httpx.HTTPStatusError, match="404"):
            client.merge_checkpoint("/nowhere")


def test_its_asynchronous_client_does_so_too(theirs: ModuleType, http: HttpApi, site: Site) -> None:
    async def use() -> None:
        async with theirs.AsyncEvalClient(http.url) as client:
            assert (await client.health())["queue_size"] == 0
            job = await client.evaluate("good", ["t"], model_args={"pretrained": "m"})
            done = await client.wait_for_job(job["job_id"], poll_interval=0.01, verbose=False)
            assert done["status"] == "completed"
            assert (await client.get_queue_status())["completed_jobs"] == 1

    asyncio.run(use())


# What its server answers


def test_a_job_has_all_its_fields_and_the_owner_of_the_address(http: HttpApi, server: ServerHere) -> None:
    job_id = evaluate(http, "hangs", model_args={"none": None}, batch_size=8, num_gpus=1, colour="ignored")
    job = http.get(f"/jobs/{job_id}").json
    assert list(job) == [
        *("job_id", "status", "created_at", "started_at", "completed_at", "request", "result", "error", "position_in_queue")
    ]
    assert job["request"] == {
        "model": "hangs",
        "tasks": ["t"],
        "model_args": None,
        "num_fewshot": None,
        "batch_size": 8,
        "device": None,
        "limit": None,
        "gen_kwargs": None,
        "log_samples": True,
        "predict_only": False,
        "num_gpus": 0,
        "output_dir": None,
    }
    assert (job["result"], job["error"], job["completed_at"]) == (None, None, None)
    assert server.api.get(job_id).owner == "legacy"


def test_cancelling_never_ends_a_running_job(serve: Serve, site: Site) -> None:
    server = serve(http_listen="127.0.0.1:0", lmms_eval_paths=True, max_running=1, gpus="0")
    http = http_of(server)
    running = evaluate(http, "hangs")
    server.api.wait_for(running, RUNNING)
    queued = evaluate(http, "hangs")

    def delete(job_id: str) -> tuple[int, Any]:
        answer = http.request("DELETE", f"/jobs/{job_id}")
        return answer.status, answer.json

    assert http.get("/queue").json == {
        "queue_size": 1,
        "running_job": running,
        "queued_jobs": [queued],
        "completed_jobs": 0,
        "failed_jobs": 0,
    }
    assert http.get(f"/jobs/{queued}").json["position_in_queue"] == 0
    assert delete(running) == (400, {"detail": "Cannot cancel a running job"})
    assert delete(queued) == (200, {"message": f"Job {queued} cancelled"})
    assert delete(queued) == (400, {"detail": "Job already finished or cancelled"})
    assert http.get(f"/jobs/{queued}").json["status"] == "cancelled"
    for nothing in (NOWHERE, "x"):
        assert delete(nothing) == (404, {"detail": f"Job {nothing} not found"})
    assert server.api.get(running).status == RUNNING


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        ({"model": "m"}, "missing", ["body", "tasks"]),
        ({"model": 3, "tasks": ["t"]}, "string_type", ["body", "model"]),
        ({"model": "m", "tasks": "t"}, "list_type", ["body", "tasks"]),
        ({"model": "m", "tasks": ["t"], "num_gpus": None}, "int_type", ["body", "num_gpus"]),
        ({"model": "m", "tasks": ["t"], "num_gpus": 10**400}, "int_type", ["body", "num_gpus"]),
        ({"model": "m", "tasks": ["t"], "limit": float("inf")}, "float_type", ["body", "limit"]),
        ({"model": "m", "tasks": ["t"], "model_args": []}, "dict_type", ["body", "model_args"]),
        ({"model": "m", "tasks": ["t"], "gen_kwargs": "x"}, "value_error", ["body", "gen_kwargs"]),
        ({"model": "", "tasks": ["t"]}, "value_error", ["body", "model"]),
        ([], "model_attributes_type", ["body"]),
        ({"model": "\ud800", "tasks": ["t"]}, "string_type", ["body", "model"]),
        ({"model": "m", "tasks": ["\ud800"]}, "list_type", ["body", "tasks"]),
        ({"model": "m", "tasks": ["t"], "model_args": {"a": nested(50)}}, "value_error", ["body", "model_args"]),
        ({"model": "m", "tasks": ["t"], "model_args": {"a": nested(900)}}, "value_error", ["body", "model_args"]),
    ],
)
def test_every_wrong_field_is_in_the_detail(body: Any, kind: str, loc: list[str], shared: HttpApi) -> None:
    answer = post(shared, "/evaluate", body)
    assert answer.status == 422
    assert [(each["type"], each["loc"]) for each in answer.json["detail"]] == [(kind, loc)]


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        *(("limit", text, 8.0) for text in ("8", " 8 ", "8.0")),
        ("limit", "0", None),
        *(("log_samples", value, False) for value in (0, 0.0, "0", "false", "False", "no", "off")),
        *(("predict_only", value, True) for value in (1, 1.0, "1", "true", "TRUE", "yes", "on")),
        *(("batch_size", value, "8") for value in (8, 8.0, "8")),
        ("batch_size", True, "1"),
        ("num_gpus", "+2", 2),
    ],
)
def test_what_means_a_number_or_a_boolean_there_means_it_here(field: str, given: Any, meant: Any) -> None:
    request = submission_of(json.dumps({"model": "m", "tasks": ["t"], field: given}).encode(), "toy", 8).request
    assert {descriptor.name: value for descriptor, value in request.ListFields()}.get(field) == meant


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    """A server for what changes nothing."""
    site = Site(tmp_path_factory.mktemp("site"))
    server = ServerHere(site.settings(http_listen="127.0.0.1:0", lmms_eval_paths=True, gpus="0"))
    yield http_of(server)
    server.stop()


def test_what_is_no_json_is_refused_so_no_foreign_page_submits(shared: HttpApi) -> None:
    body = json.dumps({"model": "m", "tasks": ["t"]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = shared.request("POST", "/evaluate", body, {"content-type": kind})
        assert (answer.status, answer.json["detail"][0]["loc"]) == (422, ["body"])
    broken = shared.request("POST", "/evaluate", b"{", JSON)
    assert (broken.status, broken.json["detail"][0]["type"]) == (422, "json_invalid")
    assert shared.request("POST", "/evaluate", body, JSON | {"origin": "http://evil.example"}).status == 403


def test_redirects_and_other_methods_are_as_there(shared: HttpApi) -> None:
    redirect = shared.get("/queue/")
    assert (redirect.status, redirect.headers["location"]) == (307, "/queue")
    for method, path in (("HEAD", "/health"), ("PUT", "/queue"), ("GET", "/evaluate")):
        assert shared.request(method, path).status == 405
    assert shared.get("/docs").status == 404
    assert shared.get("/tasks").json.keys() == {"tasks", "error"}


def test_a_merge_is_made_by_a_preparation_of_the_job(http: HttpApi, server: ServerHere, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    merged = post(http, "/merge", {"checkpoint_path": str(folder), "output_path": None}).json
    assert merged["success"]
    job_id = evaluate(http, model_args={"pretrained": merged["merged_path"]})
    request = server.api.get(job_id).request
    assert (request.preparation, request.model_args["pretrained"]) == ("merge-fsdp2", str(folder))
    assert http.get(f"/jobs/{job_id}").json["request"]["model_args"] == {"pretrained": merged["merged_path"]}
    assert post(http, "/merge", {"checkpoint_path": "/nowhere"}).status == 404
    assert post(http, "/merge", {"checkpoint_path": str(folder), "output_path": "/tmp/x"}).status == 400
    assert post(http, "/merge", {"checkpoint_path": str(folder), "checkpoint_type": "ema"}).status == 500
    assert post(http, "/merge", {"checkpoint_path": str(folder), "checkpoint_type": "x"}).status == 422


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'lmms_eval_paths = true\nhttp_listen = "127.0.0.1:1"\nauth = "required"',
            "lmms_eval_paths: lmms-eval's clients can't",
        ),
        ("lmms_eval_paths = true", "lmms_eval_paths: lmms-eval's clients can't"),
        ('auth = "required"\n[[http_listen]]\naddress = "127.0.0.1:1"\nlmms_eval_paths = true', "http_listen.lmms_eval_paths"),
        ('auth = "required"\n[[http_listen]]\naddress = "127.0.0.1:1"\nowner = "x"', "http_listen.owner"),
        ('[[http_listen]]\naddress = "127.0.0.1:1"\nowner = "a b"', "http_listen.owner"),
    ],
)
def test_they_are_only_where_nobody_has_to_sign_in(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "evalrpc.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        http_listeners_of(load_settings({}, {}, path))
