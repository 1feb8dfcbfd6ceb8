"""Which values of a graph are alive while each of its operators runs, and their bytes."""

import operator
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from torch import fx

from pockmobile.graph.joint import JointGraph
from pockmobile.graph.rewrite import num_bytes

Overwritten: TypeAlias = Callable[[fx.Node, Callable[[fx.Node], int]], fx.Node | None]
"""Returns in whose place an operator writes its result, given how many read a value."""
Reads: TypeAlias = Callable[[fx.Node], Iterable[fx.Node]]


@final
@dataclass(frozen=True)
class Liveness:
    """What is alive while the node at each place runs; inputs and constants are not counted.

    `owner` is, for each node, the one whose memory it lies in (itself, unless it is a view, or
    written over what it read);
    `first` and `last` are the places between which an owner's memory is needed, and `owned`
    the nodes that lie in it. What the graph returns is alive to the end.
    """

    nodes: tuple[fx.Node, ...]
    place: Mapping[fx.Node, int]
    owner: Mapping[fx.Node, fx.Node]
    owned: Mapping[fx.Node, tuple[fx.Node, ...]]
    first: Mapping[fx.Node, int]
    last: Mapping[fx.Node, int]
    alive: tuple[int, ...]

    @staticmethod
    def of(
        graph: JointGraph, views: Collection[Any], overwritten: Overwritten | None = None
    ) -> "Liveness":
        """Follows a graph in its order.

        Args:
            graph: the graph.
            views: the operators that move nothing.
            overwritten: returns the value in whose place an operator writes, as a target's
                does; by default there is none.
        """
        owner: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            is_view = node.target is operator.getitem or node.target in views
            source = node.all_input_nodes[0] if is_view else None
            if overwritten is not None and source is None and node.op == "call_function":
                source = overwritten(node, lambda value: len(value.users))
            owner[node] = node if source is None else owner[source]
        return Liveness.along(list(graph.nodes), owner)

    @staticmethod
    def along(
        nodes: Sequence[fx.Node],
        owner: Mapping[fx.Node, fx.Node],
        reads: Reads = lambda node: node.all_input_nodes,
        copied: Container[fx.Node] = (),
    ) -> "Liveness":
        """Follows nodes in an order; only these are run, whatever else their graph has.

        Args:
            nodes: in the order in which they run.
            owner: the node in whose memory each lies.
            reads: returns the values that a node needs.
            copied: inputs that are counted.
        """
        place = {node: index for index, node in enumerate(nodes)}
        owned: dict[fx.Node, tuple[fx.Node, ...]] = {}
        last: dict[fx.Node, int] = {}
        for node in nodes:
            owned[owner[node]] = (*owned.get(owner[node], ()), node)
            own = (owner[value] for value in (node, *reads(node)) if value in place)
            last.update(dict.fromkeys(own, place[node]))
        first = {own: place[own] for own in owned}
        alive = _alive(nodes, first, last, copied)
        return Liveness(tuple(nodes), place, owner, owned, first, last, alive)

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.alive, default=0)

    def at(self, place: int) -> list[fx.Node]:
        """Returns the operators whose memory is alive at a place, in order."""
        return [
            own
            for own in self.owned
            if own.op == "call_function" and self.first[own] <= place <= self.last[own]
        ]


def _alive(
    nodes: Sequence[fx.Node],
    first: Mapping[fx.Node, int],
    last: Mapping[fx.Node, int],
    copied: Container[fx.Node],
) -> tuple[int, ...]:
    changes = [0] * (len(nodes) + 1)
    for own, start in first.items():
        if own.op == "call_function" or own in copied:
            changes[start] += num_bytes(own)
            changes[last[own] + 1] -= num_bytes(own)
    sums, total = [], 0
    for change in changes[:-1]:
        total += change
        sums.append(total)
    return tuple(sums)
