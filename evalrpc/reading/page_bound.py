"""How much a page of a listing holds."""

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

    def takes(self, message: Message | str) -> bool:
        """Return whether there is room for one more message, or name, and if so count it."""
        size_bytes = field_size(len(message.encode()) if isinstance(message, str) else message.ByteSize()) + self._bytes_beside
        if not self._is_empty and (not self._left_count or size_bytes > self._left_bytes):
            return False
        self._is_empty = False
        self._left_count -= 1
        self._left_bytes -= size_bytes
        return True
