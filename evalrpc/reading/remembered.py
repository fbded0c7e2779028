"""What is remembered of recent listings, so that their next pages take no more than a page."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Remembered(Generic[_T]):
    """The values of the latest keys, as long as they are not too large together. Thread-safe."""

    def __init__(self, max_size: int, size_of: Callable[[_T], int]) -> None:
        """`max_size` is that of all values but the latest, which is kept however large it is."""
        self._max_size = max_size
        self._size_of = size_of
        self._known: OrderedDict[object, _T] = OrderedDict()
        self._unused: set[object] = set()
        self._lock = threading.Lock()

    def get(self, key: object) -> _T | None:
        """Return the value of a key, if it is remembered."""
        with self._lock:
            self._unused.discard(key)
            return self._known.get(key)

    def take(self, key: object) -> _T | None:
        """Return the value of a key, if it is remembered, for this caller alone."""
        with self._lock:
            return self._known.pop(key, None)

    def put(self, key: object, value: _T) -> None:
        """Remember a value, and forget older ones that are too many by now."""
        with self._lock:
            self._known[key] = value
            self._known.move_to_end(key)
            self._unused.discard(key)
            while len(self._known) > 1 and sum(map(self._size_of, self._known.values())) > self._max_size:
                self._known.popitem(last=False)

    def forget_unused(self) -> None:
        """Forget what nobody has used since the last time: nobody reads its next page any more."""
        with self._lock:
            for key in self._unused:
                self._known.pop(key, None)
            self._unused = set(self._known)
