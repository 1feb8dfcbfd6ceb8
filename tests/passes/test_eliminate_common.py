"""Each value is computed once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pockmobile.passes import EliminateCommon
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


def test_the_same_operator_on_the_same_arguments_runs_once() -> None:
    graph = trace(lambda x: x.exp().neg() + x.exp().neg(), X)
    changed = apply(EliminateCommon(), graph)
    assert listing(changed) == [
        "exp = exp(x)",
        "neg = neg(exp)",
        "add = add(neg, neg)",
        "return add",
    ]
    assert_same(graph, changed, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 2) + (x * 2.0),
        lambda x: (x * 1) + (x * True),
        lambda x: aten.add.Tensor(x, x) + aten.add.Tensor(x, x, alpha=2),
        lambda x: x.sum(0) + x.sum(0, keepdim=True),
        lambda x: torch.rand_like(x) + torch.rand_like(x),
        lambda x: x.exp() + x.neg(),
    ],
)
def test_different_operators_stay(function) -> None:
    graph = trace(function, X)
    assert apply(EliminateCommon(), graph) is graph


@pytest.mark.parametrize(("num_between", "num_expected"), [(10, 1), (100, 2)])
def test_a_large_value_is_made_again_where_it_is_needed_long_after(
    num_between: int, num_expected: int
) -> None:
    def function(x: Tensor) -> Tensor:
        total = (x.repeat(4, 1) + 1).sum()
        for _ in range(num_between):
            total = total.sin()
        return total + (x.repeat(4, 1) * 2).sum()

    graph = trace(function, X)
    changed = apply(EliminateCommon(), graph)
    assert operators(changed).count("repeat") == num_expected
    assert_same(graph, changed, X)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "view_copy": lambda x: aten.view_copy(x, [6]),
    "slice_copy": lambda x: aten.slice_copy(x, 0, 0, 1),
    "constant_pad_nd": lambda x: aten.constant_pad_nd(x, [1, 1]),
    "convolution": lambda x: conv2d(x.view(1, 2, 3, 1), torch.ones(2, 1, 1, 1), groups=2),
}


@pytest.mark.parametrize(("num_between", "num_expected"), [(10, 1), (100, 2)])
@pytest.mark.parametrize("name", MOVES)
def test_data_is_moved_again_where_it_is_needed_long_after(
    name: str, num_between: int, num_expected: int
) -> None:
    move = MOVES[name]

    def function(x: Tensor) -> Tensor:
        total = (move(x) + 1).sum()
        for _ in range(num_between):
            total = total.sin()
        return total + (move(x) * 2).sum()

    graph = trace(function, X)
    changed = apply(EliminateCommon(), graph)
    assert operators(changed).count(name) == num_expected
    assert_same(graph, changed, X)


def constants_of(a: Tensor, b: Tensor) -> list[str]:
    graph = trace(lambda x, a, b: x * a.sum() + b.sum(), X, constants={"a": a, "b": b})
    changed = apply(EliminateCommon(), graph)
    assert_same(graph, changed, X)
    return [str(node.target) for node in changed.nodes if node.op == "get_attr"]


def test_small_constants_are_compared_by_their_values() -> None:
    assert len(constants_of(torch.arange(6.0), torch.arange(6.0))) == 1
    assert len(constants_of(torch.arange(6.0), torch.arange(6.0) + 1)) == 2
    assert len(constants_of(torch.zeros(6), torch.zeros(2, 3))) == 2
    assert len(constants_of(torch.zeros(6), torch.zeros(6, dtype=torch.int32))) == 2
    assert len(constants_of(torch.tensor(1.0), torch.tensor(1.0))) == 1
    assert len(constants_of(torch.ones(3).bfloat16(), torch.ones(3).bfloat16())) == 1


def test_large_constants_are_compared_by_their_address() -> None:
    large = torch.randn(100, 50)
    assert len(constants_of(large, large)) == 1
    assert len(constants_of(large, large.clone())) == 2
    square = torch.randn(70, 70)
    assert len(constants_of(square, square.t())) == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same(name: str) -> None:
    graph = canonical(name)
    changed = apply(EliminateCommon(), graph)
    assert changed.num_operators < graph.num_operators
    assert len(set(operators(changed))) == len(set(operators(graph)))
    assert_same(graph, changed, batch(name))
    assert apply(EliminateCommon(), changed) is changed
