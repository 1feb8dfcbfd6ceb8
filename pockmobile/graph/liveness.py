"""Which values of a graph are alive while each of its operators runs, and their bytes."""

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import fx

from pockmobile.graph.joint import JointGraph
from pockmobile.graph.rewrite import num_bytes


@final
@dataclass(frozen=True)
class Liveness:
    """What is alive while the node at each place runs; inputs and constants are not counted.

    `owner` is, for each node, the one whose memory it lies in (itself, unless it is a view);
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
    def of(graph: JointGraph, views: Collection[Any]) -> "Liveness":
        """Follows a graph in its order; `views` are the operators that move nothing."""
        nodes = tuple(graph.nodes)
        place = {node: index for index, node in enumerate(nodes)}
        owner: dict[fx.Node, fx.Node] = {}
        owned: dict[fx.Node, tuple[fx.Node, ...]] = {}
        last: dict[fx.Node, int] = {}
        for node in nodes:
            is_view = node.target is operator.getitem or node.target in views
            own = owner[node.all_input_nodes[0]] if is_view else node
            owner[node] = own
            owned[own] = (*owned.get(own, ()), node)
            uses = [place[user] for user in node.users]
            last[own] = max(last.get(own, place[node]), *uses, place[node])
        first = {own: place[own] for own in owned}
        return Liveness(nodes, place, owner, owned, first, last, _alive(nodes, first, last))

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
    nodes: tuple[fx.Node, ...], first: Mapping[fx.Node, int], last: Mapping[fx.Node, int]
) -> tuple[int, ...]:
    changes = [0] * (len(nodes) + 1)
    for own, start in first.items():
        if own.op == "call_function":
            changes[start] += num_bytes(own)
            changes[last[own] + 1] -= num_bytes(own)
    sums, total = [], 0
    for change in changes[:-1]:
        total += change
        sums.append(total)
    return tuple(sums)
