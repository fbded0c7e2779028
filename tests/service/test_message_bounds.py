"""Every answer fits into a message that a client with gRPC's default options accepts, whatever clients send and runs leave."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from large_jobs import STAMP, largest_submission, pages, prepare, table, wide
from serving import COMPLETED, FAILED, RUNNING, TERMINAL, Api, ServerHere, Site, detail, fields_of, reason_of, submission
from waiting import eventually

from evalrpc.analysis import comparison, matching
from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError
from evalrpc.files.read_budget import ReadBudget, ReadLimits, too_much
from evalrpc.harnesses.registry import build_harness
from evalrpc.jobs.size_limits import MAX_ARGS_BYTES, MAX_JOB_BYTES, MAX_TASK_NAMES_BYTES, MIB
from evalrpc.reading import metrics
from evalrpc.results.results_file import read_metrics
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, CompareJobsResponse
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.results_pb2 import MetricSelector, ModelMetric


@pytest.fixture
def api(server: ServerHere) -> Iterator[Api]:
    """The calls of the server, by a channel with gRPC's default options: 4 MiB and not a byte more."""
    api = Api(server.address)
    api.channel.close()
    with grpc.insecure_channel(server.address) as channel:
        api.channel, api.stub = channel, EvaluationServiceStub(channel)
        yield api


@pytest.fixture
def client(server: ServerHere) -> Iterator[EvalClient]:
    with EvalClient(server.address) as client:
        yield client


def names_of(metrics: list[ModelMetric]) -> list[tuple[str, str]]:
    return [(each.model, each.metric.task) for each in metrics]


# Requests


def test_the_largest_submission_is_taken_and_every_answer_that_has_it_can_be_read(api: Api, site: Site) -> None:
    prepare(site, table(1))
    job = api.SubmitJob(largest_submission())
    assert 1.6 * MIB < job.ByteSize() <= 1.75 * MIB
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert ended.status == COMPLETED, ended.error
    assert [each.job_id for page in pages(api.ListJobs) for each in page.jobs] == [job.job_id]
    assert list(api.watch(job.job_id))[-1].terminal


def test_the_largest_job_has_at_most_3_mib_and_every_answer_that_has_it_can_be_read(api: Api, site: Site) -> None:
    tasks = [f"{number:04}" + "ä" * 100 for number in range(4000)]
    results = {
        task: {"acc,none": 0.5, "acc_stderr,none": 0.1, **{f"m{n}": n for n in range(9)}, "odd": "o" * 300} for task in tasks
    }
    configs = {task: {"x": 1} for task in tasks}
    document = {
        "results": results,
        "configs": configs,
        "task_hashes": dict.fromkeys(tasks, "h" * 200),
        **{f"{number}{'v' * 150}_version": "1" * 200 for number in range(300)},
        **{f"more {number}": "y" * 400 for number in range(30)},
    }
    prepare(site, document, {task[:100]: '{"doc_id": 0}\n' for task in tasks})
    watched = api.watch(api.SubmitJob(largest_submission()).job_id)
    events = list(watched)
    job = events[-1].job
    assert job.status == COMPLETED, job.error
    assert 2.6 * MIB < job.ByteSize() <= MAX_JOB_BYTES
    assert job == api.get(job.job_id)
    assert job.ByteSize() > events[0].job.ByteSize()
    (result,) = job.results.values()
    assert (result.metric_count, result.metrics_truncated) == (40_000, True)
    assert 0 < len(result.samples) < 4000
    last = max(task[:100] for task in tasks)
    assert not any(last in path for path in result.samples)
    assert len(api.ListSamples(job_id=job.job_id, task=last).samples) == 1, "also samples that the message does not name"
    assert len([each for page in pages(api.ListJobs) for each in page.jobs]) == 1
    assert len([each for page in pages(api.ListMetrics, job_id=job.job_id) for each in page.metrics]) == 40_000


@pytest.mark.parametrize("field", ["model_args", "gen_kwargs", "task_args"])
def test_arguments_over_512_kib_are_refused(api: Api, field: str) -> None:
    call = largest_submission(validate_only=True)
    assert not api.SubmitJob(call).job_id
    getattr(call.request, field)["text"] += "x"
    with pytest.raises(grpc.RpcError, match=f"{MAX_ARGS_BYTES + 1} bytes when serialised; at most {MAX_ARGS_BYTES}") as error:
        api.SubmitJob(call)
    assert fields_of(error.value) == [f"request.{field}"]


