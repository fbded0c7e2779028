"""Who is at the other end of a connection, in the words of gRPC, in which the rest of the server knows it."""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final

_MAPPED: Final = "::ffff:"


def peer_of(transport: asyncio.BaseTransport) -> str:
    """Return its address."""
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[:2]
    if ":" not in host or host.startswith(_MAPPED):
        return f"ipv4:{host.removeprefix(_MAPPED)}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"


def auth_context_of(transport: asyncio.BaseTransport) -> Mapping[str, Iterable[bytes]]:
    """Return what TLS has verified of its certificate; nothing without one."""
    connection = transport.get_extra_info("ssl_object")
    der = connection.getpeercert(binary_form=True) if connection is not None else None
    if not der:
        return {}
    certificate: dict[str, Any] = connection.getpeercert()
    names = [(kind, name.encode()) for kind, name in certificate.get("subjectAltName", ())]
    common = [value.encode() for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    uris = [name for kind, name in names if kind == "URI" and name.startswith(b"spiffe://")]
    return {
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(der).encode()],
        "x509_common_name": common,
        "x509_subject_alternative_name": [name for _, name in names],
        "peer_spiffe_id": uris,
    }
