"""Where a server listens: HOST:PORT, with an IPv6 host in brackets, or unix:PATH."""

import ipaddress
import re
from pathlib import Path
from typing import Final, NamedTuple

LOOPBACK: Final = "127.0.0.1"
"""The interface of a port that is given alone."""

ADDRESS_FORMS: Final = "HOST:PORT, with a port from 0 to 65535, or unix:PATH"

_SOCKET: Final = "unix:"
_HOST_AND_PORT: Final = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+):([0-9]{1,5})")
_MAX_PATH_BYTES: Final = 107  # of a sockaddr_un


class PortAddress(NamedTuple):
    """A port of an interface, or of all of them. Port 0 is a free one."""

    host: str
    """An IPv6 address is in brackets."""
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


class SocketAddress(NamedTuple):
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"{_SOCKET}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return True


ListenAddress = PortAddress | SocketAddress


def parse_listen_address(text: str, folder: Path = Path()) -> ListenAddress:
    """Parse one address. A relative path of a socket starts at the folder. Raises ValueError."""
    if text.startswith(_SOCKET):
        return _socket_address(text.removeprefix(_SOCKET), folder)
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError
    return PortAddress(match[1], int(match[2]))


def _socket_address(path: str, folder: Path) -> SocketAddress:
    absolute = (folder / path).absolute()
    if not path.strip("/") or "\0" in path or len(bytes(absolute)) > _MAX_PATH_BYTES:
        raise ValueError
    return SocketAddress(absolute)
