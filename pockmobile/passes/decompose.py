"""Pass: writes operators that a target lacks in those that it has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import fx
from torch.utils._pytree import tree_map

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import (
    nodes_of,
    origin,
    replace_node,
    replace_results,
    splice,
    traced,
)
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
        traces: dict[Any, _Trace] = {}
        replaced = [
            self._replace(changed, node, traces)
            for node in list(changed.nodes)
            if self._rule(node)
        ]
        return finish(changed) if any(replaced) else graph

    def _rule(self, node: fx.Node) -> Decomposition | None:
        return self.select(node) if node.op == "call_function" else None

    def _replace(self, graph: JointGraph, node: fx.Node, traces: dict[Any, "_Trace"]) -> bool:
        rule = self._rule(node)
        assert rule is not None
        key = (rule, node.target, _signature(node))
        if key not in traces:
            traces[key] = _trace(rule, node)
        trace = traces[key]
        if not trace.present:
            return False
        with graph.module.graph.inserting_before(node):
            nodes = splice(graph.module.graph, trace.operators, node.args, place=origin(node))
        if isinstance(node.meta["val"], torch.Tensor):
            replace_node(node, nodes[0])
        else:
            feed = iter(nodes)
            replace_results(node, [next(feed) if there else None for there in trace.present])
        return True


@final
@dataclass(frozen=True)
class _Trace:
    """What a decomposition does, and which results it returns; none where it does nothing."""

    operators: fx.GraphModule
    present: tuple[bool, ...]


def _trace(rule: Decomposition, node: fx.Node) -> _Trace:
    present: list[bool] = []

    def function(*args: Any) -> Any:
        result = rule(*args, **node.kwargs)
        if result is NotImplemented:
            return []
        several = isinstance(result, (tuple, list))
        present[:] = [part is not None for part in (result if several else (result,))]
        return result

    operators = traced(function, node.args)
    return _Trace(operators, tuple(present))


def _signature(node: fx.Node) -> str:
    """Returns what is the same for operators of which one trace serves all."""
    nodes = list(dict.fromkeys(nodes_of(node.args)))
    values = [(value.meta["val"].dtype, tuple(value.meta["val"].shape)) for value in nodes]
    args = tree_map(
        lambda leaf: f"%{nodes.index(leaf)}" if isinstance(leaf, fx.Node) else leaf, node.args
    )
    return repr((values, args, dict(node.kwargs)))
