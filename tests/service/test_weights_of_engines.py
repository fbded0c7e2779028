"""By what a server knows the weights of a served model: to share engines, results, and answers of other jobs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from callers import add_token
from engine_site import Models, completed, lines_of, notes_of, submit
from serving import Api, ServerHere, Site, fields_of
from waiting import eventually

from evalrpc.v1 import jobs_pb2 as pb

ALLOW = pb.CACHE_MODE_ALLOW
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def api(engines: None, serve: Callable[..., ServerHere]) -> Api:
    return serve().api


@pytest.fixture
def hub(site: Site, engines: None) -> Path:
    """A cache of the hub, where the engine has `acme/tiny`. Return the folder of that commit."""
    home = site.folder / "hf"
    with site.config.open("a") as config:
        config.write(f'env = {{ HF_HOME = "{home}" }}\n')
    model = home / "hub" / "models--acme--tiny"
    folder = model / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("1")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return folder


def wait_for_content(site: Site, count: int = 1) -> None:
    """Wait until the content of so many folders is known."""
    notes = site.folder / "data" / "engines" / "weights"
    eventually(lambda: notes.is_dir() and len([each for each in notes.iterdir() if len(each.name) == 64]) == count)


def test_jobs_with_one_commit_of_a_repository_share_an_engine_which_loads_that(
    hub: Path, serve: Callable[..., ServerHere], models: Models
) -> None:
    api = serve().api
    first, second, third = (completed(api, submit(api, "acme/tiny", revision=each)) for each in ("", "main", COMMIT))
    assert [job.request.served_model.revision for job in (first, second, third)] == [COMMIT] * 3
    assert [job.request.served_model.model for job in (first, second)] == ["acme/tiny"] * 2
    assert len(models.starts(hub)) == 1, "from the folder of the commit"
    cached = [completed(api, submit(api, "acme/tiny", cache=ALLOW)) for _ in range(2)]
    assert [bool(job.cached_from) for job in cached] == [False, True]


def test_another_commit_is_another_model(hub: Path, serve: Callable[..., ServerHere], models: Models) -> None:
    api = serve().api
    completed(api, submit(api, "acme/tiny", cache=ALLOW))
    other = hub.with_name("f" * 40)
    shutil.copytree(hub, other)
    (hub.parents[1] / "refs" / "main").write_text(other.name)
    job = completed(api, submit(api, "acme/tiny", cache=ALLOW))
    assert (job.cached_from, job.request.served_model.revision) == ("", other.name)
    assert [len(models.starts(folder)) for folder in (hub, other)] == [1, 1]


def test_what_the_cache_lacks_is_loaded_by_each_job_anew(hub: Path, serve: Callable[..., ServerHere], site: Site) -> None:
    (hub / "model.safetensors").unlink()
    api = serve().api
    api.SubmitJob(request=request_of("acme/tiny"), validate_only=True)
    with pytest.raises(grpc.RpcError) as caught:
        api.SubmitJob(request=request_of("acme/tiny", revision=COMMIT), validate_only=True)
    assert fields_of(caught.value) == ["request.served_model.revision"]
    job = api.SubmitJob(request=request_of("acme/tiny"), validate_only=True)
    assert job.request.served_model.revision == ""


def request_of(model: str, revision: str = "") -> pb.EvaluateRequest:
    served = pb.ServedModel(engine="stub", model=model, num_gpus=0, revision=revision)
    return pb.EvaluateRequest(harness="asking", tasks=["1"], served_model=served)


def test_the_result_cache_knows_a_model_by_the_content_of_its_files(api: Api, site: Site, models: Models) -> None:
    model = models.make()
    first = completed(api, submit(api, model, cache=ALLOW))
    wait_for_content(site)
    copy = Path(shutil.copytree(model, site.folder / "copies" / "tiny"))
    assert completed(api, submit(api, copy, cache=ALLOW)).cached_from == "", "nobody has read it yet"
    wait_for_content(site, 2)
    assert completed(api, submit(api, copy, cache=ALLOW)).cached_from == first.job_id
    assert completed(api, submit(api, model, cache=ALLOW)).cached_from == first.job_id
    (copy / "weights").write_text("2")
    assert completed(api, submit(api, copy, cache=ALLOW)).cached_from == ""


def test_a_job_takes_the_answers_that_another_one_of_its_owner_was_given(api: Api, models: Models) -> None:
    model = models.make()
    first = completed(api, submit(api, model, "4:temperature=0", cache=ALLOW))
    second = completed(api, submit(api, model, "6:temperature=0", cache=ALLOW))
    assert (first.usage.replayed_count, second.usage.replayed_count, second.usage.answered_count) == (0, 4, 6)
    assert models.questions(model) == [f"question {number}" for number in range(6)]
    assert [metric.value for metric in second.results["m"].metrics] == [1.0]
    assert (first.cache, second.cache) == (ALLOW, ALLOW)


@pytest.mark.parametrize(
    ("task", "caches"),
    [("3", (1, 1)), ("3:temperature=0.7", (1, 1)), ("3:temperature=0", (1, 0)), ("3:temperature=0", (0, 1))],
    ids=["by the engine's defaults", "sampled", "to one that may not share", "of one that may not share"],
)
def test_no_answers_are_lent(api: Api, models: Models, task: str, caches: tuple[int, int]) -> None:
    model = models.make()
    completed(api, submit(api, model, task, cache=caches[0]))
    more = task.replace("3", "4", 1)  # another job, so the result cache has nothing to say
    assert completed(api, submit(api, model, more, cache=caches[1])).usage.replayed_count == 0
    assert len(models.questions(model)) == 7


def test_answers_to_questions_with_a_seed_are_lent(api: Api, models: Models) -> None:
    model = models.make()
    completed(api, submit(api, model, "3:temperature=0.7:seed=1", cache=ALLOW))
    assert completed(api, submit(api, model, "4:temperature=0.7:seed=1", cache=ALLOW)).usage.replayed_count == 3
    assert completed(api, submit(api, model, "3:temperature=0.7:seed=2", cache=ALLOW)).usage.replayed_count == 0


def test_another_owner_gets_no_answers_and_other_weights_give_none(
    site: Site, engines: None, serve: Callable[..., ServerHere], models: Models
) -> None:
    tokens = {name: add_token(site.folder / "data", name) for name in ("alice", "bob")}
    server = serve()
    alice, bob = (Api(server.address, token=token) for token in tokens.values())
    model = models.make()
    eventually(lambda: alice.GetCaller().owner == "alice")
    completed(alice, submit(alice, model, "3:temperature=0", cache=ALLOW))
    assert completed(bob, submit(bob, model, "4:temperature=0", cache=ALLOW)).usage.replayed_count == 0
    assert completed(alice, submit(alice, model, "5:temperature=0", cache=ALLOW)).usage.replayed_count == 3
    (model / "weights").write_text("other")
    assert completed(alice, submit(alice, model, "6:temperature=0", cache=ALLOW)).usage.replayed_count == 0
    assert len(lines_of(notes_of(model) / "starts")) == 2


def test_a_job_that_was_deleted_lends_nothing(api: Api, models: Models) -> None:
    model = models.make()
    first = completed(api, submit(api, model, "3:temperature=0", cache=ALLOW))
    api.DeleteJob(job_id=first.job_id)
    eventually(lambda: not list((Path(first.attempts[0].output_dir).parents[1]).glob("recording*")), "for its files to go")
    assert completed(api, submit(api, model, "4:temperature=0", cache=ALLOW)).usage.replayed_count == 0
