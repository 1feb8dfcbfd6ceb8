"""Pass: takes a softmax before its rows are put into more dimensions."""

from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class FlattenSoftmax(Pass):
    """Moves views behind a softmax over the last dimension, and behind what picks from it.

    A delegate copies what it views: a head's product and its gradient have two dimensions,
    the loss has a row for each token, and the copies are of the size of all logits.

    Before: gather(_softmax(view_copy(x, [8, 32, 100]), -1), -1, labels)
    After:  view_copy(gather(_softmax(x, -1), -1, view_copy(labels, [256, 1])), [8, 32, 1])
    """

    name = "flatten-softmax"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with such views as late as they can be."""
        if not any(_matches(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        # In order: a view that has moved behind a softmax meets the gather next.
        for node in graph.nodes:
            if _matches(node):
                with graph.module.graph.inserting_before(node):
                    replace_node(node, _moved(graph.module.graph, node))
        return finish(graph)


def _matches(node: fx.Node) -> bool:
    if node.target not in (_aten._softmax.default, _aten.gather.default) or node.kwargs:
        return False
    view, dim = arguments(node)[:2]
    if view.target is not _aten.view_copy.default:
        return False
    source, shape = arguments(view)[0], shape_of(view)
    if dim not in (-1, len(shape) - 1) or len(shape_of(source)) != 2:
        return False
    if node.target is _aten.gather.default and shape_of(arguments(node)[2])[:-1] != shape[:-1]:
        return False
    return shape_of(source)[-1] == shape[-1]


def _moved(graph: fx.Graph, node: fx.Node) -> fx.Node:
    view, _, *rest = arguments(node)
    (source,) = view.all_input_nodes
    if node.target is _aten.gather.default:
        index = shape_of(rest[0])[-1]
        rest[0] = call(graph, _aten.view_copy.default, rest[0], [-1, index])
    moved = call(graph, node.target, source, -1, *rest)
    return call(graph, _aten.view_copy.default, moved, shape_of(node))
