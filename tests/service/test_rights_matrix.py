"""Who may do what: every call of the schema, by every caller, of every job, under both visibilities.

A new call fails here until it has a place in `PLACES`; a new kind of credential is a line of `CREDENTIALS`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from serving import (
    BOOKMARK,
    NOWHERE,
    QUEUED,
    RUNNING,
    SECONDS,
    SNAPSHOT,
    TERMINAL,
    ServerHere,
    Site,
    reason_of,
    status_of,
    submission,
)
from waiting import eventually

from evalrpc.errors import EvalrpcError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import ANONYMOUS, Principal, Role
from evalrpc.testing.in_process import InProcessTransport
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.queue_pb2 import GetQueueResponse
from evalrpc.v1.suites_pb2 import SUITE_RUN_VIEW_DECISION, GetSuiteRunRequest, SubmitSuiteRequest, SuiteRun

ALICE = Principal("alice", Role.SUBMITTER)
BOB = Principal("bob", Role.SUBMITTER)
VIEWER = Principal("alice", Role.VIEWER)
OPERATOR = Principal("olga", Role.OPERATOR)
OWNERS: Final = {"alice": ALICE, "bob": BOB, "": ANONYMOUS}
"""Those who have jobs."""

ABOUT_SERVER, LISTS, READS, CHANGES, SUBMITS = "about the server", "lists jobs", "reads a job", "changes a job", "submits"
OPERATES = "operates the server"
READS_RUN, CHANGES_RUN = "reads a suite run", "changes a suite run"

PLACES: Final[Mapping[str, str]] = {
    "GetServerInfo": ABOUT_SERVER,
    "GetCaller": ABOUT_SERVER,
    "ListHarnesses": ABOUT_SERVER,
    "ListTasks": ABOUT_SERVER,
    "ListModels": ABOUT_SERVER,
    "ListEngines": ABOUT_SERVER,
    "ListSuiteRuns": LISTS,
    "ListJobs": LISTS,
    "WatchJobs": LISTS,
    "GetHistory": LISTS,
    "GetQueue": LISTS,
    "GetJob": READS,
    "WatchJob": READS,
    "ReadLog": READS,
    "ListArtifacts": READS,
    "ReadArtifact": READS,
    "ListSamples": READS,
    "ReadSampleMedia": READS,
    "ListMetrics": READS,
    "CompareJobs": READS,
    "PlanComparison": READS,
    "ListFlips": READS,
    "CancelJob": CHANGES,
    "UpdateJob": CHANGES,
    "DeleteJob": CHANGES,
    "SubmitJob": SUBMITS,
    "ListSuites": ABOUT_SERVER,
    "SubmitSuite": SUBMITS,
    "GetSuiteRun": READS_RUN,
    "WatchSuiteRun": READS_RUN,
    "CancelSuiteRun": CHANGES_RUN,
    "PauseQueue": OPERATES,
    "ResumeQueue": OPERATES,
    "CordonGpu": OPERATES,
    "UncordonGpu": OPERATES,
    "StopEngine": OPERATES,
}

OK, DENIED, HIDDEN = "OK", "PERMISSION_DENIED PERMISSION_DENIED", "NOT_FOUND JOB_NOT_FOUND"
HIDDEN_RUN = "NOT_FOUND SUITE_RUN_NOT_FOUND"
ALWAYS = (OK, OK)
NEVER = (DENIED, DENIED)

LIKE: Final = {READS_RUN: READS, CHANGES_RUN: CHANGES}
"""A suite run is treated as a job is."""

EXPECTED: Final[Mapping[str, Mapping[str, Mapping[str, tuple[str, str]]]]] = {
    "nobody": {
        "own": {ABOUT_SERVER: ALWAYS, LISTS: ALWAYS, READS: ALWAYS, CHANGES: ALWAYS, SUBMITS: ALWAYS, OPERATES: NEVER},
        "another's": {READS: (OK, HIDDEN), CHANGES: (DENIED, HIDDEN)},
    },
    "viewer": {
        "own": {ABOUT_SERVER: ALWAYS, LISTS: ALWAYS, READS: ALWAYS, CHANGES: NEVER, SUBMITS: NEVER, OPERATES: NEVER},
        "another's": {READS: (OK, HIDDEN), CHANGES: NEVER},
        "nobody's": {READS: (OK, HIDDEN), CHANGES: NEVER},
    },
    "submitter": {
        "own": {ABOUT_SERVER: ALWAYS, LISTS: ALWAYS, READS: ALWAYS, CHANGES: ALWAYS, SUBMITS: ALWAYS, OPERATES: NEVER},
        "another's": {READS: (OK, HIDDEN), CHANGES: (DENIED, HIDDEN)},
        "nobody's": {READS: (OK, HIDDEN), CHANGES: (DENIED, HIDDEN)},
    },
    "operator": {
        "own": {ABOUT_SERVER: ALWAYS, LISTS: ALWAYS, SUBMITS: ALWAYS, OPERATES: ALWAYS},
        "another's": {READS: ALWAYS, CHANGES: ALWAYS},
        "nobody's": {READS: ALWAYS, CHANGES: ALWAYS},
    },
}
"""The outcome under the visibilities `all` and `own`, by caller, by whose job it is about, and by the place of the call."""

UNLISTED = "FAILED_PRECONDITION CATALOG_UNAVAILABLE"
INVALID = "INVALID_ARGUMENT INVALID_REQUEST"
UNSAMPLED = "NOT_FOUND SAMPLES_NOT_FOUND"
OTHERWISE_THAN_OK: Final = {
    **dict.fromkeys(("ListTasks", "ListModels"), UNLISTED),
    **dict.fromkeys(("CordonGpu", "UncordonGpu", "StopEngine"), INVALID),
    "ListFlips": UNSAMPLED,
}
"""What the toy harness can't do, whoever asks; and GPUs that there are not, so that those of the jobs stay as they are."""


