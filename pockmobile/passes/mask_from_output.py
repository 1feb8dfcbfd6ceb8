"""Pass: an activation's gradient reads its output, which is kept anyway."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class MaskFromOutput(Pass):
    """Lets the backward pass of ReLU and of clamping forget the activation's input.

    The output lies strictly between the bounds exactly where the input does, so the mask is
    the same. The input then dies early, and the activation fuses with what makes it.

    Before: y = hardtanh(x, 0, 6); hardtanh_backward(grad, x, 0, 6)
    After:  y = hardtanh(x, 0, 6); hardtanh_backward(grad, y, 0, 6)
    """

    name = "mask-from-output"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph whose masks read outputs."""
        if not list(_matches(graph)):
            return graph
        graph = graph.copy()
        for backward, output in list(_matches(graph)):
            backward.args = (backward.args[0], output, *backward.args[2:])
        return finish(graph)


_FORWARD: Final[Mapping[Any, Any]] = {
    _aten.threshold_backward.default: _aten.relu.default,
    _aten.hardtanh_backward.default: _aten.hardtanh.default,
}


def _matches(graph: JointGraph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields backward operators with the output of the activation that they belong to."""
    for node in graph.nodes:
        forward = _FORWARD.get(node.target)
        if forward is None or (forward is _aten.relu.default and node.args[2] != 0):
            continue
        source = node.args[1]
        assert isinstance(source, fx.Node)
        bounds = tuple(node.args[2:]) if forward is _aten.hardtanh.default else ()
        for user in source.users:
            if user.target is forward and tuple(user.args[1:]) == bounds:
                yield node, user
