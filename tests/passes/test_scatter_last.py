"""Rows are added to a table at the very end."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pockmobile.passes import ScatterLast
from tests.passes.graphs import apply, assert_close, aten, operators, trace

INPUTS = {
    "p": torch.randn(7, 3),
    "g": torch.randn(7, 3),
    "v": torch.randn(4, 3),
    "rows": torch.tensor([5, 0, 5, 6]),
    "lr": torch.tensor([0.3]),
}


def put(table: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return aten.index_put.default(table, [rows], values, True)


def zeros() -> Tensor:
    return aten.full.default([7, 3], 0.0)


def update(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    return p - lr * (g + put(zeros(), rows, v))


def tied(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    """An embedding that is the head, too, and decays."""
    both = put(g, rows, v * 2) + put(zeros(), rows, v)
    return p - lr * (both + p * lr)


def embedding_alone(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    return p - put(zeros(), rows, v) * lr


def from_the_left(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    return put(p, rows, v) - g


Function = Callable[..., Tensor]


@pytest.mark.parametrize("function", [update, tied, from_the_left])
def test_rows_are_added_last(function: Function) -> None:
    graph = trace(function, INPUTS)
    changed = apply(ScatterLast(), graph)
    assert operators(changed).count("index_put") == 1
    assert operators(changed)[-1] == "index_put"
    assert "full" not in operators(changed)
    assert_close(graph, changed, INPUTS, tolerance=1e-5)
    assert apply(ScatterLast(), changed) is changed


def test_zeros_that_are_scaled_take_part() -> None:
    graph = trace(embedding_alone, INPUTS)
    changed = apply(ScatterLast(), graph)
    assert operators(changed)[-1] == "index_put"
    assert_close(graph, changed, INPUTS, tolerance=1e-5)


def squared(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    grad = put(zeros(), rows, v)
    return grad * grad


def read_twice(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> dict[str, Tensor]:
    grad = put(g, rows, v)
    return {"output": p - grad, "second": grad}


def scaled_by_columns(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    return put(g, rows, v) * p


def written(p: Tensor, g: Tensor, v: Tensor, rows: Tensor, lr: Tensor) -> Tensor:
    return p - aten.index_put.default(g, [rows], v, False)


@pytest.mark.parametrize("function", [squared, read_twice, scaled_by_columns, written])
def test_other_additions_stay(function: Function) -> None:
    graph = trace(function, INPUTS)
    assert apply(ScatterLast(), graph) is graph