class Outcome(NamedTuple):
    """How a call ended: OK, or the code and the reason of its error, with everything else that the caller learns."""

    text: str
    messages: Sequence[bytes] = ()
    error: tuple[Any, ...] = ()

    def without(self, job_id: str) -> tuple[Any, ...]:
        """Return the error as if it were about no job in particular."""
        return tuple(repr(part).replace(job_id, "JOB") for part in (self.text, *self.error))


Call = Callable[[ServerHere, str, Message], Outcome]
"""Makes a call with some credential: the server, the method, the message."""


def in_process(principal: Principal) -> Call:
    """Call the handlers, which is what all transports do."""

    def call(server: ServerHere, method: str, request: Message) -> Outcome:
        transport = InProcessTransport(server.server.handlers, principal)
        return asyncio.run_coroutine_threadsafe(_outcome(transport, method, request), server._loop).result(SECONDS)

    return call


async def _outcome(transport: InProcessTransport, method: str, request: Message) -> Outcome:
    messages: list[bytes] = []
    try:
        if not SERVICE.methods_by_name[method].server_streaming:
            messages.append(await transport.unary(method, request.SerializeToString()))
        else:
            stream: AsyncIterator[bytes] = transport.stream(method, request.SerializeToString())
            async for message in stream:
                messages.append(message)
                if _is_last(method, message):
                    break
            await stream.aclose()  # type: ignore[attr-defined]
    except EvalrpcError as error:
        details = (error.message, error.metadata, error.retry_delay_seconds, getattr(error, "violations", ()))
        return Outcome(f"{error.code} {error.reason}", messages, details)
    return Outcome(OK, messages)


def over_the_network(server: ServerHere, method: str, request: Message) -> Outcome:
    """Call over a real channel, without any credential."""
    messages: list[bytes] = []
    try:
        answer = getattr(server.api, method)(request)
        for message in answer if SERVICE.methods_by_name[method].server_streaming else [answer]:
            messages.append(message.SerializeToString())
            if _is_last(method, messages[-1]):
                answer.cancel()
                break
    except grpc.RpcError as error:
        return Outcome(f"{error.code().name} {reason_of(error)}", messages, (status_of(error).SerializeToString(),))
    return Outcome(OK, messages)


