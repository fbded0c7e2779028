"""What many threads hand to one that takes it in batches: the larger, the less each item costs."""

import threading
from typing import Final, Generic, TypeVar

from evalrpc.clock import Clock

_Item = TypeVar("_Item")

_FEW: Final = 4
_LINGER_FACTOR: Final = 2.0
_MAX_LINGER_SECONDS: Final = 0.01


class CommitQueue(Generic[_Item]):
    """Items on their way to the thread that takes them, in order.

    A batch is taken at once, unless the last one had more than a few items. Then as many are waited for, since those who put
    them are likely to put more when they are answered; at most for twice as long as the last batch took, and for 10 ms.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._items: list[_Item] = []
        self._wanted = 1
        self._enough = threading.Event()  # set as long as there are so many, or no more will come
        self._is_closed = False
        self._last_size = 0
        self._last_taken_seconds = 0.0

    def put(self, item: _Item) -> bool:
        """Add an item. Returns False, without it, once closed."""
        with self._lock:
            if self._is_closed:
                return False
            self._items.append(item)
            if len(self._items) == self._wanted:
                self._enough.set()
            return True

    def take(self) -> list[_Item]:
        """Block until there is something, and return all there is; nothing, once closed and empty. For one thread."""
        linger_seconds = min(_LINGER_FACTOR * (self._clock.monotonic() - self._last_taken_seconds), _MAX_LINGER_SECONDS)
        self._enough.wait()
        if self._last_size > _FEW:
            self._want(self._last_size)
            self._enough.wait(linger_seconds)
        with self._lock:
            items, self._items = self._items, []
        self._want(1)
        self._last_size = len(items)
        self._last_taken_seconds = self._clock.monotonic()
        return items

    def close(self) -> None:
        """Take no more. What is there already can still be taken."""
        with self._lock:
            self._is_closed = True
            self._enough.set()

    def _want(self, count: int) -> None:
        with self._lock:
            self._wanted = count
            if len(self._items) < count and not self._is_closed:
                self._enough.clear()
            else:
                self._enough.set()
