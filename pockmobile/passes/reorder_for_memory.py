"""Pass: runs an operator early where that frees memory, and late where it takes some."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.order import made_late
from pockmobile.graph.rewrite import num_bytes
from pockmobile.passes.base import Pass, finish


@final
@dataclass(frozen=True)
class ReorderForMemory(Pass):
    """Moves up each operator whose inputs die with it and outweigh what it makes.

    So each parameter is updated as soon as its gradient exists, and the gradient is gone.
    What cheap operators make of inputs alone is made where it is first read: the inputs are
    there all the time. The most bytes alive at once, inputs and constants not counted, never
    become more.

    Before: g1 = ...; g2 = ...; w1' = w1 - lr * g1; w2' = w2 - lr * g2
    After:  g1 = ...; w1' = w1 - lr * g1; g2 = ...; w2' = w2 - lr * g2
    """

    name = "reorder-for-memory"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph in an order of a lower peak."""
        if _schedule(graph) == list(graph.nodes):
            return graph
        graph = graph.copy()
        *order, output = _schedule(graph)
        for node in order:
            output.prepend(node)
        return finish(graph)


@final
class _Memory:
    """Counts the bytes alive while nodes are placed one after another."""

    def __init__(self) -> None:
        self.placed: dict[fx.Node, None] = {}
        self.peak = 0
        self._num_alive = 0
        self._num_waiting: dict[fx.Node, int] = {}

    def place(self, node: fx.Node) -> None:
        """Runs `node` next: its result is made, then the inputs that it read last go."""
        num_freed = self._num_freed(node)
        self._num_alive += _num_bytes(node)
        self.peak = max(self.peak, self._num_alive)
        self._num_alive -= num_freed
        self.placed[node] = None
        self._num_waiting[node] = len(node.users)
        for parent in node.all_input_nodes:
            self._num_waiting[parent] -= 1

    def gains(self, node: fx.Node, limit: int) -> bool:
        """Whether `node` can run next within `limit` bytes and leaves no more than before."""
        if node.op != "call_function" or not self.placed.keys() >= set(node.all_input_nodes):
            return False
        fits = self._num_alive + _num_bytes(node) <= limit
        return fits and _num_bytes(node) <= self._num_freed(node)

    def _num_freed(self, node: fx.Node) -> int:
        read_last = [p for p in node.all_input_nodes if self._num_waiting[p] == 1]
        return sum(map(_num_bytes, read_last))


def _schedule(graph: JointGraph) -> list[fx.Node]:
    """Returns the nodes in the new order."""
    limit, late = _peak(graph.nodes), made_late(list(graph.nodes))
    order = late if _peak(late) <= limit else list(graph.nodes)
    position = {node: index for index, node in enumerate(order)}
    memory = _Memory()
    for node in order:
        if node in memory.placed:
            continue
        memory.place(node)
        pending = _users(node, position)
        while pending:
            user = pending.pop()
            if user not in memory.placed and memory.gains(user, limit):
                memory.place(user)
                pending.extend(_users(user, position))
    return list(memory.placed)


def _users(node: fx.Node, position: dict[fx.Node, int]) -> list[fx.Node]:
    """Returns the users of a node, the nearest last: it is tried first."""
    return sorted(node.users, key=position.__getitem__, reverse=True)


def _peak(nodes: Iterable[fx.Node]) -> int:
    memory = _Memory()
    for node in nodes:
        memory.place(node)
    return memory.peak


def _num_bytes(node: fx.Node) -> int:
    return num_bytes(node) if node.op == "call_function" else 0
