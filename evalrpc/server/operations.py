"""What operators do by hand: they pause the queue, and keep GPUs from being assigned. The store keeps it over restarts."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from evalrpc.errors import FieldViolation
from evalrpc.jobs import holds
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server import validation
from evalrpc.store.base import Store


@dataclass
class Operations:
    """Changes what is held back. `choose_anew` has the scheduler look again."""

    store: Store
    queue_state: QueueState
    choose_anew: Callable[[], None]

    async def set_paused(self, *, is_paused: bool) -> None:
        """Pause the queue, or resume it. Idempotent. Raises StoreUnavailableError."""
        await self._set(holds.QUEUE, is_held=is_paused)

    async def cordon(self, gpu_id: str) -> None:
        """Assign a GPU no more. Idempotent. Raises InvalidRequestError if there is none, and StoreUnavailableError."""
        validation.require(_unknown_gpu(gpu_id, self._gpu_ids()))
        await self._set(holds.gpu_hold(gpu_id), is_held=True)

    async def uncordon(self, gpu_id: str) -> None:
        """Assign a GPU again. Idempotent. Raises InvalidRequestError if there is none, and StoreUnavailableError."""
        validation.require(_unknown_gpu(gpu_id, [*self._gpu_ids(), *self.store.holds.cordoned]))
        await self._set(holds.gpu_hold(gpu_id), is_held=False)

    async def _set(self, name: str, *, is_held: bool) -> None:
        write = self.store.set_hold(name, is_held=is_held)
        write.add_done_callback(lambda _: self.choose_anew())  # also if the caller has left by then
        await asyncio.wrap_future(write)

    def _gpu_ids(self) -> list[str]:
        return [device.id for node in self.queue_state.nodes() for device in node.devices]


def _unknown_gpu(gpu_id: str, known: list[str]) -> list[FieldViolation]:
    if gpu_id in known:
        return []
    return [FieldViolation("gpu_id", f"this server has no GPU {gpu_id[:80]!r}; it has: {', '.join(known) or 'none'}")]
