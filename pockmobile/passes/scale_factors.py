"""Pass: multiplies by a number where there is least to multiply."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten
_MUL: Final = _aten.mul.Tensor
_PRODUCTS: Final = (_aten.mm.default, _aten.bmm.default, _MUL)
_VIEWS: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    # As a decomposition writes them.
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.permute.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.clone.default,
)

_Factor: TypeAlias = tuple[fx.Node, int]
"""A product, and which of its two factors."""

_LEAST_SAVED: Final = 2**13
"""Elements that take longer to multiply than one more operator, with what it copies."""


@final
@dataclass(frozen=True)
class ScaleFactors(Pass):
    """Moves a number that is known at run time, as the learning rate is, to where it is least.

    The gradient of a large weight is a product of two factors, of which one may be far smaller
    than the weight. What else it is multiplied by may be one number, too; so is the count by
    which a target multiplies a mean, if it computes sums so.

    Before: mul(lr, view(mm(a, b))); mul(lr, sum(x))
    After:  view(mm(mul(lr, a), b)), if a has far fewer elements; mul(mul(lr, count), mean(x))
    """

    name = "scale-factors"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with numbers at the smallest factors."""
        if not any(_matched(node) or _scaled_sum(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            match, scaled = _matched(node), _scaled_sum(node)
            if match is not None:
                _move(graph.module.graph, node, match)
            elif scaled is not None:
                _average(graph.module.graph, node, *scaled)
        return finish(graph)


@final
@dataclass(frozen=True)
class _Match:
    """A number, the value that it multiplies, and the factors that it multiplies instead."""

    number: fx.Node
    value: fx.Node
    factors: list[_Factor]


def _matched(node: fx.Node) -> _Match | None:
    for number, value in _by_number(node):
        factors = _smallest(value)
        cost, whole = _cost(factors), value_of(value).numel()
        if cost == 1 < whole or (factors and whole - cost >= _LEAST_SAVED):
            return _Match(number, value, factors)
    return None


def _by_number(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields an input that holds one number, and what it multiplies."""
    if node.target is not _MUL or len(node.all_input_nodes) != 2:
        return
    first, second = arguments(node)
    for number, value in ((first, second), (second, first)):
        source = _seen(number)
        is_number = source.op == "placeholder" and value_of(source).numel() == 1
        if is_number and shape_of(value) == shape_of(node):
            yield source, value


def _seen(view: fx.Node) -> fx.Node:
    while view.target in _VIEWS:
        view = view.all_input_nodes[0]
    return view


def _scaled_sum(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns a number, and the sum that it multiplies, which nothing else reads."""
    for number, value in _by_number(node):
        total, is_only = value, len(value.users) == 1
        while total.target in _VIEWS:
            total = total.all_input_nodes[0]
            is_only = is_only and len(total.users) == 1
        is_sum = total.target is _aten.sum.dim_IntList and not total.kwargs
        if is_only and is_sum and value_of(arguments(total)[0]).is_floating_point():
            return number, total
    return None


def _cost(factors: list[_Factor]) -> int:
    """Returns how many elements there are in all."""
    return sum(value_of(arguments(product)[index]).numel() for product, index in factors)


def _smallest(value: fx.Node) -> list[_Factor]:
    """Returns factors that scale as `value` does, with the fewest elements; none if none do."""
    if len(value.users) != 1:
        return []
    if value.target in _VIEWS:
        return _smallest(arguments(value)[0])
    if value.target is _aten.cat.default:
        # A part that is joined twice is scaled once.
        parts = [_smallest(part) for part in value.all_input_nodes]
        return [factor for part in parts for factor in part] if all(parts) else []
    if value.target not in _PRODUCTS or len(value.all_input_nodes) != 2:
        return []
    sizes = [value_of(factor).numel() for factor in arguments(value)]
    index = sizes.index(min(sizes))
    own, deeper = [(value, index)], _smallest(arguments(value)[index])
    return deeper if 0 < _cost(deeper) < _cost(own) else own


def _move(graph: fx.Graph, scaled: fx.Node, match: _Match) -> None:
    for product, index in match.factors:
        factor = arguments(product)[index]
        with graph.inserting_before(product):
            ones = [1] * len(shape_of(factor))
            number = call(graph, _aten.view_copy.default, match.number, ones)
            product.update_arg(index, call(graph, _MUL, factor, number))
    replace_node(scaled, match.value)


def _average(graph: fx.Graph, scaled: fx.Node, number: fx.Node, total: fx.Node) -> None:
    x = arguments(total)[0]
    count = value_of(x).numel() // value_of(total).numel()
    with graph.inserting_before(total):
        mean = call(graph, _aten.mean.dim, *total.args)
    replace_node(total, mean)
    index = [_seen(factor) for factor in arguments(scaled)].index(number)
    with graph.inserting_before(scaled):
        row = call(graph, _aten.view_copy.default, number, [1])
        many = call(graph, _aten.full.default, [1], float(count), dtype=value_of(row).dtype)
        scaled.update_arg(index, call(graph, _MUL, row, many))
