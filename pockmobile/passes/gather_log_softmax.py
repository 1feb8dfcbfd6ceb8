"""Pass: takes the logarithm of the labels' probabilities alone."""

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import call, origin, replace_node
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten

SMALLEST: Final = float(torch.finfo(torch.float32).tiny)


@final
@dataclass(frozen=True)
class GatherLogSoftmax(Pass):
    """Reads the loss from the softmax that the gradient needs anyway.

    A label whose probability is below the smallest normal float32 counts as that: the loss
    of one label is at most 87.3. The gradient does not change.

    Before: gather(_log_softmax(x), labels)
    After:  log(clamp(gather(_softmax(x), labels), min=1.2e-38))
    """

    name = "gather-log-softmax"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without a logarithm over all classes."""
        if not any(_matches(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in [node for node in graph.nodes if _matches(node)]:
            source, dim, index = node.args[:3]
            assert isinstance(source, fx.Node)
            # Beside the logits, so that it is the softmax of the gradient, computed once.
            with graph.module.graph.inserting_before(source):
                softmax = call(graph.module.graph, _aten._softmax.default, *source.args)
            with graph.module.graph.inserting_before(node):
                picked = call(graph.module.graph, _aten.gather.default, softmax, dim, index)
                # It belongs to the loss, and the softmax to the layer before.
                picked.meta.update(origin(node))
                bounded = call(graph.module.graph, _aten.clamp.default, picked, SMALLEST)
                replace_node(node, call(graph.module.graph, _aten.log.default, bounded))
        return finish(graph)


def _matches(node: fx.Node) -> bool:
    if node.target is not _aten.gather.default:
        return False
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and source.target is _aten._log_softmax.default
        and len(source.users) == 1
    )
