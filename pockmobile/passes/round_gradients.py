"""Pass: brings gradients that were computed in float16 to the optimizer, in float32."""

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph, Role
from pockmobile.graph.joint import set_results
from pockmobile.graph.rewrite import MODULE_KEY, OPTIMIZER, call, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class RoundGradients(Pass):
    """Rounds scaled gradients to float16, and divides them by their scale in float32.

    Rounding is what a float16 delegate does to them anyway. Written down, it is where the
    delegate ends: no pass moves the optimizer's arithmetic, which float16 is too coarse for,
    across it. (The scale, for which the loss was multiplied, keeps small gradients above the
    least number of float16.)

    Before: return loss, gradient
    After:  return loss, _to_copy(_to_copy(gradient, float16), float32) * (1 / scale)
    """

    scale: float
    name = "round-gradients"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with rounded gradients; one without gradients as it is."""
        if not graph.output_nodes(Role.GRADIENT):
            return graph
        graph = graph.copy()
        with graph.module.graph.inserting_before(graph.module.graph.output_node()):
            results = [
                self._rounded(graph.module.graph, node) if port.role is Role.GRADIENT else node
                for port, node in zip(graph.outputs, graph.results, strict=True)
            ]
        set_results(graph.module, results)
        return finish(graph)

    def _rounded(self, graph: fx.Graph, gradient: fx.Node) -> fx.Node:
        half = call(graph, _aten._to_copy.default, gradient, dtype=torch.float16)
        single = call(graph, _aten._to_copy.default, half, dtype=torch.float32)
        unscaled = call(graph, _aten.mul.Tensor, single, 1.0 / self.scale)
        for node in (single, unscaled):
            node.meta[MODULE_KEY] = OPTIMIZER
        return unscaled


def computed_in_half(graph: JointGraph) -> set[fx.Node]:
    """Returns what losses, outputs and rounded gradients are computed from, and these."""
    pairs = zip(graph.outputs, graph.results, strict=True)
    pending = [node for port, node in pairs if port.role in _RESULTS]
    pending += [node for node in graph.nodes if _is_widened(node)]
    found: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def is_rounding(node: fx.Node) -> bool:
    """Whether a node rounds a gradient to float16."""
    return node.target is _aten._to_copy.default and value_of(node).dtype == torch.float16


_RESULTS: Final = (Role.LOSS, Role.METRIC, Role.OUTPUT)


def _is_widened(node: fx.Node) -> bool:
    if node.target is not _aten._to_copy.default:
        return False
    source: Any = node.args[0]
    return value_of(source).dtype == torch.float16 and value_of(node).dtype == torch.float32
