"""Pass: adds up the rows of one place before they are put into a table."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten

_FEW: Final = 4
"""Of n rows, n * n pairs are compared: so many times fewer than the table has numbers."""


@final
@dataclass(frozen=True)
class SumRows(Pass):
    """Writes additions of few rows so that the runtime can put them in place.

    It puts rows into a table in place, but adds rows only to a copy of the table. So rows that
    go to the same place are added up first (each then has their sum), then to what is there.
    `views` are the operators that move nothing: a table that they show twice stays as it is.

    Before: index_put(t, [i], v, add)
    After:  index_put(t, [i], index(t, [i]) + mm(eq(i[:, None], i[None, :]), v))
    """

    views: frozenset[Any] = field(default=frozenset(), repr=False)
    name = "sum-rows"
    numerics = Numerics.CLOSE

    def options(self) -> dict[str, Any]:
        """None: the views are the target's."""
        return {}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with such additions written out."""
        if not any(_matches(node, self.views) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            if _matches(node, self.views):
                with graph.module.graph.inserting_before(node):
                    replace_node(node, _written_out(graph.module.graph, node))
        return finish(graph)


def can_write_over(node: fx.Node, views: Collection[Any]) -> bool:
    """Whether nothing reads the memory of an operator's first argument after the operator."""
    value, reader = arguments(node)[0], node
    while value.op == "call_function":
        others = [user for user in value.users if user is not reader]
        # Views read it whenever they are read; everything else when it runs.
        if any(user.target in views or not user < node for user in others):
            return False
        if value.target not in views:
            return True
        reader, value = value, value.all_input_nodes[0]
    return False


def _matches(node: fx.Node, views: Collection[Any]) -> bool:
    if node.target is not _aten.index_put.default:
        return False
    table, indices, values, *accumulates = arguments(node)
    if len(indices) != 1 or accumulates != [True] or not can_write_over(node, views):
        return False
    (rows,) = indices
    num_rows = math.prod(shape_of(rows))
    has_row_each = shape_of(values) == [*shape_of(rows), *shape_of(table)[1:]]
    is_few = _FEW * num_rows * num_rows <= value_of(table).numel()
    return has_row_each and is_few and value_of(rows).dtype == torch.int64


def _written_out(graph: fx.Graph, put: fx.Node) -> fx.Node:
    table, (rows,), values, *_ = arguments(put)
    width, dtype = shape_of(table)[1:], value_of(values).dtype
    count = math.prod(shape_of(rows))
    flat = call(graph, _aten.view_copy.default, rows, [count])
    column = call(graph, _aten.view_copy.default, flat, [count, 1])
    is_same = call(graph, _aten.eq.Tensor, column, flat)
    same = call(graph, _aten._to_copy.default, is_same, dtype=dtype)
    wide = call(graph, _aten.view_copy.default, values, [count, math.prod(width)])
    summed = call(graph, _aten.mm.default, same, wide)
    added = call(graph, _aten.view_copy.default, summed, [count, *width])
    if not (table.target is _aten.full.default and arguments(table)[1] == 0):
        there = call(graph, _aten.index.Tensor, table, [flat])
        added = call(graph, _aten.add.Tensor, there, added)
    return call(graph, _aten.index_put.default, table, [flat], added)
