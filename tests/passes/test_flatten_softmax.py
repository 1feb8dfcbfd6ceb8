"""A softmax is taken before its rows are put into more dimensions."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import FlattenSoftmax
from tests.passes.graphs import apply, assert_same, aten, operators, trace

INPUTS = {"x": torch.randn(6, 5), "labels": torch.randint(5, (2, 3, 1))}


def _loss(x: Tensor, labels: Tensor) -> Tensor:
    p = aten._softmax.default(aten.view_copy(x, [2, 3, 5]), -1, False)
    return aten.gather(p, -1, labels)


def test_the_views_are_of_the_labels_and_of_what_is_picked() -> None:
    graph = trace(_loss, INPUTS)
    changed = apply(FlattenSoftmax(), graph)
    assert operators(changed)[0] == "_softmax"
    assert operators(changed)[-2:] == ["gather", "view_copy"]
    assert_same(graph, changed, INPUTS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, labels: aten._softmax.default(aten.view_copy(x, [2, 3, 5]), 1, False),
        lambda x, labels: aten._softmax.default(aten.view_copy(x, [2, 15]), -1, False),
        lambda x, labels: aten.gather(aten.view_copy(x, [2, 3, 5]), 0, labels),
    ],
)
def test_other_views_stay(function) -> None:
    graph = trace(function, INPUTS)
    assert apply(FlattenSoftmax(), graph) is graph
