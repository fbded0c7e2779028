"""Protobuf's wire format, as far as it saves copying: a large bytes field is joined to a message that is already serialised.

See https://protobuf.dev/programming-guides/encoding/: fields may come in any order.
"""

from typing import Final

_LENGTH_DELIMITED: Final = 2


def bytes_field(number: int, data: bytes, rest: bytes) -> bytes:
    """Return a serialised message with this bytes field, and with the fields that `rest` has."""
    return b"".join((_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(data)), data, rest))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
