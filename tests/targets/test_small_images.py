"""Convolutions with constant weights, tap by tap, against autograd in float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pockmobile.passes import Decompose
from pockmobile.targets.rewrites import small_images
from pockmobile.targets.rewrites.small_images import select_small_image
from tests.passes.graphs import apply, assert_close, operators, trace

_TOLERANCE = 1e-12
CHANNELS = 128


class _Case(NamedTuple):
    image: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


CASES = [
    _Case((3, 3)),
    _Case((1, 1)),
    _Case((1, 4)),
    _Case((3, 2), kernel=(5, 3), padding=(2, 1)),
    # No tap sees all: the bias has no products to be added with.
    _Case((2, 3), kernel=(2, 2)),
    _Case((4, 4), padding=(2, 2), dilation=(2, 2)),
    _Case((3, 3), padding=(3, 0)),
]


def _rest(case: _Case) -> tuple[object, ...]:
    return [1, 1], list(case.padding), list(case.dilation), False, [0, 0], 1


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_and_gradients_are_those_of_autograd(case: _Case, has_bias: bool) -> None:
    x, weight, bias = _random(case)
    x.requires_grad_()
    known = bias.requires_grad_() if has_bias else None
    expected = conv2d(x, weight, known, 1, case.padding, case.dilation)
    grad = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, [x, bias] if has_bias else [x], grad)
    x, bias = x.detach(), bias.detach()

    found = small_images._forward(x, weight, bias if has_bias else None, *_rest(case))
    mask = [True, False, has_bias]
    backward = small_images._backward(grad, x, weight, [9], *_rest(case), mask)

    returned = [value for value in (found, *backward) if value is not None]
    for value, wanted in zip(returned, (expected, *gradients), strict=True):
        assert value.shape == wanted.shape
        assert (value - wanted).abs().max() <= _TOLERANCE * (1 + wanted.abs().max())


@pytest.mark.parametrize(
    ("size", "kernel", "channels", "is_cut"),
    [(3, 3, 128, True), (6, 3, 256, True), (14, 3, 256, False), (3, 1, 512, False)],
)
def test_it_pays_where_much_is_padding(
    size: int, kernel: int, channels: int, is_cut: bool
) -> None:
    graph = trace(
        lambda x, weight: conv2d(x, weight, padding=kernel // 2),
        {"x": torch.randn(2, channels, size, size)},
        constants={"weight": torch.randn(channels, channels, kernel, kernel) / channels},
    )

    changed = apply(Decompose("small-images", select_small_image), graph)

    assert ("convolution" not in operators(changed)) is is_cut


def _multiplied(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, padding=1)


def test_only_what_is_seen_is_multiplied() -> None:
    inputs = {"x": torch.randn(2, CHANNELS, 3, 3)}
    constants = {"weight": torch.randn(CHANNELS, CHANNELS, 3, 3) / CHANNELS}
    graph = trace(_multiplied, inputs, constants=constants)

    changed = apply(Decompose("small-images", select_small_image), graph)

    rows = [
        node.args[0].meta["val"].shape[0]
        for node in changed.nodes
        if node.target is torch.ops.aten.mm.default
    ]
    assert sorted(rows) == sorted(2 * down * along for down in (2, 3, 2) for along in (2, 3, 2))
    assert_close(graph, changed, inputs, tolerance=1e-5)


def test_a_trained_weight_is_left_alone() -> None:
    graph = trace(
        lambda weight, x: _multiplied(x, weight),
        {"x": torch.randn(2, CHANNELS, 3, 3)},
        parameters={"weight": torch.randn(CHANNELS, CHANNELS, 3, 3)},
    )

    assert apply(Decompose("small-images", select_small_image), graph) is graph


def _random(case: _Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return random(2, 8, *case.image), random(9, 8, *case.kernel), random(9)
