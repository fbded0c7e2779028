"""The way of committed changes to those who follow them."""

import threading
from collections.abc import Sequence

from evalrpc.errors import ChangesMissedError
from evalrpc.store.base import Change, Listener


class ChangeLog:
    """A ChangeFeed that keeps no changes: one can only follow from where it is.

    The lock is held while listeners are notified, so nobody begins to follow in the middle of a commit.
    """

    def __init__(self, position: int = 0) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._position = position

    @property
    def position(self) -> int:
        """The number of the latest change that has been passed on."""
        return self._position

    def follow(self, after: int, listener: Listener) -> None:
        """See ChangeFeed.follow."""
        with self._lock:
            if after != self._position:
                raise ChangesMissedError(f"the changes from {after} to {self._position} are gone: read the state again")
            self._listeners.append(listener)

    def pass_on(self, changes: Sequence[Change], position: int | None = None) -> None:
        """Notify all listeners, in the order in which they came. `position`: the number of the latest change, where that is of
        no job."""
        with self._lock:
            for listener in self._listeners:
                listener(changes)
            self._position = changes[-1].number if position is None else position
