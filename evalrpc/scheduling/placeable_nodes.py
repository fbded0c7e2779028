"""What runs can be placed on: the nodes of the executors, with what operators hold back. Thread-safe."""

from collections.abc import Callable, Sequence

from evalrpc.executors.base import Node
from evalrpc.jobs.holds import NO_HOLDS, Holds


class PlaceableNodes:
    """The nodes as of now. `nodes` is `Executor.nodes`, whose answer is the same object until something changes."""

    def __init__(self, nodes: Callable[[], Sequence[Node]], holds: Callable[[], Holds]) -> None:
        self._nodes = nodes
        self._holds = holds
        self._known: tuple[Sequence[Node], Holds, Sequence[Node]] = (), NO_HOLDS, ()
        self._known_reach: tuple[Sequence[Node], frozenset[str]] = (), frozenset()

    def now(self) -> Sequence[Node]:
        """Return all of them, with what is cordoned. The same object until that changes."""
        nodes, holds = self._nodes(), self._holds()
        known = self._known
        if known[0] is not nodes or known[1] is not holds:
            known = self._known = nodes, holds, _cordoned(nodes, holds)
        return known[2]

    @property
    def is_paused(self) -> bool:
        """Whether an operator keeps queued jobs from starting."""
        return self._holds().is_paused

    @property
    def out_of_reach(self) -> frozenset[str]:
        """The names of those whose servers have not been heard of lately."""
        nodes, known = self.now(), self._known_reach
        if known[0] is not nodes:
            known = self._known_reach = nodes, frozenset(node.name for node in nodes if node.is_out_of_reach)
        return known[1]

    @property
    def were_out_of_reach(self) -> frozenset[str]:
        """What `out_of_reach` was when it was asked for the last time."""
        return self._known_reach[1]


def _cordoned(nodes: Sequence[Node], holds: Holds) -> Sequence[Node]:
    """Return the nodes with what is cordoned."""
    if not holds.cordoned:
        return nodes
    mark = lambda device: device._replace(is_cordoned=device.id in holds.cordoned)  # noqa: E731 - it is short
    return [node._replace(devices=tuple(map(mark, node.devices))) for node in nodes]
