"""A trained convolution and its gradients, as products, against autograd in float64."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pockmobile.targets.rewrites import convolutions
from pockmobile.targets.rewrites.blocks import seen
from pockmobile.targets.rewrites.windows import Geometry, windows

_TOLERANCE = 1e-12


class _Case(NamedTuple):
    kernel: tuple[int, int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    channels: tuple[int, int]
    groups: int = 1


def _cases() -> list[_Case]:
    sizes = [((3, 3), [1, 1]), ((1, 1), [0, 0]), ((2, 3), [0, 2]), ((5, 1), [2, 0])]
    strides = [[1, 1], [2, 2], [3, 1]]
    channels = [(16, 4), (3, 8), (17, 700)]
    product = itertools.product(sizes, strides, channels)
    plain = [
        _Case(kernel, stride, padding, [1, 1], pair)
        for (kernel, padding), stride, pair in product
    ]
    return [
        *plain,
        _Case((3, 3), [1, 1], [2, 2], [2, 2], (16, 5)),
        _Case((3, 2), [2, 1], [0, 1], [2, 1], (16, 5)),
        _Case((3, 3), [2, 2], [3, 3], [1, 1], (16, 5)),
        _Case((3, 3), [2, 2], [1, 1], [1, 1], (16, 8), groups=2),
        _Case((3, 3), [2, 2], [1, 1], [1, 1], (6, 6), groups=6),
        _Case((1, 1), [2, 2], [0, 0], [1, 1], (16, 5)),
        _Case((1, 1), [2, 2], [1, 1], [1, 1], (16, 5)),
        # Rows that are padded in part; and of a small image, a row of the kernel sees none.
        _Case((5, 3), [1, 1], [1, 1], [1, 1], (16, 5)),
        _Case((2, 3), [1, 1], [2, 2], [4, 2], (16, 5)),
        # Few channels, in blocks of which some are cropped, some filled up.
        _Case((7, 7), [2, 2], [3, 3], [1, 1], (3, 8)),
        _Case((5, 5), [2, 2], [0, 0], [1, 1], (4, 60)),
        _Case((6, 6), [3, 3], [0, 0], [1, 1], (1, 8)),
        _Case((6, 6), [2, 3], [2, 3], [1, 1], (3, 8)),
        # A weight that is large beside a small image.
        _Case((3, 3), [1, 1], [1, 1], [1, 1], (128, 240)),
        _Case((3, 3), [2, 2], [1, 1], [1, 1], (128, 240)),
    ]


@pytest.mark.parametrize("case", _cases(), ids=str)
@pytest.mark.parametrize("height", [1, 6, 19])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_trained_convolution_and_its_gradients_are_those_of_autograd(
    case: _Case, height: int, is_frozen: bool, at_once: bool
) -> None:
    generator = torch.Generator().manual_seed(height)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    inner, outputs = case.channels
    smallest = [
        case.dilation[i] * (case.kernel[i] - 1) + 1 - 2 * case.padding[i] for i in (0, 1)
    ]
    x = random(2, inner, max(height, smallest[0]), 8 if height > 1 else max(1, smallest[1]))
    x.requires_grad_()
    weight = random(outputs, inner // case.groups, *case.kernel).requires_grad_()
    geometry = (case.stride, case.padding, case.dilation)
    expected = torch.nn.functional.conv2d(x, weight, None, *geometry, case.groups)
    grad = random(*expected.shape)
    gradients = torch.autograd.grad(expected, (x, weight), grad)

    rest = (*geometry, False, [0, 0], case.groups)
    x, weight = x.detach(), weight.detach()
    with _float64_constants():
        found = convolutions._forward(at_once)(x, weight, None, *rest)
        backward = convolutions._backward(is_frozen, at_once)
        both = backward(grad, x, weight, None, *rest, [True, True, False])[:2]

    for value, wanted in zip((found, *both), (expected, *gradients), strict=True):
        assert value.shape == wanted.shape
        assert (value - wanted).abs().max() <= _TOLERANCE * (1 + wanted.abs().max())


@pytest.mark.parametrize(
    ("height", "outputs", "padding", "name"),
    [
        (24, 32, 1, "_ByShifts"),
        (24, 64, 1, "_ByRows"),
        (6, 32, 1, "_ByShifts"),
        (6, 300, 1, "_AtOnce"),
        (24, 32, 0, "_ByShifts"),
        (6, 16, 0, "_ByRows"),
    ],
)
def test_windows_are_gathered_as_costs_least(
    height: int, outputs: int, padding: int, name: str
) -> None:
    x, weight = torch.zeros(1, 16, height, height), torch.zeros(outputs, 16, 3, 3)

    found = windows(x, weight, Geometry([1, 1], [padding, padding], [1, 1], 1))

    assert type(found).__name__ == name


def test_rows_that_pad_an_image_are_not_multiplied() -> None:
    x, weight, grad = (
        torch.zeros(2, 16, 6, 7),
        torch.zeros(32, 16, 3, 3),
        torch.zeros(2, 32, 6, 7),
    )
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def all_three(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        backward = convolutions._backward(False, False)
        gradients = backward(grad, x, weight, *rest, [True, True, False])
        return (convolutions._forward(False)(x, weight, *rest), *gradients[:2])

    products = make_fx(all_three)(x, weight, grad).graph.find_nodes(
        op="call_function", target=torch.ops.aten.mm.default
    )

    assert len(products) == 3
    for node in products:
        left, right = (arg.meta["val"].shape for arg in node.args)
        assert 2 * 6 * 7 in (*left, right[1])


@pytest.mark.parametrize(
    ("channels", "kernel", "name"), [(3, 7, "_InBlocks"), (3, 3, "_AtOnce"), (8, 7, "_AtOnce")]
)
def test_few_channels_are_cut_into_blocks(channels: int, kernel: int, name: str) -> None:
    x, weight = torch.zeros(1, channels, 24, 24), torch.zeros(8, channels, kernel, kernel)

    found = seen(x, weight, Geometry([2, 2], [1, 1], [1, 1], 1))

    assert type(found).__name__ == name


def test_a_large_weight_is_never_turned() -> None:
    x, weight = torch.zeros(2, 128, 6, 8), torch.zeros(240, 128, 3, 3)
    rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])

    def gradient(grad: Tensor, weight: Tensor) -> Tensor:
        return convolutions._backward(False, False)(grad, x, weight, None, *rest)[0]

    graph = make_fx(gradient)(torch.zeros(2, 240, 6, 8), weight).graph

    copies = [node for node in graph.nodes if node.target is torch.ops.aten.clone.default]
    assert all(node.meta["val"].numel() < weight.numel() for node in copies)


@contextmanager
def _float64_constants() -> Iterator[None]:
    """Makes one-hot filters, which are of the default dtype, float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
