"""What a server needs to listen.

Checked before gRPC tries: without file descriptors it crashes, it does not say why it can't listen at an address, and it takes
over the socket of a server that is alive.
"""

import errno
import os
import resource
import socket
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from evalrpc.config.addresses import ListenAddress, PortAddress, SocketAddress
from evalrpc.errors import ConfigurationError
from evalrpc.files.private import make_private_folder

_SOCKET_MODE: Final = 0o600
_RIGHTS_OF_OTHERS: Final = 0o077


def require_descriptors(count: int) -> None:
    """Raise ConfigurationError unless this many file descriptors are free."""
    with ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ConfigurationError(
                f"{error.strerror}: a server needs {count} free file descriptors to start; raise ulimit -n, now {limit}"
            ) from error


def most_connections() -> int | None:
    """Return how many connections leave enough file descriptors for all else; None: there may be any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(1, soft * 3 // 4)


def require_free(address: ListenAddress, setting_name: str = "listen") -> None:
    """Raise ConfigurationError, with the reason and the setting, if nobody can listen there. Makes the folder of a socket."""
    if isinstance(address, SocketAddress):
        _make_folder(address, setting_name)
    refusal = find_refusal(address)
    if refusal is None:
        return
    if refusal.errno == errno.EADDRINUSE:
        advice = "; port 0 takes a free one" if isinstance(address, PortAddress) else ""
        raise ConfigurationError(f"setting {setting_name}: {address} is not free: another program listens there{advice}")
    raise ConfigurationError(f"setting {setting_name}: can't listen on {address}: {refusal.strerror}")


def find_refusal(address: ListenAddress) -> OSError | None:
    """Return why nobody can listen there, or None. Changes nothing."""
    return _refusal_of_port(address) if isinstance(address, PortAddress) else _refusal_of_socket(address.path)


def make_private(address: ListenAddress) -> None:
    """Leave a socket, once it is bound, to this account. Raises OSError."""
    if isinstance(address, SocketAddress):
        address.path.chmod(_SOCKET_MODE)


def _refusal_of_port(address: PortAddress) -> OSError | None:
    """Return why the system refuses every address that the host has, or None if one is free."""
    host, port = address
    name = None if host == "[::]" else host.strip("[]")  # for [::], gRPC takes IPv4 on a machine without IPv6
    refusal: OSError | None = None
    try:
        addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError(errno.EINVAL, "this can't be the name of a host")
    for family, kind, protocol, _, found in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a past connection does not count
                probe.bind(found)
        except OSError as error:
            refusal = error
        else:
            return None
    return refusal


def _make_folder(address: SocketAddress, setting_name: str) -> None:
    try:
        make_private_folder(address.path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"setting {setting_name}: can't listen on {address}: can't make its folder: {error.strerror}"
        ) from error


def _refusal_of_socket(path: Path) -> OSError | None:
    try:
        folder = path.parent.stat()
        if folder.st_uid != os.geteuid() or stat.S_IMODE(folder.st_mode) & _RIGHTS_OF_OTHERS:
            return OSError(errno.EACCES, f"the folder {path.parent} must be this account's, with rights for nobody else (0700)")
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return OSError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return _refusal_of_old_socket(path)


def _refusal_of_old_socket(path: Path) -> OSError | None:
    """Return None if nobody listens at a socket: gRPC replaces it, as it does with one where somebody listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except BlockingIOError:  # somebody listens, with many who wait
        pass
    except OSError as error:
        return error
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
