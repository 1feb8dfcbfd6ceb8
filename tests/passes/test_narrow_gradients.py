"""Only the trained slice of a gradient is computed."""

import pytest
import torch
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.passes import ApplyPlan, Canonicalize, NarrowGradients, Prune
from pockmobile.plan import Slice, UpdatePlan
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_close,
    aten,
    batch,
    canonical,
    listing,
    operators,
    trace,
)

MATRICES = {"a": torch.randn(4, 5), "b": torch.randn(5, 6), "c": torch.randn(4, 6)}
GEOMETRY = ([1, 1], [1, 1], [1, 1], False, [0, 0])


def cut(x: Tensor, dim: int, start: int = 1, stop: int = 3, step: int = 1) -> Tensor:
    return aten.slice_copy.Tensor(x, dim, start, stop, step)


def narrowed(function, values: dict[str, Tensor]) -> JointGraph:
    graph = trace(function, values)
    changed = apply(NarrowGradients(), graph)
    assert_close(graph, changed, values, tolerance=1e-5)
    return changed


def test_rows_of_a_product_are_a_product_of_rows() -> None:
    graph = narrowed(lambda a, b, c: cut(aten.mm.default(a, b), 0), MATRICES)
    assert listing(graph) == [
        "slice_copy_tensor = slice_copy(a, 0, 1, 3, 1)",
        "mm_default = mm(slice_copy_tensor, b)",
        "return mm_default",
    ]


def test_columns_of_a_product_are_a_product_with_columns() -> None:
    graph = narrowed(lambda a, b, c: cut(aten.mm.default(a, b), 1), MATRICES)
    assert listing(graph) == [
        "slice_copy_tensor = slice_copy(b, 1, 1, 3, 1)",
        "mm_default = mm(a, slice_copy_tensor)",
        "return mm_default",
    ]


def test_a_slice_moves_through_a_chain_to_where_it_costs_least() -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        product = aten.mm.default(aten.neg.default(a), b) + c
        viewed = aten.view_copy.default(aten.permute_copy.default(product, [1, 0]), [6, 1, 4])
        return cut(viewed, 2)

    graph = narrowed(function, MATRICES)
    assert operators(graph) == [
        "slice_copy", "neg", "slice_copy", "mm", "add", "permute_copy", "view_copy",
    ]  # fmt: skip


def test_what_is_made_by_an_operator_is_cut_right_there() -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        made = aten.exp.default(a)
        later = aten.neg.default(b)
        return cut(aten.mm.default(made, later), 0)

    assert operators(narrowed(function, MATRICES)) == ["exp", "slice_copy", "neg", "mm"]


@pytest.mark.parametrize(("keepdim", "dim"), [(False, 0), (True, 1), (True, 2)])
def test_a_sum_over_other_dimensions(keepdim: bool, dim: int) -> None:
    values = {"x": torch.randn(4, 5, 6)}
    reduced = [0] if dim else [1]

    def function(x: Tensor) -> Tensor:
        return cut(aten.sum.dim_IntList(x, reduced, keepdim), dim)

    assert operators(narrowed(function, values)) == ["slice_copy", "sum"]


