"""What a transport knows of a caller before anybody has checked it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from evalrpc.errors import UnauthenticatedError

_HEADER: Final = "authorization"
_SCHEME: Final = "bearer"


class Presented(Protocol):
    """What a caller presents. The context of a gRPC call is one; other transports have an object with these methods."""

    def invocation_metadata(self) -> Iterable[tuple[str, Any]] | None:
        """Return the headers, with names in small letters."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what was verified of a client's certificate, as gRPC names it."""

    def peer(self) -> str:
        """Return the address of the other end, as gRPC writes it."""


def authorization(presented: Presented) -> str | None:
    """Return the header `authorization`; None without it. Raises UnauthenticatedError for several."""
    found: str | None = None
    for name, value in presented.invocation_metadata() or ():
        if name == _HEADER:
            if found is not None:
                raise UnauthenticatedError("the call has several `authorization` headers")
            found = value
    return found


def header_of(presented: Presented, name: str) -> str:
    """Return the first header of a name in lower case, if it is text; empty without one."""
    value: object = next((value for key, value in presented.invocation_metadata() or () if key == name), "")
    return value if isinstance(value, str) else ""


def bearer_token(header: str) -> str:
    """Return the token in a header `Bearer TOKEN`. Raises UnauthenticatedError for a header of another form."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != _SCHEME or not token:
        raise UnauthenticatedError("the header `authorization` must be `Bearer TOKEN`")
    return token


def source_of(presented: Presented) -> str:
    """Return where a call comes from, for people, without the port."""
    kind, _, address = presented.peer().partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "") or kind
