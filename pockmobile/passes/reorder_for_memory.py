"""Pass: runs an operator early where that frees memory."""

from dataclasses import dataclass
from typing import final

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pockmobile.graph import JointGraph
from pockmobile.passes.base import Pass, finish


@final
@dataclass(frozen=True)
class ReorderForMemory(Pass):
    """Moves up each operator whose inputs die with it and outweigh what it makes.

    So each parameter is updated as soon as its gradient exists, and the gradient is gone.

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


def _schedule(graph: JointGraph) -> list[fx.Node]:
    """Returns the nodes in the new order."""
    placed: dict[fx.Node, None] = {}
    position = {node: index for index, node in enumerate(graph.nodes)}

    def place(node: fx.Node) -> None:
        pending = [node]
        while pending:
            current = pending.pop()
            if current in placed:
                continue
            placed[current] = None
            # The nearest use first: the stack takes the last.
            users = sorted(current.users, key=position.__getitem__, reverse=True)
            pending.extend(
                user for user in users if _is_ready(user, placed) and _shrinks(user, placed)
            )

    for node in graph.nodes:
        if node.op != "output":
            place(node)
    return [*placed, graph.module.graph.output_node()]


def _is_ready(node: fx.Node, placed: dict[fx.Node, None]) -> bool:
    return node.op == "call_function" and all(
        parent in placed for parent in node.all_input_nodes
    )


def _shrinks(node: fx.Node, placed: dict[fx.Node, None]) -> bool:
    """Whether memory after the node is no more than before it."""
    freed = 0
    for parent in node.all_input_nodes:
        last_use = all(user is node or user in placed for user in parent.users)
        if last_use and parent.op == "call_function":
            freed += _num_bytes(parent)
    return _num_bytes(node) <= freed


def _num_bytes(node: fx.Node) -> int:
    values = [leaf for leaf in tree_leaves(node.meta["val"]) if isinstance(leaf, Tensor)]
    return sum(value.numel() * value.element_size() for value in values)
