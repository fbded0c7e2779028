"""What callers may do: one table of all calls, and the check that is made before each of them.

The role of a caller says which calls it may make, and its owner which jobs are its own. With the visibility `own`, the jobs of
others, and their suite runs, do not exist for it: a call that names one is answered like one that names none that there is,
after the same look-up, so that neither the answer nor its time tells them apart. Calls that list jobs, or describe the queue,
leave the others out themselves: see `visible_owner`.

A job keeps its owner, and ids are never used again, so what was checked stays true during the call.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from google.protobuf.message import Message

from evalrpc.errors import EvalrpcError, PermissionDeniedError
from evalrpc.jobs.ids import is_job_id
from evalrpc.server.call import Principal, Role
from evalrpc.store.base import Store, job_not_found, suite_run_not_found


class Right(NamedTuple):
    """What it takes to make a call."""

    role: Role
    """The least role."""
    job_fields: Sequence[str] = ()
    """The fields of the message that name jobs. Empty: the call concerns no job in particular."""
    changes_jobs: bool = False
    """Whether it changes these jobs, so that they must be the caller's own."""
    suite_run_fields: Sequence[str] = ()
    """The fields that name suite runs, whose jobs it concerns. One may be empty."""


_SUBMITS: Final = Right(Role.SUBMITTER)
_CHANGES_JOB: Final = Right(Role.SUBMITTER, ("job_id",), changes_jobs=True)
_READS_JOB: Final = Right(Role.VIEWER, ("job_id",))
_READS_TWO_JOBS: Final = Right(Role.VIEWER, ("baseline_job_id", "candidate_job_id"))
_READS_SUITE_RUN: Final = Right(Role.VIEWER, suite_run_fields=("suite_run_id",))
_LISTS_JOBS: Final = Right(Role.VIEWER)
_ABOUT_SERVER: Final = Right(Role.VIEWER)
_OPERATES: Final = Right(Role.OPERATOR)

RIGHTS: Final[Mapping[str, Right]] = {
    "SubmitJob": _SUBMITS,
    "CancelJob": _CHANGES_JOB,
    "UpdateJob": _CHANGES_JOB,
    "DeleteJob": _CHANGES_JOB,
    "GetJob": _READS_JOB,
    "WatchJob": _READS_JOB,
    "ReadLog": _READS_JOB,
    "ListArtifacts": _READS_JOB,
    "ReadArtifact": _READS_JOB,
    "ListSamples": _READS_JOB,
    "ReadSampleMedia": _READS_JOB,
    "ListMetrics": _READS_JOB,
    "CompareJobs": Right(Role.VIEWER, ("baseline_job_id", "candidate_job_ids")),
    "PlanComparison": _READS_TWO_JOBS,
    "ListFlips": _READS_TWO_JOBS,
    "SubmitSuite": Right(Role.SUBMITTER, suite_run_fields=("baseline_suite_run_id",)),
    "GetSuiteRun": Right(Role.VIEWER, suite_run_fields=("suite_run_id", "baseline_suite_run_id")),
    "WatchSuiteRun": _READS_SUITE_RUN,
    "CancelSuiteRun": _READS_SUITE_RUN._replace(role=Role.SUBMITTER, changes_jobs=True),
    "ListSuiteRuns": _LISTS_JOBS,
    "ListJobs": _LISTS_JOBS,
    "WatchJobs": _LISTS_JOBS,
    "GetHistory": _LISTS_JOBS,
    "GetQueue": _LISTS_JOBS,
    "ListEngines": _ABOUT_SERVER,
    "PauseQueue": _OPERATES,
    "ResumeQueue": _OPERATES,
    "CordonGpu": _OPERATES,
    "UncordonGpu": _OPERATES,
    "StopEngine": _OPERATES,
    "ListSuites": _ABOUT_SERVER,
    "ListHarnesses": _ABOUT_SERVER,
    "ListTasks": _ABOUT_SERVER,
    "ListModels": _ABOUT_SERVER,
    "GetServerInfo": _ABOUT_SERVER,
    "GetCaller": _ABOUT_SERVER,
}
"""What each call of the evaluation service takes. Operators may make all of them, with every job."""

