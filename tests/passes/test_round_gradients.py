"""Gradients in float16 come to the optimizer in float32, and nothing else is moved there."""

import torch
from torch import Tensor

from pockmobile.graph import Role
from pockmobile.optim import SGD
from pockmobile.passes import (
    AppendOptimizer,
    FoldScale,
    RoundGradients,
    computed_in_half,
    run_passes,
)
from tests.passes.graphs import apply, listing, operators, run, trace

SCALE = 256.0


def _step(weight: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"loss": (x @ weight).sum(), "grad.weight": x.t() @ x}


def _graph(x: Tensor) -> object:
    return trace(_step, {"x": x}, parameters={"weight": torch.randn(3, 3)})


def test_gradients_are_rounded_and_divided_by_their_scale() -> None:
    x = torch.randn(4, 3)
    graph = trace(_step, {"x": x}, parameters={"weight": torch.randn(3, 3)})
    rounded = apply(RoundGradients(SCALE), graph)
    assert listing(rounded)[-4:] == [
        "_to_copy_default = _to_copy(mm_1, dtype=torch.float16)",
        "_to_copy_default_1 = _to_copy(_to_copy_default, dtype=torch.float32)",
        "mul_tensor = mul(_to_copy_default_1, 0.00390625)",
        "return sum_1, mul_tensor",
    ]
    found = run(rounded, {"x": x})
    torch.testing.assert_close(found["grad.weight"], (x.t() @ x).half().float() / SCALE)
    assert torch.equal(found["loss"], run(graph, {"x": x})["loss"])


def test_a_graph_without_gradients_is_left_alone() -> None:
    graph = trace(lambda x: x * 2, {"x": torch.randn(3)})
    assert apply(RoundGradients(SCALE), graph) is graph


def test_the_optimizer_is_not_computed_in_half() -> None:
    x = torch.randn(4, 3)
    graph = trace(_step, {"x": x}, parameters={"weight": torch.randn(3, 3)})
    passes = [RoundGradients(SCALE), AppendOptimizer(SGD(weight_decay=0.1)), FoldScale()]
    step, _ = run_passes(graph, passes)
    half = computed_in_half(step)
    outside = [node for node in step.nodes if node.op == "call_function" and node not in half]
    names = [node.target._opname for node in outside]
    # Unscaled, decayed, and subtracted times the rate: nothing else.
    assert sorted(names) == ["add", "mul", "mul", "mul", "sub", "view"]
    assert operators(step).count("mm") == 2
    assert not half.isdisjoint(step.output_nodes(Role.LOSS).values())
    assert half.isdisjoint(step.output_nodes(Role.PARAMETER).values())
