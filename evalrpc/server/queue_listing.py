"""What clients learn of the queue: what waits and runs, and which job or engine holds which GPU."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from evalrpc.engines.holdings import EngineHolding
from evalrpc.executors.base import Device, Node
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server.engine_listing import Engines
from evalrpc.store.base import Store
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.queue_pb2 import GetQueueResponse, Gpu, StatusCount

MAX_QUEUED_IDS: Final = 1000
MAX_OWNERS: Final = 1000
MAX_RUNNING_IDS: Final = 10_000

_NAMED_JOB: Final = re.compile(r"\bjob [0-9a-f-]{36}")


@dataclass
class QueueListing:
    """Answers GetQueue, anew only after a change. Used on the event loop."""

    store: Store
    queue_state: QueueState
    engines: Engines
    max_queued: int
    _described: object = None
    _answers: dict[str | None, bytes] = field(default_factory=dict)  # by owner, as of the state that was described

    def listing(self, owner: str | None) -> bytes:
        """Return the queue as it stands now, serialised. With `owner`, only jobs of that owner are named, and all count."""
        state = self.queue_state.state
        if self._described != state:
            self._described, self._answers = state, {}
        if owner not in self._answers:
            self._answers[owner] = self._describe(self.queue_state.nodes(), owner).SerializeToString()
        return self._answers[owner]

    def _describe(self, nodes: Sequence[Node], owner: str | None) -> GetQueueResponse:
        """Describe the queue. With `owner`, only jobs of that owner are named, and all count."""
        running = self.queue_state.running_jobs()
        named = [job.job_id for job in running if owner in (None, job.owner)]
        holders = {gpu: job for job in self.queue_state.own_running_jobs() for gpu in job.gpus}
        devices = [device for node in nodes for device in node.devices]
        engines = {device: each for each in self.engines.holdings() for device in each.devices}
        return GetQueueResponse(
            queued_count=self.queue_state.queued_count,
            running_count=len(running),
            following_count=self.queue_state.following_count,
            queued_job_ids=self.queue_state.queued_job_ids(MAX_QUEUED_IDS, owner),
            running_job_ids=named[:MAX_RUNNING_IDS],
            status_counts=self._status_counts(),
            gpus=[
                _gpu(node, device, holders.get(device.id), engines.get(device.id), owner)
                for node in nodes
                for device in node.devices
            ],
            free_gpu_count=sum(
                1
                for device in devices
                if device.id not in holders
                and device.id not in engines
                and not device.quarantine_reason
                and not device.is_cordoned
            ),
            max_running=self.queue_state.slots.total,
            max_running_served=self.queue_state.slots.served,
            max_queued=self.max_queued,
            owners=self.queue_state.owner_shares(MAX_OWNERS, owner),
            paused=self.queue_state.is_paused,
            nodes=self.queue_state.node_states(),
        )

    def _status_counts(self) -> list[StatusCount]:
        counts = self.store.status_counts()
        return [StatusCount(status=status, count=counts[status]) for status in sorted(counts) if counts[status]]


def _gpu(node: Node, device: Device, holder: JobInfo | None, engine: EngineHolding | None, owner: str | None) -> Gpu:
    """Return a GPU with the job or the engine that holds it. With `owner`, only jobs of that owner are named, and only engines
    that ListEngines has for them."""
    job_id = holder.job_id if holder is not None and owner in (None, holder.owner) else ""
    reason = device.quarantine_reason if owner is None else _NAMED_JOB.sub("a job", device.quarantine_reason)
    is_engine_named = engine is not None and (owner is None or engine.owner in ("", owner))
    return Gpu(
        id=device.id,
        name=device.name,
        job_id=job_id,
        quarantine_reason=reason,
        node=node.name,
        cordoned=device.is_cordoned,
        held=holder is not None or engine is not None,
        engine_id=engine.engine_id if engine is not None and is_engine_named else "",
    )
