"""Deduplicated evaluations: one job serves every caller that allows it, and no other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from serving import (
    COMPLETED,
    FAILED,
    QUEUED,
    RUNNING,
    TERMINAL,
    Api,
    Launch,
    ServerHere,
    Site,
    fields_of,
    submission,
)

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW

ARGS = {"pretrained": "acme/model", "dtype": "float32", "nested": {"x": [1, 2]}, "revision": "main"}


def ask(api: Api, model: str = "good", model_args: dict[str, Any] | None = None, **fields: Any) -> pb.JobInfo:
    call = submission(model, **({"cache": CACHE_MODE_ALLOW} | fields))
    call.request.model_args.update(model_args or {})
    return api.SubmitJob(call)


def completed(api: Api, **fields: Any) -> pb.JobInfo:
    return api.wait_for(ask(api, **fields).job_id, COMPLETED)


def test_an_identical_evaluation_is_answered_with_the_completed_job(api: Api, site: Site) -> None:
    job = completed(api)
    again = ask(api)
    assert (again.job_id, again.status, again.cached) == (job.job_id, COMPLETED, True)
    assert again.results == job.results
    assert not api.get(job.job_id).cached
    assert site.starts(job.job_id) == ["1"]


@pytest.mark.parametrize(("first", "second"), [(0, CACHE_MODE_ALLOW), (CACHE_MODE_ALLOW, 0), (0, 0)])
def test_only_those_who_both_allow_it_share_a_job(api: Api, first: int, second: int) -> None:
    job = completed(api, cache=first)
    again = ask(api, cache=second)
    assert (again.job_id != job.job_id, again.cached, again.status) == (True, False, QUEUED)


def test_a_queued_and_a_running_identical_job_are_joined(api: Api, site: Site) -> None:
    blocker = api.submit("hangs", request={"num_gpus": 2})
    api.wait_for(blocker.job_id, RUNNING)
    waiting = ask(api, "slow", request={"num_gpus": 1})
    joined = ask(api, "slow", request={"num_gpus": 1})
    assert (joined.job_id, joined.status, joined.position_in_queue) == (waiting.job_id, QUEUED, 0)
    api.CancelJob(job_id=blocker.job_id)
    site.wait_for_log(waiting.job_id)
    running = ask(api, "slow", request={"num_gpus": 1})
    assert (running.job_id, running.status, running.cached) == (waiting.job_id, RUNNING, True)
    site.release()
    assert api.wait_for(running.job_id, *TERMINAL).status == COMPLETED


def test_many_who_ask_at_once_get_one_job(api: Api, site: Site) -> None:
    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(lambda _: ask(api, model_args=ARGS), range(50)))
    (job_id,) = {job.job_id for job in jobs}
    assert sum(not job.cached for job in jobs) == 1
    api.wait_for(job_id, COMPLETED)
    assert site.starts(job_id) == ["1"]
    assert len(api.ListJobs().jobs) == 1


def test_a_job_that_failed_or_is_being_cancelled_or_is_deleted_serves_no_other(api: Api, site: Site) -> None:
    failed = api.wait_for(ask(api, "fails").job_id, FAILED)
    assert ask(api, "fails").job_id != failed.job_id
    running = ask(api, "lingers")
    site.wait_for_log(running.job_id)
    api.CancelJob(job_id=running.job_id)
    assert ask(api, "lingers").job_id != running.job_id
    site.release()
    deleted = completed(api)
    api.DeleteJob(job_id=deleted.job_id)
    assert ask(api).job_id != deleted.job_id


def test_a_model_folder_that_has_changed_is_evaluated_anew(api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "weights").write_text("one")
    args = {"pretrained": str(folder)}
    job = completed(api, model_args=args)
    assert ask(api, model_args=args).job_id == job.job_id
    (folder / "weights").write_text("another")
    assert ask(api, model_args=args).job_id != job.job_id


def test_another_version_of_the_harness_evaluates_anew(serve: Callable[..., ServerHere], site: Site) -> None:
    packages = site.folder / "env" / "lib" / "python3.11" / "site-packages"
    python = site.folder / "env" / "bin" / "python"
    (packages / "lm_eval-0.4.1.dist-info").mkdir(parents=True)
    python.parent.mkdir()
    python.touch(mode=0o755)
    with site.config.open("a") as config:
        config.write(f'[harnesses.lm-eval]\npython = "{python}"\n')
    api = serve().api
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    request = {"harness": "lm-eval", "num_gpus": 1}
    job = ask(api, request=request)
    assert ask(api, request=request).job_id == job.job_id
    (packages / "lm_eval-0.4.1.dist-info").rename(packages / "lm_eval-0.4.2.dist-info")
    assert ask(api, request=request).job_id != job.job_id


def test_the_key_is_the_same_in_another_server_process(launch: Launch) -> None:
    server = launch()
    job = completed(server.api, model_args=ARGS)
    server.terminate()
    again = ask(launch().api, model_args=dict(reversed(ARGS.items())))
    assert (again.job_id, again.cached) == (job.job_id, True)


def test_the_options_of_the_earlier_job_stay_and_the_answer_says_which_differ(api: Api) -> None:
    job = completed(api, labels={"run": "x"}, priority=3)
    assert not ask(api, labels={"run": "x"}, priority=3).warnings
    again = ask(api, labels={"run": "y"}, priority=3, max_attempts=2)
    assert (again.labels, again.max_attempts) == ({"run": "x"}, 1)
    assert list(again.warnings) == ["this is an earlier job, which keeps its own labels, max_attempts"]
    assert not api.get(job.job_id).warnings


def test_a_request_id_stays_with_the_job_that_it_got(api: Api, site: Site) -> None:
    running = ask(api, "lingers")
    site.wait_for_log(running.job_id)
    joined = ask(api, "lingers", request_id="r")
    api.CancelJob(job_id=running.job_id)
    again = ask(api, "lingers", request_id="r")
    assert (running.job_id, True) == (joined.job_id, joined.cached) == (again.job_id, again.cached)
    with pytest.raises(grpc.RpcError) as caught:
        ask(api, "lingers", request_id="r", cache=0)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    site.release()


def test_with_an_output_folder_every_job_is_a_new_one(serve: Callable[..., ServerHere], tmp_path: Path) -> None:
    api = serve(output_root=tmp_path / "root").api
    request = {"output_dir": "mine"}
    job = completed(api, request=request)
    again = ask(api, request=request)
    assert again.job_id != job.job_id
    assert [warning.partition(":")[0] for warning in again.warnings] == ["the cache is not used"]


def test_only_checking_says_what_the_answer_would_be(api: Api) -> None:
    assert not ask(api, validate_only=True).cached
    job = completed(api)
    checked = ask(api, validate_only=True, labels={"run": "y"})
    assert (checked.job_id, checked.status, checked.cached) == ("", COMPLETED, True)
    assert "labels" in checked.warnings[0]
    assert [job.job_id for job in api.ListJobs().jobs] == [job.job_id]


def test_a_mode_that_nobody_knows_is_refused(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(api, cache=7)
    assert fields_of(caught.value) == ["cache"]


def test_the_client_and_the_command_line_can_allow_it(api: Api) -> None:
    with EvalClient(api.address) as client:
        options: Any = {"harness": "toy", "num_gpus": 0, "cache": True}
        job = client.wait_for_job(client.evaluate("good", ["t"], **options).job_id)
        assert client.evaluate("good", ["t"], **options).job_id == job.job_id
    flags = ("--harness", "toy", "--model", "good", "--tasks", "t", "--num-gpus", "0", "--log-samples", "--cache")
    result = CliRunner().invoke(main, ["--address", api.address, "submit", *flags, "--label", "a=b"])
    assert (result.exit_code, result.stdout) == (0, f"{job.job_id}\n")
    assert result.stderr.splitlines() == [
        "evalrpc: this is an earlier job, which keeps its own labels",
        "an earlier job of the same evaluation: COMPLETED",
    ]