@pytest.mark.parametrize(("more", "refused"), [(0, []), (1, ["request.task_args"])])
def test_arguments_have_100_000_values_together_however_they_are_nested(api: Api, more: int, refused: list[str]) -> None:
    call = submission(validate_only=True)
    call.request.model_args.update({"a": None, "list": [[None] * 40_000, {"x": None}]})  # 40,005 with what holds them
    call.request.gen_kwargs.update({"many": [None] * 29_994})
    call.request.task_args.update({"more": [None] * (29_999 + more)})
    if not refused:
        assert api.SubmitJob(call)
        return
    with pytest.raises(
        grpc.RpcError, match="at most 100000 are allowed in model_args and gen_kwargs and task_args together"
    ) as error:
        api.SubmitJob(call)
    assert fields_of(error.value) == refused


def test_names_of_tasks_have_a_bound_together(api: Api) -> None:
    names = [f"{number:03}" + "t" * 125 for number in range(MAX_TASK_NAMES_BYTES // 128)]
    assert sum(map(len, names)) == MAX_TASK_NAMES_BYTES
    assert api.SubmitJob(submission(request={"tasks": names}, validate_only=True))
    names[0] += "t"
    with pytest.raises(grpc.RpcError, match=f"at most {MAX_TASK_NAMES_BYTES} are allowed together") as error:
        api.SubmitJob(submission(request={"tasks": names}, validate_only=True))
    assert fields_of(error.value) == ["request.tasks"]


def test_what_the_server_does_not_know_of_a_request_is_in_no_answer(api: Api) -> None:
    call = submission()
    junk = pb.SubmitJobRequest.FromString(call.SerializeToString() + b"\xfa\x7f\x80\x80\x40" + bytes(1 << 20))
    nested = pb.EvaluateRequest.FromString(call.request.SerializeToString() + b"\xfa\x7f\x80\x80\x40" + bytes(1 << 20))
    junk.request.CopyFrom(nested)
    assert junk.ByteSize() > 2 * MIB
    job = api.SubmitJob(junk)
    assert job.ByteSize() < 2000
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED


def test_a_long_reason_of_a_cancel_leaves_an_error_of_2_kib(api: Api, site: Site) -> None:
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    api.CancelJob(job_id=job.job_id, reason="😀" * 1000)
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert len(ended.error.message.encode()) <= 2048
    assert len(ended.attempts[0].error.message.encode()) <= 2048
    assert ended.cancel_reason == "😀" * 1000


# Metrics


def test_metrics_beyond_1_mib_are_all_listed_and_fail_no_job(api: Api, site: Site, client: EvalClient) -> None:
    prepare(site, table(30_000))
    job = api.run("prepared")
    assert job.status == COMPLETED
    (result,) = job.results.values()
    assert (result.metric_count, result.metrics_truncated) == (30_000, True)
    first = [(f"task {number:06}") for number in range(len(result.metrics))]
    assert [metric.task for metric in result.metrics] == first
    listed = [each for page in pages(api.ListMetrics, job_id=job.job_id, page_size=7000) for each in page.metrics]
    assert names_of(listed) == [("toy", f"task {number:06}") for number in range(30_000)]
    assert [each.metric.value for each in listed[::1000]] == [number / 2 for number in range(0, 30_000, 1000)]
    assert list(client.list_metrics(job.job_id)) == listed


def test_a_small_job_lists_the_metrics_that_it_has(api: Api, site: Site) -> None:
    prepare(site, {"results": {"b": {"x": 1, "acc,none": 0}, "a": {"acc,none": 0.5}}})
    job = api.run("prepared")
    assert not job.results["toy"].metrics_truncated
    assert job.results["toy"].metric_count == 3
    listed = [each for page in pages(api.ListMetrics, job_id=job.job_id, page_size=2) for each in page.metrics]
    assert [(each.metric.task, each.metric.metric) for each in listed] == [("a", "acc"), ("b", "acc"), ("b", "x")]
    assert [each.metric for each in listed] == list(job.results["toy"].metrics)


@pytest.mark.parametrize("count", [2, pytest.param(30_000, marks=pytest.mark.slow)])
def test_metrics_are_chosen_by_model_and_selectors(api: Api, site: Site, count: int) -> None:
    for model in ("b", "a"):
        prepare(site, table(count), model=model)
    job_id = api.run("prepared").job_id

    def found(**fields: Any) -> list[tuple[str, str]]:
        return names_of([each for page in pages(api.ListMetrics, job_id=job_id, **fields) for each in page.metrics])

    last = f"task {count - 1:06}"
    assert found(metrics=[MetricSelector(task=last)]) == [("a", last), ("b", last)]
    assert found(metrics=[MetricSelector(task=last)], model="b", page_size=1) == [("b", last)]
    assert found(model="b", page_size=10_000) == [("b", f"task {number:06}") for number in range(count)]
    assert found(metrics=[MetricSelector(task="none")]) == []


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"metrics": [MetricSelector()]}, ["metrics[0]"]),
        ({"metrics": [MetricSelector(task="t" * 256)]}, ["metrics[0].task"]),
        ({"metrics": [MetricSelector(task="t")] * 101}, ["metrics"]),
        ({"page_size": -1}, ["page_size"]),
        ({"page_token": "nonsense"}, ["page_token"]),
        ({"job_id": "x"}, ["job_id"]),
    ],
)
def test_a_bad_listing_of_metrics_names_its_field(api: Api, fields: dict[str, Any], bad: list[str]) -> None:
    job = api.run("good")
    with pytest.raises(grpc.RpcError) as error:
        api.ListMetrics(**{"job_id": job.job_id, **fields})
    assert fields_of(error.value) == bad


