"""Pass: runs operators for a part of the batch at a time, where that lowers the peak."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.batches import Parts, best_parts
from pockmobile.graph.joint import constant_nodes
from pockmobile.graph.liveness import Liveness, Overwritten
from pockmobile.graph.rewrite import call, origin, shape_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class SplitBatch(Pass):
    """Runs what is widest of a frozen forward pass for a part of the batch at a time.

    Only operators that compute each example alone, and whose weights are constants, are run
    so; where nothing else reads what lies between the first and the last of them, only a part
    of it is alive. Those are chosen that lower the most bytes alive at once the furthest
    (inputs and constants not counted), down to `limit_bytes`. After the patches of MCUNetV2
    (Lin et al., 2021, section 3), along the batch instead of the image, so that nothing is
    computed twice.

    Before: b = relu(convolution(a, w)); c = convolution(b, v)
    After:  c1 = convolution(relu(convolution(a[:4], w)), v)
            c2 = convolution(relu(convolution(a[4:], w)), v); c = cat([c1, c2])
    """

    limit_bytes: int = 0
    views: frozenset[Any] = field(default=frozenset(), repr=False)
    overwritten: Overwritten | None = field(default=None, repr=False)
    name = "split-batch"
    # A kernel may add in another order where it has fewer rows.
    numerics = Numerics.CLOSE

    def options(self) -> dict[str, Any]:
        """The limit; the rest is the target's."""
        return {"limit_bytes": self.limit_bytes}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with a lower peak, if there is one above the limit."""
        changed = graph.copy()
        live = Liveness.of(changed, self.views, self.overwritten)
        parts = best_parts(live, constant_nodes(changed), self.limit_bytes)
        if parts is None:
            return graph
        _split(changed.module.graph, parts)
        return finish(changed)


def _split(graph: fx.Graph, parts: Parts) -> None:
    num_examples, last = shape_of(parts.result)[0], parts.result
    step = num_examples // parts.num_parts
    with graph.inserting_before(last.next):
        starts = range(0, num_examples, step)
        results = [_run(graph, parts, start, start + step) for start in starts]
        joined = call(graph, _aten.cat.default, results, 0)
    last.replace_all_uses_with(joined)
    for node in reversed(parts.operators):
        graph.erase_node(node)


def _run(graph: fx.Graph, parts: Parts, start: int, stop: int) -> fx.Node:
    """Adds the operators once more, for some of the examples; returns their result."""
    memo = {
        entry: call(graph, _aten.slice_copy.Tensor, entry, 0, start, stop, 1)
        for entry in parts.entries
    }
    for node in parts.operators:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda old: memo.get(old, old))
        memo[node] = call(graph, node.target, *args, **kwargs)
        memo[node].meta.update(origin(node))
    return memo[parts.result]
