"""Pass: holds frozen tables in int8."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import add_constant, constant_value
from pockmobile.graph.rewrite import arguments, call, replace_node, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten

_LEAST_ELEMENTS: Final = 4096
"""Smaller tables are worth neither two operators more nor what is rounded."""


@final
@dataclass(frozen=True)
class RoundTables(Pass):
    """Picks rows of a large frozen table in int8; each row has a scale.

    `rounded` returns a table's numbers, int8 [rows, width], and its scales, float32 [rows].

    Before: embedding(table, rows)
    After:  mul(_to_copy(embedding(numbers, rows)), embedding(scales, rows))
    """

    rounded: Callable[[Tensor], tuple[Tensor, Tensor]] = field(repr=False)
    name = "round-tables"
    numerics = Numerics.CLOSE

    def options(self) -> dict[str, Any]:
        """How it is rounded is the target's."""
        return {}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph whose large frozen tables are int8."""
        if not any(_matches(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        tables: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        for node in [node for node in graph.nodes if _matches(node)]:
            table, rows = arguments(node)[:2]
            if table not in tables:
                tables[table] = self._round(graph, table)
            numbers, scales = tables[table]
            with graph.module.graph.inserting_before(node):
                replace_node(node, _picked(graph.module.graph, numbers, scales, rows))
        return finish(graph)

    def _round(self, graph: JointGraph, table: fx.Node) -> tuple[fx.Node, fx.Node]:
        numbers, scales = self.rounded(constant_value(table))
        with graph.module.graph.inserting_before(table.next):
            return (
                add_constant(graph.module, numbers),
                add_constant(graph.module, scales.reshape(-1, 1)),
            )


def _matches(node: fx.Node) -> bool:
    if node.target is not _aten.embedding.default:
        return False
    table = arguments(node)[0]
    value = value_of(table)
    is_frozen = table.op == "get_attr" and value.dtype == torch.float32
    return is_frozen and value.numel() >= _LEAST_ELEMENTS


def _picked(graph: fx.Graph, numbers: fx.Node, scales: fx.Node, rows: fx.Node) -> fx.Node:
    picked, scale = (
        call(graph, _aten.embedding.default, table, rows) for table in (numbers, scales)
    )
    exact = call(graph, _aten._to_copy.default, picked, dtype=torch.float32)
    return call(graph, _aten.mul.Tensor, exact, scale)
