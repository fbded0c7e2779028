"""The table of rights, and what its check looks at: as little as possible, and the same for hidden jobs as for none."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from store_jobs import CLOCK, SECONDS, new_job, submit

from evalrpc.errors import EvalrpcError, JobNotFoundError, PermissionDeniedError, SuiteRunNotFoundError
from evalrpc.server.app import SERVICE
from evalrpc.server.auth.rights import RIGHTS, Guard, visible_owner
from evalrpc.server.call import ANONYMOUS, Principal, Role
from evalrpc.store.base import Submission, SuiteSubmission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1.comparison_pb2 import CompareJobsRequest
from evalrpc.v1.jobs_pb2 import CancelJobRequest, GetJobRequest, SubmitJobRequest
from evalrpc.v1.suites_pb2 import CancelSuiteRunRequest, GetSuiteRunRequest, SuiteRun

ALICE, VIEWER = Principal("alice", Role.SUBMITTER), Principal("alice", Role.VIEWER)
OPERATOR = Principal("olga", Role.OPERATOR)
NOWHERE = "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"


class CountingStore(SqliteStore):
    """Counts what is read from the disk."""

    reads = 0

    def known_jobs(self, job_ids: Sequence[str], owner: str | None = None) -> set[str]:
        self.reads += 1
        return super().known_jobs(job_ids, owner)

    def known_suite_runs(self, suite_run_ids: Sequence[str], owner: str | None = None) -> set[str]:
        self.reads += 1
        return super().known_suite_runs(suite_run_ids, owner)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[CountingStore]:
    store = CountingStore(data_dir, CLOCK, 100)
    yield store
    store.close()


def outcome(store: CountingStore, visibility: str, principal: Principal, method: str, message: Message) -> tuple[Any, int]:
    """Return the error of a check, or None, and how often the disk was read."""
    before = store.reads

    async def check() -> None:
        with ThreadPoolExecutor(1) as readers:
            await Guard(store, readers, visibility).check(method, message, principal)

    try:
        asyncio.run(check())
    except EvalrpcError as error:
        return error, store.reads - before
    return None, store.reads - before


def test_no_call_of_the_schema_is_missing_and_none_is_there_that_it_does_not_have() -> None:
    assert set(RIGHTS) == {method.name for method in SERVICE.methods}


def test_a_call_that_names_jobs_has_the_fields_that_do_so() -> None:
    for method in SERVICE.methods:
        naming = {field.name for field in method.input_type.fields if field.name.endswith(("job_id", "job_ids"))}
        assert set(RIGHTS[method.name].job_fields) == naming, method.name
        naming = {field.name for field in method.input_type.fields if field.name.endswith("suite_run_id")}
        assert set(RIGHTS[method.name].suite_run_fields) == naming, method.name


def test_only_operators_and_callers_of_a_server_that_hides_nothing_see_the_jobs_of_all() -> None:
    assert visible_owner(ALICE, "all") is None
    assert visible_owner(OPERATOR, "own") is None
    assert visible_owner(ALICE, "own") == visible_owner(VIEWER, "own") == "alice"
    assert visible_owner(ANONYMOUS, "own") == ""


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_hidden_job_is_looked_for_like_one_that_does_not_exist(store: CountingStore, is_cached: bool) -> None:
    hidden = submit(store, owner="bob").job_id
    if not is_cached:
        store._cache.remove(hidden)
    for principal in (ALICE, VIEWER, ANONYMOUS):
        for job_id in (hidden, NOWHERE):
            error, reads = outcome(store, "own", principal, "GetJob", GetJobRequest(job_id=job_id))
            assert isinstance(error, JobNotFoundError)
            assert reads == 1


def suite_run_of(store: CountingStore, owner: str) -> str:
    suite_run_id = str(uuid.uuid4())
    job = new_job(owner=owner, suite_run_id=suite_run_id)
    run = SuiteRun(suite_run_id=suite_run_id, owner=owner)
    run.jobs.add(job_id=job.job_id)
    return store.submit_suite(SuiteSubmission(run, [Submission(job)])).result(SECONDS).suite_run_id


def test_a_hidden_suite_run_is_looked_for_like_one_that_does_not_exist(store: CountingStore) -> None:
    mine, hidden = suite_run_of(store, "alice"), suite_run_of(store, "bob")
    for principal in (ALICE, VIEWER, ANONYMOUS):
        for suite_run_id in (hidden, NOWHERE):
            message = GetSuiteRunRequest(suite_run_id=suite_run_id.upper())
            error, reads = outcome(store, "own", principal, "GetSuiteRun", message)
            assert isinstance(error, SuiteRunNotFoundError)
            assert reads == 1
    assert outcome(store, "own", ALICE, "GetSuiteRun", GetSuiteRunRequest(suite_run_id=mine)) == (None, 1)
    assert outcome(store, "all", VIEWER, "GetSuiteRun", GetSuiteRunRequest(suite_run_id=hidden)) == (None, 0)
    error, _ = outcome(store, "all", ALICE, "CancelSuiteRun", CancelSuiteRunRequest(suite_run_id=hidden))
    assert isinstance(error, PermissionDeniedError)
    assert error.message == f"suite run {hidden} is not yours: only its owner and operators may change it"
    assert outcome(store, "all", OPERATOR, "CancelSuiteRun", CancelSuiteRunRequest(suite_run_id=hidden)) == (None, 0)


def test_what_needs_no_look_has_none(store: CountingStore) -> None:
    mine, anothers = submit(store, owner="alice").job_id, submit(store, owner="bob").job_id
    reading, changing = GetJobRequest(job_id=anothers), CancelJobRequest(job_id=anothers)
    assert outcome(store, "all", VIEWER, "GetJob", reading) == (None, 0)
    assert outcome(store, "own", OPERATOR, "GetJob", reading) == (None, 0)
    assert outcome(store, "own", OPERATOR, "CancelJob", changing) == (None, 0)
    assert outcome(store, "own", ALICE, "GetJob", GetJobRequest(job_id=mine.upper())) == (None, 0), "it is in memory"
    assert outcome(store, "all", ALICE, "CancelJob", CancelJobRequest(job_id=mine)) == (None, 0)
    store._cache.remove(mine)
    assert outcome(store, "own", ALICE, "GetJob", GetJobRequest(job_id=mine)) == (None, 1)


def test_a_change_of_a_job_that_there_is_not_is_left_to_the_call(store: CountingStore) -> None:
    assert outcome(store, "all", ALICE, "CancelJob", CancelJobRequest(job_id=NOWHERE))[0] is None
    anothers = CancelJobRequest(job_id=submit(store, owner="bob").job_id)
    assert isinstance(outcome(store, "all", ALICE, "CancelJob", anothers)[0], PermissionDeniedError)
    nobodys = CancelJobRequest(job_id=submit(store).job_id)
    assert isinstance(outcome(store, "all", ALICE, "CancelJob", nobodys)[0], PermissionDeniedError)
    assert outcome(store, "all", ANONYMOUS, "CancelJob", nobodys)[0] is None


@pytest.mark.parametrize("job_id", ["", "x", f"{NOWHERE}0", "'); DROP TABLE jobs; --"])
def test_what_is_no_id_is_left_to_the_call_which_names_the_field(store: CountingStore, job_id: str) -> None:
    assert outcome(store, "own", ALICE, "GetJob", GetJobRequest(job_id=job_id)) == (None, 0)


def test_many_ids_are_looked_for_at_once(store: CountingStore) -> None:
    mine = submit(store, owner="alice").job_id
    many = [f"{number:08x}{NOWHERE[8:]}" for number in range(5000)]
    message = CompareJobsRequest(baseline_job_id=mine, candidate_job_ids=many)
    error, reads = outcome(store, "own", ALICE, "CompareJobs", message)
    assert isinstance(error, JobNotFoundError)
    assert many[0] in error.message
    assert reads == 1


def test_a_viewer_submits_nothing(store: CountingStore) -> None:
    error, _ = outcome(store, "all", VIEWER, "SubmitJob", SubmitJobRequest(validate_only=True))
    assert isinstance(error, PermissionDeniedError)
    assert error.message == "a viewer may not call SubmitJob: that takes a submitter"


def test_the_reason_of_a_refusal_may_be_another() -> None:
    assert PermissionDeniedError("no").reason == "PERMISSION_DENIED"
    assert PermissionDeniedError("no", reason="POLICY_VIOLATION").reason == "POLICY_VIOLATION"
