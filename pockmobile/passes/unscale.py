"""Pass: undoes the scale of gradients that were captured larger than they are."""

from dataclasses import dataclass
from typing import Any, final

import torch

from pockmobile.graph import JointGraph, Role
from pockmobile.graph.joint import set_results
from pockmobile.graph.rewrite import MODULE_KEY, OPTIMIZER, call
from pockmobile.passes.base import Pass, finish


@final
@dataclass(frozen=True)
class Unscale(Pass):
    """Divides the gradients by their scale, a power of two, so exactly.

    The scale keeps small gradients out of where float16 loses them, on their way back. The
    division belongs to the optimizer, which has float32.

    Before: grad
    After:  mul(grad, 1 / scale)
    """

    scale: float
    name = "unscale"

    def options(self) -> dict[str, Any]:
        """Returns the scale."""
        return {"scale": self.scale}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with the true gradients."""
        if self.scale == 1.0 or not any(port.role is Role.GRADIENT for port in graph.outputs):
            return graph
        graph = graph.copy()
        output = graph.module.graph.output_node()
        results = graph.results
        with graph.module.graph.inserting_before(output):
            for index, port in enumerate(graph.outputs):
                if port.role is Role.GRADIENT:
                    product = call(
                        graph.module.graph,
                        torch.ops.aten.mul.Tensor,
                        results[index],
                        1.0 / self.scale,
                    )
                    product.meta[MODULE_KEY] = OPTIMIZER
                    results[index] = product
        set_results(graph.module, results)
        return finish(graph)