@pytest.mark.parametrize("dim", [0, 1])
def test_a_convolutions_weight_gradient(dim: int) -> None:
    values = {
        "grad": torch.randn(2, 5, 6, 6),
        "x": torch.randn(2, 4, 6, 6),
        "w": torch.randn(5, 4, 3, 3),
    }

    def function(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return cut(
            aten.convolution_backward.default(
                grad, x, w, None, *GEOMETRY, 1, [True, True, False]
            )[1],
            dim,
        )

    graph = apply(Prune(), narrowed(function, values))
    (node,) = (node for node in graph.nodes if "convolution" in node.name)
    grad, x, w = node.args[:3]
    assert grad.meta["val"].shape[1] == (2 if dim == 0 else 5)
    assert x.meta["val"].shape[1] == (2 if dim == 1 else 4)
    assert w.meta["val"].shape[dim] == 2
    assert node.args[-1] == [False, True, False]


def test_a_depthwise_convolutions_weight_gradient() -> None:
    values = {
        "grad": torch.randn(2, 4, 6, 6),
        "x": torch.randn(2, 4, 6, 6),
        "w": torch.randn(4, 1, 3, 3),
    }

    def function(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        backward = aten.convolution_backward.default
        return cut(backward(grad, x, w, None, *GEOMETRY, 4, [False, True, False])[1], 0)

    graph = apply(Prune(), narrowed(function, values))
    (node,) = (node for node in graph.nodes if node.name.startswith("convolution"))
    assert node.args[-2] == 2
    assert [value.meta["val"].shape[1] for value in node.args[:2]] == [2, 2]


GRADIENTS = {
    "grad": torch.randn(2, 8, 6, 6),
    "x": torch.randn(2, 4, 6, 6),
    "w": torch.randn(8, 2, 3, 3),
}


def grouped(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
    backward = aten.convolution_backward.default
    return cut(backward(grad, x, w, None, *GEOMETRY, 2, [False, True, False])[1], 0)


def of_the_input(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
    backward = aten.convolution_backward.default
    return cut(backward(grad, x, w, None, *GEOMETRY, 2, [True, False, False])[0], 0, 0, 1)


def transposed(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
    backward = aten.convolution_backward.default
    geometry = ([1, 1], [1, 1], [1, 1], True, [0, 0])
    return cut(backward(x, grad, w[:, :1], None, *geometry, 4, [False, True, False])[1], 0)


@pytest.mark.parametrize("function", [grouped, of_the_input, transposed])
def test_other_gradients_of_convolutions_stay(function) -> None:
    graph = apply(Canonicalize(), trace(function, GRADIENTS))
    assert apply(NarrowGradients(), graph) is graph


TABLE = {"rows": torch.randn(2, 3, 5), "places": torch.tensor([[0, 1, 2], [7, 2, 6]])}


def _table_gradient(rows: Tensor, places: Tensor) -> Tensor:
    return aten.index_put.default(
        aten.full.default([8, 5], 0.0, dtype=torch.float32), [places], rows, True
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, 4), (6, 8), (0, 7)])
def test_rows_of_a_tables_gradient_need_no_table(start: int, stop: int) -> None:
    graph = trace(
        lambda rows, places: cut(_table_gradient(rows, places), 0, start, stop), TABLE
    )
    changed = apply(NarrowGradients(), graph)
    assert_close(graph, changed, TABLE, tolerance=0.0)
    sizes = [node.meta["val"].shape for node in changed.nodes if "index_put" in node.name]
    assert sizes == [(stop - start, 5)]
    assert apply(NarrowGradients(), changed) is changed


def test_rows_that_are_added_to_rows_of_a_product() -> None:
    """The gradient of a tied embedding."""
    values = {**TABLE, "a": torch.randn(8, 4), "b": torch.randn(4, 5)}

    def function(rows: Tensor, places: Tensor, a: Tensor, b: Tensor) -> Tensor:
        product = aten.mm.default(a, b)
        return cut(aten.index_put.default(product, [places], rows, True), 0, 1, 3)

    graph = trace(function, values)
    changed = apply(NarrowGradients(), graph)
    assert_close(graph, changed, values, tolerance=0.0)
    sizes = [node.meta["val"].shape for node in changed.nodes if "mm" in node.name]
    assert sizes == [(2, 5)]


def test_columns_of_a_tables_gradient_need_no_others() -> None:
    graph = trace(lambda rows, places: cut(_table_gradient(rows, places), 1), TABLE)
    changed = apply(NarrowGradients(), graph)
    assert_close(graph, changed, TABLE, tolerance=0.0)
    sizes = [node.meta["val"].shape for node in changed.nodes if "index_put" in node.name]
    assert sizes == [(8, 2)]


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c: cut(aten.exp.default(a), 0),
        lambda a, b, c: cut(aten.mm.default(a, b), 0, step=2),
        lambda a, b, c: cut(aten.view_copy.default(a, [2, 10]), 1),
        lambda a, b, c: cut(aten.add.Tensor(a.view(4, 1, 5), a), 1),
        lambda a, b, c: cut(aten.add.Tensor(a, a, alpha=2), 1),
        lambda a, b, c: cut(aten.sum.dim_IntList(a, [0], True), 0, 0, 1),
    ],
)
def test_other_slices_stay(function) -> None:
    graph = trace(function, MATRICES)
    assert apply(NarrowGradients(), graph) is graph


def test_a_value_that_is_used_whole_too_stays_whole() -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> dict[str, Tensor]:
        product = aten.mm.default(a, b)
        return {"whole": product, "part": cut(product, 0)}

    graph = trace(function, MATRICES)
    assert apply(NarrowGradients(), graph) is graph


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("cnn", "blocks.0.conv1.weight"),
        ("cnn", "blocks.1.conv3.weight"),
        ("cnn", "head.weight"),
        ("lm", "embedding.weight"),
        ("lm", "blocks.0.attention.value.weight"),
        ("lm", "blocks.1.mlp.2.weight"),
    ],
)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_model_computes_the_same(name: str, parameter: str, dim: int) -> None:
    plan = UpdatePlan({parameter: Slice(dim, 1, 3)})
    graph = apply(Prune(), apply(ApplyPlan(plan), canonical(name)))
    changed = apply(NarrowGradients(), graph)
    assert changed is not graph
    assert_close(graph, changed, batch(name), tolerance=1e-6)
    assert apply(NarrowGradients(), changed) is changed


def test_every_model_has_a_case() -> None:
    assert set(MODELS) == {"cnn", "lm"}