_RANKS: Final = {role: rank for rank, role in enumerate((Role.VIEWER, Role.SUBMITTER, Role.OPERATOR))}


def visible_owner(principal: Principal, visibility: str) -> str | None:
    """Return the owner whose jobs alone a caller may know of; None where it may know of all."""
    return None if visibility == "all" or principal.role is Role.OPERATOR else principal.owner


class Guard:
    """Checks every call before it is made. `visibility` is the setting. Used on the event loop; blocking reads go to
    `readers`."""

    def __init__(self, store: Store, readers: Executor, visibility: str) -> None:
        self._store = store
        self._readers = readers
        self._visibility = visibility
        self._jobs = _Kind("job", store.known_jobs, job_not_found)
        self._suite_runs = _Kind("suite run", store.known_suite_runs, suite_run_not_found)

    async def check(self, method: str, message: Message, principal: Principal) -> None:
        """Check a call.

        Raises PermissionDeniedError where the role does not suffice, or the call changes a job of another owner;
        JobNotFoundError or SuiteRunNotFoundError where it names one that the caller may not know of.
        """
        right = RIGHTS[method]
        if _RANKS[principal.role] < _RANKS[right.role]:
            raise _role_too_low(method, principal, right.role)
        hides_others = visible_owner(principal, self._visibility) is not None
        if principal.role is Role.OPERATOR or not (right.changes_jobs or hides_others):
            return
        for kind, fields in ((self._jobs, right.job_fields), (self._suite_runs, right.suite_run_fields)):
            not_own = await self._not_own(kind, _named(message, fields), principal.owner)
            if not_own and hides_others:
                raise kind.not_found(not_own[0])
            if not_own and await self._known(kind, not_own):
                raise PermissionDeniedError(
                    f"{kind.noun} {not_own[0]} is not yours: only its owner and operators may change it"
                )

    async def _not_own(self, kind: "_Kind", ids: Sequence[str], owner: str) -> Sequence[str]:
        """Return those of the ids that are not this owner's, whether they are others' or nobody's. What is no id is left to the
        call, which names the field."""
        doubtful = [each for each in ids if not self._is_known_own(each, owner) and is_job_id(each)]
        if not doubtful:
            return ()
        own = await self._known(kind, doubtful, owner)
        return [each for each in doubtful if each not in own]

    def _is_known_own(self, job_id: str, owner: str) -> bool:
        """Return whether a job is this owner's, as far as that is in memory. Suite runs are not."""
        cached = self._store.cached_job(job_id)
        return cached is not None and cached.owner == owner

    async def _known(self, kind: "_Kind", ids: Sequence[str], owner: str | None = None) -> set[str]:
        return await asyncio.get_running_loop().run_in_executor(self._readers, kind.known, ids, owner)


class _Kind(NamedTuple):
    """What has owners, and can be named by an id."""

    noun: str
    known: Callable[[Sequence[str], str | None], set[str]]
    """Returns those of the ids that there are, or that an owner has. Blocks on the disk."""
    not_found: Callable[[str], EvalrpcError]


def _role_too_low(method: str, principal: Principal, role: Role) -> PermissionDeniedError:
    needed = f"an {role.value}" if role is Role.OPERATOR else f"a {role.value}"
    hint = "" if principal.owner else "; sign in as one: `evalrpc token create` makes a token, on the server's machine"
    return PermissionDeniedError(f"a {principal.role.value} may not call {method}: that takes {needed}{hint}")


def _named(message: Message, fields: Sequence[str]) -> Sequence[str]:
    """Return the ids in these fields of a message, as they are stored."""
    ids: list[str] = []
    for field in fields:
        named = getattr(message, field)
        ids += [named.lower()] if isinstance(named, str) else map(str.lower, named)
    return ids
