"""How the servers that share a store say to each other what their machines have."""

import json
import os
import socket
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.config import Settings
from evalrpc.executors.base import Device, Node
from evalrpc.store.base import HostState

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_OUT_OF_REACH: Final = "the host is out of reach"


def host_name(settings: Settings) -> str:
    """Return by what name the runs of this machine are known to the servers of others."""
    return settings.host_name or socket.gethostname()


def machine_id() -> str:
    """Return what no other machine has: where processes of the same ids are the same, until it is started again."""
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - no file
    return f"{_BOOT_ID.read_text().strip()}:{namespace}"


def is_elsewhere(machine: str, description: str) -> bool:
    """Return whether a description is of another machine than the one with this id."""
    return json.loads(description or "{}").get("machine", "") not in ("", machine)


class NodeDescription:
    """The text by which a machine with this id is described. `own_node` returns what it has, `held` which devices its engines
    have, which no other server knows of; `is_draining` whether it is to get no more runs."""

    def __init__(
        self, machine: str, own_node: Callable[[], Node], held: Callable[[], Set[str]], is_draining: Callable[[], bool]
    ) -> None:
        self._machine = machine
        self._own_node = own_node
        self._held = held
        self._is_draining = is_draining
        self._known: tuple[object, str] = None, ""

    def __call__(self) -> str:
        """Return it: the same text until something changes. Thread-safe."""
        node, held, is_draining = self._own_node(), self._held(), self._is_draining()
        state = node, frozenset(held), is_draining
        if self._known[0] != state:
            devices = [
                (each.id, each.name, each.quarantine_reason or ("an engine holds it" if each.id in held else ""))
                for each in node.devices
            ]
            runs = (0, 0) if is_draining else (node.max_runs, node.max_runs_without_gpus)
            described = {"devices": devices, "max_runs": runs[0], "max_runs_without_gpus": runs[1], "machine": self._machine}
            self._known = state, json.dumps(described)
        return self._known[1]


class _Known(NamedTuple):
    hosts: Sequence[HostState]
    nodes: Sequence[Node]


class OtherNodes:
    """The nodes of the other machines, as their servers have described them."""

    def __init__(self, hosts: Callable[[], Sequence[HostState]], own_name: str) -> None:
        self._hosts = hosts
        self._own_name = own_name
        self._known = _Known((), ())

    def __call__(self) -> Sequence[Node]:
        """Return them: the same object until something changes. Thread-safe."""
        hosts, known = self._hosts(), self._known
        if known.hosts is not hosts:
            known = self._known = _Known(hosts, tuple(_node_of(host) for host in hosts if host.name != self._own_name))
        return known.nodes


def _node_of(host: HostState) -> Node:
    described = json.loads(host.description)
    reason = "" if host.is_reachable else _OUT_OF_REACH
    return Node(
        host.name,
        tuple(Device(id_, name, reason or problem) for id_, name, problem in described["devices"]),
        max_runs=described["max_runs"] if host.is_reachable else 0,
        max_runs_without_gpus=described["max_runs_without_gpus"] if host.is_reachable else 0,
        is_remote=not host.is_scheduler,
        is_out_of_reach=not host.is_reachable,
    )
