"""Each operator that Core ML takes means in MIL what it means in PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.targets import CoreML
from pockmobile.targets.coreml.delegate import compiler
from pockmobile.targets.coreml.support import refusal
from pockmobile.targets.partition import constant_tensors
from pockmobile.testing.coreml import CoreMLDelegate
from tests.passes.graphs import NO_TENSORS, trace
from tests.targets.running import rewritten

aten = torch.ops.aten
X, Y = torch.randn(2, 6, 8), torch.rand(2, 6, 8) + 0.5
IMAGES = torch.randn(2, 4, 7, 8)
LABELS = torch.tensor([[1], [3], [0], [2]])


def check_on_core_ml(
    function: Callable[..., Any],
    *inputs: Tensor,
    constants: Mapping[str, Tensor] = NO_TENSORS,
    tolerance: float = 1e-5,
) -> None:
    """Asserts that Core ML takes all of a function, and that MIL says what it does."""
    names = {f"x{index}": value for index, value in enumerate(inputs)}
    graph = rewritten(trace(function, names, constants=constants), CoreML())
    found_constants = constant_tensors(graph)
    nodes = [
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in found_constants
    ]
    assert {refusal(node, found_constants) for node in nodes} <= {None}
    compile_delegate = compiler(found_constants, half=frozenset(), ios=17, compute_units="all")
    compiled = compile_delegate(nodes, graph.placeholders, graph.results)
    found = CoreMLDelegate.from_bytes(compiled.blob).run(inputs)
    expected = function(*inputs, *constants.values())
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(
            left.reshape(right.shape).to(right.dtype), right, rtol=tolerance, atol=tolerance
        )


_ELEMENTWISE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda x, y: (x + y - x * y) / (y + 2.0) + 1.0 - (3.0 - x),
    "scaled": lambda x, y: torch.add(x, y, alpha=0.3) + torch.sub(x, y, alpha=2.0),
    "extremes": lambda x, y: torch.maximum(x, y) + torch.minimum(x, -y) + x.clamp(-0.5),
    "bounds": lambda x, y: x.clamp(-0.5, 0.7) + func.relu6(x * 5) + y.clamp(max=1.0),
    "roots": lambda x, y: y.sqrt() + y.rsqrt() + y.reciprocal() + y**2 + y**-0.5,
    "exponentials": lambda x, y: x.exp() + y.log() + x.expm1() + (x * 1e-3).expm1(),
    "signs": lambda x, y: x.abs() + x.neg() + x.sign() + x.ceil() + y.floor(),
    "activations": lambda x, y: x.relu() + x.tanh() + x.sigmoid() + func.leaky_relu(x, 0.2),
    "silu": lambda x, y: x * x.sigmoid() + y,
    "gelu": lambda x, y: func.gelu(x) + func.gelu(y, approximate="tanh") + x.erf(),
    "waves": lambda x, y: x.sin() + y.cos(),
    "choice": lambda x, y: torch.where((x > y) | ~(x <= 0.1), x, y),
    "comparisons": lambda x, y: (
        (x > 0).float() + (x >= y).float() + (x < 0.3).float() + (x == x).float()
        + ((x <= y) & (x != 0.5)).float() + (x < y).float() + (x != y).float()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _ELEMENTWISE)
def test_elementwise(name: str) -> None:
    check_on_core_ml(_ELEMENTWISE[name], X, Y)


_REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "to one number": lambda x: x.sum() + x.mean(),
    "over dimensions": lambda x: x.sum(1, keepdim=True) + x.mean([0, 2], keepdim=True),
    "largest": lambda x: x.amax(-1) - x.amin(-1),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(-1),
    "place": lambda x: x.argmax(1).float() + x.argmax(1, keepdim=True).float().sum(1),
    "running": lambda x: x.cumsum(1),
    "layer norm": lambda x: func.layer_norm(x, (8,), torch.ones(8) * 2, torch.ones(8)),
    "group norm": lambda x: func.group_norm(x, 3, torch.ones(6) * 2, torch.ones(6)),
}


@pytest.mark.parametrize("name", _REDUCTIONS)
def test_reductions(name: str) -> None:
    check_on_core_ml(_REDUCTIONS[name], X)


_MOVES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "views": lambda x: x.reshape(3, 4, 8).permute(2, 0, 1).flatten(1),
    "slices": lambda x: torch.cat([x[:, 1:4], x[:, ::2], x[:, :, :8].flip(1)], 1),
    "expansion": lambda x: x[:, :1].expand(2, 5, 8) + x[0, 0].expand(2, 5, 8),
    "pads": lambda x: func.pad(x, (1, 2, 0, 3), value=0.5),
    "six dimensions": lambda x: func.pad(
        x.reshape(2, 3, 2, 1, 4, 2), (0, 1, 0, 0, 1, 0)
    ).reshape(6, 4, 4, 3),
}


@pytest.mark.parametrize("name", _MOVES)
def test_moves(name: str) -> None:
    check_on_core_ml(_MOVES[name], X)


def test_rows_by_label() -> None:
    tokens = torch.tensor([[4, 0, 4], [2, 1, 0]])
    check_on_core_ml(lambda x, rows: func.embedding(rows, x) * 2.0, X[0], tokens)
    check_on_core_ml(lambda x, rows: x[:, rows] + 0.0, X, tokens[0])
    values = torch.randn(2, 3, 8)
    check_on_core_ml(
        lambda x, rows, added: aten.index_put(x, [rows], added, True), X[0], tokens, values
    )


def test_one_number_of_a_row() -> None:
    scores = torch.randn(4, 5)
    check_on_core_ml(lambda x, labels: x.gather(-1, labels) * 2.0, scores, LABELS)
    check_on_core_ml(lambda x, labels: (x * 0.0).scatter(-1, labels, x[:, :1]), scores, LABELS)


def test_labels_that_are_ignored() -> None:
    labels = torch.tensor([2, -100, 0, 4])
    check_on_core_ml(
        lambda x, found: x.sum(-1) * (found != -100).float() + found.clamp(min=0).float(),
        torch.randn(4, 5),
        labels,
    )


def test_products() -> None:
    check_on_core_ml(lambda x, y: torch.bmm(x, y.transpose(1, 2)), X, Y)
    check_on_core_ml(lambda x, w, b: func.linear(x, w, b), X, Y[0], torch.randn(6))
    constants = {"weight": torch.randn(5, 8), "bias": torch.randn(5)}
    check_on_core_ml(lambda x, w, b: func.linear(x, w, b), X[0], constants=constants)


_CONVOLUTIONS = [
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (2, 1), "dilation": 2},
    {"groups": 4, "padding": 1},
    {"groups": 2, "stride": 2},
]


def _weight(options: Mapping[str, Any], outputs: int = 8) -> Tensor:
    return torch.randn(outputs, 4 // options.get("groups", 1), 3, 3)


@pytest.mark.parametrize("options", _CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_convolution_and_its_gradients(options: dict[str, Any], is_trained: bool) -> None:
    weight, bias = _weight(options), torch.randn(8)
    pair = {key: _pair(value) for key, value in options.items() if key != "groups"}
    stride, padding = pair.get("stride", [1, 1]), pair.get("padding", [0, 0])
    dilation, groups = pair.get("dilation", [1, 1]), options.get("groups", 1)
    shape = func.conv2d(IMAGES, weight, bias, **options).shape

    def step(x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        place = (stride, padding, dilation, False, [0, 0], groups)
        grads = aten.convolution_backward(grad, x, weight, [8], *place, [True] * 3)
        names = ("x", "weight", "bias")
        forward = {"output": aten.convolution(x, weight, bias, *place)}
        return {**forward, **dict(zip(names, grads, strict=True))}

    own = {"weight": weight, "bias": bias}
    grad = torch.randn(shape)
    if is_trained:
        check_on_core_ml(step, IMAGES, grad, *own.values(), tolerance=1e-4)
    else:
        check_on_core_ml(step, IMAGES, grad, constants=own, tolerance=1e-4)


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("padding", [0, 1])
def test_transposed_convolution(padding: int, extra: int) -> None:
    options = {"stride": 2, "padding": padding, "output_padding": extra}
    check_on_core_ml(
        lambda x, weight, bias: func.conv_transpose2d(x, weight, bias, **options),
        IMAGES,
        constants={"weight": torch.randn(4, 3, 3, 3), "bias": torch.randn(3)},
        tolerance=1e-4,
    )


def test_pooling() -> None:
    check_on_core_ml(lambda x: func.max_pool2d(x, 3, 2, 1), IMAGES)
    check_on_core_ml(lambda x: func.max_pool2d(x, 2, ceil_mode=True), IMAGES)
    check_on_core_ml(lambda x: func.adaptive_avg_pool2d(x, 1), IMAGES)


def test_numbers_without_dimensions() -> None:
    check_on_core_ml(lambda x, rate: (x * rate).sum() * rate, X, torch.tensor(0.3))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.fmod(0.5), "Core ML has no such operator"),
        (lambda x: (x > 0).double().sum(), "Core ML takes no float64"),
        (
            lambda x: x[x[:, 0, 0].long(), x[:, 0, 1].long()],
            "Core ML indexes one dimension only",
        ),
        (
            lambda x: func.conv1d(x, x[:, :, :3] * 2.0),
            "a convolution whose weight or bias is trained, of other than 2 dimensions",
        ),
        (lambda x: x * (x > 0), "Core ML computes with values of one type"),
        (
            lambda x: func.max_pool2d(x[None], 2, dilation=2),
            "Core ML pools without dilation",
        ),
        (lambda x: func.pad(x, (-1, 0)) * 2.0, "Core ML does not crop by padding"),
        (lambda x: x.reshape(1, 2, 1, 3, 2, 8) * 2.0, "Core ML takes at most 5 dimensions"),
    ],
)  # fmt: skip
def test_refusals(function: Callable[[Tensor], Tensor], reason: str) -> None:
    target = CoreML()
    graph = rewritten(trace(lambda x: function(x * 2.0), {"x0": X}), target)
    assert reason in [item.reason for item in target.lower(graph).outside]
