"""How much a page of a listing holds."""

from collections.abc import Iterable

from google.protobuf.message import Message

from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.wire_format import field_size


class PageBound:
    """Counts what goes onto a page: a number of messages, and of bytes. A page has at least one message. With each come up to
    `bytes_beside`."""

    def __init__(self, max_count: int, max_bytes: int = MAX_PAGE_BYTES, bytes_beside: int = 0) -> None:
        self._bytes_beside = bytes_beside
        self._left_count = max_count
        self._left_bytes = max_bytes
        self._is_empty = True

    def takes(self, message: Message | str, names: Iterable[str] = ()) -> bool:
        """Return whether there is room for one more message, or name, and for `names` elsewhere. If so, count it."""
        sizes = [message.ByteSize() if isinstance(message, Message) else _size(message), *map(_size, names)]
        size_bytes = sum(map(field_size, sizes)) + self._bytes_beside
        if not self._is_empty and (not self._left_count or size_bytes > self._left_bytes):
            return False
        self._is_empty = False
        self._left_count -= 1
        self._left_bytes -= size_bytes
        return True


def _size(name: str) -> int:
    return len(name.encode())