def test_a_model_that_the_job_does_not_have_is_named_with_those_that_it_has(api: Api) -> None:
    job = api.run("good")
    with pytest.raises(grpc.RpcError, match="no results of model 'other'; it has: toy") as error:
        api.ListMetrics(job_id=job.job_id, model="other")
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.NOT_FOUND, "METRIC_NOT_FOUND")


def test_a_token_holds_for_its_listing_only(api: Api, site: Site) -> None:
    prepare(site, table(3))
    job, other = api.run("prepared"), api.run("prepared")
    token = api.ListMetrics(job_id=job.job_id, page_size=1).next_page_token
    assert len(api.ListMetrics(job_id=job.job_id, page_token=token).metrics) == 2
    for fields in ({"job_id": other.job_id}, {"model": "toy"}, {"metrics": [MetricSelector(metric="acc")]}):
        with pytest.raises(grpc.RpcError) as error:
            api.ListMetrics(**{"job_id": job.job_id, "page_token": token, **fields})
        assert fields_of(error.value) == ["page_token"]


def test_metrics_of_tasks_that_have_finished_are_listed_while_others_run(api: Api, site: Site) -> None:
    prepare(site, wide(5000))
    job = api.submit("each", request={"tasks": ["prepared", "slow", "also_good"], "tasks_separately": True})
    site.wait_for_log(job.job_id)
    eventually(lambda: api.get(job.job_id).results, "for the results of the first task")
    running = api.get(job.job_id)
    assert running.status == RUNNING
    assert running.results["toy"].metrics_truncated
    page = api.ListMetrics(job_id=job.job_id, page_size=1)
    assert len([each for page in pages(api.ListMetrics, job_id=job.job_id) for each in page.metrics]) == 5000
    site.release()
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.results["toy"].metric_count) == (COMPLETED, 5002)
    assert len([each for page in pages(api.ListMetrics, job_id=job.job_id) for each in page.metrics]) == 5002
    with pytest.raises(grpc.RpcError) as error:
        api.ListMetrics(job_id=job.job_id, page_token=page.next_page_token)
    assert fields_of(error.value) == ["page_token"], "a token of results that are no more"


