"""What a commit reads and writes of a database, in whatever dialect of SQL that has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from evalrpc.jobs.holds import Holds
from evalrpc.store.base import ListedJob, StoredJob, SuiteSubmission
from evalrpc.store.rows import Rows
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun


class Requested(NamedTuple):
    """What a request_id has got: a job, or a suite run."""

    fingerprint: bytes
    given_id: str


class Tables(Protocol):
    """The tables of a database within one transaction, whose rows nobody else changes meanwhile. Any method may raise what the
    database raises: then the transaction is rolled back."""

    def write(self, rows: Rows) -> None:
        """Write what was gathered, once."""

    def stored_job(self, job_id: str) -> StoredJob | None:
        """Return a job, if there is one."""

    def requested_job(self, request_id: str, owner: str) -> Requested | None:
        """Return the job that a request_id has got from an owner."""

    def queued_with_key(self, supersede_key: str, owner: str) -> Sequence[str]:
        """Return the QUEUED jobs of an owner with a supersede key."""

    def find_completed(self, cache_key: bytes) -> pb.JobInfo | None:
        """Return a COMPLETED job with this key: the latest that ran, or else one that shares the run of a deleted one."""

    def find_live(self, cache_key: bytes) -> pb.JobInfo | None:
        """Return the latest job with this key that others may follow."""

    def followers(self, source_id: str) -> Iterable[ListedJob]:
        """Return the jobs that follow another one, in the order of service."""

    def relabel(self, sequence: int, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Replace the labels of a job, whose rows have been written."""

    def delete_job(self, sequence: int, job: pb.JobInfo) -> None:
        """Remove a job, blank its events, and forget its suite run if that has no other job."""

    def add_removals(self, job_id: str, paths: Iterable[str]) -> None:
        """Note folders that a deleted job has left."""

    def referred_to(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are ids of jobs, or of deleted ones whose run some job shares."""

    def insert_suite_run(self, submission: SuiteSubmission, sequence: int) -> None:
        """Add a suite run, without its jobs, the first of which will have this sequence."""

    def requested_suite_run(self, submission: SuiteSubmission) -> Requested | None:
        """Return the suite run that the same request_id has got from the same owner."""

    def suite_run(self, suite_run_id: str, revision: int) -> SuiteRun:
        """Return a suite run with the statuses of its jobs. Raises SuiteRunNotFoundError."""

    def compact(self, head: int, max_events: int, older_than_ns: int, max_bytes: int, end_bytes: int) -> int | None:
        """Drop the oldest events, a bounded number and size at a time. Return the revision of the last one; None: there are
        none to drop. `end_bytes` is the size of all events up to the newest."""

    def oldest_revision(self) -> int:
        """Return the revision after which the journal has every event."""

    def forget_removal(self, path: str) -> None:
        """Note that a pending removal was carried out."""

    def set_hold(self, name: str, *, is_held: bool) -> Holds:
        """Hold something back, or do so no more. Return all that is held back then."""

    def forget_uses(self, ended_before_ns: int) -> None:
        """Drop what attempts used that ended before a time of day."""

    def assign_run_uid(self, owner: str, uids: range) -> int:
        """Return the account of an owner, or else give it one. Raises RunFailedError if there is none left."""

    def write_unchanged(self) -> None:
        """Write a row as it is."""
