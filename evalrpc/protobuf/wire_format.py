"""The part of protobuf's wire format that saves work: appending to a message that is already serialised.

See https://protobuf.dev/programming-guides/encoding/: fields may come in any order, and a message that is appended to another
is merged into it.
"""

import io
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}  # by wire type
_MAX_VARINT_BYTES: Final = 10


def message_field(number: int, serialized: bytes) -> bytes:
    """Return a serialised message as a field of another, to be appended to it."""
    return _field_head(number, len(serialized)) + serialized


def field_size(size_bytes: int) -> int:
    """Return the size of a message or a text of so many bytes as a field with a number below 16."""
    return 1 + len(_varint(size_bytes)) + size_bytes


def delimited(serialized: bytes) -> bytes:
    """Return a serialised message after its length, as one of many in a file."""
    return _varint(len(serialized)) + serialized


def read_delimited(file: BinaryIO, max_bytes: int) -> bytes | None:
    """Return the next of the serialised messages in a file; None at its end.

    Raises ValueError for one that is larger than `max_bytes`, or that is cut off.
    """
    size_bytes = _read_varint(file)
    if size_bytes is None:
        return None
    if size_bytes > max_bytes:
        raise ValueError(f"a message of {size_bytes} bytes")
    serialized = file.read(size_bytes)
    if len(serialized) < size_bytes:
        raise ValueError("the last message is cut off")
    return serialized


def field_tag(number: int) -> bytes:
    """Return the bytes before the length of a text field or a message. Bytes without them are a message without that field;
    with them, they may have it."""
    return _varint(number << 3 | _LENGTH_DELIMITED)


def text_field(serialized: bytes, number: int) -> str:
    """Return a text of a serialised message without decoding the rest: as decoders read it, the last one counts. Empty if there
    is none, or if the bytes are no message."""
    found = b""
    try:
        for key, begin, value in _fields(serialized):
            if key == number << 3 | _LENGTH_DELIMITED:
                found = serialized[begin : begin + value]
    except ValueError:
        return ""
    return found.decode(errors="replace")


def number_field(serialized: bytes, number: int) -> int:
    """Return a number that is not negative, of a serialised message without decoding the rest. 0 if there is none.

    Raises ValueError if the bytes are no message.
    """
    found = 0
    for key, _, value in _fields(serialized):
        if key == number << 3 | _VARINT:
            found = value
    return found


def _fields(serialized: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the key of each field, which has its number and wire type, where its bytes begin, and how many there are, or the
    number that it is. Raises ValueError."""
    place, end = 0, len(serialized)
    while place < end:
        key, place = _varint_at(serialized, place)
        if (wire_type := key & 7) in _FIXED_BYTES:
            place += _FIXED_BYTES[wire_type]
            continue
        if wire_type not in (_VARINT, _LENGTH_DELIMITED):
            raise ValueError(f"a field of type {wire_type}")
        value, place = _varint_at(serialized, place)
        yield key, place, value
        if wire_type == _LENGTH_DELIMITED:
            place += value


def _varint_at(serialized: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins there, and where it ends. Raises ValueError."""
    if place < len(serialized) and serialized[place] < 0x80:  # as nearly all do
        return serialized[place], place + 1
    number = shift = 0
    for byte in serialized[place : place + _MAX_VARINT_BYTES]:
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
    raise ValueError("no number of a message, or one that is cut off")


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


def _read_varint(file: BinaryIO) -> int | None:
    """Return the number at which a file is; None at its end. Raises ValueError."""
    encoded = b""
    while len(encoded) < _MAX_VARINT_BYTES and (byte := file.read(1)):
        encoded += byte
        if byte[0] < 0x80:
            break
    return _varint_at(encoded, 0)[0] if encoded else None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
