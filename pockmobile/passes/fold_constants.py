"""Pass: computes at compile time what does not depend on any input."""

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import add_constant, constant_value
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
        foldable = _foldable(graph)
        roots = [node for node in foldable if _is_root(node, foldable)]
        if not roots:
            return graph
        graph = graph.copy()
        names = {node.name for node in roots}
        values: dict[fx.Node, Any] = {}
        foldable_names = {node.name for node in foldable}
        for node in list(graph.nodes):
            if node.op == "get_attr":
                values[node] = constant_value(node)
            elif node.name in foldable_names:
                values[node] = _compute(node, values)
            if node.name in names:
                with graph.module.graph.inserting_before(node):
                    constant = add_constant(graph.module, values[node].contiguous())
                constant.meta |= {key: node.meta[key] for key in node.meta if key != "val"}
                node.replace_all_uses_with(constant)
        return finish(graph)


_VIEWS: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.slice_copy.Tensor,
    _aten.expand_copy.default,
)
_FILLS: Final = (_aten.full.default,)
_RANDOM: Final = ("rand", "dropout", "bernoulli", "multinomial")


def _foldable(graph: JointGraph) -> dict[fx.Node, None]:
    """Returns the operators whose arguments are all constants, in order."""
    constant: set[fx.Node] = {node for node in graph.nodes if node.op == "get_attr"}
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op != "call_function" or any(word in str(node.target) for word in _RANDOM):
            continue
        if all(parent in constant for parent in node.all_input_nodes):
            constant.add(node)
            found[node] = None
    return found


def _is_root(node: fx.Node, foldable: dict[fx.Node, None]) -> bool:
    """Whether the node's value is worth storing: it is used by something that stays."""
    if not isinstance(node.meta["val"], Tensor) or _is_cheap(node):
        return False
    return any(user not in foldable for user in node.users)


def _is_cheap(node: fx.Node) -> bool:
    """Whether the node is a fill, or a view of a constant or of a fill."""
    while node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node.op == "get_attr" or node.target in _FILLS


def _compute(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = tree_map(
        lambda leaf: values[leaf] if isinstance(leaf, fx.Node) else leaf,
        (node.args, node.kwargs),
    )
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]
