"""Both clients against a server in this process that the test breaks, kills and restarts."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from fake_server import JOB_ID, FakeServer, FakeService, job_at
from waiting import DEADLINE_SECONDS

from evalrpc import errors
from evalrpc.client import AsyncEvalClient, ChecksumMismatchError, DownloadError, EvalClient
from evalrpc.errors import FieldViolation
from evalrpc.v1.comparison_pb2 import CORRECTION_HOLM, CompareJobsRequest
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobError, JobEvent, JobEventType, JobFilter, JobInfo, JobStatus, JobView

QUEUED, RUNNING = JobStatus.JOB_STATUS_QUEUED, JobStatus.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = (
    JobStatus.JOB_STATUS_COMPLETED,
    JobStatus.JOB_STATUS_FAILED,
    JobStatus.JOB_STATUS_CANCELLED,
)


class BlockingFace:
    """Lets a test call the asyncio client like the blocking one: its loop runs in a thread."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._client = self._run(self._make(address, options))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._invoke(getattr(self._client, name), args, kwargs)

    def stop(self) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _make(self, address: str, options: dict[str, Any]) -> AsyncEvalClient:
        return AsyncEvalClient(address, **options)

    def _invoke(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = method(*args, **kwargs)
        return self._iterate(result) if hasattr(result, "__anext__") else self._run(result)

    def _iterate(self, items: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._run(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self._run(items.aclose())

    def _run(self, awaitable: Any) -> Any:
        async def waited() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result(timeout=DEADLINE_SECONDS)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def service(server: FakeServer) -> FakeService:
    return server.service


@pytest.fixture(params=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Create clients of either kind, and close them at the end."""
    made: list[Any] = []

    def connect(address: str, **options: Any) -> Any:
        made.append(EvalClient(address, **options) if request.param == "sync" else BlockingFace(address, **options))
        return made[-1]

    yield connect
    for client in made:
        client.close() if isinstance(client, EvalClient) else client.stop()


@pytest.fixture
def client(connect: Callable[..., Any], server: FakeServer) -> Any:
    return connect(server.address)


def statuses(events: Iterator[JobEvent]) -> list[tuple[int, int]]:
    return [(event.revision, event.job.status) for event in events]


# Submitting


def test_evaluate_submits_every_field_and_option(client: Any, service: FakeService) -> None:
    job = client.evaluate(
        "llava_hf", ["mme"], {"pretrained": "a/b"}, limit=2, num_gpus=0, harness="nightly", priority=3, labels={"a": "b"}
    )

    (sent,) = service.received["SubmitJob"]
    assert (job.job_id, job.status) == (JOB_ID, QUEUED)
    assert (sent.request.model, sent.request.limit, sent.request.num_gpus, sent.request.harness) == (
        "llava_hf",
        2,
        0,
        "nightly",
    )
    assert (sent.priority, dict(sent.labels), bool(sent.request_id)) == (3, {"a": "b"}, True)


def test_a_submission_is_repeated_with_its_own_request_id_while_the_server_is_unavailable(
    client: Any, service: FakeService
) -> None:
    service.errors["SubmitJob"] = [errors.ServerStoppingError("stopping")] * 2

    client.submit(EvaluateRequest(model="m", tasks=["t"]))

    assert len({sent.request_id for sent in service.received["SubmitJob"]}) == 1
    assert len(service.received["SubmitJob"]) == 3


def test_a_call_that_is_not_safe_to_repeat_is_made_once(client: Any, service: FakeService) -> None:
    service.errors["DeleteJob"] = [errors.StoreUnavailableError("disk full", retry_delay_seconds=2)]

    with pytest.raises(errors.StoreUnavailableError) as caught:
        client.delete_job(JOB_ID)

    assert caught.value.retry_delay_seconds == 2
    assert len(service.received["DeleteJob"]) == 1


def test_a_refusal_names_every_bad_field(client: Any, service: FakeService) -> None:
    violations = (FieldViolation("request.model", "is required"), FieldViolation("request.tasks", "is empty"))
    service.errors["SubmitJob"] = [errors.InvalidRequestError(violations=violations)]

    with pytest.raises(errors.InvalidRequestError) as caught:
        client.submit(EvaluateRequest())

    assert caught.value.violations == violations
    assert caught.value.__cause__ is not None


# Single calls


def test_a_history_is_asked_for_in_short_words(client: Any, service: FakeService) -> None:
    service.history.points.add(job_id=JOB_ID, step=3)

    answer = client.get_history(JobFilter(labels={"run": "x"}), ["mme/score", "gsm8k/acc,strict", "wer", "mme/"], "tokens")

    (sent,) = service.received["GetHistory"]
    selectors = [(m.task, m.metric, m.filter) for m in sent.metrics]
    assert selectors == [("mme", "score", ""), ("gsm8k", "acc", "strict"), ("", "wer", ""), ("mme", "", "")]
    assert (dict(sent.filter.labels), sent.step_label, answer.points[0].step) == ({"run": "x"}, "tokens", 3)


def test_jobs_are_read_cancelled_and_deleted(client: Any, service: FakeService) -> None:
    service.change(job_at(RUNNING))

    assert client.get_job(JOB_ID).status == RUNNING
    assert client.cancel_job(JOB_ID, "enough").error.message == "enough"
    client.delete_job(JOB_ID)
    with pytest.raises(errors.JobNotFoundError) as caught:
        client.get_job(JOB_ID)
    assert caught.value.metadata["resource_name"] == JOB_ID


def test_an_update_changes_only_what_it_names(client: Any, service: FakeService) -> None:
    service.change(job_at(QUEUED, labels={"a": "1"}, priority=2))

    assert client.update_job(JOB_ID, labels={"b": 2}).labels == {"b": "2"}, "as of a submission"
    assert client.update_job(JOB_ID, priority=0).priority == 0
    assert client.update_job(JOB_ID, labels={}, priority=-1, expected_revision=3).labels == {}

    sent = service.received["UpdateJob"]
    assert [list(request.update_mask.paths) for request in sent] == [["labels"], ["priority"], ["labels", "priority"]]
    assert [request.HasField("expected_revision") for request in sent] == [False, False, True]
    assert (service.jobs[JOB_ID].priority, service.jobs[JOB_ID].labels) == (-1, {})


def test_an_update_of_another_revision_is_a_conflict_that_names_it(client: Any, service: FakeService) -> None:
    service.change(job_at(QUEUED))
    service.change(job_at(RUNNING))

    with pytest.raises(errors.ConflictError) as caught:
        client.update_job(JOB_ID, priority=1, expected_revision=1)
    assert caught.value.metadata == {"revision": "2"}


def test_a_cancel_of_queued_jobs_only_says_if_the_job_runs(client: Any, service: FakeService) -> None:
    service.change(job_at(RUNNING))
    service.errors["CancelJob"] = [errors.JobNotQueuedError("it runs")]

    with pytest.raises(errors.JobNotQueuedError):
        client.cancel_job(JOB_ID, queued_only=True)
    (sent,) = service.received["CancelJob"]
    assert sent.queued_only


def test_a_view_and_skipped_snapshots_are_asked_for(client: Any, service: FakeService) -> None:
    service.change(job_at(RUNNING))

    list(client.list_jobs(view=JobView.JOB_VIEW_BASIC))
    with closing(client.watch_all(view=JobView.JOB_VIEW_BASIC, skip_snapshots=True)) as events:
        next(events)

    assert service.received["ListJobs"][0].view == JobView.JOB_VIEW_BASIC
    sent = service.received["WatchJobs"][0]
    assert (sent.view, sent.skip_snapshots) == (JobView.JOB_VIEW_BASIC, True)


def test_listings_run_over_all_pages(client: Any, service: FakeService) -> None:
    for number in range(5):
        service.change(job_at(RUNNING, job_id=str(number), request=EvaluateRequest(model="m")))
    service.change(job_at(RUNNING, job_id="5"))
    service.samples = [{"doc_id": number, "ok": True} for number in range(3)]

    assert [job.job_id for job in client.list_jobs(JobFilter(models=["m"]))] == ["0", "1", "2", "3", "4"]
    assert all(sent.filter.models == ["m"] for sent in service.received["ListJobs"])
    assert list(client.samples(JOB_ID)) == [{"doc_id": 0, "ok": True}, {"doc_id": 1, "ok": True}, {"doc_id": 2, "ok": True}]
    assert list(client.list_tasks("mm")) == ["mme", "mmmu_val", "mmstar"]
    assert list(client.list_models("mmm")) == ["mmmu_val"]


def test_the_server_tells_about_itself(client: Any) -> None:
    assert client.get_server_info().version == "9.9.9"
    assert client.get_queue_status().queued_count == 3
    assert [harness.name for harness in client.list_harnesses()] == ["lmms-eval", "nightly"]


def test_jobs_are_compared_by_plain_values(client: Any, service: FakeService) -> None:
    service.comparison.confidence_level = 0.9
    assert client.compare("a", "b").confidence_level == 0.9
    client.compare("a", ["b", "c"], metrics=["t/m,f"], alpha=0.1, tolerance=0, tolerances={"m": 0.5}, holm=True)
    client.compare("a", ["b"], metrics=["t/", "m,f/g"], higher_is_better=True, directions={"t/m": False})
    plain, first, second = service.received["CompareJobs"]
    assert plain == CompareJobsRequest(baseline_job_id="a", candidate_job_ids=["b"])
    assert first == CompareJobsRequest(
        baseline_job_id="a",
        candidate_job_ids=["b", "c"],
        metrics=[{"task": "t", "metric": "m", "filter": "f"}],
        alpha=0.1,
        tolerance=0,
        metric_thresholds=[{"selector": {"metric": "m"}, "tolerance": 0.5}],
        correction=CORRECTION_HOLM,
    )
    assert second == CompareJobsRequest(
        baseline_job_id="a",
        candidate_job_ids=["b"],
        metrics=[{"task": "t"}, {"metric": "m", "filter": "f/g"}],
        higher_is_better=True,
        metric_thresholds=[{"selector": {"task": "t", "metric": "m"}, "higher_is_better": False}],
    )


def test_health_is_what_the_server_says_and_false_without_one(client: Any, server: FakeServer) -> None:
    assert client.is_healthy()
    server.serving = False
    assert not client.is_healthy()
    server.kill()
    assert not client.is_healthy()


def test_a_server_that_is_not_there_is_unavailable(client: Any, server: FakeServer) -> None:
    server.kill()

    with pytest.raises(errors.UnavailableError):
        client.get_job(JOB_ID)


def test_a_call_that_takes_too_long_is_a_timeout(connect: Callable[..., Any], server: FakeServer) -> None:
    with server.service.changed, pytest.raises(TimeoutError):  # holding the lock delays the answer
        connect(server.address, timeout_seconds=0.2).submit(EvaluateRequest())


def test_a_call_that_the_server_lacks_is_unimplemented(client: Any, service: FakeService) -> None:
    service.errors["ListTasks"] = [errors.UnimplementedError("not yet")]

    with pytest.raises(errors.UnimplementedError):
        list(client.list_tasks())


# Watching


def test_a_watch_of_a_finished_job_is_its_last_state(client: Any, service: FakeService) -> None:
    service.change(job_at(COMPLETED))

    assert statuses(client.watch(JOB_ID)) == [(1, COMPLETED)]


def test_a_watch_goes_on_when_the_server_is_killed_and_started_again(
    client: Any, server: FakeServer, service: FakeService
) -> None:
    service.change(job_at(QUEUED))
    events = client.watch(JOB_ID)
    seen = [next(events)]
    service.change(job_at(RUNNING, attempt=1))
    seen.append(next(events))

    server.kill()
    service.change(job_at(QUEUED, attempt=1))
    service.change(job_at(RUNNING, attempt=2))
    server.start()
    seen += [next(events), next(events)]
    server.restart()
    service.change(job_at(COMPLETED))
    seen += events

    assert statuses(iter(seen)) == [(1, QUEUED), (2, RUNNING), (3, QUEUED), (4, RUNNING), (5, COMPLETED)]
    assert service.received["WatchJob"][-1].after_revision == 4


def test_a_watch_waits_for_a_server_that_starts_and_tells_of_every_break(
    client: Any, server: FakeServer, service: FakeService
) -> None:
    service.change(job_at(COMPLETED))
    server.kill()
    breaks: list[errors.EvalrpcError] = []

    def start_server(error: errors.EvalrpcError, delay_seconds: float) -> None:
        if not breaks:
            server.start()
        breaks.append(error)

    assert statuses(client.watch(JOB_ID, on_disconnect=start_server)) == [(1, COMPLETED)]
    assert isinstance(breaks[0], errors.UnavailableError)


def test_a_watch_gives_up_when_told_to(client: Any, server: FakeServer) -> None:
    server.kill()

    with pytest.raises(errors.UnavailableError):
        list(client.watch(JOB_ID, reconnect_timeout_seconds=0))


def test_a_watch_that_is_left_ends_its_call(client: Any, service: FakeService) -> None:
    service.change(job_at(QUEUED))
    with closing(client.watch(JOB_ID)) as events:
        next(events)
        service.wait_for_watchers(1)
    service.wait_for_watchers(0)


def test_a_revision_that_is_gone_is_an_error(client: Any, service: FakeService) -> None:
    service.errors["WatchJob"] = [errors.RevisionCompactedError("gone", metadata={"oldest_revision": "7"})]

    with pytest.raises(errors.RevisionCompactedError) as caught:
        list(client.watch(JOB_ID, after_revision=3))
    assert caught.value.metadata["oldest_revision"] == "7"


def test_a_watch_of_all_jobs_goes_on_when_the_server_is_killed_and_started_again(
    client: Any, server: FakeServer, service: FakeService
) -> None:
    service.change(job_at(RUNNING, job_id="a"))
    service.change(job_at(QUEUED, job_id="b"))
    with closing(client.watch_all()) as events:
        seen = [next(events) for _ in range(3)]
        server.kill()
        service.change(job_at(COMPLETED, job_id="a"))
        server.start()
        seen.append(next(events))

    snapshot, bookmark, status = "SNAPSHOT", "BOOKMARK", "STATUS"
    assert [(JobEventType.Name(event.type).rpartition("_")[2], event.job.job_id) for event in seen] == [
        (snapshot, "a"),
        (snapshot, "b"),
        (bookmark, ""),
        (status, "a"),
    ]
    assert service.received["WatchJobs"][-1].after_revision == 2


def test_updates_and_deletions_come_once_and_in_order_over_restarts(
    client: Any, server: FakeServer, service: FakeService
) -> None:
    service.change(job_at(QUEUED, labels={"n": "0"}))
    seen: list[JobEvent] = []
    with closing(client.watch_all(after_revision=1)) as events:
        for number in range(1, 4):
            service.change(job_at(RUNNING, labels={"n": str(number)}), JobEventType.JOB_EVENT_TYPE_UPDATED)
            server.restart()
            service.change(job_at(RUNNING, labels={"n": str(number), "x": ""}), JobEventType.JOB_EVENT_TYPE_UPDATED)
        service.delete(JOB_ID)
        for event in events:
            seen.append(event)
            if event.type == JobEventType.JOB_EVENT_TYPE_DELETED:
                break

    changes = [event.revision for event in seen if event.type != JobEventType.JOB_EVENT_TYPE_BOOKMARK]
    assert changes == list(range(2, 9))


# Waiting


def test_waiting_returns_the_completed_job_and_tells_of_every_event(client: Any, service: FakeService) -> None:
    service.change(job_at(QUEUED))
    seen: list[int] = []

    def advance(event: JobEvent) -> None:
        seen.append(event.job.status)
        if event.job.status != COMPLETED:
            service.change(job_at(RUNNING if event.job.status == QUEUED else COMPLETED))

    assert client.wait_for_job(JOB_ID, on_event=advance).status == COMPLETED
    assert seen == [QUEUED, RUNNING, COMPLETED]


@pytest.mark.parametrize(
    ("status", "cls"), [(FAILED, errors.JobFailedError), (CANCELLED, errors.JobCancelledError)], ids=["failed", "cancelled"]
)
def test_waiting_for_a_job_that_does_not_complete_raises_what_became_of_it(
    client: Any, service: FakeService, status: JobStatus, cls: type[errors.JobNotCompletedError]
) -> None:
    service.change(job_at(status, error=JobError(reason="HARNESS_FAILED", message="CUDA out of memory")))

    with pytest.raises(cls, match="CUDA out of memory") as caught:
        client.wait_for_job(JOB_ID)
    assert caught.value.job.error.reason == "HARNESS_FAILED"
    assert client.wait_for_job(JOB_ID, raise_on_failure=False).status == status


def test_waiting_too_long_is_a_timeout_that_leaves_no_stream(client: Any, service: FakeService) -> None:
    service.change(job_at(RUNNING))

    with pytest.raises(TimeoutError):
        client.wait_for_job(JOB_ID, timeout_seconds=0.3)
    service.wait_for_watchers(0)
    assert service.jobs[JOB_ID].status == RUNNING


def test_a_watch_of_all_jobs_ends_when_its_time_is_over(client: Any, service: FakeService) -> None:
    service.change(job_at(RUNNING))

    with pytest.raises(TimeoutError):
        list(client.watch_all(timeout_seconds=0.2))
    service.wait_for_watchers(0)


def test_waiting_without_a_server_ends_in_time_too(client: Any, server: FakeServer) -> None:
    server.kill()

    with pytest.raises(TimeoutError):
        client.wait_for_job(JOB_ID, timeout_seconds=0.3)


# Logs and files


def test_a_log_is_read_from_an_offset(client: Any, service: FakeService) -> None:
    service.change(job_at(COMPLETED, attempt=2))
    service.log = b"0123456789"

    assert b"".join(client.logs(JOB_ID, offset=3)) == b"3456789"
    assert service.received["ReadLog"][0].attempt == 2


def test_a_log_is_followed_over_a_restart_with_each_byte_once(client: Any, server: FakeServer, service: FakeService) -> None:
    service.change(job_at(RUNNING, attempt=1))
    service.log, service.log_is_whole = b"0123", False
    chunks = client.logs(JOB_ID, follow=True)
    got = next(chunks)

    server.restart()
    service.finish_log(b"456789")

    assert got + b"".join(chunks) == b"0123456789"
    assert service.received["ReadLog"][-1].offset == 4


def test_following_a_queued_job_waits_for_its_first_attempt(client: Any, service: FakeService) -> None:
    service.change(job_at(QUEUED))
    starter = threading.Thread(target=lambda: (service.wait_for_watchers(1), service.change(job_at(RUNNING, attempt=1))))
    starter.start()
    service.log = b"hello"

    assert b"".join(client.logs(JOB_ID, follow=True)) == b"hello"
    assert service.received["ReadLog"][0].attempt == 1
    starter.join()


def test_samples_become_one_table(server: FakeServer, service: FakeService) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed: the extra `pandas`")
    service.samples = [{"doc_id": number, "score": number / 4} for number in range(5)]

    async def table() -> Any:
        async with AsyncEvalClient(server.address) as client:
            return await client.samples(JOB_ID).to_pandas()

    with EvalClient(server.address) as client:
        rows = client.samples(JOB_ID)
        assert next(rows) == {"doc_id": 0, "score": 0}
        rest = rows.to_pandas()
    assert list(rest["doc_id"]) == [1, 2, 3, 4]
    assert list(asyncio.run(table())["score"]) == [0, 0.25, 0.5, 0.75, 1]


def test_pages_without_samples_are_followed_but_not_for_ever(client: Any, service: FakeService) -> None:
    service.samples = [{"doc_id": 0}]
    service.empty_pages = 15
    assert list(client.samples(JOB_ID)) == [{"doc_id": 0}]

    service.empty_pages = 10**9
    with pytest.raises(errors.ReadLimitError, match="16 pages in a row have no sample, and the file goes on"):
        list(client.samples(JOB_ID))


def test_an_iteration_over_samples_that_is_closed_fetches_no_more(client: Any, service: FakeService) -> None:
    service.samples = [{"doc_id": number} for number in range(5)]

    with closing(client.samples(JOB_ID)) as rows:
        assert next(rows) == {"doc_id": 0}
    assert len(service.received["ListSamples"]) == 1


def test_a_wrong_argument_is_named_before_any_call(client: Any, service: FakeService) -> None:
    with pytest.raises(TypeError, match=r"^job_id must be text, not an evalrpc\.v1\.jobs_pb2\.JobInfo$"):
        next(client.watch(job_at(RUNNING)))
    with pytest.raises(TypeError, match=r"^job_id must be text, not 5 \(an int\)$"):
        client.get_job(5)
    with pytest.raises(TypeError, match=r"^model_args\['p'\]: a set has no order"):
        client.evaluate("m", ["t"], {"p": {1}})
    assert not any(service.received.values())


def test_files_are_downloaded_whole_and_only_once(client: Any, service: FakeService, tmp_path: Path) -> None:
    service.files = {"m/results.json": b"0123456789", "m/empty.jsonl": b""}
    progress: list[tuple[str, int]] = []

    paths = client.download(JOB_ID, tmp_path, on_progress=lambda artifact, size: progress.append((artifact.name, size)))
    again = client.download(JOB_ID, tmp_path)

    assert [path.read_bytes() for path in paths] == [b"", b"0123456789"]
    assert again == paths
    assert progress == [("m/results.json", 4), ("m/results.json", 8), ("m/results.json", 10)]
    assert len(service.received["ReadArtifact"]) == 2


def test_a_download_goes_on_over_a_broken_connection(client: Any, service: FakeService, tmp_path: Path) -> None:
    service.files = {"a": b"0123456789"}
    breaks = [errors.ServerStoppingError("stopping")]
    service.on_chunk = lambda offset: service.errors["ReadArtifact"].append(breaks.pop()) if offset == 4 and breaks else None

    (path,) = client.download(JOB_ID, tmp_path, ["a"])

    assert path.read_bytes() == b"0123456789"
    assert [sent.offset for sent in service.received["ReadArtifact"]] == [0, 4]


def test_a_bad_file_does_not_stop_the_others_and_is_named(client: Any, service: FakeService, tmp_path: Path) -> None:
    service.files = {"../evil": b"x", "a": b"aa", "b": b"0123456789", "c/d": b"cc"}
    service.on_chunk = lambda offset: service.files.update(b=b"0123XXXX89")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c").write_text("a file where a folder is needed")

    with pytest.raises(DownloadError) as caught:
        client.download(JOB_ID, tmp_path / "folder")

    error = caught.value
    assert [path.read_bytes() for path in error.paths] == [b"aa"]
    assert {name: type(cause) for name, cause in error.errors.items()} == {
        "../evil": errors.InvalidRequestError,
        "b": ChecksumMismatchError,
        "c/d": FileExistsError,
    }
    assert error.message.startswith("3 of 4 files are missing: '../evil': ")
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "a", "c"}


def test_a_download_that_failed_is_resumed_by_the_next(client: Any, service: FakeService, tmp_path: Path) -> None:
    service.files = {"a": b"0123456789", "b": b"bb"}
    failures = [errors.FileUnreadableError("a can't be read")]
    service.on_chunk = lambda offset: (
        service.errors["ReadArtifact"].append(failures.pop()) if offset == 4 and failures else None
    )

    with pytest.raises(DownloadError) as caught:
        client.download(JOB_ID, tmp_path)
    paths = client.download(JOB_ID, tmp_path)

    assert list(caught.value.errors) == ["a"]
    assert [path.read_bytes() for path in paths] == [b"0123456789", b"bb"]
    assert [(sent.name, sent.offset) for sent in service.received["ReadArtifact"]] == [("a", 0), ("b", 0), ("a", 4)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't take every name")
def test_a_file_is_kept_whatever_its_name(client: Any, service: FakeService, tmp_path: Path) -> None:
    names = {
        "a\\b": b"a\\b",
        "字" * 80: ("字" * 80).encode(),
        "x" * 255: b"x" * 255,
        "Results.json": b"Results.json",
        "results.json": b"results.json",
        "line\nfeed \u202e": "line\nfeed \u202e".encode(),
        "caf\0e9/\0ff\0fe.bin": b"caf\xe9/\xff\xfe.bin",
        "-rf *": b"-rf *",
    }
    service.files = {name: name.encode() for name in names}

    paths = client.download(JOB_ID, tmp_path)

    assert [path.read_bytes().decode() for path in paths] == sorted(names)
    found = {os.fsencode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(names.values())


def test_a_folder_that_can_not_be_made_is_told_at_once(client: Any, service: FakeService, tmp_path: Path) -> None:
    service.files = {"a": b"aa", "b": b"bb"}
    (tmp_path / "file").touch()

    with pytest.raises(FileExistsError):
        client.download(JOB_ID, tmp_path / "file")
    assert service.received["ReadArtifact"] == []


# Asyncio only


def test_a_cancelled_task_ends_its_call_on_the_server(server: FakeServer, service: FakeService) -> None:
    service.change(job_at(RUNNING))

    async def watch_and_cancel() -> None:
        async with AsyncEvalClient(server.address) as client:
            task = asyncio.create_task(client.wait_for_job(JOB_ID))
            await asyncio.to_thread(service.wait_for_watchers, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(service.wait_for_watchers, 0)

    asyncio.run(watch_and_cancel())


def test_many_jobs_are_watched_on_one_loop(server: FakeServer, service: FakeService) -> None:
    names = [str(number) for number in range(8)]
    for name in names:
        service.change(job_at(RUNNING, job_id=name))

    async def first(events: AsyncIterator[JobEvent]) -> JobInfo:
        return (await anext(events)).job

    async def watch_them() -> list[JobInfo]:
        async def one(client: AsyncEvalClient, name: str) -> JobInfo:
            async with aclosing(client.watch(name)) as events:
                return await first(events)

        async with AsyncEvalClient(server.address) as client:
            return list(await asyncio.gather(*(one(client, name) for name in names)))

    assert [job.job_id for job in asyncio.run(watch_them())] == names


def test_a_client_that_was_closed_says_so_whatever_it_is_asked(client: Any) -> None:
    client.close()
    client.close()

    assert client.is_healthy() is False
    for ask in (
        lambda: client.get_job(JOB_ID),
        lambda: list(client.watch(JOB_ID)),
        lambda: list(client.list_jobs()),
        lambda: client.wait_for_job(JOB_ID),
    ):
        with pytest.raises(errors.ClientClosedError, match="the client was closed"):
            ask()
