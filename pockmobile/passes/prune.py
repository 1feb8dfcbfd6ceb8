"""Pass: removes whatever no kept output needs."""

from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, infer, result_index
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Prune(Pass):
    """Drops dead operators and narrows the masks of convolutions' backward operators.

    With the gradients of frozen parameters gone, the backward pass ends by itself at the
    first layer that learns: nothing upstream of it has a use any more.

    Before: convolution_backward(..., mask=[True, True, True]) of which only [1] is used
    After:  convolution_backward(..., mask=[False, True, False])
    """

    name = "prune"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without dead operators."""
        pruned = finish(graph.copy())
        num_narrowed = sum(_narrow_mask(node) for node in pruned.nodes)
        pruned.module.recompile()
        is_smaller = len(pruned.module.graph.nodes) < len(graph.module.graph.nodes)
        return pruned if is_smaller or num_narrowed else graph


def _narrow_mask(node: fx.Node) -> bool:
    """Asks a backward operator for no more than is used; returns whether it asked for more."""
    if node.target is not _aten.convolution_backward.default:
        return False
    *rest, mask = arguments(node)
    used = {result_index(user) for user in node.users}
    narrowed = [wanted and index in used for index, wanted in enumerate(mask)]
    if narrowed == mask:
        return False
    node.args = (*rest, narrowed)
    node.meta["val"] = infer(node.target, node.args, node.kwargs)
    return True
