"""The part of protobuf's wire format that saves work: appending to a message that is already serialised.

See https://protobuf.dev/programming-guides/encoding/: fields may come in any order, and a message that is appended to another
is merged into it.
"""

import io
import os
from typing import Final

_LENGTH_DELIMITED: Final = 2


def message_field(number: int, serialized: bytes) -> bytes:
    """Return a serialised message as a field of another, to be appended to it."""
    return _field_head(number, len(serialized)) + serialized


def field_tag(number: int) -> bytes:
    """Return the bytes before the length of a text field or a message. Bytes without them are a message without that field;
    with them, they may have it."""
    return _varint(number << 3 | _LENGTH_DELIMITED)


def file_chunk(number: int, rest: bytes, descriptor: int, offset: int, size_bytes: int, flags: int = 0) -> tuple[bytes, int]:
    """Read from an open file into the bytes field `number` of a serialised message whose other fields are `rest`.

    Returns the message and how many bytes were read: fewer than `size_bytes` (at least 1) if the file ends earlier. The bytes
    are copied once, from the kernel into the message: BytesIO hands out its buffer without a copy. `flags` are those of preadv.
    Raises OSError.
    """
    before = rest + _field_head(number, size_bytes)
    buffer = io.BytesIO()
    buffer.write(before)
    buffer.seek(size_bytes - 1, os.SEEK_CUR)
    buffer.write(b"\0")
    with buffer.getbuffer() as view, view[len(before) :] as data:
        read_bytes = os.preadv(descriptor, [data], offset, flags)
    message = buffer.getvalue()
    if read_bytes < size_bytes:
        message = b"".join((rest, _field_head(number, read_bytes), message[len(before) : len(before) + read_bytes]))
    return message, read_bytes


def _field_head(number: int, size_bytes: int) -> bytes:
    return field_tag(number) + _varint(size_bytes)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