def _is_last(method: str, message: bytes) -> bool:
    """Return whether a stream that goes on has sent all that there was."""
    if method not in ("WatchJob", "WatchJobs"):
        return False
    event = pb.JobEvent.FromString(message)
    return event.type == BOOKMARK or (method == "WatchJob" and event.type == SNAPSHOT and not event.terminal)


class Credential(NamedTuple):
    """What a caller brings, and what it is expected to be taken for."""

    call: Call
    caller: str
    """A key of EXPECTED."""
    owner: str


CREDENTIALS: Final[Mapping[str, Credential]] = {
    "nobody": Credential(in_process(ANONYMOUS), "nobody", ""),
    "nobody, over the network": Credential(over_the_network, "nobody", ""),
    "viewer": Credential(in_process(VIEWER), "viewer", "alice"),
    "submitter": Credential(in_process(ALICE), "submitter", "alice"),
    "operator": Credential(in_process(OPERATOR), "operator", "olga"),
}
AS_OPERATOR: Final = CREDENTIALS["operator"].call


def suite_submission(num_gpus: int = 0) -> SubmitSuiteRequest:
    return SubmitSuiteRequest(suite="release", request=pb.EvaluateRequest(model="good", num_gpus=num_gpus))


class World:
    """A server with jobs of alice, bob and nobody: of each two that are COMPLETED, and such a suite run. Of bob one that runs
    on a GPU, and one that waits for both GPUs, which so are kept for it; and of alice one that waits behind it."""

    def __init__(self, site: Site, visibility: str) -> None:
        self.visibility = visibility
        site.config.write_text(f"{site.config.read_text()}[[suites.release.entries]]\nharness = 'toy'\ntasks = ['t']\n")
        self.server = ServerHere(site.settings(visibility=visibility, reservation_seconds=0.0))
        self.completed = {owner: self.submit(owner) for owner in OWNERS}
        self.others = {owner: self.submit(owner, "also_good") for owner in OWNERS}
        self.suite_runs = {owner: self.submit_suite(owner) for owner in OWNERS}
        in_suites = [job.job_id for run in self.suite_runs.values() for job in run.jobs]
        for job_id in (*self.completed.values(), *self.others.values(), *in_suites):
            self.wait_for(job_id, *TERMINAL)
        self.running = self.submit("bob", "slow", num_gpus=1)
        self.wait_for(self.running, RUNNING)
        self.wide = self.submit("bob", "slow", num_gpus=2)
        state = self.server.server._scheduler._dependencies.queue_state
        eventually(lambda: state._reservation is not None, "for the GPUs to be kept before another job comes")
        self.narrow = self.submit("alice", "slow", num_gpus=1)
        eventually(lambda: "kept for" in self.get(self.narrow).wait_reason, "for the GPUs to be kept")

    def submit(self, owner: str, model: str = "good", **request: Any) -> str:
        outcome = in_process(OWNERS[owner])(self.server, "SubmitJob", submission(model, request=request))
        return pb.JobInfo.FromString(outcome.messages[0]).job_id

    def submit_suite(self, owner: str, num_gpus: int = 0) -> SuiteRun:
        outcome = in_process(OWNERS[owner])(self.server, "SubmitSuite", suite_submission(num_gpus))
        return SuiteRun.FromString(outcome.messages[0])

    def get(self, job_id: str, call: Call = AS_OPERATOR) -> pb.JobInfo:
        return pb.JobInfo.FromString(call(self.server, "GetJob", pb.GetJobRequest(job_id=job_id)).messages[0])

    def wait_for(self, job_id: str, *statuses: int) -> None:
        eventually(lambda: self.get(job_id).status in statuses, f"for {job_id} to be in {statuses}")

    def fresh(self, method: str, owner: str) -> str:
        """Return a job of this owner that the method can be used on."""
        if PLACES[method] == CHANGES_RUN:
            return self.submit_suite(owner, num_gpus=1).suite_run_id
        if PLACES[method] == READS_RUN:
            return self.suite_runs[owner].suite_run_id
        if method == "CancelJob":
            return self.submit(owner, num_gpus=1)
        if method == "DeleteJob":
            job_id = self.submit(owner, num_gpus=1)
            assert AS_OPERATOR(self.server, "CancelJob", pb.CancelJobRequest(job_id=job_id)).text == OK
            return job_id
        return self.completed[owner]

    def jobs_of(self, *owners: str) -> set[str]:
        """Return the ids of all jobs of some owners."""
        listed = AS_OPERATOR(self.server, "ListJobs", pb.ListJobsRequest(filter=pb.JobFilter(owners=owners), page_size=1000))
        return {job.job_id for job in pb.ListJobsResponse.FromString(listed.messages[0]).jobs}


