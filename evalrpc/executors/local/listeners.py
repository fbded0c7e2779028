"""Who listens at a TCP port of this machine, by what the kernel says in /proc."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.executors.local.processes import GONE_OR_FOREIGN

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING: Final = "0A"
_ANSWERING: Final = frozenset({"0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F"})
"""The addresses of sockets that get what is sent to 127.0.0.1, as the kernel writes them: that one, any, and both in IPv6."""


class Sockets(NamedTuple):
    """The sockets that processes have open, by inode."""

    inodes: frozenset[int]
    is_complete: bool
    """Whether all of them could be seen."""


def listening_sockets(port: int) -> frozenset[int]:
    """Return the sockets, by inode, that listen at a port of 127.0.0.1. Raises OSError for a shortage."""
    found = set()
    for table in _TABLES:
        with suppress(FileNotFoundError):  # without IPv6 there is but one
            found |= {int(row[9]) for row in map(str.split, table.read_text().splitlines()[1:]) if _listens(row, port)}
    return frozenset(found)


def sockets_of(pids: Iterable[int]) -> Sockets:
    """Return the sockets of processes. Raises OSError for a shortage."""
    inodes, is_complete = set(), True
    for pid in pids:
        try:
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        except PermissionError:
            is_complete = False
            continue
        except (FileNotFoundError, ProcessLookupError):
            continue
        for descriptor in descriptors:
            with suppress(*GONE_OR_FOREIGN):
                kind, _, inode = str(descriptor.readlink()).partition(":[")
                if kind == "socket":
                    inodes.add(int(inode.rstrip("]")))
    return Sockets(frozenset(inodes), is_complete)


def _listens(row: list[str], port: int) -> bool:
    address, _, number = row[1].partition(":")
    return row[3] == _LISTENING and int(number, 16) == port and address in _ANSWERING
