"""Keeps the optimizer's arithmetic out of delegates that compute in float16."""

from collections.abc import Container
from typing import Final

from torch import fx

from pockmobile.graph import JointGraph, Role
from pockmobile.graph.rewrite import MODULE_KEY, OPTIMIZER
from pockmobile.targets.partition import Refuse

_REASON: Final = "the optimizer's arithmetic stays in float32"


def outside_optimizer(graph: JointGraph, refuse: Refuse) -> Refuse:
    """Returns what refuses the optimizer's operators, too, and all that comes after them.

    Passes may write them anew, so that they are known as what comes after the rate and the
    optimizer's state, beside those that are marked.
    """
    found: set[fx.Node] = set()
    for role in (Role.LEARNING_RATE, Role.OPTIMIZER):
        found.update(graph.input_nodes(role).values())
    for node in graph.nodes:
        is_marked = node.meta.get(MODULE_KEY) == OPTIMIZER
        if is_marked or not found.isdisjoint(node.all_input_nodes):
            found.add(node)

    def refuse_all(node: fx.Node, constants: Container[fx.Node]) -> str | None:
        return _REASON if node in found else refuse(node, constants)

    return refuse_all
