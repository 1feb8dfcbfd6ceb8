"""What no kept output needs is gone; backward operators compute no more than is used."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import ApplyPlan, Prune
from pockmobile.plan import UpdatePlan
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_same,
    aten,
    batch,
    canonical,
    listing,
    operators,
    trace,
)

X = {"x": torch.randn(2, 3)}
CONVOLUTION = {
    "grad": torch.randn(1, 4, 3, 3),
    "x": torch.randn(1, 2, 5, 5),
    "w": torch.randn(4, 2, 3, 3),
}


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    geometry = ([4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return aten.convolution_backward.default(grad, x, w, *geometry, [True, True, True])


def test_dead_operators_go() -> None:
    def function(x: Tensor) -> Tensor:
        x.exp().neg()
        return x + 1

    graph = trace(function, X)
    changed = apply(Prune(), graph)
    assert listing(changed) == ["add = add(x, 1)", "return add"]
    assert_same(graph, changed, X)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_mask_asks_for_what_is_used(index: int) -> None:
    graph = trace(lambda *args: backward(*args)[index], CONVOLUTION)
    changed = apply(Prune(), graph)
    (node,) = (node for node in changed.nodes if "convolution" in node.name)
    assert node.args[-1] == [index == 0, index == 1, index == 2]
    assert [value is not None for value in node.meta["val"]] == node.args[-1]
    assert_same(graph, changed, CONVOLUTION)


def test_a_dead_constant_goes() -> None:
    graph = trace(lambda x, c: (x + 1, x * c)[0], X, constants={"c": torch.ones(3)})
    changed = apply(Prune(), graph)
    assert not dict(changed.module.named_buffers())


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x])
def test_nothing_to_do_returns_the_same_graph(function) -> None:
    graph = trace(function, X)
    assert apply(Prune(), graph) is graph


def test_narrowed_masks_return_the_same_graph() -> None:
    once = apply(Prune(), trace(lambda *args: backward(*args)[1], CONVOLUTION))
    assert apply(Prune(), once) is once


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same(name: str) -> None:
    plan = UpdatePlan(
        {"blocks.1.conv1.weight" if name == "cnn" else "blocks.1.mlp.0.bias": None}
    )
    graph = apply(ApplyPlan(plan), canonical(name))
    changed = apply(Prune(), graph)
    assert_same(graph, changed, batch(name))
    assert operators(changed).count("convolution_backward") == (3 if name == "cnn" else 0)
    assert apply(Prune(), changed) is changed
