"""What depends on no input is computed at compile time."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import ApplyPlan, FoldConstants
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
C = {"c": torch.rand(3)}


def test_operators_on_constants_become_their_result() -> None:
    graph = trace(lambda x, c: x * torch.rsqrt(c + 1e-5), X, constants=C)
    changed = apply(FoldConstants(), graph)
    assert listing(changed) == ["mul = mul(x, constant_1)", "return mul"]
    assert torch.equal(changed.module.constant_1, torch.rsqrt(C["c"] + 1e-5))
    assert not hasattr(changed.module, "constant_0")
    assert_same(graph, changed, X)


def test_a_result_of_an_operator_with_several_is_folded() -> None:
    def function(x: Tensor, c: Tensor) -> Tensor:
        return x + aten.max.dim(c, 0)[0]

    graph = trace(function, X, constants=C)
    changed = apply(FoldConstants(), graph)
    assert operators(changed) == ["add"]
    assert_same(graph, changed, X)


def test_a_folded_operator_stays_in_its_module() -> None:
    graph = trace(lambda x, c: x * c.exp(), X, constants=C)
    for node in graph.nodes:
        node.meta["module"] = "norm" if node.name == "exp" else ""
    constants = [n for n in apply(FoldConstants(), graph).nodes if n.op == "get_attr"]
    assert [node.meta["module"] for node in constants] == ["norm"]


@pytest.mark.parametrize(
    "function",
    [
        # A delegate reads a constant in any layout.
        lambda x, c: x * aten.view_copy.default(c, [1, 3]),
        lambda x, c: x * aten.expand_copy.default(c, [2, 3]),
        lambda x, c: x * aten.slice_copy.Tensor(aten.view_copy.default(c, [3, 1]), 0, 0, 1, 1),
        # A fill is smaller as an operator.
        lambda x, c: x * aten.full.default([2, 3], 2.0),
        lambda x, c: x * aten.expand_copy.default(aten.full.default([1, 3], 2.0), [2, 3]),
        # Two runs draw different numbers.
        lambda x, c: x * aten.rand_like.default(c),
        lambda x, c: x * c,
    ],
)
def test_what_stays_as_it_is(function) -> None:
    graph = trace(function, X, constants=C)
    assert apply(FoldConstants(), graph) is graph


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_model_computes_the_same(name: str) -> None:
    head = "head.weight" if name == "cnn" else "norm.weight"
    graph = apply(ApplyPlan(UpdatePlan({head: None})), canonical(name))
    changed = apply(FoldConstants(), graph)
    assert "rsqrt" not in operators(changed)
    assert "arange" not in operators(changed)
    assert_same(graph, changed, batch(name))
    assert apply(FoldConstants(), changed) is changed
