"""Which jobs a JobFilter takes, and which suite runs are listed. A listing of jobs searches the database instead (see
`store/sqlite/filters.py`)."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.served_models import model_of
from evalrpc.jobs.suite_states import SUITE_LABEL
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo
from evalrpc.v1.suites_pb2 import ListSuiteRunsRequest, SuiteRun

MIN_PREFIX_LENGTH: Final = 4

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ANY_UUID: Final = "00000000-0000-0000-0000-000000000000"


def canonical_prefix(job_id_prefix: str) -> str:
    """Return the beginning of a UUID in lower case, as the ids of jobs are. Raises ValueError if no UUID begins so."""
    prefix = job_id_prefix.lower()
    if prefix and not (len(prefix) >= MIN_PREFIX_LENGTH and _UUID.fullmatch(prefix + _ANY_UUID[len(prefix) :])):
        raise ValueError(f"must be the first {MIN_PREFIX_LENGTH} to {len(_ANY_UUID)} characters of a UUID, such as 0b54e7a6-3a")
    return prefix


class JobMatcher:
    """A filter, made ready once to be held against many jobs. With `owner`, it takes only jobs of that owner. Raises ValueError
    for a filter that is not valid."""

    def __init__(self, job_filter: JobFilter, owner: str | None = None) -> None:
        self._owner = owner
        self._owners = frozenset(job_filter.owners)
        self._suite_run_ids = frozenset(map(str.lower, job_filter.suite_run_ids))
        self._statuses = frozenset(job_filter.statuses)
        self._models = frozenset(job_filter.models)
        self._tasks = frozenset(job_filter.tasks)
        self._harnesses = frozenset(job_filter.harnesses)
        self._labels = dict(job_filter.labels)
        self._requirements = parse_selector(job_filter.label_selector)
        self._job_id_prefix = canonical_prefix(job_filter.job_id_prefix)
        self._after_ns = job_filter.created_after.ToNanoseconds() if job_filter.HasField("created_after") else None
        self._before_ns = job_filter.created_before.ToNanoseconds() if job_filter.HasField("created_before") else None

    def matches(self, job: JobInfo) -> bool:
        """Return whether the filter takes a job."""
        return self.matched_before(job, job.status, job.labels)

    def matched_before(self, job: JobInfo, status: Status, labels: Mapping[str, str]) -> bool:
        """Return whether the filter took a job when it had another status or other labels; nothing else of a job that a filter
        looks at can change."""
        return (
            self.takes_owner(job.owner)
            and _any_of(self._suite_run_ids, (job.suite_run_id,))
            and _any_of(self._statuses, (status,))
            and _any_of(self._models, (model_of(job.request),))
            and _any_of(self._tasks, job.request.tasks)
            and _any_of(self._harnesses, (job.request.harness,))
            and all(key in labels and labels[key] == value for key, value in self._labels.items())
            and all(requirement.matches(labels) for requirement in self._requirements)
            and job.job_id.startswith(self._job_id_prefix)
            and self._was_in_time(job)
        )

    def takes_owner(self, owner: str) -> bool:
        """Return whether the filter takes any jobs of an owner."""
        return self._owner in (None, owner) and _any_of(self._owners, (owner,))

    def _was_in_time(self, job: JobInfo) -> bool:
        created_ns = job.created_at.ToNanoseconds()
        return (self._after_ns is None or created_ns >= self._after_ns) and (
            self._before_ns is None or created_ns < self._before_ns
        )


class SuiteRunMatcher:
    """The conditions of a ListSuiteRunsRequest but for the id, made ready to be held against many runs. Raises ValueError for a
    selector that is not valid."""

    def __init__(self, call: ListSuiteRunsRequest) -> None:
        self._suites = frozenset(call.suites)
        self._statuses = frozenset(call.statuses)
        self._requirements = parse_selector(call.label_selector)

    def matches(self, run: SuiteRun) -> bool:
        """Return whether a run is to be listed."""
        labels = {**run.submission.labels, SUITE_LABEL: run.suite.name}
        return (
            _any_of(self._suites, (run.suite.name,))
            and _any_of(self._statuses, (run.status,))
            and all(requirement.matches(labels) for requirement in self._requirements)
        )


def _any_of(wanted: frozenset[object], present: Iterable[object]) -> bool:
    return not wanted or not wanted.isdisjoint(present)
