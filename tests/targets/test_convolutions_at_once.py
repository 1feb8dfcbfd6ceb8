"""Trained convolutions in few operators, as QNN has them: values, and how many they are."""

from collections import Counter
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.targets import Qnn
from tests.passes.graphs import trace
from tests.targets.running import rewritten

aten = torch.ops.aten

_CASES: Final[dict[str, dict[str, Any]]] = {
    "plain": {"shape": (24, 20, 3, 3), "padding": [1, 1]},
    "strided": {"shape": (6, 20, 3, 3), "stride": [2, 2], "padding": [1, 1]},
    "uneven": {"shape": (6, 20, 2, 3), "stride": [2, 1], "padding": [1, 0]},
    "pointwise": {"shape": (6, 20, 1, 1)},
    "depthwise": {"shape": (20, 1, 3, 3), "padding": [1, 1], "groups": 20},
    "strided depthwise": {
        "shape": (20, 1, 3, 3), "stride": [2, 2], "padding": [1, 1], "groups": 20,
    },
    "grouped": {"shape": (8, 5, 3, 3), "groups": 4},
    "dilated": {"shape": (6, 20, 3, 3), "dilation": [2, 2], "padding": [2, 2]},
}  # fmt: skip


@pytest.mark.parametrize("name", _CASES)
def test_a_trained_convolution_and_its_gradients(name: str) -> None:
    case = dict(_CASES[name])
    torch.manual_seed(0)
    x, weight = torch.randn(2, 20, 8, 7), torch.randn(case.pop("shape")) * 0.2
    stride, padding = case.get("stride", [1, 1]), case.get("padding", [0, 0])
    place = (
        stride,
        padding,
        case.get("dilation", [1, 1]),
        False,
        [0, 0],
        case.get("groups", 1),
    )
    grad = torch.randn_like(func.conv2d(x, weight, **case))

    def step(x: Tensor, grad: Tensor, weight: Tensor) -> dict[str, Tensor]:
        output = aten.convolution(x, weight, None, *place)
        mask = [True, True, True]
        grads = aten.convolution_backward(grad, x, weight, [weight.shape[0]], *place, mask)
        return {"output": output, **dict(zip(("x", "weight", "bias"), grads, strict=True))}

    graph = rewritten(trace(step, {"x0": x, "x1": grad, "x2": weight}), Qnn(compiles=False))
    expected = step(x, grad, weight).values()
    for found, value in zip(graph.module(x, grad, weight), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    counts = Counter(str(node.target) for node in graph.nodes)
    assert counts["aten.slice_copy.Tensor"] <= 2, "gathered piece by piece"
    assert sum(counts.values()) <= 45