def test_a_job_that_fails_keeps_the_metrics_of_what_has_finished(api: Api, site: Site) -> None:
    prepare(site, wide(5000))
    job = api.run("each", request={"tasks": ["prepared", "fails"], "tasks_separately": True})
    assert (job.status, job.results["toy"].metric_count) == (FAILED, 5000)
    assert len([each for page in pages(api.ListMetrics, job_id=job.job_id) for each in page.metrics]) == 5000


def results_file(site: Site, job_id: str) -> Path:
    return site.folder / "data" / "jobs" / job_id / "attempt-1" / "complete-results"


def test_the_file_of_the_metrics_is_no_artifact_and_goes_with_the_job(api: Api, site: Site) -> None:
    prepare(site, wide(5000))
    job = api.run("prepared")
    file = results_file(site, job.job_id)
    assert len(list(read_metrics(file))) == 5000
    assert [each.name for each in api.ListArtifacts(job_id=job.job_id).artifacts] == [f"toy/{STAMP}_results.json"]
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: not file.exists(), "for the files to be removed")


@pytest.mark.parametrize("damage", ["gone", "cut off", "another"])
def test_a_file_that_is_lost_is_an_error_and_never_fewer_metrics(api: Api, site: Site, damage: str) -> None:
    prepare(site, wide(5000))
    job = api.run("prepared")
    file = results_file(site, job.job_id)
    match damage:
        case "gone":
            file.unlink()
        case "cut off":
            os.truncate(file, file.stat().st_size - 3)
        case "another":
            file.write_bytes(b"\xff" * 100)
    calls: list[Callable[[], Any]] = [
        lambda: list(pages(api.ListMetrics, job_id=job.job_id)),
        api.GetHistory,
        lambda: api.CompareJobs(baseline_job_id=job.job_id, candidate_job_ids=[api.run("good").job_id]),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "FILE_UNREADABLE")
        assert detail(error.value, error_details_pb2.ErrorInfo).metadata["job_id"] == job.job_id, "a history is of many"


