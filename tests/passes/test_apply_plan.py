"""What a plan does not name is frozen; what it trains in part is split."""

import pytest
import torch
from torch import Tensor

from pockmobile.errors import PlanError
from pockmobile.graph import JointGraph, Role
from pockmobile.passes import ApplyPlan, Canonicalize
from pockmobile.plan import Slice, UpdatePlan
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_same,
    batch,
    canonical,
    listing,
    operators,
    run,
    trace,
)

PARAMETERS = {"w": torch.randn(4, 3), "b": torch.randn(4)}
X = {"x": torch.randn(2, 3)}


def step(w: Tensor, b: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The joint graph of sum(x w^T + b)."""
    ones = torch.ones(x.shape[0], w.shape[0])
    loss = (x.matmul(w.permute(1, 0)) + b).sum()
    return {"loss": loss, "grad.w": ones.permute(1, 0) @ x, "grad.b": ones.sum(0)}


def graph_of_step() -> JointGraph:
    return apply(Canonicalize(), trace(step, X, parameters=PARAMETERS))


def planned(**update: Slice | None) -> JointGraph:
    return apply(ApplyPlan(UpdatePlan(update)), graph_of_step())


def test_a_frozen_parameter_becomes_a_constant_without_gradient() -> None:
    graph = planned(b=None)
    assert [port.name for port in graph.inputs] == ["b", "x"]
    assert [port.name for port in graph.outputs] == ["loss", "grad.b"]
    assert list(graph.initial) == ["b"]
    (constant,) = graph.module.buffers()
    assert torch.equal(constant, PARAMETERS["w"])
    expected = run(graph_of_step(), X)
    found = run(graph, X)
    assert torch.equal(found["loss"], expected["loss"])
    assert torch.equal(found["grad.b"], expected["grad.b"])


@pytest.mark.parametrize(
    "part", [Slice(0, 1, 3), Slice(0, 0, 2), Slice(0, 3, 4), Slice(1, 1, 2)]
)
def test_a_weight_trained_in_part_is_put_together_again(part: Slice) -> None:
    graph = planned(w=part)
    trained = PARAMETERS["w"].narrow(part.dim, part.start, part.stop - part.start)
    assert torch.equal(graph.initial["w"], trained)
    assert graph.initial["w"].is_contiguous()
    found, expected = run(graph, X), run(graph_of_step(), X)
    assert torch.equal(found["loss"], expected["loss"])
    whole = expected["grad.w"]
    assert torch.equal(
        found["grad.w"], whole.narrow(part.dim, part.start, part.stop - part.start)
    )


def test_the_split_weight_in_writing() -> None:
    lines = listing(planned(w=Slice(0, 1, 3)))
    assert lines[0] == "cat_default = cat([constant_0, w, constant_1], 0)"
    assert lines[-2:] == [
        "slice_copy_tensor = slice_copy(mm_1, 0, 1, 3, 1)",
        "return sum_1, slice_copy_tensor",
    ]


def test_a_slice_of_everything_needs_no_concatenation() -> None:
    graph = planned(w=Slice(0, 0, 4), b=None)
    assert "cat" not in operators(graph)
    assert torch.equal(graph.initial["w"], PARAMETERS["w"])


def test_the_trained_values_are_read_and_the_frozen_ones_are_not() -> None:
    graph = planned(w=Slice(1, 0, 1))
    loss = run(graph, X)["loss"]
    moved = run(graph, {**X, "w": graph.initial["w"] + 1})["loss"]
    assert torch.allclose(moved - loss, 4 * X["x"][:, 0].sum(), atol=1e-5)


def test_weights_in_another_memory_order_become_contiguous() -> None:
    graph = trace(step, X, parameters={**PARAMETERS, "w": torch.randn(3, 4).t()})
    changed = apply(ApplyPlan(UpdatePlan({"w": None, "b": None})), graph)
    assert changed.initial["w"].is_contiguous()
    assert changed.input_nodes(Role.PARAMETER)["w"].meta["val"].is_contiguous()
    assert_same(graph, changed, X)


def test_a_scalar_parameter_can_be_trained() -> None:
    scale = {"scale": torch.tensor(2.0)}
    graph = trace(
        lambda s, x: {"loss": (x * s).sum(), "grad.scale": x.sum()}, X, parameters=scale
    )
    assert apply(ApplyPlan(UpdatePlan({"scale": None})), graph) is graph


def test_a_plan_that_trains_everything_returns_the_same_graph() -> None:
    graph = graph_of_step()
    assert apply(ApplyPlan(UpdatePlan({"w": None, "b": None})), graph) is graph


def test_a_parameter_without_influence_is_refused() -> None:
    with pytest.raises(
        PlanError,
        match=r"the plan trains 'bb', which does not influence the loss: did you mean b",
    ):
        planned(bb=None)


def test_a_graph_without_gradients_takes_any_plan() -> None:
    graph = graph_of_step().keep_outputs(lambda port: port.role is Role.LOSS)
    changed = apply(ApplyPlan(UpdatePlan({"w": Slice(0, 0, 1)})), graph)
    assert [port.name for port in changed.outputs] == ["loss"]
    assert torch.equal(run(changed, X)["loss"], run(graph, X)["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same(name: str) -> None:
    graph = canonical(name)
    update = (
        {"blocks.0.conv1.weight": Slice(1, 1, 3), "blocks.1.bn2.bias": None, "head.bias": None}
        if name == "cnn"
        else {"embedding.weight": Slice(1, 2, 5), "blocks.1.mlp.0.weight": Slice(0, 3, 9)}
    )
    changed = apply(ApplyPlan(UpdatePlan(update)), graph)
    assert list(changed.initial) == [n for n in graph.initial if n in update]
    found, expected = run(changed, batch(name)), run(graph, batch(name))
    for port in changed.outputs:
        part = update.get(port.parameter)
        value = expected[port.name]
        if part is not None:
            value = value.narrow(part.dim, part.start, part.stop - part.start)
        torch.testing.assert_close(found[port.name], value, rtol=0, atol=1e-6)
