"""In whose place an operator of a graph writes its result, before it is lowered.

Of a delegate's own operators `workspace` says so exactly; this is what the cost model knows.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch import fx

from pockmobile.graph.rewrite import num_bytes
from pockmobile.targets.xnnpack.elementwise import ELEMENTWISE

_aten = torch.ops.aten

_CLAMPS: Final = (_aten.relu.default, _aten.hardtanh.default, _aten.clamp.default)
_CLAMPING: Final = (
    _aten.convolution.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.linear.default,
)
_IN_PLACE: Final = (*ELEMENTWISE, _aten._softmax.default)


def overwritten(
    node: fx.Node, uses: Callable[[fx.Node], int], views: Collection[Any]
) -> fx.Node | None:
    """Returns the value whose place the result of `node` takes, None if it has its own.

    A clamp is fused with the product before it; an elementwise operator writes over what
    nothing else reads, if one operator reads its result.
    """
    if node.target in _CLAMPS:
        (source,) = node.all_input_nodes
        maker = source
        while maker.target in views and uses(maker) == 1:
            maker = maker.all_input_nodes[0]
        if maker.target in _CLAMPING and uses(maker) == 1:
            return source
    if node.target not in _IN_PLACE or uses(node) != 1:
        return None
    for value in node.all_input_nodes:
        is_made = value.op == "call_function" and value.target not in views
        if is_made and uses(value) == 1 and num_bytes(value) == num_bytes(node):
            return value
    return None
