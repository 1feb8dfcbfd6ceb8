"""Views become copies of static shape, and every tensor is contiguous."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import Canonicalize
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_close,
    assert_same,
    aten,
    batch,
    captured,
    listing,
    trace,
)

X = {"x": torch.randn(2, 3, 4)}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: aten.view.default(x, [-1, 4]), ["view_copy(x, [6, 4])"]),
        (lambda x: aten.unsqueeze.default(x, -1), ["view_copy(x, [2, 3, 4, 1])"]),
        (lambda x: aten.permute.default(x, [-1, 0, 1]), ["permute_copy(x, [2, 0, 1])"]),
        (lambda x: aten.transpose.int(x, -1, 0), ["permute_copy(x, [2, 1, 0])"]),
        (lambda x: aten.slice.Tensor(x, -1, -2), ["slice_copy(x, 2, 2, 4, 1)"]),
        (lambda x: aten.slice.Tensor(x, 1, 0, 99, 2), ["slice_copy(x, 1, 0, 3, 2)"]),
        (
            lambda x: aten.select.int(x, 1, -1),
            ["slice_copy(x, 1, 2, 3, 1)", "view_copy(slice_copy_tensor, [2, 4])"],
        ),
        (
            lambda x: aten.split_with_sizes.default(x, [1, 3], -1)[1],
            ["slice_copy(x, 2, 1, 4, 1)"],
        ),
        (
            lambda x: aten.expand.default(aten.sum.dim_IntList(x, [0], True), [5, -1, -1]),
            ["sum(x, [0], True)", "expand_copy(sum_1, [5, 3, 4])"],
        ),
        (lambda x: aten.zeros_like.default(x), ["full([2, 3, 4], 0, dtype=torch.float32)"]),
        (lambda x: aten.ones_like.default(x), ["full([2, 3, 4], 1, dtype=torch.float32)"]),
        (lambda x: aten.full_like.default(x, 7), ["full([2, 3, 4], 7, dtype=torch.float32)"]),
        (lambda x: aten.clone.default(aten.neg.default(x)), ["neg(x)"]),
        (lambda x: aten.mul.Scalar(x, 2), ["mul(x, 2)"]),
        (lambda x: aten.add.Scalar(x, 2, 3), ["add(x, 2, alpha=3)"]),
        (
            lambda x: aten.rsub.Scalar(x, 2),
            ["full([1], 2, dtype=torch.float32)", "sub(full_default, x)"],
        ),
        (
            lambda x: aten.rsub.Scalar(x, 2, 3),
            ["neg(x)", "mul(neg_default, 3)", "add(mul_tensor, 2)"],
        ),
    ],
)
def test_one_spelling(function, expected: list[str]) -> None:
    graph = trace(function, X)
    changed = apply(Canonicalize(), graph)
    assert [line.partition(" = ")[2] for line in listing(changed)[:-1]] == expected
    assert_close(graph, changed, X, tolerance=1e-6)


def test_a_matrix_is_transposed_and_a_vector_is_not() -> None:
    values = {"x": torch.randn(2, 3), "y": torch.randn(3)}

    def transposed(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"matrix": aten.t.default(x), "vector": aten.t.default(y)}

    graph = trace(transposed, values)
    changed = apply(Canonicalize(), graph)
    assert listing(changed)[:2] == [
        "permute_copy_default = permute_copy(x, [1, 0])",
        "permute_copy_default_1 = permute_copy(y, [0])",
    ]
    assert_same(graph, changed, values)


def test_every_tensor_becomes_contiguous() -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    graph = trace(lambda x: aten.permute.default(aten.neg.default(x), [1, 0, 2, 3]), {"x": x})
    changed = apply(Canonicalize(), graph)
    assert all(
        node.meta["val"].is_contiguous() for node in changed.nodes if node.op != "output"
    )
    assert_same(graph, changed, {"x": x})


def test_a_rewritten_operator_stays_in_its_module() -> None:
    graph = trace(lambda x: aten.view.default(aten.neg.default(x), [24]), X)
    for node, module in zip(graph.nodes, ("", "first", "second"), strict=False):
        node.meta["module"] = module
    changed = apply(Canonicalize(), graph)
    assert [node.meta.get("module") for node in changed.nodes] == ["", "first", "second", None]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_but_for_rounding(name: str) -> None:
    graph = captured(name)
    assert_close(graph, apply(Canonicalize(), graph), batch(name), tolerance=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_to_do_returns_the_same_graph(name: str) -> None:
    once = apply(Canonicalize(), captured(name))
    assert apply(Canonicalize(), once) is once
