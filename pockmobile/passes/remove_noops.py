"""Pass: removes operators that change nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class RemoveNoops(Pass):
    """Removes views to the same shape, chains of views, and arithmetic with 0 or 1.

    Before: permute_copy(permute_copy(x, [1, 0]), [1, 0])
    After:  x
    """

    name = "remove-noops"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without them."""
        if not any(_simpler(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        while sum(_remove(graph, node) for node in list(graph.nodes)):
            pass
        return finish(graph)


def _remove(graph: JointGraph, node: fx.Node) -> bool:
    simpler = _simpler(node) if node.users else None
    if simpler is None:
        return False
    with graph.module.graph.inserting_before(node):
        replace_node(node, simpler(graph.module.graph))
    return True


_Build = Callable[[fx.Graph], fx.Node]
_Rule = Callable[[fx.Node], _Build | None]


def _simpler(node: fx.Node) -> _Build | None:
    rule = _RULES.get(node.target)
    return rule(node) if rule else None


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _keep(node: fx.Node) -> _Build:
    return lambda _: node


def _view(node: fx.Node) -> _Build | None:
    source = _source(node)
    if shape_of(source) == shape_of(node):
        return _keep(source)
    if source.target is not _aten.view_copy.default:
        return None
    return lambda graph: call(graph, _aten.view_copy.default, _source(source), shape_of(node))


def _permute(node: fx.Node) -> _Build | None:
    source, dims = _source(node), _order(node)
    if dims == sorted(dims):
        return _keep(source)
    if source.target is not _aten.permute_copy.default:
        return None
    inner = _order(source)
    joined = [inner[dim] for dim in dims]
    return lambda graph: call(graph, _aten.permute_copy.default, _source(source), joined)


def _order(permute: fx.Node) -> list[int]:
    dims = arguments(permute)[1]
    return [dim % len(dims) for dim in dims]


def _same_shape(node: fx.Node) -> _Build | None:
    source = _source(node)
    return _keep(source) if shape_of(source) == shape_of(node) else None


def _same_type(node: fx.Node) -> _Build | None:
    source = _source(node)
    return _keep(source) if value_of(source).dtype == value_of(node).dtype else None


def _neutral(number: float, *, commutes: bool) -> _Rule:
    """Returns the rule of an operator that changes nothing if one side is `number`."""

    def rule(node: fx.Node) -> _Build | None:
        left, right = arguments(node)
        pairs = [(left, right)]
        if commutes and not node.kwargs:  # With `alpha`, left and right differ.
            pairs.append((right, left))
        for kept, other in pairs:
            if isinstance(kept, fx.Node) and _is_fill(other, number) and _same_kind(kept, node):
                return _keep(kept)
        return None

    return rule


def _is_fill(value: Any, number: float) -> bool:
    if isinstance(value, fx.Node):
        return value.target is _aten.full.default and bool(arguments(value)[1] == number)
    return isinstance(value, (int, float)) and value == number


def _same_kind(kept: fx.Node, node: fx.Node) -> bool:
    same_type = value_of(kept).dtype == value_of(node).dtype
    return same_type and shape_of(kept) == shape_of(node)


def _power_of_one(node: fx.Node) -> _Build | None:
    return _keep(_source(node)) if arguments(node)[1] == 1 else None


def _pad(node: fx.Node) -> _Build | None:
    return None if any(arguments(node)[1]) else _keep(_source(node))


_RULES: Final[Mapping[Any, _Rule]] = {
    _aten.view_copy.default: _view,
    _aten.permute_copy.default: _permute,
    _aten.expand_copy.default: _same_shape,
    _aten.slice_copy.Tensor: _same_shape,
    _aten.constant_pad_nd.default: _pad,
    _aten._to_copy.default: _same_type,
    _aten.mul.Tensor: _neutral(1, commutes=True),
    _aten.div.Tensor: _neutral(1, commutes=False),
    _aten.add.Tensor: _neutral(0, commutes=True),
    _aten.sub.Tensor: _neutral(0, commutes=False),
    _aten.pow.Tensor_Scalar: _power_of_one,
}
