"""Pass: adds rows to a table at the very end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class ScatterLast(Pass):
    """Moves the addition of a few rows behind the arithmetic on the whole table.

    The gradient of an embedding is zero but for the rows of the batch. Where an optimizer is
    linear in the gradient (plain SGD), only these rows are scaled, and they are added to the
    updated table itself: no table of zeros is made, filled and added.

    Before: p - lr * (g + index_put(zeros, rows, v, add))
    After:  index_put(p - lr * g, rows, -lr * v, add)
    """

    name = "scatter-last"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with additions of rows as late as they can be."""
        if not any(_matches(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        pending = [node for node in graph.nodes if _matches(node)]
        while pending:
            node = pending.pop(0)
            put = _matches(node)
            if put is None:
                continue
            with graph.module.graph.inserting_before(node):
                moved = _RULES[node.target](graph.module.graph, node, put)
            replace_node(node, moved)
            # It meets the next operators, and another one may move behind what it left.
            pending[:0] = [*moved.all_input_nodes, *moved.users]
        return finish(graph)


_Rule = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


def _matches(node: fx.Node) -> fx.Node | None:
    """Returns the addition of rows that can move behind `node`."""
    if node.target not in _RULES or node.kwargs:
        return None
    for put in node.all_input_nodes:
        if not _is_addition(put) or len(put.users) != 1:
            continue
        others = [arg for arg in arguments(node) if arg is not put]
        if len(others) == len(node.args) - 1 and shape_of(put) == shape_of(node):
            return put if _fits(node, put, others) else None
    return None


def _is_addition(node: fx.Node) -> bool:
    if node.target is not _aten.index_put.default:
        return False
    _, indices, _, *accumulates = arguments(node)
    return len(indices) == 1 and accumulates == [True]


def _fits(node: fx.Node, put: fx.Node, others: list[Any]) -> bool:
    if node.target is _aten.index_put.default:
        # The rows that are added first join those that are added last.
        return _is_addition(node) and arguments(node)[0] is put and _can_join(node, put)
    if node.target is _aten.mul.Tensor:
        (other,) = others
        return isinstance(other, fx.Node) and value_of(other).numel() == 1
    return all(isinstance(other, fx.Node) and other is not put for other in others)


def _can_join(node: fx.Node, put: fx.Node) -> bool:
    same = [value_of(arguments(part)[1][0]).dtype for part in (node, put)]
    return same[0] == same[1] and all(_has_row_each(part) for part in (node, put))


def _has_row_each(put: fx.Node) -> bool:
    """Whether the values are not broadcast."""
    table, (rows,), values, *_ = arguments(put)
    return shape_of(values) == [*shape_of(rows), *shape_of(table)[1:]]


def _is_zeros(table: fx.Node) -> bool:
    return table.target is _aten.full.default and arguments(table)[1] == 0


def _put(graph: fx.Graph, put: fx.Node, table: fx.Node, values: fx.Node) -> fx.Node:
    return call(graph, _aten.index_put.default, table, arguments(put)[1], values, True)


def _add(graph: fx.Graph, node: fx.Node, put: fx.Node) -> fx.Node:
    """Adds the other operand to the table; zeros make room for it."""
    (other,) = (arg for arg in arguments(node) if arg is not put)
    table, _, values = arguments(put)[:3]
    is_whole = shape_of(other) == shape_of(node)
    summed = other if _is_zeros(table) and is_whole else call(graph, node.target, table, other)
    return _put(graph, put, summed, values)


def _sub(graph: fx.Graph, node: fx.Node, put: fx.Node) -> fx.Node:
    first, second = arguments(node)
    table, _, values = arguments(put)[:3]
    if put is first:
        return _put(graph, put, call(graph, node.target, table, second), values)
    is_whole = shape_of(first) == shape_of(node)
    left = first if _is_zeros(table) and is_whole else call(graph, node.target, first, table)
    return _put(graph, put, left, call(graph, _aten.neg.default, values))


def _mul(graph: fx.Graph, node: fx.Node, put: fx.Node) -> fx.Node:
    table, _, values = arguments(put)[:3]
    (scale,) = (arg for arg in arguments(node) if arg is not put)
    scale = call(graph, _aten.view_copy.default, scale, [1])
    scaled = call(graph, node.target, values, scale)
    # Zeros stay zeros: a product would hide them, and be a table more.
    rest = table if _is_zeros(table) else call(graph, node.target, table, scale)
    return _put(graph, put, rest, scaled)


def _join(graph: fx.Graph, node: fx.Node, put: fx.Node) -> fx.Node:
    table = arguments(put)[0]
    width = shape_of(table)[1:]
    both = [
        (
            call(graph, _aten.view_copy.default, rows, [-1]),
            call(graph, _aten.view_copy.default, values, [-1, *width]),
        )
        for _, (rows,), values, *_ in (arguments(put), arguments(node))
    ]
    rows, values = (
        call(graph, _aten.cat.default, list(parts)) for parts in zip(*both, strict=True)
    )
    return call(graph, _aten.index_put.default, table, [rows], values, True)


_RULES: Final[Mapping[Any, _Rule]] = {
    _aten.add.Tensor: _add,
    _aten.sub.Tensor: _sub,
    _aten.mul.Tensor: _mul,
    _aten.index_put.default: _join,
}
