"""When a certificate is valid. The ssl module has no public function for that, so the DER of RFC 5280 is read."""

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

_FIRST_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION_TAG: Final = 0xA0
_UTC_TIME_TAG: Final = 0x17


class Validity(NamedTuple):
    """From when to when a certificate is valid."""

    begins: datetime
    ends: datetime


def first_certificate(pem: bytes) -> bytes:
    """Return the first certificate as DER. Raises ValueError if there is none."""
    match = _FIRST_CERTIFICATE.search(pem)
    if match is None:
        raise ValueError("no certificate")
    return ssl.PEM_cert_to_DER_cert(match[0].decode("ascii"))


def validity_of(pem: bytes) -> Validity:
    """Return the validity of the first certificate. Raises ValueError for what is no certificate."""
    try:
        certificate = next(_elements(first_certificate(pem)))
        to_be_signed = next(_elements(certificate.content))
        fields = [field for field in _elements(to_be_signed.content) if field.tag != _VERSION_TAG]
        begins, ends = _elements(fields[3].content)  # after serial number, algorithm and issuer
    except (StopIteration, IndexError) as error:
        raise ValueError("no certificate") from error
    return Validity(_time(begins), _time(ends))


class _Element(NamedTuple):
    tag: int
    content: bytes


def _elements(der: bytes) -> Iterator[_Element]:
    """Yield the elements one after the other. Raises IndexError where the bytes end too early."""
    position = 0
    while position < len(der):
        tag, length, position = der[position], der[position + 1], position + 2
        if length & 0x80:  # the low bits count the bytes of the length that follow
            end = position + (length & 0x7F)
            length, position = int.from_bytes(der[position:end]), end
        if position + length > len(der):
            raise IndexError
        yield _Element(tag, der[position : position + length])
        position += length


def _time(element: _Element) -> datetime:
    """Read UTCTime, of 1950 to 2049, or GeneralizedTime."""
    digits = element.content.decode("ascii").removesuffix("Z")
    if element.tag == _UTC_TIME_TAG:
        digits = f"{'19' if digits >= '50' else '20'}{digits}"
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
