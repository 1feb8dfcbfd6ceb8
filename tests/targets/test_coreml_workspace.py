"""What is alive while a delegate runs, counted by hand."""

import torch
from torch import Tensor

from pockmobile.targets.coreml.workspace import workspace
from tests.passes.graphs import trace

_BYTES = 4 * 100


def _chain(x: Tensor) -> Tensor:
    first = x.exp()
    second = first.view(100).tanh()
    third = second + first.view(100)
    return third.sum() * 2.0


def test_values_live_until_they_are_read_last() -> None:
    graph = trace(_chain, {"x": torch.randn(10, 10)})
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    for node in nodes:
        node.target = {"view": torch.ops.aten.view_copy.default}.get(
            node.target._opname, node.target
        )
    found = [num_bytes for num_bytes, _ in workspace(nodes, graph.results, frozenset())]
    # exp; view; tanh; view; add, while exp and tanh live; sum; mul, which is the output.
    assert found == [
        _BYTES, _BYTES, 2 * _BYTES, 2 * _BYTES, 3 * _BYTES, _BYTES + 4, 4,
    ]  # fmt: skip
    half = [num_bytes for num_bytes, _ in workspace(nodes, graph.results, set(nodes))]
    assert half == [num_bytes // 2 for num_bytes in found]
