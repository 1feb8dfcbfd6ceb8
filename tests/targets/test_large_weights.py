"""Products with large trained weights, whose sides XNNPACK is given in the other order."""

import pytest
import torch
from torch import Tensor

from pockmobile.passes import Canonicalize, Decompose
from pockmobile.targets.xnnpack.decompositions import select_large_weight
from tests.passes.graphs import apply, assert_close, aten, trace

TURNED = Decompose("large-weights", select_large_weight)
WIDTH, OUTPUTS = 128, 4096


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "is_turned"), [(8, True), (200, False)])
def test_a_large_weight_is_on_the_left_of_few_rows(
    rows: int, is_turned: bool, has_bias: bool
) -> None:
    def product(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(bias, x, weight.t()) if has_bias else x @ weight.t()

    inputs = {"x": torch.randn(rows, WIDTH)}
    parameters = {"weight": torch.randn(OUTPUTS, WIDTH), "bias": torch.randn(OUTPUTS)}
    graph = apply(Canonicalize(), trace(product, inputs, parameters=parameters))

    changed = apply(TURNED, graph)

    assert (changed is not graph) is is_turned
    if is_turned:
        (found,) = changed.module.graph.find_nodes(op="call_function", target=aten.mm.default)
        assert [list(arg.meta["val"].shape) for arg in found.args] == [
            [OUTPUTS, WIDTH],
            [WIDTH, rows],
        ]
        assert_close(graph, changed, inputs, tolerance=1e-4)


def test_a_weight_that_lies_the_other_way_stays() -> None:
    graph = trace(
        lambda weight, x: x @ weight,
        {"x": torch.randn(8, OUTPUTS)},
        parameters={"weight": torch.randn(OUTPUTS, WIDTH)},
    )

    assert apply(TURNED, apply(Canonicalize(), graph)) is graph
