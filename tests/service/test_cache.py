"""Identical evaluations over a real server: new jobs share the run of another one, which they follow until it ends."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from serving import (
    BOOKMARK,
    CANCELLED,
    COMPLETED,
    FAILED,
    NOWHERE,
    QUEUED,
    RUNNING,
    SNAPSHOT,
    STATUS,
    TERMINAL,
    Api,
    Launch,
    ServerHere,
    Site,
    fields_of,
    submission,
)
from waiting import eventually

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.clock import SystemClock
from evalrpc.files.fingerprints import MAX_FILES
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, JobFilter

ARGS = {"pretrained": "acme/model", "dtype": "float32", "nested": {"x": [1, 2]}, "revision": "main"}


def ask(api: Api, model: str = "good", model_args: dict[str, Any] | None = None, **fields: Any) -> pb.JobInfo:
    call = submission(model, **({"cache": CACHE_MODE_ALLOW} | fields))
    call.request.model_args.update(model_args or {})
    return api.SubmitJob(call)


def completed(api: Api, **fields: Any) -> pb.JobInfo:
    return api.wait_for(ask(api, **fields).job_id, COMPLETED)


def running(api: Api, site: Site, model: str = "slow", **fields: Any) -> pb.JobInfo:
    job = ask(api, model, **fields)
    site.wait_for_log(job.job_id)
    return api.wait_for(job.job_id, RUNNING)


def assert_shares(job: pb.JobInfo, source: pb.JobInfo) -> None:
    assert (job.status, job.cached_from, job.cached_from_attempt) == (COMPLETED, source.job_id, source.attempt)
    assert (job.attempt, list(job.attempts), job.results) == (0, [], source.results)
    assert job.results
    assert job.started_at == job.completed_at
    assert not job.wait_reason
    assert not job.HasField("position_in_queue")


def assert_follows(job: pb.JobInfo, source: pb.JobInfo) -> None:
    assert (job.status, job.cached_from, job.cached_from_attempt) == (QUEUED, source.job_id, 0)
    assert job.wait_reason == f"follows job {source.job_id}"
    assert not job.HasField("position_in_queue")
    assert not job.HasField("started_at")
    assert not job.gpus


@pytest.fixture
def blocked(api: Api) -> pb.JobInfo:
    """A job that keeps all others with GPUs waiting."""
    return api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)


# A hit.


def test_a_hit_is_a_new_job_that_is_completed_at_once_and_never_runs(api: Api, site: Site) -> None:
    source = completed(api, labels={"run": "x"}, priority=1)
    head = api.head()
    hit = ask(api, labels={"run": "y"}, priority=3, max_attempts=2)
    assert_shares(hit, source)
    assert hit.job_id != source.job_id
    assert (hit.labels, hit.priority, hit.max_attempts, list(hit.warnings)) == ({"run": "y"}, 3, 2, [])
    assert hit.revision == head + 1
    assert hit.created_at.ToNanoseconds() <= hit.completed_at.ToNanoseconds()
    assert [event.type for event in api.watch(hit.job_id)] == [SNAPSHOT]
    (event,) = api.watch(hit.job_id, after_revision=head)
    assert (event.type, event.revision, event.terminal, event.job) == (STATUS, hit.revision, True, hit)
    assert api.get(hit.job_id) == hit
    assert api.get(source.job_id) == source
    assert [job.job_id for job in api.ListJobs().jobs] == [hit.job_id, source.job_id]
    assert site.starts(source.job_id) == ["1"]
    assert site.starts(hit.job_id) == []


def test_a_hit_on_a_hit_names_the_job_that_ran(api: Api) -> None:
    source = completed(api)
    ask(api)
    api.DeleteJob(job_id=source.job_id)
    assert_shares(ask(api), source)


@pytest.mark.parametrize(("first", "second"), [(0, CACHE_MODE_ALLOW), (CACHE_MODE_ALLOW, 0), (0, 0)])
def test_only_those_who_both_allow_it_share_a_run(api: Api, first: int, second: int) -> None:
    completed(api, cache=first)
    assert not ask(api, cache=second).cached_from


def test_many_who_ask_at_once_make_one_run(api: Api, site: Site) -> None:
    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(lambda _: ask(api, model_args=ARGS), range(50)))
    assert len({job.job_id for job in jobs}) == 50
    (source_id,) = {job.job_id for job in jobs if not job.cached_from}
    source = api.wait_for(source_id, COMPLETED)
    for job in jobs:
        if job.job_id != source_id:
            assert_shares(api.wait_for(job.job_id, COMPLETED), source)
    assert sum(len(site.starts(job.job_id)) for job in jobs) == 1


def test_a_request_id_names_the_job_of_its_own_submission(api: Api, site: Site) -> None:
    source = running(api, site, request_id="r1")
    follower = ask(api, "slow", request_id="r2")
    assert ask(api, "slow", request_id="r2").job_id == follower.job_id != source.job_id
    with pytest.raises(grpc.RpcError) as caught:
        ask(api, "slow", request_id="r2", cache=0)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    site.release()
    source = api.wait_for(source.job_id, COMPLETED)
    assert_shares(ask(api, "slow", request_id="r2"), source)
    hit = ask(api, "slow", request_id="r3")
    assert ask(api, "slow", request_id="r3") == hit
    assert len(api.ListJobs().jobs) == 3


def test_a_hit_gives_a_history_its_point(api: Api) -> None:
    completed(api, labels={"run": "c", "step": "1"})
    hit = ask(api, labels={"run": "d", "step": "1"})
    (point,) = api.GetHistory(filter=JobFilter(labels={"run": "d"})).points
    assert (point.job_id, point.step, point.metrics[0].value) == (hit.job_id, 1, 0.5)
    result = CliRunner().invoke(main, ["--address", api.address, "history", "--label", "run=d"])
    assert result.exit_code == 0
    assert hit.job_id in result.stdout


# Which evaluations are identical.


def test_a_model_folder_that_has_changed_is_evaluated_anew(api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "weights").write_text("one")
    args = {"pretrained": str(folder)}
    source = completed(api, model_args=args)
    assert_shares(ask(api, model_args=args), source)
    (folder / "weights").write_text("another")
    assert not ask(api, model_args=args).cached_from


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
    source = ask(api, request=request)
    assert_follows(ask(api, request=request), source)
    (packages / "lm_eval-0.4.1.dist-info").rename(packages / "lm_eval-0.4.2.dist-info")
    assert not ask(api, request=request).cached_from


def test_the_key_is_the_same_in_another_server_process(launch: Launch) -> None:
    server = launch()
    source = completed(server.api, model_args=ARGS)
    server.terminate()
    assert_shares(ask(launch().api, model_args=dict(reversed(ARGS.items()))), source)


def test_with_an_output_folder_every_job_runs(serve: Callable[..., ServerHere], tmp_path: Path) -> None:
    api = serve(output_root=tmp_path / "root").api
    request = {"output_dir": "mine"}
    completed(api, request=request)
    again = ask(api, request=request)
    assert not again.cached_from
    assert [warning.partition(":")[0] for warning in again.warnings] == ["the cache is not used"]


def test_a_mode_that_nobody_knows_is_refused(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(api, cache=7)
    assert fields_of(caught.value) == ["cache"]


# Followers.


def test_two_followers_of_a_queued_job_hold_nothing_and_are_not_served(api: Api, site: Site, blocked: pb.JobInfo) -> None:
    source = ask(api, "slow", request={"num_gpus": 1})
    followers = [ask(api, "slow", request={"num_gpus": 1}, labels={"n": str(number)}) for number in range(2)]
    last = api.submit("good", request={"num_gpus": 1})
    for follower in followers:
        assert_follows(follower, source)
        assert api.get(follower.job_id) == follower == next(api.watch(follower.job_id)).job
    assert {job.job_id: job for job in api.ListJobs().jobs}[followers[0].job_id] == followers[0]
    queue = api.GetQueue()
    assert (queue.queued_count, queue.following_count) == (4, 2)
    assert list(queue.queued_job_ids) == [source.job_id, last.job_id]
    assert (last.position_in_queue, last.wait_reason) == (1, "needs 1 GPU, 0 free")
    api.CancelJob(job_id=blocked.job_id)
    site.wait_for_log(source.job_id)
    assert_follows(api.get(followers[0].job_id), source)
    assert_follows(ask(api, "slow", request={"num_gpus": 1}), source)
    site.release()
    source = api.wait_for(source.job_id, *TERMINAL)
    for follower in followers:
        done = api.get(follower.job_id)
        assert_shares(done, source)
        assert done.completed_at == source.completed_at
    assert site.starts(followers[0].job_id) == site.starts(followers[1].job_id) == []
    assert api.GetQueue().following_count == 0


def test_watchers_of_the_source_and_of_the_followers_all_see_the_end(api: Api, site: Site) -> None:
    source = running(api, site)
    followers = [ask(api, "slow") for _ in range(2)]
    streams = [api.watch(job.job_id) for job in (source, *followers)]
    everything = api.WatchJobs(after_revision=api.head())
    assert next(everything).type == BOOKMARK
    for stream in streams:
        assert next(stream).type == SNAPSHOT
    site.release()
    ends = [[event for event in stream if event.type == STATUS] for stream in streams]
    assert [[event.terminal for event in end] for end in ends] == [[True]] * 3
    in_order = [next(event for event in everything if event.type == STATUS) for _ in range(3)]
    assert [event.job.job_id for event in in_order] == [job.job_id for job in (source, *followers)]
    assert [event for end in ends for event in end] == in_order
    everything.cancel()


def cancel(api: Api, site: Site, source: pb.JobInfo) -> None:
    api.CancelJob(job_id=source.job_id)


def cancel_and_delete(api: Api, site: Site, source: pb.JobInfo) -> None:
    api.CancelJob(job_id=source.job_id)
    api.wait_for(source.job_id, CANCELLED)
    api.DeleteJob(job_id=source.job_id)


def supersede(api: Api, site: Site, source: pb.JobInfo) -> None:
    api.submit("good", supersede_key="s", request={"num_gpus": 1})
    assert api.get(source.job_id).error.reason == "SUPERSEDED"


@pytest.mark.parametrize("end", [cancel, cancel_and_delete, supersede])
def test_if_a_queued_source_ends_the_first_follower_runs_in_its_old_place_and_the_other_follows_it(
    api: Api, site: Site, blocked: pb.JobInfo, end: Callable[[Api, Site, pb.JobInfo], None]
) -> None:
    request = {"num_gpus": 1}
    source = ask(api, "slow", request=request, supersede_key="s")
    between = api.submit("good", request=request)
    first, second = ask(api, "slow", request=request), ask(api, "slow", request=request)
    last = api.submit("good", request=request)
    end(api, site, source)
    assert_follows(api.get(second.job_id), first)
    served = [job_id for job_id in api.GetQueue().queued_job_ids if job_id in (between.job_id, first.job_id, last.job_id)]
    assert served == [between.job_id, first.job_id, last.job_id]
    assert api.get(first.job_id).position_in_queue == 1
    assert not api.get(first.job_id).cached_from
    api.CancelJob(job_id=blocked.job_id)
    site.wait_for_log(first.job_id)
    site.release()
    assert_shares(api.wait_for(second.job_id, *TERMINAL), api.wait_for(first.job_id, COMPLETED))


def die(api: Api, site: Site, source: pb.JobInfo) -> None:
    site.kill_run(source.job_id)


@pytest.mark.parametrize(
    ("model", "end", "status"), [("lingers", cancel, CANCELLED), ("hangs", die, FAILED), ("hangs", cancel_and_delete, None)]
)
def test_if_a_running_source_ends_otherwise_the_first_follower_runs_and_the_other_follows_it(
    api: Api, site: Site, model: str, end: Callable[[Api, Site, pb.JobInfo], None], status: int | None
) -> None:
    source = running(api, site, model)
    first, second = ask(api, model), ask(api, model)
    end(api, site, source)
    site.release(source.job_id)
    if status is not None:
        assert api.wait_for(source.job_id, *TERMINAL).status == status
    site.wait_for_log(first.job_id)
    assert_follows(api.get(second.job_id), first)
    assert site.starts(second.job_id) == []


def test_followers_of_jobs_that_fail_fail_each_by_itself(api: Api, site: Site, blocked: pb.JobInfo) -> None:
    jobs = [ask(api, "fails", request={"num_gpus": 1}) for _ in range(3)]
    assert [bool(job.cached_from) for job in jobs] == [False, True, True]
    api.CancelJob(job_id=blocked.job_id)
    for job in jobs:
        failed = api.wait_for(job.job_id, *TERMINAL)
        assert (failed.status, failed.attempt, failed.cached_from) == (FAILED, 1, "")
        assert site.starts(job.job_id) == ["1"]


def test_a_job_that_failed_or_is_being_cancelled_or_is_deleted_serves_no_other(api: Api, site: Site) -> None:
    api.wait_for(ask(api, "fails").job_id, FAILED)
    assert not ask(api, "fails").cached_from
    source = running(api, site, "lingers")
    api.CancelJob(job_id=source.job_id)
    assert not ask(api, "lingers").cached_from
    site.release()
    deleted = completed(api)
    api.DeleteJob(job_id=deleted.job_id)
    assert not ask(api).cached_from


def test_ending_a_follower_never_touches_its_source(api: Api, site: Site) -> None:
    source = running(api, site)
    cancelled, superseded = ask(api, "slow"), ask(api, "slow", supersede_key="s")
    answer = api.CancelJob(job_id=cancelled.job_id, reason="enough")
    assert (answer.status, answer.error.message, answer.cached_from) == (CANCELLED, "enough", "")
    assert_follows(ask(api, "slow", supersede_key="s"), source)
    assert api.get(superseded.job_id).error.reason == "SUPERSEDED"
    assert api.get(source.job_id).status == RUNNING
    site.release()
    assert api.wait_for(source.job_id, *TERMINAL).status == COMPLETED
    assert api.get(cancelled.job_id) == answer


def test_a_new_job_supersedes_its_own_would_be_source(api: Api, site: Site, blocked: pb.JobInfo) -> None:
    options: Any = {"request": {"num_gpus": 1}, "supersede_key": "s"}
    source = ask(api, **options)
    assert not ask(api, validate_only=True, **options).cached_from
    new = ask(api, **options)
    assert (api.get(source.job_id).error.reason, new.cached_from, new.position_in_queue) == ("SUPERSEDED", "", 0)


def test_a_source_is_served_as_early_as_its_most_urgent_follower(api: Api, site: Site, blocked: pb.JobInfo) -> None:
    request = {"num_gpus": 1}
    other, source = api.submit("good", request=request, priority=1), ask(api, request=request)
    assert source.position_in_queue == 1
    follower = ask(api, request=request, priority=5)
    moved = api.get(source.job_id)
    assert (moved.priority, moved.position_in_queue) == (5, 0)
    assert list(api.GetQueue().queued_job_ids) == [source.job_id, other.job_id]
    api.CancelJob(job_id=follower.job_id)
    assert api.get(source.job_id).priority == 5


def test_followers_count_against_the_bound_of_the_queue(serve: Callable[..., ServerHere]) -> None:
    api = serve(max_queued=2).api
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    for _ in range(2):
        ask(api, request={"num_gpus": 1})
    with pytest.raises(grpc.RpcError) as caught:
        ask(api, request={"num_gpus": 1})
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_whatever_happens_while_the_source_ends_every_job_ends_and_has_what_it_says(api: Api, site: Site) -> None:
    """Submissions, cancels and deletions around the moment in which the source completes, of which each has several."""
    source = running(api, site)

    def work(number: int) -> pb.JobInfo:
        if number == 5:
            site.release()
        job = ask(api, "slow", supersede_key="s" if number % 4 == 0 else "")
        if number % 3 == 0:
            with suppress(grpc.RpcError):  # it has completed
                return api.CancelJob(job_id=job.job_id)
        return job

    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(work, range(60)))
    source = api.wait_for(source.job_id, COMPLETED)
    for job in jobs:
        ended = api.wait_for(job.job_id, *TERMINAL)
        if ended.status == COMPLETED:
            assert_shares(ended, source)
        else:
            assert (ended.status, ended.cached_from) == (CANCELLED, "")
    assert [job.job_id for job in jobs if site.starts(job.job_id)] == []


# Files.


def read(stream: Iterator[Any]) -> bytes:
    return b"".join(message.data for message in stream)


def everything_of(api: Api, job_id: str, tmp_path: Path) -> list[object]:
    """Return all that can be read of a job."""
    artifacts = list(api.ListArtifacts(job_id=job_id).artifacts)
    with EvalClient(api.address) as client:
        downloaded = [path.read_bytes() for path in client.download(job_id, tmp_path / os.urandom(8).hex())]
        log = b"".join(client.logs(job_id, follow=True))
        samples = list(client.samples(job_id))
    assert downloaded == [read(api.ReadArtifact(job_id=job_id, name=artifact.name)) for artifact in artifacts]
    assert log == read(api.ReadLog(job_id=job_id))
    return [artifacts, downloaded, log, samples]


def test_log_artifacts_samples_and_comparisons_work_through_a_hit_also_without_its_source(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch()
    source = completed(server.api)
    other = server.api.run("better")
    hit = ask(server.api)
    original = everything_of(server.api, source.job_id, tmp_path)
    assert len(original[0]) == 2  # type: ignore[arg-type]
    assert b"4/4" in original[2]  # type: ignore[operator]
    assert len(original[3]) == 4  # type: ignore[arg-type]
    comparison = server.api.CompareJobs(baseline_job_id=source.job_id, candidate_job_ids=[other.job_id])
    assert everything_of(server.api, hit.job_id, tmp_path) == original
    server.api.DeleteJob(job_id=source.job_id)
    for restart in (False, True):
        if restart:
            server.kill()
            server = launch()
        assert everything_of(server.api, hit.job_id, tmp_path) == original
        compared = server.api.CompareJobs(baseline_job_id=hit.job_id, candidate_job_ids=[other.job_id])
        assert compared == comparison
        assert server.api.get(hit.job_id) == hit


def test_a_hit_has_no_attempt_of_its_own_to_read(api: Api, site: Site) -> None:
    source = running(api, site)
    follower = ask(api, "slow")
    calls: list[Callable[..., Any]] = [
        lambda **fields: list(api.ReadLog(**fields)),
        api.ListArtifacts,
        lambda **fields: list(api.ReadArtifact(name="toy/20260101_000000_samples_t.jsonl", **fields)),
    ]
    assert list(api.ListArtifacts(job_id=follower.job_id).artifacts) == []
    for _ in range(2):
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call(job_id=follower.job_id, attempt=1)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        site.release()
        api.wait_for(source.job_id, COMPLETED)
    assert f"it shares the run of job {source.job_id}" in caught.value.details()
    assert {message.attempt for message in api.ReadLog(job_id=follower.job_id)} == {0}
    for call in calls:
        call(job_id=follower.job_id)


def test_the_log_of_a_follower_that_is_followed_is_given_when_it_has_completed(api: Api, site: Site) -> None:
    source = running(api, site)
    follower = ask(api, "slow")
    with ThreadPoolExecutor(1) as pool, EvalClient(api.address) as client:
        raw = api.ReadLog(job_id=follower.job_id, follow=True)
        ours = pool.submit(lambda: b"".join(client.logs(follower.job_id, follow=True)))
        site.release()
        assert read(raw) == ours.result() == read(api.ReadLog(job_id=source.job_id))


def folders(site: Site) -> set[str]:
    return {path.name for path in (site.folder / "data" / "jobs").iterdir()}


def test_files_are_removed_with_the_last_job_that_refers_to_them(api: Api, site: Site, tmp_path: Path) -> None:
    source = completed(api)
    hits = [ask(api) for _ in range(2)]
    assert folders(site) == {source.job_id}
    for job in (source, hits[0]):
        api.DeleteJob(job_id=job.job_id)
        assert folders(site) == {source.job_id}
    everything_of(api, hits[1].job_id, tmp_path)
    api.DeleteJob(job_id=hits[1].job_id)
    eventually(lambda: folders(site) == set(), "for the files to be removed")


@pytest.mark.parametrize("is_last", [False, True])
def test_a_server_that_dies_between_a_deletion_and_the_removal_leaves_no_files_and_takes_none(
    launch: Launch, site: Site, tmp_path: Path, is_last: bool
) -> None:
    server = launch()
    source = completed(server.api)
    hit = ask(server.api)
    server.kill()
    store = SqliteStore(site.folder / "data", SystemClock(), 1000)  # what a server commits before it removes anything
    for job in (source, hit) if is_last else (source,):
        store.delete(job.job_id).result()
    store.close()
    (site.folder / "data" / "jobs" / NOWHERE).mkdir()
    api = launch().api
    eventually(lambda: NOWHERE not in folders(site), "for the sweep")
    if is_last:
        eventually(lambda: not folders(site), "for the files to be removed")
    else:
        assert folders(site) == {source.job_id}
        everything_of(api, hit.job_id, tmp_path)


# Restarts.


def test_a_source_and_its_followers_outlive_a_killed_server(launch: Launch, site: Site) -> None:
    server = launch()
    source = running(server.api, site, request={"num_gpus": 1})
    first = ask(server.api, "slow", request={"num_gpus": 1})
    server.kill()
    server = launch()
    assert_follows(server.api.get(first.job_id), source)
    second = ask(server.api, "slow", request={"num_gpus": 1})
    assert_follows(second, source)
    assert server.api.GetQueue().following_count == 2
    assert list(server.api.GetQueue().queued_job_ids) == []
    server.kill()
    site.release()
    api = launch().api
    source = api.wait_for(source.job_id, *TERMINAL)
    for follower in (first, second):
        assert_shares(api.get(follower.job_id), source)
    assert site.starts(source.job_id) == ["1"]


def test_a_run_that_a_killed_server_has_lost_is_tried_again_and_keeps_its_followers(launch: Launch, site: Site) -> None:
    server = launch()
    source = running(server.api, site, max_attempts=2)
    follower = ask(server.api, "slow")
    server.kill()
    site.kill_runs()
    api = launch().api
    assert_follows(api.get(follower.job_id), source)
    site.release()
    source = api.wait_for(source.job_id, *TERMINAL)
    assert (source.status, source.attempt) == (COMPLETED, 2)
    assert_shares(api.get(follower.job_id), source)


def test_a_run_that_a_killed_server_has_lost_for_good_leaves_its_followers_to_run(launch: Launch, site: Site) -> None:
    server = launch()
    source = running(server.api, site)
    first, second = ask(server.api, "slow"), ask(server.api, "slow")
    server.kill()
    site.kill_runs()
    api = launch().api
    assert api.wait_for(source.job_id, *TERMINAL).error.reason == "RUN_LOST"
    site.wait_for_log(first.job_id)
    site.release()
    assert_shares(api.wait_for(second.job_id, *TERMINAL), api.wait_for(first.job_id, COMPLETED))


@pytest.mark.slow
def test_a_server_that_is_killed_after_every_step_goes_on_where_it_was(launch: Launch, site: Site) -> None:
    """A source, three followers, a cancel, the end of the source, a hit, deletions: and a kill after each of them."""
    server = launch()

    def killed(answer: Any) -> Any:
        nonlocal server
        server.kill()
        server = launch()
        return answer

    blocker = server.api.submit("hangs", request={"num_gpus": 2})
    server.api.wait_for(blocker.job_id, RUNNING)
    options: Any = {"model": "slow", "request": {"num_gpus": 1}}
    source = killed(ask(server.api, supersede_key="s", **options))
    jobs = killed([ask(server.api, priority=number % 2, **options) for number in range(3)])
    for job in jobs:
        assert_follows(server.api.get(job.job_id), source)
    assert server.api.get(source.job_id).priority == 1
    killed(server.api.submit("good", supersede_key="s", request={"num_gpus": 1}))
    assert_follows(server.api.get(jobs[0].job_id), jobs[1])
    assert_follows(server.api.get(jobs[2].job_id), jobs[1])
    killed(server.api.CancelJob(job_id=jobs[2].job_id))
    killed(server.api.CancelJob(job_id=blocker.job_id))
    site.wait_for_log(jobs[1].job_id)
    server.kill()
    server = launch()
    site.release()
    source = killed(server.api.wait_for(jobs[1].job_id, COMPLETED))
    assert_shares(server.api.get(jobs[0].job_id), source)
    hit = killed(ask(server.api, **options))
    assert_shares(server.api.get(hit.job_id), source)
    server.api.DeleteJob(job_id=source.job_id)
    killed(server.api.DeleteJob(job_id=jobs[0].job_id))
    assert source.job_id in folders(site)
    assert b"4/4" in read(server.api.ReadLog(job_id=hit.job_id))
    killed(server.api.DeleteJob(job_id=hit.job_id))
    eventually(lambda: source.job_id not in folders(site), "for the files to be removed")


# Only checking.


def test_only_checking_tells_nothing_of_the_cache_or_of_files_on_the_server(api: Api, site: Site, tmp_path: Path) -> None:
    def checked(model: str = "slow", **fields: Any) -> pb.JobInfo:
        answer = ask(api, model, validate_only=True, **fields)
        assert answer.job_id == ""
        assert answer.HasField("created_at")
        answer.ClearField("created_at")
        return answer

    alone = checked()
    assert (alone.status, alone.cached_from, alone.HasField("position_in_queue")) == (QUEUED, "", True)
    source = running(api, site)
    assert checked() == alone
    site.release()
    source = api.wait_for(source.job_id, COMPLETED)
    assert checked() == alone
    many = tmp_path / "many"
    many.mkdir()
    for number in range(MAX_FILES + 1):
        (many / str(number)).touch()
    (tmp_path / "link").symlink_to("link")
    answers = [checked(str(tmp_path / name)) for name in ("nothing", "many", "link", "many/1")]
    for answer in answers:
        answer.request.ClearField("model")
    assert answers == answers[:1] * len(answers)
    assert [job.job_id for job in api.ListJobs().jobs] == [source.job_id]


# Our own client and command line.


def test_the_client_can_allow_it(api: Api) -> None:
    with EvalClient(api.address) as client:
        options: Any = {"harness": "toy", "num_gpus": 0, "cache": True}
        source = client.wait_for_job(client.evaluate("good", ["t"], **options).job_id)
        assert_shares(client.evaluate("good", ["t"], **options), source)


def test_the_command_line_says_plainly_what_happened(api: Api, site: Site) -> None:
    flags = ("--harness", "toy", "--model", "slow", "--tasks", "t", "--num-gpus", "0", "--cache")

    def submitted(*more: str) -> tuple[str, list[str]]:
        result = CliRunner().invoke(main, ["--address", api.address, "submit", *flags, *more])
        assert result.exit_code == 0
        return result.stdout.strip(), result.stderr.splitlines()

    source_id, said = submitted()
    assert said == ["evalrpc: the job has a run of its own"]
    follows = "the same evaluation: the job completes with it, or runs itself if that one does not"
    follower_id, said = submitted("--label", "a=b")
    assert said == [f"evalrpc: job {source_id} is {follows}"]
    assert submitted("--validate-only") == ("the request is valid", [])
    api.wait_for(source_id, RUNNING)
    shown = CliRunner().invoke(main, ["--address", api.address, "queue"])
    assert "1 of at most 100000, 1 of them follow another job" in shown.stdout
    site.release()
    api.wait_for(source_id, COMPLETED)
    hit_id, said = submitted()
    assert said == [f"evalrpc: job {source_id} was the same evaluation: the job has its results, and does not run"]
    for job_id in (follower_id, hit_id):
        shown = CliRunner().invoke(main, ["--address", api.address, "get", job_id])
        assert f"COMPLETED, with the results of job {source_id}" in shown.stdout
        assert f"attempt 1 of job {source_id}" in shown.stdout
