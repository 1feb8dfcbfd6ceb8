"""A number is multiplied where there are the fewest elements."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pockmobile.passes import ScaleFactors
from tests.passes.graphs import apply, assert_close, listing, trace

LR = torch.tensor([0.25])
A, B = torch.randn(200, 8), torch.randn(8, 200)
VALUES = {"lr": LR, "a": A, "b": B}


def _largest(function: Callable[..., Any], values: dict[str, Tensor]) -> int:
    """Returns the elements of the largest product with a number, after the pass."""
    graph = trace(function, values)
    found = apply(ScaleFactors(), graph)
    assert_close(graph, found, values, tolerance=1e-4)
    products = [node for node in found.nodes if node.target is torch.ops.aten.mul.Tensor]
    return max(node.meta["val"].numel() for node in products)


def test_the_smaller_factor_of_a_matrix_product_is_scaled() -> None:
    assert _largest(lambda lr, a, b: lr * (a @ b).reshape(100, 400), VALUES) == A.numel()


def test_so_are_those_of_all_that_is_joined() -> None:
    found = _largest(lambda lr, a, b: torch.cat([a @ b, (b.t() @ a.t()).t()]) * lr, VALUES)
    assert found == A.numel()


def test_what_is_joined_twice_is_scaled_once() -> None:
    def twice(lr: Tensor, a: Tensor, b: Tensor) -> Tensor:
        product = a @ b
        return torch.cat([product, product]) * lr

    assert _largest(twice, VALUES) == A.numel()


def test_a_channel_s_scale_takes_the_number() -> None:
    values = {"lr": LR, "w": torch.randn(64, 1024), "scale": torch.rand(64, 1)}
    graph = trace(lambda lr, w, scale: w * scale * lr, values)
    scaled = apply(ScaleFactors(), graph)
    assert listing(scaled) == [
        "view_copy_default = view_copy(lr, [1, 1])",
        "mul_tensor = mul(scale, view_copy_default)",
        "mul = mul(w, mul_tensor)",
        "return mul",
    ]
    assert_close(graph, scaled, values, tolerance=1e-5)


def test_a_sum_becomes_a_mean_whose_count_the_number_takes() -> None:
    values = {"lr": LR, "x": torch.randn(4, 6, 5)}
    graph = trace(lambda lr, x: x.sum([0, 2]).reshape(6) * lr, values)
    scaled = apply(ScaleFactors(), graph)
    assert "mean(x, [0, 2])" in "\n".join(listing(scaled))
    assert "sum" not in "\n".join(listing(scaled))
    assert_close(graph, scaled, values, tolerance=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda lr, a, b: lr * (a[:20] @ b),
        lambda lr, a, b: lr * (a @ b).exp(),
        lambda lr, a, b: a[:1, :1] * (a @ b),
        lambda lr, a, b: {"one": lr * (product := a @ b), "two": product},
        lambda lr, a, b: {"one": lr * (total := a.sum([0])), "two": total},
        lambda lr, a, b: {
            "one": lr * (view := a.sum([0]).reshape(8)).reshape(2, 4),
            "two": view,
        },
        lambda lr, a, b: lr * a.long().sum([0]),
        lambda lr, a, b: lr * a.max(),
    ],
    ids=[
        "few",
        "no-product",
        "no-input",
        "read-twice",
        "sum-read-twice",
        "view-read-twice",
        "whole-numbers",
        "no-sum",
    ],
)
def test_all_else_stays(function: Callable[..., Any]) -> None:
    graph = trace(function, VALUES)
    assert apply(ScaleFactors(), graph) is graph
