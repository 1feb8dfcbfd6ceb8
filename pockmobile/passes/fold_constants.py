"""Pass: computes at compile time what does not depend on any input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import add_constant, constant_value
from pockmobile.graph.rewrite import is_random, origin, replace_node
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replaces operators on constants by their results, e.g. a frozen BatchNorm's scale.

    Views of a constant stay as they are (delegates read a constant in any layout, so that a
    weight used forward and backward is stored once), and so do tensors of one value, which
    are smaller as an operator.

    Before: mul(rsqrt(add(constant, 1e-5)), constant)
    After:  constant
    """

    name = "fold-constants"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with constant operators folded."""
        if not _roots(graph):
            return graph
        graph = graph.copy()
        roots = _roots(graph)
        values = _values(roots)
        for node in roots:
            with graph.module.graph.inserting_before(node):
                constant = add_constant(graph.module, values[node].contiguous())
            constant.meta.update(origin(node))
            replace_node(node, constant)
        return finish(graph)


_VIEWS: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.slice_copy.Tensor,
    _aten.expand_copy.default,
)


def _roots(graph: JointGraph) -> list[fx.Node]:
    """Returns the nodes to replace: computed from constants, used by what is not."""
    constant = {node for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_function" or is_random(node):
            continue
        if all(parent in constant for parent in node.all_input_nodes):
            constant.add(node)
    return [
        node
        for node in graph.nodes
        if node in constant
        and isinstance(node.meta["val"], Tensor)
        and not _is_cheap(node)
        and any(user not in constant for user in node.users)
    ]


def _is_cheap(node: fx.Node) -> bool:
    """Whether the node is a constant or a fill, or a view of one."""
    while node.target in _VIEWS:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" or node.target is _aten.full.default


def _values(roots: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    """Computes the values of `roots`, and of the nodes that they are made from."""
    values: dict[fx.Node, Any] = {}
    pending = list(roots)
    while pending:
        node = pending[-1]
        missing = [parent for parent in node.all_input_nodes if parent not in values]
        pending.extend(missing)
        if not missing:
            values[pending.pop()] = _compute(node, values)
    return values


def _compute(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return constant_value(node)
    assert callable(node.target)
    args, kwargs = tree_map(
        lambda leaf: values[leaf] if isinstance(leaf, fx.Node) else leaf,
        (node.args, dict(node.kwargs)),
    )
    # Traced on the meta device, computed on the CPU; or there, where weights are not at hand.
    kwargs.pop("device", None)
    leaves = tree_leaves((args, kwargs))
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
        args, kwargs = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (args, kwargs))
    with torch.no_grad():
        return node.target(*args, **kwargs)
