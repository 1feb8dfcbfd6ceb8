"""The portable target: ExecuTorch's own kernels alone, the oracle of every other target."""

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import constant_value, memory_of
from pockmobile.passes import Decompose, Pass, SumRows
from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.base import LoweredMethod, Outside, Target

_aten = torch.ops.aten


@final
class Portable(Target):
    """Runs every operator on ExecuTorch's portable or optimised CPU kernels."""

    name = "portable"
    gradient_scale = None
    views = frozenset({_aten.view_copy.default})

    def options(self) -> Mapping[str, object]:
        """There is nothing to choose."""
        return {}

    def passes(self) -> Sequence[Pass]:
        """Returns what writes the masks of backward operators, and what has no kernel."""
        return (
            SumRows(self.views),
            Decompose("portable", lambda node: _TABLE.get(node.target)),
        )

    def delegates(self, node: fx.Node, constants: Container[fx.Node]) -> bool:
        """Nothing is delegated."""
        return False

    def lower(self, graph: JointGraph, *, method: str = "forward") -> LoweredMethod:
        """Returns the graph itself: nothing is delegated."""
        calls = [node for node in graph.nodes if node.op == "call_function"]
        outside = tuple(
            # Every operator is outside: their modules would make a list that nobody reads.
            Outside(str(node.target), "", "the portable target has no delegate")
            for node in calls
            if "getitem" not in str(node.target)
        )
        constants = (constant_value(node) for node in graph.nodes if node.op == "get_attr")
        frozen = dict(hash_and_size(value) for value in constants)
        return LoweredMethod(graph.module, 0, 0, outside, frozen)


def hash_and_size(value: Tensor) -> tuple[str, int]:
    """Returns the SHA-256 of a tensor's bytes, and their number.

    On the meta device, where there are none, it is what tells its memory from others.
    """
    if value.is_meta:
        return str(memory_of(value)), value.numel() * value.element_size()
    data = value.detach().contiguous().numpy()
    return hashlib.sha256(data.tobytes()).hexdigest(), data.nbytes


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return grad * (x > threshold).to(grad.dtype)


def _hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    return grad * ((x > low) & (x < high)).to(grad.dtype)


def _full_mean(x: Tensor) -> Tensor:
    return x.sum() / x.numel()


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.threshold_backward.default: _threshold_backward,
    _aten.hardtanh_backward.default: _hardtanh_backward,
    _aten.mean.default: _full_mean,
}
