"""What changes nothing goes, and what changes something stays."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import FoldConstants, RemoveNoops
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


def fill(number: float, shape: tuple[int, ...] = (2, 3)) -> Tensor:
    return aten.full.default(shape, number)


def permute(x: Tensor, dims: list[int]) -> Tensor:
    return aten.permute_copy.default(x, dims)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: aten.view_copy.default(x, [2, 3]),
        lambda x: aten.view_copy.default(aten.view_copy.default(x, [6]), [2, 3]),
        lambda x: permute(permute(x, [1, 0]), [1, 0]),
        lambda x: permute(x, [-2, -1]),
        lambda x: aten.expand_copy.default(x, [2, 3]),
        lambda x: aten.slice_copy.Tensor(x, 1, 0, 3, 1),
        lambda x: aten.constant_pad_nd.default(x, [0, 0], 0.0),
        lambda x: aten._to_copy.default(x, dtype=torch.float32),
        lambda x: aten.mul.Tensor(x, 1),
        lambda x: aten.mul.Tensor(fill(1), x),
        lambda x: aten.div.Tensor(x, 1.0),
        lambda x: aten.add.Tensor(x, 0),
        lambda x: aten.add.Tensor(fill(0), x),
        lambda x: aten.add.Tensor(x, fill(0), alpha=2),
        lambda x: aten.sub.Tensor(x, 0),
        lambda x: aten.pow.Tensor_Scalar(x, 1),
    ],
)
def test_noops_go(function) -> None:
    graph = trace(lambda x: aten.neg.default(function(x)), X)
    changed = apply(RemoveNoops(), graph)
    assert listing(changed) == ["neg = neg(x)", "return neg"]
    assert_same(graph, changed, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: aten.view_copy.default(x, [3, 2]),
        lambda x: permute(x, [1, 0]),
        lambda x: permute(x, [-1, 0]),
        lambda x: aten.slice_copy.Tensor(x, 1, 0, 2, 1),
        lambda x: aten.constant_pad_nd.default(x, [1, -1], 0.0),
        lambda x: aten._to_copy.default(x, dtype=torch.float64),
        lambda x: aten.add.Tensor(fill(0), x, alpha=2),
        lambda x: aten.sub.Tensor(fill(0), x),
        lambda x: aten.div.Tensor(fill(1), x),
        lambda x: aten.mul.Tensor(x, fill(1, (2, 2, 3))),
        lambda x: aten.mul.Tensor(aten._to_copy.default(x, dtype=torch.int64), 1.0),
        lambda x: aten.pow.Tensor_Scalar(x, 2),
    ],
)
def test_what_changes_something_stays(function) -> None:
    graph = trace(function, X)
    assert apply(RemoveNoops(), graph) is graph


def test_chains_of_views_become_one() -> None:
    def chained(x: Tensor) -> dict[str, Tensor]:
        y = aten.view_copy.default(aten.view_copy.default(x, [6]), [3, 2])
        z = aten.view_copy.default(x, [1, 2, 3])
        return {"y": y, "z": permute(permute(permute(z, [2, 0, 1]), [1, 2, 0]), [0, 2, 1])}

    graph = trace(chained, X)
    changed = apply(RemoveNoops(), graph)
    assert operators(changed) == ["view_copy", "view_copy", "permute_copy"]
    assert_same(graph, changed, X)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same(name: str) -> None:
    graph = apply(FoldConstants(), canonical(name))
    changed = apply(RemoveNoops(), graph)
    assert changed.num_operators < graph.num_operators
    assert_same(graph, changed, batch(name))
    assert apply(RemoveNoops(), changed) is changed