@pytest.fixture(scope="module", params=["all", "own"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    site = Site(tmp_path_factory.mktemp(request.param))
    world = World(site, request.param)
    yield world
    world.server.start_no_more()
    eventually(lambda: site.kill_runs() or world.server.idle, "for the runs to end")
    world.server.stop()


def message_of(method: str, job_id: str = "", **fields: Any) -> Message:
    """Return a valid message for a call, about a job if it is about any."""
    message_class = GetMessageClass(SERVICE.methods_by_name[method].input_type)
    if method == "SubmitJob":
        return submission(request={"num_gpus": 1})
    if method == "SubmitSuite":
        return suite_submission(num_gpus=1)
    if method == "CompareJobs":
        given = {"baseline_job_id": job_id, "candidate_job_ids": [NOWHERE]}
    elif method in ("PlanComparison", "ListFlips"):
        given = {"baseline_job_id": job_id, "candidate_job_id": NOWHERE}
        given |= {"difference": 0.01} if method == "PlanComparison" else {}
    elif job_id and PLACES[method] in LIKE:
        given = {"suite_run_id": job_id}
    elif job_id:
        needed = {
            "ReadArtifact": {"name": "toy/20260101_000000_results.json"},
            "UpdateJob": {"labels": {"a": "1"}},
            "ReadSampleMedia": {"sample_id": "0"},
        }
        given = {"job_id": job_id, **needed.get(method, {})}
    else:
        given = {}
    return message_class(**(given | fields))


def rows() -> Iterator[Any]:
    for name, credential in CREDENTIALS.items():
        for whose, by_place in EXPECTED[credential.caller].items():
            for method, place in PLACES.items():
                if (like := LIKE.get(place, place)) in by_place:
                    yield pytest.param(credential, whose, method, by_place[like], id=f"{name}-{whose}-{method}")


def test_every_call_of_the_schema_has_a_place() -> None:
    assert set(PLACES) == {method.name for method in SERVICE.methods}


@pytest.mark.parametrize(("credential", "whose", "method", "expected"), list(rows()))
def test_every_call_is_answered_as_its_caller_and_the_job_say(
    world: World, credential: Credential, whose: str, method: str, expected: tuple[str, str]
) -> None:
    owner = {"own": credential.owner, "another's": "bob", "nobody's": ""}[whose]
    job_id = world.fresh(method, owner) if method in NAMING else ""
    message = message_of(method, job_id)
    if method == "CompareJobs":
        message.candidate_job_ids[:] = [world.others[owner]]  # type: ignore[attr-defined]
    elif method in ("PlanComparison", "ListFlips"):
        message.candidate_job_id = world.others[owner]  # type: ignore[attr-defined]
    outcome = credential.call(world.server, method, message)
    wanted = expected[("all", "own").index(world.visibility)]
    if wanted == OK:
        wanted = OTHERWISE_THAN_OK.get(method, OK)
    elif wanted == HIDDEN:
        wanted = hidden_by(method)
    assert outcome.text == wanted


WRONG: Final[Mapping[str, Mapping[str, Any]]] = {
    "WatchJob": {"after_revision": -1},
    "ReadLog": {"offset": -1},
    "ListArtifacts": {"page_size": -1},
    "ReadArtifact": {"offset": -1},
    "ListSamples": {"page_token": "x"},
    "ListMetrics": {"page_size": -1},
    "CancelJob": {"reason": "\0"},
    "UpdateJob": {"priority": 9999},
    "CompareJobs": {"alpha": 7.0},
    "PlanComparison": {"alpha": 7.0},
    "ListFlips": {"page_size": -1},
    "GetSuiteRun": {"view": 9},
    "WatchSuiteRun": {"after_revision": -1},
    "CancelSuiteRun": {"reason": "\0"},
}


NAMING: Final = [method for method, place in PLACES.items() if LIKE.get(place, place) in (READS, CHANGES)]


def hidden_by(method: str) -> str:
    """Return how a call answers that names what its caller may not know of."""
    return HIDDEN_RUN if PLACES[method] in LIKE else HIDDEN


HIDING = pytest.mark.parametrize("world", ["own"], indirect=True)


@HIDING
@pytest.mark.parametrize("fields", [{}, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize("method", NAMING)
@pytest.mark.parametrize("name", ["nobody", "viewer", "submitter"])
def test_a_hidden_job_is_answered_like_one_that_does_not_exist(
    world: World, name: str, method: str, fields: Mapping[str, Mapping[str, Any]]
) -> None:
    call = CREDENTIALS[name].call
    hidden = world.suite_runs["bob"].suite_run_id if PLACES[method] in LIKE else world.completed["bob"]
    for spelt in (hidden, hidden.upper()):
        of_hidden = call(world.server, method, message_of(method, spelt, **fields.get(method, {})))
        of_none = call(world.server, method, message_of(method, NOWHERE, **fields.get(method, {})))
        is_denied = name == "viewer" and PLACES[method] in (CHANGES, CHANGES_RUN)
        assert of_hidden.text == (DENIED if is_denied else hidden_by(method))
        assert of_hidden.without(hidden) == of_none.without(NOWHERE)


@HIDING
@pytest.mark.parametrize("method", ["PlanComparison", "ListFlips"])
def test_both_jobs_of_a_plan_and_of_flips_are_checked(world: World, method: str) -> None:
    own, hidden = world.completed["alice"], world.completed["bob"]
    for fields in ({"candidate_job_id": hidden}, {"baseline_job_id": hidden, "candidate_job_id": own}):
        outcome = CREDENTIALS["submitter"].call(world.server, method, message_of(method, own, **fields))
        assert (outcome.text, outcome.error[0]) == (HIDDEN, f"there is no job {hidden}")


@HIDING
def test_each_job_of_a_comparison_is_checked(world: World) -> None:
    own, hidden = world.completed["alice"], world.completed["bob"]
    for candidates in ([hidden], [world.narrow, hidden], [hidden, NOWHERE]):
        message = message_of("CompareJobs", own, candidate_job_ids=candidates)
        outcome = CREDENTIALS["submitter"].call(world.server, "CompareJobs", message)
        assert (outcome.text, outcome.error[0]) == (HIDDEN, f"there is no job {hidden}")


@HIDING
def test_a_hidden_baseline_of_a_suite_run_is_none(world: World) -> None:
    own, hidden = (world.suite_runs[owner].suite_run_id for owner in ("alice", "bob"))
    decided = GetSuiteRunRequest(suite_run_id=own, view=SUITE_RUN_VIEW_DECISION, baseline_suite_run_id=hidden)
    submitted = suite_submission(num_gpus=1)
    submitted.baseline_suite_run_id = hidden
    for method, message in (("GetSuiteRun", decided), ("SubmitSuite", submitted)):
        outcome = CREDENTIALS["submitter"].call(world.server, method, message)
        assert (outcome.text, outcome.error[0]) == (HIDDEN_RUN, f"there is no suite run {hidden}")


LISTINGS = [
    ("ListJobs", {"page_size": 1000}),
    ("ListJobs", {"page_size": 1000, "filter": {"statuses": [QUEUED, RUNNING]}}),
    ("WatchJobs", {}),
    ("WatchJobs", {"after_revision": 1}),
    ("GetHistory", {}),
    ("GetQueue", {}),
]


@pytest.mark.parametrize(("method", "fields"), LISTINGS, ids=str)
def test_a_listing_has_all_jobs_that_its_caller_sees_and_nothing_of_others(
    world: World, method: str, fields: dict[str, Any]
) -> None:
    AS_OPERATOR(world.server, "DeleteJob", pb.DeleteJobRequest(job_id=world.fresh("DeleteJob", "bob")))
    everything = b"".join(AS_OPERATOR(world.server, method, message_of(method, **fields)).messages)
    bobs = {job_id for job_id in world.jobs_of("bob") if job_id.encode() in everything}
    alices = {job_id for job_id in world.jobs_of("alice") if job_id.encode() in everything}
    assert bobs
    assert alices
    for name in ("viewer", "submitter"):
        answer = b"".join(CREDENTIALS[name].call(world.server, method, message_of(method, **fields)).messages)
        assert {job_id for job_id in alices if job_id.encode() in answer} == alices
        assert {job_id for job_id in bobs if job_id.encode() in answer} == (bobs if world.visibility == "all" else set())
        assert (b"bob" in answer) == (b"bob" in everything and world.visibility == "all")


def test_a_deleted_job_stays_hidden_for_whoever_resumes(world: World) -> None:
    before = world.server.api.head()
    gone = {owner: world.fresh("DeleteJob", owner) for owner in ("alice", "bob")}
    for job_id in gone.values():
        AS_OPERATOR(world.server, "DeleteJob", pb.DeleteJobRequest(job_id=job_id))
    request = pb.WatchJobsRequest(after_revision=before)
    outcome = CREDENTIALS["submitter"].call(world.server, "WatchJobs", request)
    named = {event.job.job_id for event in map(pb.JobEvent.FromString, outcome.messages)} & set(gone.values())
    assert named == (set(gone.values()) if world.visibility == "all" else {gone["alice"]})


def test_a_prefix_of_a_hidden_id_finds_nothing(world: World) -> None:
    hidden, own = world.completed["bob"], world.completed["alice"]
    for job_id, is_there in ((own, True), (hidden, world.visibility == "all")):
        request = pb.ListJobsRequest(filter=pb.JobFilter(job_id_prefix=job_id[:13]))
        listed = pb.ListJobsResponse.FromString(CREDENTIALS["submitter"].call(world.server, "ListJobs", request).messages[0])
        assert [job.job_id for job in listed.jobs] == ([job_id] if is_there else [])


def test_no_text_names_a_hidden_job(world: World) -> None:
    is_hidden = world.visibility == "own"
    expected = "kept for another job" if is_hidden else f"kept for job {world.wide}"
    alice = CREDENTIALS["submitter"].call
    assert expected in world.get(world.narrow, alice).wait_reason
    assert f"kept for job {world.wide}" in world.get(world.narrow).wait_reason, "an operator sees all"
    listed = alice(world.server, "ListJobs", pb.ListJobsRequest(filter=pb.JobFilter(job_id_prefix=world.narrow)))
    assert expected in pb.ListJobsResponse.FromString(listed.messages[0]).jobs[0].wait_reason
    watched = alice(world.server, "WatchJobs", pb.WatchJobsRequest(filter=pb.JobFilter(job_id_prefix=world.narrow)))
    assert expected in pb.JobEvent.FromString(watched.messages[0]).job.wait_reason
    watched = alice(world.server, "WatchJob", pb.WatchJobRequest(job_id=world.narrow))
    assert expected in pb.JobEvent.FromString(watched.messages[0]).job.wait_reason
    updated = alice(world.server, "UpdateJob", pb.UpdateJobRequest(job_id=world.narrow, labels={"b": "2"}))
    assert expected in pb.JobInfo.FromString(updated.messages[0]).wait_reason


def test_the_queue_counts_what_it_does_not_name(world: World) -> None:
    def queue(call: Call) -> GetQueueResponse:
        return GetQueueResponse.FromString(call(world.server, "GetQueue", message_of("GetQueue")).messages[0])

    whole, alices = queue(AS_OPERATOR), queue(CREDENTIALS["submitter"].call)
    for count in ("queued_count", "running_count", "free_gpu_count", "status_counts", "following_count"):
        assert getattr(alices, count) == getattr(whole, count)
    assert [gpu.job_id for gpu in whole.gpus] == [world.running, ""]
    assert [gpu.held for gpu in whole.gpus] == [gpu.held for gpu in alices.gpus] == [True, False]
    assert whole.free_gpu_count == 1
    if world.visibility == "own":
        assert [gpu.job_id for gpu in alices.gpus] == ["", ""]
        assert set(alices.queued_job_ids) == set(whole.queued_job_ids) & world.jobs_of("alice")
        assert list(alices.running_job_ids) == []
    else:
        assert alices == whole


def test_the_reason_of_a_quarantine_names_no_hidden_job(world: World) -> None:
    world.server.server._executor._gpu_guard.quarantine(["1"], f"job {world.running}: it stays", lambda: False)
    answers = {
        name: GetQueueResponse.FromString(CREDENTIALS[name].call(world.server, "GetQueue", message_of("GetQueue")).messages[0])
        for name in ("submitter", "operator")
    }
    assert answers["operator"].gpus[1].quarantine_reason == f"job {world.running}: it stays"
    hidden = "a job: it stays" if world.visibility == "own" else f"job {world.running}: it stays"
    assert answers["submitter"].gpus[1].quarantine_reason == hidden


# What holds for the jobs of one owner only.


def submitted(world: World, owner: str, **fields: Any) -> pb.JobInfo:
    request = {"num_gpus": 1, **fields.pop("request", {})}
    outcome = in_process(OWNERS[owner])(world.server, "SubmitJob", submission(request=request, **fields))
    assert outcome.text == OK
    return pb.JobInfo.FromString(outcome.messages[0])


def test_a_job_belongs_to_who_submitted_it_and_its_request_id_is_of_that_owner(world: World) -> None:
    jobs = {owner: submitted(world, owner, request_id="the-same", priority=index) for index, owner in enumerate(OWNERS)}
    assert {owner: job.owner for owner, job in jobs.items()} == {owner: owner for owner in OWNERS}
    assert len({job.job_id for job in jobs.values()}) == len(OWNERS)
    for index, owner in enumerate(OWNERS):
        assert submitted(world, owner, request_id="the-same", priority=index).job_id == jobs[owner].job_id


def test_a_supersede_key_cancels_only_jobs_of_its_owner(world: World) -> None:
    first = {owner: submitted(world, owner, supersede_key="k").job_id for owner in OWNERS}
    submitted(world, "alice", supersede_key="k")
    assert [world.get(first[owner]).error.reason for owner in OWNERS] == ["SUPERSEDED", "", ""]


def test_a_run_is_shared_only_with_its_owner(world: World) -> None:
    first = {owner: submitted(world, owner, cache=pb.CACHE_MODE_ALLOW) for owner in OWNERS}
    assert [job.cached_from for job in first.values()] == ["", "", ""]
    for owner, source in first.items():
        assert submitted(world, owner, cache=pb.CACHE_MODE_ALLOW).cached_from == source.job_id


def test_jobs_are_selected_by_their_owners_among_those_that_the_caller_sees(world: World) -> None:
    def owners(call: Call, *asked: str) -> set[str]:
        listed = call(world.server, "ListJobs", pb.ListJobsRequest(filter=pb.JobFilter(owners=asked), page_size=1000))
        return {job.owner for job in pb.ListJobsResponse.FromString(listed.messages[0]).jobs} & set(OWNERS)

    assert owners(AS_OPERATOR) == {"alice", "bob", ""}
    assert owners(AS_OPERATOR, "bob", "") == {"bob", ""}
    assert owners(AS_OPERATOR, "carol") == set()
    alice = CREDENTIALS["submitter"].call
    sees = {"alice", "bob", ""} if world.visibility == "all" else {"alice"}
    assert owners(alice) == sees
    assert owners(alice, "bob", "") == sees & {"bob", ""}
    assert owners(alice, "alice", "bob") == sees & {"alice", "bob"}
