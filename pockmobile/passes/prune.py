"""Pass: removes whatever no kept output needs."""

import operator
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import infer
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Prune(Pass):
    """Drops dead operators and narrows the masks of backward operators.

    With the gradients of frozen parameters gone, the backward pass ends by itself at the
    first layer that learns: nothing upstream of it has a use any more.

    Before: convolution_backward(..., mask=[True, True, True]) of which only [1] is used
    After:  convolution_backward(..., mask=[False, True, False])
    """

    name = "prune"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without dead operators."""
        pruned = graph.copy()
        finish(pruned)
        changed = pruned.num_operators != graph.num_operators
        for node in pruned.nodes:
            if node.target in _MASKED:
                changed |= _narrow_mask(node)
        finish(pruned)
        return pruned if changed else graph


_MASKED: Final = (_aten.convolution_backward.default, _aten.native_layer_norm_backward.default)


def _narrow_mask(node: fx.Node) -> bool:
    used = {int(user.args[1]) for user in node.users if user.target is operator.getitem}  # type: ignore
    mask: list[Any] = list(node.args[-1])  # type: ignore[arg-type]
    narrowed = [bool(wanted) and index in used for index, wanted in enumerate(mask)]
    if narrowed == mask:
        return False
    node.args = (*node.args[:-1], narrowed)
    node.meta["val"] = infer(node.target, node.args, node.kwargs)
    return True
