"""Suites on a real server: one run of several jobs, with one state, one stream, one cancel and one decision."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from copier import add_copier
from google.rpc import error_details_pb2
from serving import (
    BOOKMARK,
    CANCELLED,
    COMPLETED,
    DELETED,
    FAILED,
    NOWHERE,
    QUEUED,
    RUNNING,
    SECONDS,
    SNAPSHOT,
    STATUS,
    TERMINAL,
    UPDATED,
    Api,
    Launch,
    ServerHere,
    Site,
    detail,
    fields_of,
    reason_of,
)
from waiting import eventually

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.errors import InvalidRequestError, SuiteRunNotFoundError
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.server import service
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_CLOPPER_PEARSON,
    TEST_METHOD_MCNEMAR,
    VERDICT_NOT_WORSE,
    VERDICT_VOID,
    VERDICT_WORSE,
)
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.suites_pb2 import (
    ASSESSMENT_FAILED,
    ASSESSMENT_NO_NUMBERS,
    ASSESSMENT_PASSED,
    ASSESSMENT_UNDECIDED,
    SUITE_OUTCOME_GO,
    SUITE_OUTCOME_INCONCLUSIVE,
    SUITE_OUTCOME_NO_GO,
    SUITE_RUN_VIEW_DECISION,
    GetSuiteRunRequest,
    SubmitSuiteRequest,
    SuiteRun,
    SuiteRunEvent,
)

GO, NO_GO, INCONCLUSIVE = SUITE_OUTCOME_GO, SUITE_OUTCOME_NO_GO, SUITE_OUTCOME_INCONCLUSIVE

SUITES = """
[suites.release]
description = "What a release has to pass."

[[suites.release.entries]]
harness = "toy"
tasks = ["t"]
threshold = 0.5
higher_is_better = true

[[suites.release.entries]]
name = "second"
harness = "toy"
tasks = ["u", "v"]
num_fewshot = 2
limit = 8
gen_kwargs = { temperature = 0 }
tier = 2
required = false

[suites.measured]
alpha = 0.01

[[suites.measured.entries]]
harness = "copier"
tasks = ["t"]
metrics = ["acc"]
tolerance = 0.05
threshold = 0.3

