"""Pass: scales a trained weight again for the backward pass, instead of keeping it scaled."""

from dataclasses import dataclass, field
from typing import Any, final

from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.again import Again, values_again
from pockmobile.graph.joint import constant_nodes
from pockmobile.graph.liveness import Liveness, Overwritten
from pockmobile.passes.base import Pass, finish


@final
@dataclass(frozen=True)
class ScaleAgain(Pass):
    """Makes what cheap operators compute of weights alone a second time, late.

    What it reads stays in memory all the while, so keeping its result, too, keeps it twice.
    That is done where it is a noticeable part of the peak, and kept through that or nearly as
    much. `views` and `overwritten` are the target's.

    Before: v = mul(w, scale); y = convolution(x, v); ...; convolution_backward(dy, x, v)
    After:  v = mul(w, scale); y = convolution(x, v); ...; u = mul(w, scale)
            convolution_backward(dy, x, u)
    """

    views: frozenset[Any] = field(default=frozenset(), repr=False)
    overwritten: Overwritten | None = field(default=None, repr=False)
    name = "scale-again"

    def options(self) -> dict[str, Any]:
        """Both are the target's."""
        return {}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with a lower peak, if there are such values."""
        changed = graph.copy()
        live = Liveness.of(changed, self.views, self.overwritten)
        found = values_again(live, constant_nodes(changed))
        for item in found:
            _make_again(item)
        return finish(changed) if found else graph


def _make_again(item: Again) -> None:
    """Computes the value once more for those who read it late."""
    first, copies = item.late[0], dict[fx.Node, fx.Node]()
    for node in item.operators:
        with first.graph.inserting_before(first):
            copies[node] = first.graph.node_copy(node, lambda old: copies.get(old, old))
    for user in item.late:
        for node, copy in copies.items():
            user.replace_input_with(node, copy)
