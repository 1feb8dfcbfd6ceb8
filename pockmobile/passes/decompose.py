"""Pass: writes operators that a target lacks in those that it has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import MODULE_KEY, inline, replace_node, replace_results
from pockmobile.passes.base import Numerics, Pass, finish

Decomposition = Callable[..., Any]


@final
@dataclass(frozen=True)
class Decompose(Pass):
    """Replaces operators by what their decompositions do, in ATen operators.

    `select` returns a node's decomposition, or None. A decomposition gets the operator's own
    arguments, as tensors, and may return NotImplemented to leave a case alone; for an
    operator with several results it returns a tuple, with None for what is not needed.

    Before: threshold_backward(grad, x, 0)
    After:  mul(grad, ceil(clamp(x, 0, 1)))
    """

    label: str
    select: Callable[[fx.Node], Decomposition | None] = field(repr=False)
    numerics = Numerics.CLOSE

    @property
    def name(self) -> str:  # type: ignore[override]
        """The pass's name, with what it is for."""
        return f"decompose-{self.label}"

    def options(self) -> dict[str, Any]:
        """The label says which decompositions these are."""
        return {}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without those operators."""
        if not any(self._rule(node) for node in graph.nodes):
            return graph
        changed = graph.copy()
        replaced = [
            self._replace(changed, node) for node in list(changed.nodes) if self._rule(node)
        ]
        return finish(changed) if any(replaced) else graph

    def _rule(self, node: fx.Node) -> Decomposition | None:
        return self.select(node) if node.op == "call_function" else None

    def _replace(self, graph: JointGraph, node: fx.Node) -> bool:
        rule = self._rule(node)
        assert rule is not None
        present: list[bool] = []

        def traced(*args: Any) -> Any:
            result = rule(*args, **node.kwargs)
            if result is NotImplemented:
                return []
            several = isinstance(result, (tuple, list))
            present[:] = [part is not None for part in (result if several else (result,))]
            return result

        with graph.module.graph.inserting_before(node):
            nodes = inline(
                graph.module.graph, traced, node.args, module=node.meta.get(MODULE_KEY, "")
            )
        if not present:
            return False
        if isinstance(node.meta["val"], torch.Tensor):
            replace_node(node, nodes[0])
        else:
            feed = iter(nodes)
            replace_results(node, [next(feed) if there else None for there in present])
        return True
