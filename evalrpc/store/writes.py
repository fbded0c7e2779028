"""The writes of a store, each an operation of a transaction that its writer thread carries out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.store.base import ANY, UNBOUNDED, Deleted, Expected, Submission, SuiteSubmission
from evalrpc.store.transaction import Transaction
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun

Operation = Callable[[Transaction], Any]


class StoreWrites(ABC):
    """What every database is written in the same way."""

    @abstractmethod
    def _write(self, operation: Operation, submissions: Sequence[Submission] = ()) -> Future[Any]:
        """Have the writer thread carry out an operation, which adds these jobs."""

    def submit(self, submission: Submission) -> Future[pb.JobInfo]:
        """Add a job, or return the one that the same request_id got."""
        return self._write(lambda transaction: transaction.submit(submission), (submission,))

    def submit_suite(self, submission: SuiteSubmission) -> Future[SuiteRun]:
        """Add a suite run and its jobs, or return the run that the same request_id got."""
        return self._write(lambda transaction: transaction.submit_suite(submission), submission.jobs)

    def update(self, job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected = ANY) -> Future[pb.JobInfo]:
        """Change a job on the writer thread."""
        return self._write(lambda transaction: transaction.update(job_id, change, expect))

    def delete(self, job_id: str) -> Future[Deleted]:
        """Remove a terminal job."""
        return self._write(lambda transaction: transaction.delete(job_id))

    def compact(self, max_events: int, older_than: Timestamp, max_bytes: int = UNBOUNDED) -> Future[int]:
        """Drop old journal events, a bounded number and size at a time, so that no write waits long."""
        return self._write(lambda transaction: transaction.compact(max_events, older_than.ToNanoseconds(), max_bytes))

    def forget_removal(self, path: str) -> Future[None]:
        """Note that a folder was removed."""
        return self._write(lambda transaction: transaction.forget_removal(path))

    def assign_run_uid(self, owner: str, uids: range) -> Future[int]:
        """Return the account of an owner's runs, or give it one."""
        return self._write(lambda transaction: transaction.assign_run_uid(owner, uids))

    def set_hold(self, name: str, *, is_held: bool) -> Future[None]:
        """Hold something back, or do so no more."""
        return self._write(lambda transaction: transaction.set_hold(name, is_held=is_held))

    def forget_uses(self, ended_before_ns: int) -> Future[None]:
        """Drop what attempts used that ended before a time of day."""
        return self._write(lambda transaction: transaction.forget_uses(ended_before_ns))

    def check_writable(self) -> Future[None]:
        """Commit something as it is."""
        return self._write(lambda transaction: transaction.write_unchanged())
