"""Puts what can be made at any time where it is needed."""

from collections.abc import Container, Sequence

from torch import fx

from pockmobile.graph.rewrite import is_cheap


def made_late(nodes: Sequence[fx.Node], movable: Container[fx.Node] = ()) -> list[fx.Node]:
    """Returns nodes with what is made of inputs alone right before the first that reads it.

    Args:
        nodes: in an order in which they can run.
        movable: inputs that are moved as well.
    """
    inside = set(nodes)
    waiting: dict[fx.Node, None] = {}
    placed: dict[fx.Node, None] = {}

    def place(node: fx.Node) -> None:
        stack = [node]
        while stack:
            missing = [p for p in stack[-1].all_input_nodes if p in waiting and p not in placed]
            stack.extend(missing)
            if not missing:
                placed[stack.pop()] = None

    for node in nodes:
        is_ready = all(
            parent in waiting or parent not in inside or parent.op != "call_function"
            for parent in node.all_input_nodes
        )
        if node in movable or (is_cheap(node) and is_ready):
            waiting[node] = None
        else:
            place(node)
    for node in waiting:
        if node not in placed:
            place(node)
    return list(placed)
