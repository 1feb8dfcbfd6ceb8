"""Pass: computes logits by the runs by which their loss is computed."""

from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from pockmobile.graph import JointGraph, Role
from pockmobile.graph.columns import Columns, runs, unviewed
from pockmobile.graph.rewrite import call, replace_node, shape_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class CutHead(Pass):
    """Cuts the frozen head of a prediction as `ChunkLoss` cuts that of a training step.

    A program's methods share a frozen weight, if they have the same one: `num_columns` in
    runs of `width`. Else the file would hold the head twice.

    Before: mm(h, w)
    After:  cat([mm(h, w[:, :k]), mm(h, w[:, k:])], 1)
    """

    num_columns: int
    width: int
    name = "cut-head"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph whose outputs are computed by runs."""
        if not self._heads(graph):
            return graph
        graph = graph.copy()
        for head in self._heads(graph):
            with graph.module.graph.inserting_before(head.base):
                replace_node(head.base, self._joined(graph.module.graph, head))
        return finish(graph)

    def _heads(self, graph: JointGraph) -> list[Columns]:
        bases = dict.fromkeys(map(unviewed, graph.output_nodes(Role.OUTPUT).values()))
        sizes = [(base, (shape_of(base) or [0])[-1]) for base in bases]
        found = [Columns.of(base) for base, size in sizes if size == self.num_columns]
        return [head for head in found if head is not None and _is_frozen(head)]

    def _joined(self, graph: fx.Graph, head: Columns) -> fx.Node:
        parts = [
            head.select(graph, start, stop)
            for start, stop in runs(head.num_columns, self.width)
        ]
        whole = call(graph, _aten.cat.default, parts, 1)
        return call(graph, _aten.view_copy.default, whole, shape_of(head.base))


def _is_frozen(head: Columns) -> bool:
    """Whether the columns are made of a constant: cutting others saves nothing."""
    weights = [source for source in head.sources if len(shape_of(source)) == 2]
    return any(_root(weight).op == "get_attr" for weight in weights)


def _root(node: fx.Node) -> fx.Node:
    while node.target in (_aten.permute_copy.default, _aten.view_copy.default):
        node = node.all_input_nodes[0]
    return node
