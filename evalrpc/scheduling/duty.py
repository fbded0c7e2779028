"""What a server does of what several do together: which runs are its own to see to, and whether it places jobs."""

import threading
from collections.abc import Callable, Container, Set

from evalrpc.jobs.defaults import executor_of
from evalrpc.scheduling.capacity import ALONE
from evalrpc.v1.jobs_pb2 import JOB_STATUS_RUNNING, JobInfo

_TRUST_SECONDS = 0.05


class Duty:
    """Everything, since this server is alone."""

    is_shared = False
    """Whether there may be other servers."""
    places_jobs = True
    """Whether this server chooses which job starts where."""

    def starts_on(self, node: str) -> bool:  # noqa: ARG002 - alone, it does on all
        """Return whether this server starts what is placed on a node."""
        return True

    def sees_to(self, job: JobInfo) -> bool:
        """Return whether the run of a RUNNING job is this server's to start, follow and end."""
        return self.starts_on(node_of(job))

    def is_lost(self, job: JobInfo) -> bool:  # noqa: ARG002 - alone, it sees to all
        """Return whether a RUNNING job was placed on a machine that an operator has given up, so that this server fails it."""
        return False

    def wait_until_trusted(self, stopping: threading.Event) -> bool:
        """Wait until no other server can have taken over. Return False if the server stops first."""
        return not stopping.is_set()


class SharedDuty(Duty):
    """The runs of one machine; and as the scheduler also those of all clusters, what is placed, and what is lost.

    `clusters`: the names of their nodes. `known_nodes` returns the names of all nodes, `is_trusted` whether no other server can
    have taken over.
    """

    is_shared = True

    def __init__(
        self, host: str, clusters: Container[str], known_nodes: Callable[[], Set[str]], is_trusted: Callable[[], bool]
    ) -> None:
        self.places_jobs = False
        self._host = host
        self._clusters = clusters
        self._known_nodes = known_nodes
        self._is_trusted = is_trusted

    def starts_on(self, node: str) -> bool:
        """See Duty.starts_on. Where a server that was alone has left runs, the first scheduler is on the same machine."""
        return node == self._host or (self.places_jobs and (node in self._clusters or node in ("", ALONE)))

    def sees_to(self, job: JobInfo) -> bool:
        """See Duty.sees_to. What a cluster had that is no longer configured is judged by what it has left."""
        is_of_cluster = bool(executor_of(job.request))
        return self.starts_on(node_of(job)) or (is_of_cluster and self.places_jobs)

    def is_lost(self, job: JobInfo) -> bool:
        """See Duty.is_lost."""
        is_running = job.status == JOB_STATUS_RUNNING
        return self.places_jobs and is_running and not self.sees_to(job) and node_of(job) not in self._known_nodes()

    def wait_until_trusted(self, stopping: threading.Event) -> bool:
        """See Duty.wait_until_trusted."""
        while not self._is_trusted():
            if stopping.wait(_TRUST_SECONDS):
                return False
        return not stopping.is_set()


def node_of(job: JobInfo) -> str:
    """Return the node that the latest attempt of a job was placed on; empty if that is not known."""
    return job.attempts[-1].node if job.attempts else ""
