"""Masks of activations are read from outputs, where they are the same."""

import torch
from torch import Tensor

from pockmobile.passes import MaskFromOutput
from tests.passes.graphs import apply, assert_same, aten, listing, trace

INPUTS = {"x": torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0]), "grad": torch.randn(5)}


def _relu6(x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return {
        "y": aten.hardtanh.default(x, 0.0, 6.0),
        "back": aten.hardtanh_backward.default(grad, x, 0.0, 6.0),
    }


def _relu(x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return {"y": aten.relu.default(x), "back": aten.threshold_backward.default(grad, x, 0)}


def test_the_mask_reads_the_output_and_is_the_same() -> None:
    for function in (_relu6, _relu):
        graph = trace(function, INPUTS)
        changed = apply(MaskFromOutput(), graph)
        assert any(
            "_backward(grad, hardtanh" in line or "_backward(grad, relu" in line
            for line in listing(changed)
        )
        assert_same(graph, changed, INPUTS)


def test_other_bounds_are_left_alone() -> None:
    def mixed(x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        y = aten.hardtanh.default(x, 0.0, 5.0)
        return {"y": y, "back": aten.hardtanh_backward.default(grad, x, 0.0, 6.0)}

    graph = trace(mixed, INPUTS)
    assert apply(MaskFromOutput(), graph) is graph


def test_nothing_to_do_returns_the_same_graph() -> None:
    once = apply(MaskFromOutput(), trace(_relu6, INPUTS))
    assert apply(MaskFromOutput(), once) is once
