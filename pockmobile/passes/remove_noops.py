"""Pass: removes operators that change nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import call, replace_node, shape_of, value_of
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


def _simpler(node: fx.Node) -> _Build | None:
    rule = _RULES.get(node.target)
    return rule(node) if rule else None


def _first(node: fx.Node) -> fx.Node:
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


def _keep(node: fx.Node) -> _Build:
    return lambda _: node


def _view(node: fx.Node) -> _Build | None:
    source = _first(node)
    if shape_of(source) == shape_of(node):
        return _keep(source)
    if source.target is not _aten.view_copy.default:
        return None
    return lambda graph: call(graph, _aten.view_copy.default, _first(source), shape_of(node))


def _permute(node: fx.Node) -> _Build | None:
    source, dims = _first(node), list(node.args[1])  # type: ignore[arg-type]
    if dims == sorted(dims):
        return _keep(source)
    if source.target is not _aten.permute_copy.default:
        return None
    inner: list[int] = list(source.args[1])  # type: ignore[arg-type]
    joined = [inner[dim] for dim in dims]
    return lambda graph: call(graph, _aten.permute_copy.default, _first(source), joined)


def _same_shape(node: fx.Node) -> _Build | None:
    source = _first(node)
    return _keep(source) if shape_of(source) == shape_of(node) else None


def _same_type(node: fx.Node) -> _Build | None:
    source = _first(node)
    return _keep(source) if value_of(source).dtype == value_of(node).dtype else None


def _neutral(number: float, *, commutes: bool) -> Callable[[fx.Node], _Build | None]:
    def rule(node: fx.Node) -> _Build | None:
        left, right = node.args[:2]
        pairs = [(left, right), (right, left)] if commutes else [(left, right)]
        for kept, other in pairs:
            if isinstance(kept, fx.Node) and _is_fill(other, number) and _same_kind(kept, node):
                return _keep(kept)
        return None

    return rule


def _is_fill(value: Any, number: float) -> bool:
    if isinstance(value, fx.Node):
        return value.target is _aten.full.default and value.args[1] == number
    return isinstance(value, (int, float)) and value == number


def _same_kind(kept: fx.Node, node: fx.Node) -> bool:
    same_type = value_of(kept).dtype == value_of(node).dtype
    return same_type and shape_of(kept) == shape_of(node)


def _power_of_one(node: fx.Node) -> _Build | None:
    return _keep(_first(node)) if node.args[1] == 1 else None


def _pad(node: fx.Node) -> _Build | None:
    return None if any(node.args[1]) else _keep(_first(node))  # type: ignore[arg-type]


_RULES: Final[Mapping[Any, Callable[[fx.Node], _Build | None]]] = {
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