def test_metrics_that_take_long_come_in_shorter_pages(api: Api, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(site, wide(40_000))
    job = api.run("prepared")
    whole = [metric for page in pages(api.ListMetrics, job_id=job.job_id, page_size=10_000) for metric in page.metrics]
    spent = itertools.count(1)

    class Budget(ReadBudget):
        def spend(self, size_bytes: int = 0) -> None:
            if next(spent) % 7000 == 0:
                raise too_much("too long")
            super().spend(size_bytes)

    monkeypatch.setattr(metrics, "ReadBudget", Budget)
    found = list(pages(api.ListMetrics, job_id=job.job_id, page_size=10_000))
    assert [metric for page in found for metric in page.metrics] == whole
    assert max(len(page.metrics) for page in found) < 7000
    last = whole[-1].metric
    of_last = pages(api.ListMetrics, job_id=job.job_id, metrics=[MetricSelector(task=last.task, metric=last.metric)])
    some = list(of_last)
    assert [metric for page in some for metric in page.metrics] == whole[-1:]
    assert len(some) > 3, "empty pages that go on"


def test_a_job_that_shares_a_run_has_all_its_metrics_also_when_the_other_job_is_gone(api: Api, site: Site) -> None:
    samples = "".join(json.dumps({"doc_id": number, "acc": 1}) + "\n" for number in range(20))
    prepare(site, wide(5000), samples={"t": samples})
    first = api.run("prepared", cache=pb.CACHE_MODE_ALLOW)
    second = api.run("prepared", cache=pb.CACHE_MODE_ALLOW)
    assert (second.cached_from, second.results["toy"].metrics_truncated) == (first.job_id, True)
    for job_id in (first.job_id, second.job_id):
        assert len([each for page in pages(api.ListMetrics, job_id=job_id) for each in page.metrics]) == 5000
    selector = MetricSelector(metric="m004999")
    answer = api.CompareJobs(baseline_job_id=first.job_id, candidate_job_ids=[second.job_id], metrics=[selector], strict=True)
    ((metric,),) = (each.metrics for each in answer.candidates)
    assert (metric.candidate_value, list(metric.definition_differences)) == (4999, [])
    api.DeleteJob(job_id=first.job_id)
    assert len([each for page in pages(api.ListMetrics, job_id=second.job_id) for each in page.metrics]) == 5000
    assert len(api.ListSamples(job_id=second.job_id).samples) == 20
    files = [page.artifacts for page in pages(api.ListArtifacts, job_id=second.job_id, page_size=1)]
    assert [len(page) for page in files] == [1, 1]


def test_results_are_read_after_a_restart(site: Site, serve: Callable[..., ServerHere]) -> None:
    prepare(site, wide(5000))
    server = serve()
    job = server.api.run("prepared")
    server.stop()
    api = serve().api
    assert len([each for page in pages(api.ListMetrics, job_id=job.job_id) for each in page.metrics]) == 5000


# Histories and comparisons


def test_a_history_has_all_metrics_of_a_job_and_fits(api: Api, site: Site, client: EvalClient) -> None:
    prepare(site, {"results": {"t" * 255: {f"m{number:06}": 1 for number in range(20_000)}}})
    job_id = api.run("prepared", labels={"step": "1"}).job_id
    found = list(pages(api.GetHistory))
    assert len(found) > 1
    assert {point.job_id for page in found for point in page.points} == {job_id}
    (point,) = client.get_history().points
    assert (len(point.metrics), point.step) == (20_000, 1)
    (page,) = pages(api.GetHistory, metrics=[MetricSelector(metric="m019999")])
    assert [metric.metric for metric in page.points[0].metrics] == ["m019999"], "one that the message does not have"


def test_a_comparison_uses_metrics_that_the_messages_do_not_have(api: Api, site: Site) -> None:
    prepare(site, wide(5000))
    baseline, candidate = api.run("prepared"), api.run("prepared")
    selector = MetricSelector(metric="m004999")
    answer = api.CompareJobs(baseline_job_id=baseline.job_id, candidate_job_ids=[candidate.job_id], metrics=[selector])
    ((metric,),) = (each.metrics for each in answer.candidates)
    assert (metric.metric, metric.baseline_value, metric.difference) == ("m004999", 4999, 0)
    selector = MetricSelector(metric="m005000")
    with pytest.raises(grpc.RpcError, match="none of the jobs has a metric m005000; they have: ttt") as error:
        api.CompareJobs(baseline_job_id=baseline.job_id, candidate_job_ids=[candidate.job_id], metrics=[selector])
    assert reason_of(error.value) == "METRIC_NOT_FOUND"


@pytest.mark.slow
def test_a_comparison_of_9500_metrics_of_5_candidates_says_to_choose(api: Api, site: Site) -> None:
    prepare(site, table(9500))
    baseline, *candidates = [api.run("prepared").job_id for _ in range(6)]
    with pytest.raises(grpc.RpcError, match=r"47500 metrics of 5 candidates, which take .* bytes") as error:
        api.CompareJobs(baseline_job_id=baseline, candidate_job_ids=candidates)
    assert fields_of(error.value) == ["metrics"]
    assert "select fewer metrics here, or pass fewer candidates" in error.value.details()
    answer = api.CompareJobs(
        baseline_job_id=baseline, candidate_job_ids=candidates, metrics=[MetricSelector(task="task 000007")]
    )
    assert [len(each.metrics) for each in answer.candidates] == [1] * 5
    assert len(api.CompareJobs(baseline_job_id=baseline, candidate_job_ids=candidates[:1]).candidates[0].metrics) == 9500


@pytest.mark.parametrize("more", [0, -1])
def test_a_comparison_is_refused_from_the_first_byte_too_many(
    api: Api, site: Site, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    prepare(site, table(100))
    baseline, candidate = (api.run("prepared") for _ in range(2))
    settings = site.settings()
    harnesses = {"toy": build_harness(settings.harnesses["toy"])}

    def compare() -> CompareJobsResponse:
        budget = ReadBudget(ReadLimits(max_bytes=2**20, max_seconds=60.0))
        return comparison.compare(CompareJobsRequest(), baseline, [candidate], harnesses, settings.data_dir, budget)

    answer = compare()
    monkeypatch.setattr(matching, "MAX_PAGE_BYTES", answer.ByteSize() + more)
    if not more:
        assert compare() == answer
        return
    words = f"which take {answer.ByteSize()} bytes; at most {answer.ByteSize() - 1}"
    with pytest.raises(InvalidRequestError, match=words) as error:
        compare()
    assert [violation.field for violation in error.value.violations] == ["metrics"]


# Files and samples


@pytest.mark.slow
def test_40_000_files_come_in_pages(api: Api, site: Site) -> None:
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    folder = Path(api.get(job.job_id).attempts[0].output_dir)
    for number in range(40_000):
        os.close(os.open(folder / f"image {number:06}.png", os.O_CREAT))
    found = [file for page in pages(api.ListArtifacts, job_id=job.job_id) for file in page.artifacts]
    assert [file.name for file in found] == [f"image {number:06}.png" for number in range(40_000)]
    assert {file.size_bytes for file in found} == {0}
    site.release()
    api.wait_for(job.job_id, COMPLETED)


def test_thousands_of_files_with_names_of_almost_4_kib_come_in_pages_with_checksums(api: Api, client: EvalClient) -> None:
    job = api.run("good")
    folder = Path(job.attempts[0].output_dir)
    while len(str(folder)) < 4095 - 256:
        folder /= "d" * 250
    folder.mkdir(parents=True)
    for number in range(2500):
        (folder / f"{number:06}").write_text("x")
    found = list(pages(api.ListArtifacts, job_id=job.job_id, checksums=True))
    assert len(found) > 3
    assert all(len(page.artifacts) < 1000 for page in found), "bounded in bytes"
    files = [file for page in found for file in page.artifacts]
    assert len(files) == 2502
    assert len({file.sha256 for file in files if file.name.startswith("d")}) == 1
    assert all(file.sha256 for file in files)
    assert client.list_artifacts(job.job_id, checksums=True) == files


def test_files_that_appear_while_a_client_pages_shift_nothing(api: Api, site: Site) -> None:
    job = api.submit("slow")
    site.wait_for_log(job.job_id)
    folder = Path(api.get(job.job_id).attempts[0].output_dir)
    for name in "bdfh":
        (folder / name).touch()
    names = []
    for page in pages(api.ListArtifacts, job_id=job.job_id, page_size=1):
        (file,) = page.artifacts
        names.append(file.name)
        (folder / f"a{file.name}").touch()
        (folder / f"{file.name}z").touch()
        if len(names) == 8:
            break
    assert names == ["b", "bz", "bzz", "bzzz", "bzzzz", "bzzzzz", "bzzzzzz", "bzzzzzzz"]
    site.release()
    api.wait_for(job.job_id, COMPLETED)


@pytest.mark.parametrize(
    ("fields", "bad"),
    [({"page_size": -1}, "page_size"), ({"page_token": "nonsense"}, "page_token"), ({"attempt": -1}, "attempt")],
)
def test_a_bad_listing_of_files_names_its_field(api: Api, fields: dict[str, Any], bad: str) -> None:
    job = api.run("good")
    with pytest.raises(grpc.RpcError) as error:
        api.ListArtifacts(job_id=job.job_id, **fields)
    assert fields_of(error.value) == [bad]


def test_a_listing_of_the_latest_files_stays_with_its_attempt(api: Api, site: Site) -> None:
    job = api.run("flaky", max_attempts=2)
    token = api.ListArtifacts(job_id=job.job_id, page_size=1).next_page_token
    with pytest.raises(grpc.RpcError) as error:
        api.ListArtifacts(job_id=job.job_id, attempt=2, page_token=token)
    assert fields_of(error.value) == ["page_token"]
    (file,) = api.ListArtifacts(job_id=job.job_id, page_token=token).artifacts
    assert file.name == f"toy/{STAMP}_samples_t.jsonl"


def rows(count: int, text: str) -> str:
    return "".join(json.dumps({"doc_id": number, "text": text}) + "\n" for number in range(count))


def test_1200_rows_of_4194_bytes_come_in_pages_that_fit(api: Api, site: Site) -> None:
    prepare(site, {"results": {"t": {"acc": 1}}}, {"t": rows(1200, "y" * 4158)})
    job = api.run("prepared")
    found = list(pages(api.ListSamples, job_id=job.job_id, page_size=1000))
    assert [int(row["doc_id"]) for page in found for row in page.samples] == list(range(1200))
    assert not any(page.truncated_fields for page in found)


def test_a_row_that_fits_into_no_message_is_cut_and_says_so(api: Api, site: Site, client: EvalClient) -> None:
    text = rows(3, "short") + json.dumps({"doc_id": 3, "resps": [["x" * 9_000_000]]}) + "\n" + rows(1, "last")
    prepare(site, {"results": {"t": {"acc": 1}}}, {"t": text})
    job = api.run("prepared")
    found = list(pages(api.ListSamples, job_id=job.job_id))
    (cut,) = [page for page in found if page.truncated_fields]
    (place,) = [place for place, row in enumerate(cut.samples) if row["doc_id"] == 3]
    assert list(cut.truncated_fields) == [f"samples[{place}].resps"]
    assert [int(row["doc_id"]) for page in found for row in page.samples] == [0, 1, 2, 3, 0]
    told: list[str] = []
    assert len(list(client.samples(job.job_id, on_truncated=told.extend))) == 5
    assert told == [f"samples[{place}].resps"]


# Names of files


def readable(api: Api, job: pb.JobInfo, name: str) -> bytes:
    return b"".join(chunk.data for chunk in api.ReadArtifact(job_id=job.job_id, name=name))


@pytest.mark.parametrize("separately", [False, True])
def test_results_name_files_as_read_artifact_takes_them(api: Api, separately: bool) -> None:
    model, tasks = ("each", ["good", "also_good"]) if separately else ("good", ["good", "also_good"])
    job = api.run(model, request={"tasks": tasks, "tasks_separately": separately})
    output = Path(job.attempts[0].output_dir)
    (result,) = job.results.values()
    assert result.results_artifact == Path(result.results).relative_to(output).as_posix()
    assert list(result.sample_artifacts) == [Path(path).relative_to(output).as_posix() for path in result.samples]
    for name in (result.results_artifact, *result.sample_artifacts):
        assert readable(api, job, name)
    others = [(task.results, task.results_artifact) for task in result.tasks if task.results]
    assert len(others) == (1 if separately else 0)
    for path, name in others:
        assert readable(api, job, name) == Path(path).read_bytes()


def test_results_in_a_folder_of_the_clients_choice_have_the_same_names(serve: Callable[..., ServerHere], site: Site) -> None:
    api = serve(output_root=site.folder / "results").api
    job = api.run("good", request={"output_dir": "mine"})
    assert job.results["toy"].results_artifact == f"toy/{STAMP}_results.json"


# Lists of names and of jobs


def test_many_long_names_of_tasks_come_in_pages(site: Site, serve: Callable[..., ServerHere]) -> None:
    python = site.folder / "env" / "bin" / "python"
    (site.folder / "env" / "lib" / "python3.11" / "site-packages" / "lm_eval-0.4.1.dist-info").mkdir(parents=True)
    python.parent.mkdir()
    names = sorted(f"{number:04}" + "😀" * 1020 for number in range(2000))
    (site.folder / "names.json").write_text(json.dumps({"tasks": [*names, "z" * 1025], "models": []}))
    python.write_text(f"#!/bin/sh\ncat {site.folder / 'names.json'}\n")
    python.chmod(0o755)
    with site.config.open("a") as config:
        config.write(f'[harnesses.lm-eval]\npython = "{python}"\n')
    with grpc.insecure_channel(serve().address) as channel:
        api = Api.__new__(Api)
        api.stub, api.metadata = EvaluationServiceStub(channel), ()
        found = [name for page in pages(api.ListTasks, harness="lm-eval", page_size=1000) for name in page.tasks]
    assert found == names


def test_a_list_of_large_jobs_comes_in_pages_that_fit(api: Api, site: Site) -> None:
    prepare(site, wide(3000))
    job_ids = [api.run("prepared").job_id for _ in range(6)]
    found: list[Message] = list(pages(api.ListJobs, page_size=1000))
    assert len(found) > 1
    assert [job.job_id for page in found for job in page.jobs] == job_ids[::-1]
    assert len({page.revision for page in found}) == 1
    (page,) = pages(api.ListJobs, page_size=1000, view=pb.JOB_VIEW_BASIC)
    assert [job.job_id for job in page.jobs] == job_ids[::-1], "only what is sent counts"
