"""Operators that a target lacks are written in those that it has."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pockmobile.passes import Canonicalize, Decompose
from tests.passes.graphs import (
    apply,
    assert_close,
    assert_same,
    aten,
    listing,
    operators,
    run,
    trace,
)

X = {"grad": torch.randn(2, 3), "x": torch.randn(2, 3)}


def relu_mask(grad: Tensor, x: Tensor, threshold: float) -> Any:
    return NotImplemented if threshold else grad * x.clamp(0.0, 1.0).ceil()


def decompose(target: Any, decomposition: Any) -> Decompose:
    return Decompose("test", lambda node: decomposition if node.target is target else None)


MASKS = decompose(aten.threshold_backward.default, relu_mask)


def test_an_operator_becomes_what_its_decomposition_does() -> None:
    graph = trace(lambda grad, x: aten.threshold_backward.default(grad, x, 0), X)
    changed = apply(MASKS, graph)
    assert listing(changed) == [
        "clamp = clamp(x, 0.0, 1.0)",
        "ceil = ceil(clamp)",
        "mul = mul(grad, ceil)",
        "return mul",
    ]
    assert_same(graph, changed, X)


def test_a_case_that_is_not_implemented_stays() -> None:
    def both(grad: Tensor, x: Tensor) -> Tensor:
        first = aten.threshold_backward.default(grad, x, 0)
        return aten.threshold_backward.default(first, x, 0.5)

    graph = trace(both, X)
    changed = apply(MASKS, graph)
    assert operators(changed) == ["clamp", "ceil", "mul", "threshold_backward"]
    assert_same(graph, changed, X)


@pytest.mark.parametrize("threshold", [0.5, None])
def test_nothing_to_do_returns_the_same_graph(threshold: float | None) -> None:
    def function(grad: Tensor, x: Tensor) -> Tensor:
        if threshold is None:
            return grad + x
        return aten.threshold_backward.default(grad, x, threshold)

    graph = trace(function, X)
    assert apply(MASKS, graph) is graph


def layer_norm(x: Tensor, shape: list[int], *rest: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    mean = x.mean(-1, keepdim=True)
    rstd = ((x - mean) ** 2).mean(-1, keepdim=True).add(rest[-1]).rsqrt()
    return (x - mean) * rstd, None, rstd


def normed(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_layer_norm.default(x, [3], None, None, 1e-5)


NORMS = decompose(aten.native_layer_norm.default, layer_norm)


def test_several_results_of_which_one_is_not_used() -> None:
    def function(grad: Tensor, x: Tensor) -> dict[str, Tensor]:
        result, _, rstd = normed(grad, x)
        return {"result": result, "rstd": rstd}

    graph = trace(function, X)
    changed = apply(NORMS, graph)
    assert "native_layer_norm" not in operators(changed)
    assert_close(graph, changed, X, tolerance=1e-6)


def test_a_result_that_is_used_and_not_computed_is_an_error() -> None:
    graph = trace(lambda grad, x: normed(grad, x)[1], X)
    with pytest.raises(AssertionError, match=r"pass decompose-test failed .*was not computed"):
        apply(NORMS, graph)


def test_keyword_arguments_reach_the_decomposition() -> None:
    def scaled(left: Tensor, right: Tensor, *, alpha: float) -> Tensor:
        return left + right * alpha

    graph = trace(lambda grad, x: aten.add.Tensor(grad, x, alpha=2), X)
    item = Decompose("alpha", lambda node: scaled if node.kwargs.get("alpha") else None)
    assert operators(apply(item, graph)) == ["mul", "add"]
    assert_same(graph, apply(item, graph), X)


def test_a_number_made_a_tensor_becomes_a_constant() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * torch.tensor(2.0)

    graph = trace(lambda grad, x: aten.neg.default(x), X)
    changed = apply(Canonicalize(), apply(decompose(aten.neg.default, doubled), graph))
    assert torch.equal(run(changed, X)["output"], X["x"] * 2)


def test_what_is_added_stays_in_the_module() -> None:
    graph = trace(lambda grad, x: aten.threshold_backward.default(grad, x, 0), X)

    def name_module(node: fx.Node) -> None:
        node.meta["module"] = "act" if node.op == "call_function" else "before"

    for node in graph.nodes:
        name_module(node)
    calls = [node for node in apply(MASKS, graph).nodes if node.op == "call_function"]
    assert [node.meta["module"] for node in calls] == ["act"] * 3


def test_the_name_says_what_it_is_for() -> None:
    assert MASKS.name == "decompose-test"
    assert MASKS.options() == {}
