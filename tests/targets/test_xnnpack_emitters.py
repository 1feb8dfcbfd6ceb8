"""Every operator that the delegate takes, against eager PyTorch on the stock runtime."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from tests.targets.running import check_on_xnnpack

UNARY: dict[str, Callable[[Tensor], Any]] = {
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": lambda x: (x.abs() + 0.1).log(),
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "reciprocal": lambda x: (x.abs() + 0.5).reciprocal(),
    "sin": torch.sin,
    "cos": torch.cos,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": func.gelu,
    "gelu_tanh": lambda x: func.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "hardtanh": lambda x: func.hardtanh(x, -0.3, 0.7),
    "clamp_below": lambda x: x.clamp(min=-0.2),
    "clamp_above": lambda x: x.clamp(max=0.2),
    "leaky_relu": lambda x: func.leaky_relu(x, 0.1),
    "sign": torch.sign,
    "erf": torch.erf,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "scalar": lambda x: (3.0 - x) / 2.0,
}


@pytest.mark.parametrize("name", UNARY)
def test_elementwise_operator(name: str) -> None:
    torch.manual_seed(0)
    check_on_xnnpack(
        UNARY[name], torch.randn(3, 4, 5), tolerance=2e-6 if name == "erf" else 1e-5
    )


LAYOUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "same": lambda x, y: x + y,
    "permuted left": lambda x, y: x.permute(0, 3, 1, 2) * y.permute(0, 3, 1, 2),
    "mixed": lambda x, y: x.permute(0, 2, 1, 3) - y.reshape(2, 4, 3, 5),
    "channel": lambda x, y: x.permute(0, 3, 1, 2) + y[0, 0, 0].reshape(1, 5, 1, 1),
    "row": lambda x, y: x.permute(0, 3, 1, 2) * y[0, 0, :, :1].reshape(1, 1, 1, 4),
    "lower rank": lambda x, y: x.permute(0, 3, 2, 1) + y[0, :, 0, 0],
    "both small": lambda x, y: x[:, :1] * y[:1, :, :1] + x,
    "expanded": lambda x, y: x[:, :1].expand(2, 3, 4, 5).reshape(6, 20) + y.reshape(6, 20),
    "expanded twice": lambda x, y: x[:1, :1].expand(2, 3, 4, 5) * y[:1, :1].expand(2, 3, 4, 5),
    "merge": lambda x, y: (x.permute(0, 3, 1, 2) + 1.0).reshape(2, 5, 12) + 1.0,
    "merge across": lambda x, y: (x.permute(0, 3, 1, 2) + 1.0).reshape(10, 12) + 1.0,
    "split": lambda x, y: (x.permute(3, 0, 1, 2) + 1.0).reshape(5, 2, 3, 2, 2) + 1.0,
    "cat": lambda x, y: torch.cat([x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)], 1),
    "cat of seven": lambda x, y: torch.cat([x, y, x, y, x, y, x], -1),
    "slice": lambda x, y: x.permute(0, 3, 1, 2)[:, 1:3, :, 2:] + 1.0,
    "pad": lambda x, y: func.pad(x.permute(0, 3, 1, 2), (1, 2, 0, 3)) + 1.0,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_memory_order_gives_the_same_numbers(name: str) -> None:
    torch.manual_seed(0)
    check_on_xnnpack(LAYOUTS[name], torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))


REDUCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "last": lambda x: x.sum(-1) + 1.0,
    "last kept": lambda x: x.sum(-1, keepdim=True) * 2.0,
    "first": lambda x: x.sum(0) + 1.0,
    "leading": lambda x: x.sum([0, 1]) + 1.0,
    "middle": lambda x: x.sum([1, 2]) + 1.0,
    "apart": lambda x: x.sum([0, 2]) + 1.0,
    "of channels": lambda x: x.permute(0, 3, 1, 2).sum([0, 2, 3]) + 1.0,
    "spatial mean": lambda x: x.permute(0, 3, 1, 2).mean([2, 3], keepdim=True) + 1.0,
    "mean of rows": lambda x: x.mean(-1, keepdim=True) - x,
    "of one": lambda x: x[:, :1].sum(1) + 1.0,
    "softmax": lambda x: x.softmax(-1),
    "softmax, permuted": lambda x: x.permute(0, 3, 1, 2).softmax(-1),
    "layer norm": lambda x: func.layer_norm(x, (5,)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str) -> None:
    torch.manual_seed(0)
    check_on_xnnpack(REDUCTIONS[name], torch.randn(2, 3, 4, 5))


LONG = {"last": -1, "all": (0, 1), "first": 0}


@pytest.mark.parametrize("dims", LONG.values(), ids=LONG)
@pytest.mark.parametrize("width", [512, 1042, 10_000])
def test_sum_of_a_long_row(width: int, dims: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, width)
    lowered = check_on_xnnpack(lambda x: x.sum(dims, keepdim=True) + 1.0, x)
    # Ones for a whole row would lie in the program, and again, 16 times as large, in memory.
    assert max(lowered.frozen.values()) <= 4 * 521


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mm": lambda x, w: x @ w.t(),
    "left transposed": lambda x, w: x.t() @ torch.cat([w, w]),
    "right as it lies": lambda x, w: x[:, :4] @ w,
    "addmm": lambda x, w: torch.addmm(w[:, 0], x, w.t()),
    "bmm": lambda x, w: torch.bmm(x.reshape(2, 4, 6), w.reshape(2, 2, 6).transpose(1, 2)),
    "bmm, left permuted": lambda x, w: torch.bmm(
        x.reshape(2, 4, 6).transpose(1, 2), w.reshape(2, 4, 3)
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("is_constant", [False, True])
def test_matrix_product(name: str, is_constant: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 6), torch.randn(4, 6)
    if is_constant:
        check_on_xnnpack(PRODUCTS[name], x, constants={"weight": weight})
    else:
        check_on_xnnpack(PRODUCTS[name], x, weight)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1x1": ((6, 4, 1, 1), {}),
    "1x1, stride 2": ((6, 4, 1, 1), {"stride": 2}),
    "1x1, padded": ((6, 4, 1, 1), {"padding": 2}),
    "1x1, padded, stride 2": ((6, 4, 1, 1), {"padding": 2, "stride": 2}),
    "3x3": ((6, 4, 3, 3), {"padding": 1}),
    "3x3, stride 2": ((6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "5x3, dilated": ((6, 4, 5, 3), {"dilation": 2, "padding": (3, 1)}),
    "depthwise": ((4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise, stride 2": ((4, 1, 3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    "depthwise, twice": ((8, 1, 3, 3), {"groups": 4, "padding": 1}),
    "grouped": ((6, 2, 3, 3), {"groups": 2}),
    "7x7, few channels, stride 2": ((8, 3, 7, 7), {"stride": 2, "padding": 3}),
    # With 16 channels or more, a trained kernel's windows are gathered row by row.
    "3x3, wide": ((18, 16, 3, 3), {"padding": 1}),
    "3x3, wider": ((50, 16, 3, 3), {"padding": 1}),
    "3x3, wide, stride 2": ((18, 16, 3, 3), {"stride": 2, "padding": 1}),
    "5x3, wide, dilated": ((6, 20, 5, 3), {"dilation": 2, "padding": (3, 1)}),
    "1x3, wide": ((16, 17, 1, 3), {"padding": (2, 0)}),
}


def image(name: str) -> Tensor:
    """Returns what a convolution takes, [2, channels, 12, 11]."""
    shape, options = CONVOLUTIONS[name]
    return torch.randn(2, shape[1] * options.get("groups", 1), 12, 11)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_convolution(name: str, is_frozen: bool) -> None:
    torch.manual_seed(0)
    shape, options = CONVOLUTIONS[name]
    weight, bias = torch.randn(shape), torch.randn(shape[0])

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return func.conv2d(x, weight, bias, **options)

    if is_frozen:
        check_on_xnnpack(convolve, image(name), constants={"weight": weight, "bias": bias})
    else:
        check_on_xnnpack(convolve, image(name), weight, bias)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_gradients_of_a_convolution(name: str, is_frozen: bool) -> None:
    torch.manual_seed(0)
    shape, options = CONVOLUTIONS[name]
    weight, x = torch.randn(shape), image(name)
    grad = torch.randn(func.conv2d(x, weight, **options).shape)
    pairs = {key: torch.nn.modules.utils._pair(options.get(key, start)) for key, start in
             (("stride", 1), ("padding", 0), ("dilation", 1))}  # fmt: skip
    groups = options.get("groups", 1)

    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        results = torch.ops.aten.convolution_backward.default(
            grad, x, weight, [shape[0]], *pairs.values(), False, [0, 0], groups, [True] * 3
        )
        return dict(zip(("x", "weight", "bias"), results, strict=True))

    if is_frozen:
        check_on_xnnpack(backward, grad, x, constants={"weight": weight}, tolerance=1e-4)
    else:
        check_on_xnnpack(backward, grad, x, weight, tolerance=1e-4)


def test_gradients_of_a_large_kernel_over_a_single_pixel() -> None:
    torch.manual_seed(0)
    grad, x, weight = (
        torch.randn(2, 240, 1, 1),
        torch.randn(2, 128, 1, 1),
        torch.randn(240, 128, 3, 3),
    )

    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        results = torch.ops.aten.convolution_backward.default(
            grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return dict(zip(("x", "weight"), results, strict=False))

    check_on_xnnpack(backward, grad, x, weight, tolerance=1e-3)


def test_max_pooling_without_its_indices() -> None:
    torch.manual_seed(0)
    check_on_xnnpack(lambda x: func.max_pool2d(x, 3, 2, 1), torch.randn(2, 4, 9, 9))


def test_a_weight_used_both_ways_is_stored_once() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 6)
    lowered = check_on_xnnpack(
        lambda x, w: (x @ w.t()).tanh() @ w, torch.randn(3, 6), constants={"weight": weight}
    )
    assert sum(size == weight.numel() * 4 for size in lowered.frozen.values()) == 1
