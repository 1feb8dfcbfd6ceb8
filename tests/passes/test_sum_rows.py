"""Rows that go to one place are added up first, so that none is added in the table."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pockmobile.passes import SumRows
from tests.passes.graphs import apply, assert_close, aten, operators, trace

INPUTS = {
    "p": torch.randn(20, 6),
    "v": torch.randn(5, 6),
    "rows": torch.tensor([3, 0, 3, 19, 3]),
}


def put(table: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return aten.index_put.default(table, [rows], values, True)


def test_rows_of_one_place_are_added_up() -> None:
    graph = trace(lambda p, v, rows: put(p.neg(), rows, v), INPUTS)
    changed = apply(SumRows(), graph)
    found = operators(changed)
    assert found[0] == "neg"
    assert [name for name in found if name in ("eq", "mm", "index", "add", "index_put")] == [
        "eq", "mm", "index", "add", "index_put",
    ]  # fmt: skip
    assert list(changed.nodes)[-2].args[3:] == ()
    assert_close(graph, changed, INPUTS, tolerance=1e-5)
    assert apply(SumRows(), changed) is changed


def test_zeros_need_not_be_read() -> None:
    graph = trace(lambda p, v, rows: put(aten.full.default([20, 6], 0.0), rows, v), INPUTS)
    changed = apply(SumRows(), graph)
    assert "index" not in operators(changed)
    assert_close(graph, changed, INPUTS, tolerance=1e-5)


def test_rows_of_several_dimensions() -> None:
    inputs = {
        "p": torch.randn(30, 2, 3),
        "v": torch.randn(2, 4, 2, 3),
        "rows": torch.tensor([[1, 2, 2, 7], [2, 29, 0, 1]]),
    }
    graph = trace(lambda p, v, rows: put(p * 2, rows, v), inputs)
    changed = apply(SumRows(), graph)
    assert "mm" not in operators(changed), "64 pairs of 8 rows are too many for 180 numbers"
    inputs["p"] = torch.randn(100, 2, 3)
    graph = trace(lambda p, v, rows: put(p * 2, rows, v), inputs)
    changed = apply(SumRows(), graph)
    assert "mm" in operators(changed)
    assert_close(graph, changed, inputs, tolerance=1e-5)


def input_itself(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p, rows, v)


def read_later(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    table = p.neg()
    return put(table, rows, v) + table


def seen_by_a_view(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    table = p.neg()
    other = table.view(6, 20)
    return put(table, rows, v).sum() + other.sum()


def view_of_an_input(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p.view(20, 6), rows, v)


def broadcast(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p.neg(), rows, v[0])


@pytest.mark.parametrize(
    "function", [input_itself, read_later, seen_by_a_view, view_of_an_input, broadcast]
)
def test_what_cannot_be_written_over_is_left_alone(function: Callable[..., Tensor]) -> None:
    graph = trace(function, INPUTS)
    assert apply(SumRows(frozenset({aten.view.default})), graph) is graph