[suites.mixed]
entries = [
    { harness = "toy", tasks = ["t"] },
    { harness = "copier", tasks = ["t"], name = "other" },
]
"""


@pytest.fixture
def site(site: Site) -> Site:
    add_copier(site)
    site.config.write_text(site.config.read_text() + SUITES)
    return site


def submission(model: str = "good", suite: str = "release", num_gpus: int = 0, **fields: Any) -> SubmitSuiteRequest:
    return SubmitSuiteRequest(suite=suite, request=pb.EvaluateRequest(model=model, num_gpus=num_gpus), **fields)


def submitted(api: Api, model: str = "good", **fields: Any) -> SuiteRun:
    run: SuiteRun = api.SubmitSuite(submission(model, **fields))
    return run


def run_of(api: Api, run: SuiteRun, **fields: Any) -> SuiteRun:
    found: SuiteRun = api.GetSuiteRun(suite_run_id=run.suite_run_id, **fields)
    return found


def wait_for(api: Api, run: SuiteRun, *statuses: int) -> SuiteRun:
    def there() -> SuiteRun | None:
        found = run_of(api, run)
        return found if found.status in (statuses or TERMINAL) else None

    found = eventually(there, "for a suite run")
    assert found is not None
    return found


def decided(api: Api, run: SuiteRun, **fields: Any) -> SuiteRun:
    wait_for(api, run)
    return run_of(api, run, view=SUITE_RUN_VIEW_DECISION, **fields)


def refusal(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


# Definitions


def test_suites_are_listed_as_the_operator_has_defined_them_page_by_page(api: Api) -> None:
    listed = api.ListSuites(page_size=2)
    assert [suite.name for suite in listed.suites] == ["measured", "mixed"]
    (last,) = api.ListSuites(page_token=listed.next_page_token).suites
    assert (last.name, last.description, last.alpha, last.max_bad_answer_ratio) == (
        *("release", "What a release has to pass.", 0.05),
        0.02,
    )
    first, second = last.entries
    assert (first.name, first.tier, first.required, first.threshold, first.tolerance) == ("t", 1, True, 0.5, 0)
    assert (second.name, second.tier, second.required) == ("second", 2, False)
    assert not second.HasField("threshold")
    assert second.request == pb.EvaluateRequest(
        harness="toy", tasks=["u", "v"], num_fewshot=2, limit=8, gen_kwargs={"temperature": 0}
    )
    assert fields_of(refusal(lambda: api.ListSuites(page_size=-1))) == ["page_size"]
    assert fields_of(refusal(lambda: api.ListSuites(page_token="x"))) == ["page_token"]


# Listing


def ids_of(api: Api, **fields: Any) -> list[str]:
    return [run.suite_run_id for run in api.ListSuiteRuns(**fields).suite_runs]


def test_runs_are_listed_newest_first_page_by_page(api: Api) -> None:
    runs = [submitted(api, labels={"step": str(step)}) for step in range(3)]
    newest, middle, oldest = (run.suite_run_id for run in reversed(runs))
    page = api.ListSuiteRuns(page_size=2)
    assert [run.suite_run_id for run in page.suite_runs] == [newest, middle]
    eventually(lambda: api.ListSuiteRuns(page_size=1).suite_runs[0] == run_of(api, runs[2]))  # its jobs run meanwhile
    submitted(api)
    last = api.ListSuiteRuns(page_size=2, page_token=page.next_page_token)
    assert ([run.suite_run_id for run in last.suite_runs], last.next_page_token) == ([oldest], "")


def test_runs_are_found_by_suite_status_labels_and_the_beginning_of_their_id(api: Api) -> None:
    first = submitted(api, labels={"run": "x"})
    wait_for(api, first)
    second = submitted(api, "uncounted", labels={"run": "y"})
    assert ids_of(api, suites=["release", "other"]) == [second.suite_run_id, first.suite_run_id]
    assert ids_of(api, suites=["other"]) == []
    assert ids_of(api, statuses=[COMPLETED]) == [first.suite_run_id]
    assert ids_of(api, statuses=[QUEUED, RUNNING]) == [second.suite_run_id]
    assert ids_of(api, label_selector="run in (x,z)") == [first.suite_run_id]
    assert ids_of(api, label_selector="evalrpc.suite=release,run!=x") == [second.suite_run_id]
    assert ids_of(api, suite_run_id_prefix=first.suite_run_id[:8].upper()) == [first.suite_run_id]
    assert ids_of(api, suite_run_id_prefix=first.suite_run_id[:8], suites=["other"]) == []


def test_a_page_that_looks_at_many_runs_in_vain_goes_on_with_the_next(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_RUNS_LOOKED_AT", 2)
    wanted = submitted(api, labels={"run": "x"})
    for _ in range(4):
        submitted(api)
    page = api.ListSuiteRuns(label_selector="run=x")
    assert (len(page.suite_runs), bool(page.next_page_token)) == (0, True)
    with EvalClient(api.address) as client:
        assert [run.suite_run_id for run in client.list_suite_runs(label_selector="run=x")] == [wanted.suite_run_id]


def test_every_bad_field_of_a_list_is_named_at_once(api: Api) -> None:
    bad = {"statuses": [99], "label_selector": "=", "suite_run_id_prefix": "x", "page_size": -1, "suites": ["s"] * 1001}
    error = refusal(lambda: api.ListSuiteRuns(**bad))
    assert fields_of(error) == ["suites", "statuses[0]", "label_selector", "suite_run_id_prefix", "page_size"]
    token = api.ListSuiteRuns(page_size=1).next_page_token
    assert token == ""
    assert fields_of(refusal(lambda: api.ListSuiteRuns(page_token="x"))) == ["page_token"]


# Submitting


def test_a_suite_is_submitted_as_one_run_of_ordinary_jobs(api: Api) -> None:
    run = submitted(api, labels={"step": "500"}, priority=3, max_attempts=2)
    assert (run.status, [job.entry for job in run.jobs]) == (QUEUED, ["t", "second"])
    first, second = (api.wait_for(job.job_id, COMPLETED) for job in run.jobs)
    for job in (first, second):
        assert job.suite_run_id == run.suite_run_id
        assert dict(job.labels) == {"step": "500", "evalrpc.suite": "release"}
        assert (job.request.model, job.priority, job.max_attempts) == ("good", 3, 2)
    assert list(second.request.tasks) == ["u", "v"]
    assert (second.request.num_fewshot, second.request.limit, second.request.log_samples) == (2, 8, True)
    ended = run_of(api, run)
    assert ended.status == COMPLETED
    assert [job.status for job in ended.jobs] == [COMPLETED, COMPLETED]
    assert ended.completed_at.ToNanoseconds() == max(job.completed_at.ToNanoseconds() for job in (first, second))
    assert ended.submission == submission(labels={"step": "500"}, priority=3, max_attempts=2)
    assert ended.suite == api.ListSuites().suites[2]
    assert not ended.HasField("decision")


def test_the_jobs_of_a_run_are_selected_by_it(api: Api) -> None:
    runs = [submitted(api), submitted(api)]
    api.submit()
    listed = api.ListJobs(filter={"suite_run_ids": [runs[0].suite_run_id.upper()]}).jobs
    assert {job.job_id for job in listed} == {job.job_id for job in runs[0].jobs}
    assert len(api.ListJobs(filter={"suite_run_ids": [run.suite_run_id for run in runs]}).jobs) == 4
    assert len(api.ListJobs(filter={"suite_run_ids": [runs[0].suite_run_id], "tasks": ["u"]}).jobs) == 1
    assert fields_of(refusal(lambda: api.ListJobs(filter={"suite_run_ids": ["x"]}))) == ["filter.suite_run_ids[0]"]


def test_each_harness_gets_the_model_that_is_meant_for_it(api: Api) -> None:
    run = api.SubmitSuite(
        suite="mixed",
        request={"num_gpus": 0, "model_args": {"a": 1, "b": 1}},
        harness_requests={"toy": {"model": "good"}, "copier": {"model": "/tmp", "model_args": {"b": 2, "c": 2}}},
    )
    toy, other = (api.get(job.job_id).request for job in run.jobs)
    assert (toy.model, dict(toy.model_args)) == ("good", {"a": 1, "b": 1})
    assert (other.model, dict(other.model_args)) == ("/tmp", {"a": 1, "b": 2, "c": 2})


def test_the_same_request_id_is_the_same_run(api: Api) -> None:
    first = submitted(api, request_id="r")
    assert submitted(api, request_id="r").suite_run_id == first.suite_run_id
    wait_for(api, first)
    again = submitted(api, request_id="r")
    assert (again.suite_run_id, again.status) == (first.suite_run_id, COMPLETED)
    error = refusal(lambda: submitted(api, "better", request_id="r"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert len(api.ListJobs().jobs) == 2


def test_a_repeated_submission_outlives_the_suite(site: Site, serve: Callable[..., ServerHere]) -> None:
    first = serve()
    run = submitted(first.api, request_id="r")
    wait_for(first.api, run)
    first.stop()
    site.config.write_text(site.config.read_text().replace("suites.release", "suites.gone"))
    second = serve()
    assert submitted(second.api, request_id="r").suite_run_id == run.suite_run_id
    assert run_of(second.api, run).suite == run.suite, "it is kept as it was"
    assert fields_of(refusal(lambda: submitted(second.api, request_id="s"))) == ["suite"]


def test_all_jobs_are_accepted_or_none(serve: Callable[..., ServerHere]) -> None:
    server = serve(max_queued=2)
    server.start_no_more()
    run = submitted(server.api)
    error = refusal(lambda: submitted(server.api, request_id="r"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    server.api.CancelJob(job_id=run.jobs[0].job_id)
    assert reason_of(refusal(lambda: submitted(server.api, request_id="r"))) == "QUEUE_FULL", "there is room for one only"
    assert len(server.api.ListJobs().jobs) == 2
    server.api.CancelSuiteRun(suite_run_id=run.suite_run_id)
    assert submitted(server.api, request_id="r").status == QUEUED


def test_a_run_can_share_the_runs_of_an_earlier_one(api: Api) -> None:
    first = submitted(api, cache=pb.CACHE_MODE_ALLOW)
    wait_for(api, first)
    second = submitted(api, cache=pb.CACHE_MODE_ALLOW)
    assert second.status == COMPLETED
    assert [api.get(job.job_id).cached_from for job in second.jobs] == [job.job_id for job in first.jobs]


def test_a_submission_can_be_checked_only(api: Api) -> None:
    run = submitted(api, validate_only=True)
    assert (run.suite_run_id, run.status, [job.job_id for job in run.jobs]) == ("", QUEUED, ["", ""])
    assert [job.entry for job in run.jobs] == ["t", "second"]
    assert not api.ListJobs().jobs
    assert fields_of(refusal(lambda: submitted(api, "", validate_only=True))) == ["request.model"]


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, ["suite"]),
        ({"suite": "nightly"}, ["suite"]),
        ({"suite": "release"}, ["request.model"]),
        (
            {"suite": "release", "request": {"model": "good", "tasks": ["x"], "limit": 1, "harness": "toy"}},
            ["request.harness", "request.tasks", "request.limit"],
        ),
        ({"suite": "release", "request": {"model": "good", "log_samples": False}}, ["request.log_samples"]),
        (
            {"suite": "release", "request": {"model": "good"}, "harness_requests": {"copier": {}}},
            ["harness_requests[copier]"],
        ),
        (
            {"suite": "mixed", "request": {"device": "?"}, "harness_requests": {"toy": {"model": "-x", "num_gpus": 9}}},
            ["request.device", "harness_requests[toy].num_gpus", "harness_requests[toy].model", "request.model"],
        ),
        (
            {"suite": "release", "request": {"model": "good"}, "labels": {"a b": ""}, "priority": 9999, "max_attempts": 99},
            ["priority", "labels", "max_attempts"],
        ),
        (
            {"suite": "release", "request": {"model": "good"}, "request_id": "a b", "baseline_suite_run_id": "x"},
            ["request_id", "baseline_suite_run_id"],
        ),
        ({"suite": "release", "request": {"model": "good", "secrets": ["NONE"]}}, ["request.secrets[0]"]),
        ({"suite": "release", "request": {"model": "good", "model_args": {"token": "x"}}}, ["request.model_args.token"]),
    ],
)
def test_every_bad_field_is_named_at_once_and_once_where_the_client_has_it(
    api: Api, fields: dict[str, Any], bad: list[str]
) -> None:
    assert fields_of(refusal(lambda: api.SubmitSuite(**fields))) == bad
    assert not api.ListJobs().jobs


def test_what_is_wrong_with_an_entry_is_said_of_the_suite(site: Site, serve: Callable[..., ServerHere]) -> None:
    site.config.write_text(f'{site.config.read_text()}[harnesses.toy.policy]\ntasks = ["t"]\n')
    error = refusal(lambda: submitted(serve().api))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_VIOLATION")
    violations = detail(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == ["suite", "suite"]
    assert violations[0].description.startswith("its entry 'second': tasks[0]: ")


def test_a_submission_is_refused_that_no_answer_could_repeat(api: Api) -> None:
    args = {"a": "x" * 500_000}
    requests = {"toy": {"model": "good", "model_args": args}, "copier": {"model": "m", "model_args": args}}
    message = {"suite": "mixed", "request": {"model_args": args}, "harness_requests": requests}
    error = refusal(lambda: api.SubmitSuite(**message))
    assert "request" in fields_of(error)


def test_a_run_survives_a_crash_of_the_server(launch: Launch) -> None:
    first = launch()
    run = submitted(first.api, "slow")
    wait_for(first.api, run, RUNNING)
    first.kill()
    second = launch()
    found = run_of(second.api, run)
    assert found.status == RUNNING
    assert [job.job_id for job in found.jobs] == [job.job_id for job in run.jobs]
    events = second.api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=run.revision)
    assert next(events).run.suite_run_id == run.suite_run_id
    second.api.CancelSuiteRun(suite_run_id=run.suite_run_id)
    *_, last = events
    assert (last.terminal, last.run.status) == (True, CANCELLED)


# States


def test_a_run_comes_to_what_its_jobs_come_to(api: Api, site: Site) -> None:
    run = submitted(api, "each", suite="release")
    assert wait_for(api, run).status == FAILED, "the toy harness has no model called after these tasks"
    assert run_of(api, run).HasField("completed_at")


def test_a_run_is_gone_with_the_last_of_its_jobs(api: Api) -> None:
    run = submitted(api)
    wait_for(api, run)
    first, second = (job.job_id for job in run.jobs)
    api.DeleteJob(job_id=first)
    found = run_of(api, run)
    assert (found.status, [job.status for job in found.jobs]) == (COMPLETED, [pb.JOB_STATUS_UNSPECIFIED, COMPLETED])
    api.DeleteJob(job_id=second)
    for call in (api.GetSuiteRun, api.CancelSuiteRun, lambda **fields: next(api.WatchSuiteRun(**fields))):
        error = refusal(lambda call=call: call(suite_run_id=run.suite_run_id))  # type: ignore[misc]
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "SUITE_RUN_NOT_FOUND")
        assert detail(error, error_details_pb2.ResourceInfo).resource_name == run.suite_run_id


def test_a_run_is_cancelled_as_a_whole(api: Api, site: Site) -> None:
    run = submitted(api, "slow", num_gpus=2)
    wait_for(api, run, RUNNING)
    site.wait_for_log(run.jobs[0].job_id)
    cancelled = api.CancelSuiteRun(suite_run_id=run.suite_run_id, reason="enough")
    first, second = (job.status for job in cancelled.jobs)
    assert first in (RUNNING, CANCELLED), "it is there until its processes have ended"
    assert second == CANCELLED
    assert wait_for(api, run).status == CANCELLED
    assert {api.get(job.job_id).error.message for job in run.jobs} == {"enough"}
    assert api.CancelSuiteRun(suite_run_id=run.suite_run_id).status == CANCELLED, "once more changes nothing"


def test_a_run_that_has_ended_otherwise_can_not_be_cancelled(api: Api) -> None:
    run = submitted(api)
    wait_for(api, run)
    error = refusal(lambda: api.CancelSuiteRun(suite_run_id=run.suite_run_id))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_FINISHED")
    error = refusal(lambda: api.CancelSuiteRun(suite_run_id="x", reason="\0"))
    assert fields_of(error) == ["suite_run_id", "reason"]


def test_what_has_ended_before_a_cancel_stays_as_it_is(api: Api, site: Site) -> None:
    run = submitted(api, "slow")
    site.release(run.jobs[0].job_id)
    api.wait_for(run.jobs[0].job_id, COMPLETED)
    api.CancelSuiteRun(suite_run_id=run.suite_run_id)
    ended = wait_for(api, run)
    assert (ended.status, [job.status for job in ended.jobs]) == (CANCELLED, [COMPLETED, CANCELLED])


# Watching


def seen(events: Any) -> list[tuple[int, int, list[int]]]:
    """Return of each event the kind, the status of the run, and those of its jobs; without progress."""
    return [
        (event.type, event.run.status, [job.status for job in event.run.jobs])
        for event in events
        if event.type != pb.JOB_EVENT_TYPE_PROGRESS
    ]


def test_a_stream_has_every_change_of_the_run_and_ends_with_it(api: Api, site: Site) -> None:
    run = submitted(api, "slow", num_gpus=2)  # one after the other
    other = api.submit()
    events = api.WatchSuiteRun(suite_run_id=run.suite_run_id)
    first, second = (job.job_id for job in run.jobs)
    got: list[SuiteRunEvent] = []

    def read_until(job_id: str, status: int) -> None:
        for event in events:
            got.append(event)
            if (event.job.job_id, event.job.status) == (job_id, status):
                return

    snapshot = next(events)
    assert (snapshot.type, snapshot.HasField("job"), snapshot.terminal) == (SNAPSHOT, False, False)
    assert [job.entry for job in snapshot.run.jobs] == ["t", "second"]
    assert (snapshot.run.suite_run_id, snapshot.run.HasField("suite")) == (run.suite_run_id, False)
    api.UpdateJob(job_id=second, labels={"a": "1"})
    site.release(first)
    read_until(first, COMPLETED)
    site.release(second)
    got += events
    api.wait_for(other.job_id, COMPLETED)
    changes = [event for event in got if event.type in (STATUS, UPDATED)]
    assert [event.revision for event in changes] == sorted({event.revision for event in changes})
    assert {event.job.job_id for event in changes} == {first, second}
    assert seen(changes)[-3:] == [
        (STATUS, RUNNING, [COMPLETED, QUEUED]),
        (STATUS, RUNNING, [COMPLETED, RUNNING]),
        (STATUS, COMPLETED, [COMPLETED, COMPLETED]),
    ]
    assert UPDATED in {event.type for event in changes}
    assert [event.terminal for event in got] == [False] * (len(got) - 1) + [True]


def test_a_stream_is_resumed_at_any_revision_with_the_states_of_then(api: Api) -> None:
    run = submitted(api)
    wait_for(api, run)
    whole = list(api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=run.revision))
    changes = [event for event in whole if event.type == STATUS]
    assert [event.revision for event in changes] == list(range(run.revision + 1, run.revision + 5))
    assert changes[0].run.status == RUNNING
    assert sorted(job.status for job in changes[0].run.jobs) == [QUEUED, RUNNING]
    for place, event in enumerate(changes):
        resumed = list(api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=event.revision))
        if event.terminal:
            assert [(each.type, each.run.status, each.terminal) for each in resumed] == [(SNAPSHOT, COMPLETED, True)]
        else:
            assert resumed == changes[place + 1 :]


def test_a_stream_from_before_the_submission_goes_on_after_a_job_that_shares_a_run(api: Api, site: Site) -> None:
    earlier = api.submit("slow", cache=pb.CACHE_MODE_ALLOW, request={"log_samples": True})
    site.release(earlier.job_id)
    api.wait_for(earlier.job_id, COMPLETED)
    before = api.head()
    run = submitted(api, "slow", cache=pb.CACHE_MODE_ALLOW)
    assert [job.status for job in run.jobs] == [COMPLETED, QUEUED]
    events = api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=before)
    assert seen([next(events)]) == [(STATUS, RUNNING, [COMPLETED, QUEUED])]
    site.release()
    *_, last = events
    assert (last.terminal, last.run.status) == (True, COMPLETED)


def test_a_run_that_has_ended_is_one_snapshot(api: Api) -> None:
    run = submitted(api)
    wait_for(api, run)
    (event,) = api.WatchSuiteRun(suite_run_id=run.suite_run_id)
    assert (event.type, event.terminal, event.run.status) == (SNAPSHOT, True, COMPLETED)
    assert event.revision == api.head()


def test_a_deleted_job_of_a_run_is_told_and_those_of_others_are_not(api: Api, site: Site) -> None:
    other = api.run()
    run = submitted(api, "slow")
    site.release(run.jobs[0].job_id)
    api.wait_for(run.jobs[0].job_id, COMPLETED)
    api.wait_for(run.jobs[1].job_id, RUNNING)
    events = api.WatchSuiteRun(suite_run_id=run.suite_run_id)
    assert next(events).type == SNAPSHOT
    api.DeleteJob(job_id=other.job_id)
    api.DeleteJob(job_id=run.jobs[0].job_id)
    deleted = next(event for event in events if event.type == DELETED)
    assert (deleted.job.job_id, [job.status for job in deleted.run.jobs]) == (run.jobs[0].job_id, [0, RUNNING])
    resumed = api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=run.revision)
    site.release()
    *_, last = resumed
    assert (last.terminal, last.run.status) == (True, COMPLETED)
    *_, last = events
    assert last.terminal


def test_a_quiet_stream_has_heartbeats(api: Api) -> None:
    run = submitted(api, "hangs")
    events = api.WatchSuiteRun(suite_run_id=run.suite_run_id, heartbeat_interval={"nanos": 100_000_000})
    beat = next(event for event in events if event.type == BOOKMARK)
    assert not beat.HasField("run")
    events.cancel()


def test_bad_watches_are_refused(api: Api) -> None:
    run = submitted(api)
    error = refusal(lambda: next(api.WatchSuiteRun(suite_run_id="x", after_revision=-1)))
    assert fields_of(error) == ["suite_run_id", "after_revision"]
    error = refusal(lambda: next(api.WatchSuiteRun(suite_run_id=run.suite_run_id, after_revision=10**9)))
    assert reason_of(error) == "REVISION_IN_FUTURE"
    assert reason_of(refusal(lambda: next(api.WatchSuiteRun(suite_run_id=NOWHERE)))) == "SUITE_RUN_NOT_FOUND"


# Deciding


class Trees:
    """Folders that the harness `copier` takes for models, each with the results of one task."""

    def __init__(self, site: Site) -> None:
        self._folder = site.folder / "trees"

    def model(self, name: str, values: list[float], **more: Any) -> str:
        folder = self._folder / name / "m"
        folder.mkdir(parents=True)
        mean = math.fsum(values) / len(values)
        error = math.sqrt(mean * (1 - mean) / len(values))
        document = {
            "results": {"t": {"acc,none": mean, "acc_stderr,none": error, "odd,none": 7.0}},
            "higher_is_better": {"t": {"acc": True}},
            "n-samples": {"t": {"original": len(values), "effective": len(values)}},
        }
        (folder / "20260214_103045_results.json").write_text(json.dumps(document))
        rows = ({"doc_id": number, "acc": value, "resps": "a", **more} for number, value in enumerate(values))
        (folder / "20260214_103045_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder.parent)


@pytest.fixture
def trees(site: Site) -> Trees:
    return Trees(site)


HALF, FEWER = [1, 0] * 200, [1, 0] * 140 + [0] * 120
MORE = [0, 0] * 10 + [1, 1] * 22 + [1, 0] * 168
"""Ten samples are for the worse, and 22 for the better."""


def test_a_suite_is_go_no_go_or_inconclusive_against_a_baseline(api: Api, trees: Trees) -> None:
    baseline = submitted(api, trees.model("base", HALF), suite="measured")
    wait_for(api, baseline)
    outcomes = {}
    for name, values in (("more", MORE), ("fewer", FEWER), ("few", HALF[:40])):
        run = submitted(api, trees.model(name, values), suite="measured", baseline_suite_run_id=baseline.suite_run_id)
        outcomes[name] = decided(api, run).decision
    assert {name: decision.outcome for name, decision in outcomes.items()} == {
        "more": GO,
        "fewer": NO_GO,
        "few": INCONCLUSIVE,
    }
    (finding,) = outcomes["more"].findings
    assert (finding.entry, finding.metric.metric, finding.assessment) == ("t", "acc", ASSESSMENT_PASSED)
    assert (finding.metric.verdict, finding.metric.method) == (VERDICT_NOT_WORSE, TEST_METHOD_MCNEMAR)
    assert (finding.metric.paired_sample_count, finding.metric.candidate_sample_count) == (400, 400)
    assert finding.metric.interval_lower < finding.metric.difference < finding.metric.interval_upper
    assert finding.value_lower < finding.metric.candidate_value < finding.value_upper
    assert (finding.threshold, finding.baseline_job_id) == (0.3, baseline.jobs[0].job_id)
    assert outcomes["more"].baseline_suite_run_id == baseline.suite_run_id
    assert outcomes["more"].confidence_level == pytest.approx(0.99)
    (finding,) = outcomes["fewer"].findings
    assert (finding.assessment, finding.metric.verdict) == (ASSESSMENT_FAILED, VERDICT_WORSE)
    assert list(outcomes["fewer"].reasons) == [f"t t/acc (tier 1) FAILED: {finding.reason}"]


def test_a_baseline_can_be_chosen_when_it_is_decided(api: Api, trees: Trees) -> None:
    baseline, better = (submitted(api, trees.model(*each), suite="measured") for each in (("a", HALF), ("b", [1.0] * 400)))
    run = submitted(api, trees.model("c", MORE), suite="measured", baseline_suite_run_id=better.suite_run_id)
    for each in (baseline, better):
        wait_for(api, each)
    assert decided(api, run).decision.outcome == NO_GO
    chosen = decided(api, run, baseline_suite_run_id=baseline.suite_run_id.upper()).decision
    assert (chosen.outcome, chosen.baseline_suite_run_id) == (GO, baseline.suite_run_id)


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([1, 0] * 200, GO),
        ([0] * 350 + [1] * 50, NO_GO),
        ([1, 0, 0] * 100, INCONCLUSIVE),
        ([1] * 5, GO),
        ([1] * 4, INCONCLUSIVE),
        ([0] * 20, NO_GO),
    ],
)
def test_without_a_baseline_the_threshold_decides(api: Api, trees: Trees, values: list[float], outcome: int) -> None:
    decision = decided(api, submitted(api, trees.model("a", values), suite="measured")).decision
    assert (decision.outcome, decision.baseline_suite_run_id) == (outcome, "")
    (finding,) = decision.findings
    assert (finding.value_method, finding.value_sample_count) == (TEST_METHOD_CLOPPER_PEARSON, len(values))


def test_the_clusters_of_an_entry_count_for_its_threshold_too(
    site: Site, serve: Callable[..., ServerHere], trees: Trees
) -> None:
    site.config.write_text(site.config.read_text().replace("threshold = 0.3", 'threshold = 0.3\ncluster_by = "passage"'))
    api = serve().api
    (finding,) = decided(api, submitted(api, trees.model("a", HALF, passage=0), suite="measured")).decision.findings
    assert (finding.assessment, finding.value_cluster_count) == (ASSESSMENT_UNDECIDED, 1)
    assert "its samples are of 1 clusters only" in finding.reason
    (finding,) = decided(api, submitted(api, trees.model("b", HALF), suite="measured")).decision.findings
    assert (finding.assessment, finding.HasField("metric")) == (ASSESSMENT_NO_NUMBERS, False)
    assert "no sample has a field 'passage'" in finding.reason


def test_a_task_with_bad_answers_is_never_go(api: Api, trees: Trees) -> None:
    decision = decided(api, submitted(api, trees.model("a", HALF, stop_reason="max_tokens"), suite="measured")).decision
    (finding,) = decision.findings
    assert (decision.outcome, finding.assessment) == (INCONCLUSIVE, ASSESSMENT_NO_NUMBERS)
    assert finding.metric.verdict == VERDICT_VOID
    assert finding.metric.candidate_answers.truncated_count == 400


def test_bad_answers_count_also_for_a_metric_that_the_baseline_lacks(api: Api, trees: Trees) -> None:
    model = trees.model("base", HALF)
    (results,) = Path(model).glob("m/*_results.json")
    results.write_text(results.read_text().replace('"acc', '"other'))
    baseline = submitted(api, model, suite="measured")
    wait_for(api, baseline)
    bad = trees.model("a", HALF, stop_reason="max_tokens")
    run = submitted(api, bad, suite="measured", baseline_suite_run_id=baseline.suite_run_id)
    (finding,) = decided(api, run).decision.findings
    assert (finding.assessment, finding.metric.verdict) == (ASSESSMENT_NO_NUMBERS, VERDICT_VOID)
    assert finding.metric.candidate_answers.truncated_count == 400


def test_a_baseline_that_is_gone_or_has_failed_decides_nothing(api: Api, trees: Trees, site: Site) -> None:
    failed = submitted(api, str(site.folder / "nothing"), suite="measured")
    assert wait_for(api, failed).status == FAILED
    run = submitted(api, trees.model("a", HALF), suite="measured", baseline_suite_run_id=failed.suite_run_id)
    (finding,) = decided(api, run).decision.findings
    assert (finding.assessment, finding.reason[:30]) == (ASSESSMENT_UNDECIDED, "the baseline's job is FAILED: ")
    api.DeleteJob(job_id=failed.jobs[0].job_id)
    decision = decided(api, run).decision
    assert (decision.outcome, decision.baseline_suite_run_id) == (INCONCLUSIVE, ""), "not by the threshold alone"
    assert decision.findings[0].reason == "the baseline's run was deleted, or is another's: name another one to compare with"


def test_what_the_run_of_the_baseline_lacks_is_decided_by_the_threshold_and_says_so(
    site: Site, serve: Callable[..., ServerHere], trees: Trees
) -> None:
    site.config.write_text(f"{site.config.read_text()}[[suites.old.entries]]\nname = 'o'\nharness = 'toy'\ntasks = ['t']\n")
    api = serve().api
    baseline = submitted(api, suite="old")
    wait_for(api, baseline)
    run = submitted(api, trees.model("a", HALF), suite="measured", baseline_suite_run_id=baseline.suite_run_id)
    decision = decided(api, run).decision
    assert (decision.outcome, decision.baseline_suite_run_id) == (GO, baseline.suite_run_id)
    assert decision.findings[0].reason.endswith("; the baseline's run has no such entry")


def test_a_run_of_which_jobs_have_failed_or_are_gone_is_not_go(api: Api, site: Site) -> None:
    run = submitted(api, "fails")
    decision = decided(api, run).decision
    assert decision.outcome == INCONCLUSIVE
    assert [finding.assessment for finding in decision.findings] == [ASSESSMENT_NO_NUMBERS] * 2
    assert decision.findings[0].reason == "the job is FAILED: ValueError: the dataset is gone"
    assert list(decision.reasons) == [f"t (tier 1) NO_NUMBERS: {decision.findings[0].reason}"], "the other is not required"
    good = submitted(api)
    wait_for(api, good)
    api.DeleteJob(job_id=good.jobs[0].job_id)
    decision = decided(api, good).decision
    assert (decision.outcome, decision.findings[0].reason) == (INCONCLUSIVE, "the job was deleted")


def test_a_run_that_goes_on_is_decided_by_what_there_is(api: Api, site: Site) -> None:
    run = submitted(api, "uncounted")
    site.release(run.jobs[0].job_id)
    api.wait_for(run.jobs[0].job_id, COMPLETED)
    decision = run_of(api, run, view=SUITE_RUN_VIEW_DECISION).decision
    assert (decision.outcome, decision.reasons[0]) == (INCONCLUSIVE, "the run has not ended")
    site.release()
    assert decided(api, run).decision.outcome == GO


def test_a_name_for_several_tasks_has_their_metrics(site: Site, serve: Callable[..., ServerHere], trees: Trees) -> None:
    config = site.config.read_text()
    site.config.write_text(config.replace('harness = "copier"\ntasks = ["t"]', 'harness = "copier"\ntasks = ["tag"]'))
    api = serve().api
    (finding,) = decided(api, submitted(api, trees.model("a", HALF), suite="measured")).decision.findings
    assert (finding.metric.task, finding.metric.metric, finding.assessment) == ("t", "acc", ASSESSMENT_PASSED)


def test_bad_questions_about_a_run_are_refused(api: Api) -> None:
    run = submitted(api)
    ids = {"suite_run_id": run.suite_run_id, "baseline_suite_run_id": run.suite_run_id}
    assert fields_of(refusal(lambda: api.GetSuiteRun(suite_run_id="x", view=9))) == ["suite_run_id", "view"]
    assert fields_of(refusal(lambda: api.GetSuiteRun(**ids))) == ["baseline_suite_run_id"] * 2
    assert fields_of(refusal(lambda: api.GetSuiteRun(**ids, view=2))) == ["baseline_suite_run_id"]
    ids["baseline_suite_run_id"] = NOWHERE
    assert reason_of(refusal(lambda: api.GetSuiteRun(**ids, view=2))) == "SUITE_RUN_NOT_FOUND"
    assert reason_of(refusal(lambda: submitted(api, baseline_suite_run_id=NOWHERE))) == "SUITE_RUN_NOT_FOUND"


def test_the_largest_run_and_its_decision_fit_into_what_clients_accept_by_default(
    site: Site, serve: Callable[..., ServerHere]
) -> None:
    folder = site.toy_dir / "prepared" / "toy"
    folder.mkdir(parents=True)
    names = [f"{number:0250}" for number in range(900)]
    document = {"results": {"t": {f"{name},none": 0.5 for name in names}}}
    (folder / "20260101_000000_results.json").write_text(json.dumps(document))
    entries = (f"[[suites.large.entries]]\nharness = 'toy'\ntasks = ['t']\nname = '{n:0255}'\n" for n in range(10))
    site.config.write_text(f"{site.config.read_text()}{''.join(entries)}")
    server = serve()
    args = {"a": "x" * 500_000}
    request = {"model": "prepared", "num_gpus": 0, "model_args": args}
    labels = {f"k{number}": "v" * 255 for number in range(63)}
    message = {"suite": "large", "request": request, "cache": pb.CACHE_MODE_ALLOW, "labels": labels}
    run = server.api.SubmitSuite(harness_requests={"toy": {"model_args": args}}, **message)
    wait_for(server.api, run)
    with grpc.insecure_channel(server.address) as channel:  # with gRPC's own options
        request = GetSuiteRunRequest(suite_run_id=run.suite_run_id, view=SUITE_RUN_VIEW_DECISION)
        decided_run = EvaluationServiceStub(channel).GetSuiteRun(request, timeout=SECONDS)
    assert decided_run.decision.finding_count == 9000
    assert 1000 < len(decided_run.decision.findings) < 9000
    assert len(decided_run.decision.reasons) == 100
    assert decided_run.ByteSize() <= MAX_PAGE_BYTES


def test_a_backup_has_the_suite_runs(site: Site, serve: Callable[..., ServerHere]) -> None:
    server = serve()
    run = submitted(server.api, request_id="r")
    wait_for(server.api, run)
    target, new = site.folder / "backup", site.folder / "new"
    for arguments in (["backup", target, "--config", site.config], ["restore", target, "--data-dir", new]):
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
    server.stop()
    restored = serve(data_dir=new).api
    assert run_of(restored, run).status == COMPLETED
    assert submitted(restored, request_id="r").suite_run_id == run.suite_run_id


# The Python client


def test_the_client_submits_watches_waits_decides_and_cancels(api: Api, site: Site) -> None:
    with EvalClient(api.address) as client:
        assert [suite.name for suite in client.list_suites()] == ["measured", "mixed", "release"]
        run = client.evaluate_suite("release", "uncounted", num_gpus=0, labels={"step": 500})
        events: list[SuiteRunEvent] = []
        site.release()
        ended = client.wait_for_suite_run(run.suite_run_id, on_event=events.append)
        assert (ended.status, events[-1].terminal) == (COMPLETED, True)
        again = list(client.watch_suite_run(run.suite_run_id, after_revision=events[0].revision))
        assert [event.revision for event in again] == sorted({event.revision for event in again})
        assert client.decide_suite_run(run.suite_run_id).decision.outcome == GO
        harness_requests = {"toy": {"model": "hangs"}, "copier": {"model": "/nowhere"}}
        other = client.evaluate_suite("mixed", num_gpus=0, harness_requests=harness_requests)
        client.cancel_suite_run(other.suite_run_id, "enough")
        assert client.wait_for_suite_run(other.suite_run_id).status in (CANCELLED, FAILED)
        with pytest.raises(SuiteRunNotFoundError):
            client.get_suite_run(NOWHERE)
        with pytest.raises(InvalidRequestError, match="suite: there is no suite 'nightly'"):
            client.evaluate_suite("nightly", "good")
        with pytest.raises(TimeoutError):
            client.wait_for_suite_run(client.evaluate_suite("release", "hangs", num_gpus=0).suite_run_id, 0.2)


# Reloading


def test_suites_are_exchanged_by_a_reload_and_runs_keep_theirs(site: Site, serve: Callable[..., ServerHere]) -> None:
    server = serve()
    run = submitted(server.api)
    site.config.write_text(site.config.read_text().replace("suites.release", "suites.nightly"))
    asyncio.run_coroutine_threadsafe(server.server.reload(site.settings), server._loop).result()
    assert [suite.name for suite in server.api.ListSuites().suites] == ["measured", "mixed", "nightly"]
    assert run_of(server.api, run).suite.name == "release"
    site.config.write_text(f"{site.config.read_text()}[[suites.bad.entries]]\nharness = 'toy'\ntasks = ['a/b']\n")
    asyncio.run_coroutine_threadsafe(server.server.reload(site.settings), server._loop).result()
    assert len(server.api.ListSuites().suites) == 3, "a wrong file exchanges nothing"
