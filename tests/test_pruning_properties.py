"""Pruning, over random plans: what is kept is the plan's, and nothing else remains."""

from collections import Counter
from collections.abc import Mapping
from functools import cache

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as func

from pockmobile.capture import describe_layers, export_forward
from pockmobile.graph import JointGraph, Role
from pockmobile.optim import SGD
from pockmobile.passes import (
    AppendOptimizer,
    ApplyPlan,
    Canonicalize,
    NarrowGradients,
    Prune,
    run_passes,
)
from pockmobile.plan import Layer, Slice, UpdatePlan
from tests.passes.graphs import MODELS, batch, canonical, operators, run

LR = 0.5
quick = settings(max_examples=10, deadline=None)


@cache
def layers_of(name: str) -> tuple[Layer, ...]:
    inputs = tuple(value for key, value in batch(name).items() if key != "target")
    return describe_layers(export_forward(MODELS[name](), inputs))


@cache
def eager_step(name: str) -> Mapping[str, Tensor]:
    """Returns every parameter after one step of gradient descent, by autograd."""
    model = MODELS[name]()
    *inputs, target = batch(name).values()
    func.cross_entropy(model(*inputs).flatten(0, -2), target.flatten()).backward()
    return {key: value.detach() - LR * value.grad for key, value in model.named_parameters()}


@st.composite
def plans(draw: st.DrawFn, name: str, *, sliced: bool) -> UpdatePlan:
    """Draws a plan that names at least one parameter of a model."""
    parameters = canonical(name).initial
    known = [key for key in parameters if not key.startswith("buffer.")]
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=6, unique=True))
    return UpdatePlan(
        {key: draw(slices(parameters[key].shape)) if sliced else None for key in chosen}
    )


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...]) -> Slice | None:
    dim = draw(st.integers(-1, min(2, len(shape)) - 1))
    if dim < 0:
        return None
    start = draw(st.integers(0, shape[dim] - 1))
    return Slice(dim, start, draw(st.integers(start + 1, shape[dim])))


def taken(value: Tensor, part: Slice | None) -> Tensor:
    return value if part is None else value.narrow(part.dim, part.start, part.stop - part.start)


def planned(name: str, plan: UpdatePlan) -> JointGraph:
    return run_passes(canonical(name), [ApplyPlan(plan)])[0]


def pruned(name: str, plan: UpdatePlan) -> JointGraph:
    return run_passes(planned(name, plan), [Prune()])[0]


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_the_gradients_kept_are_exactly_the_plans(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(name, sliced=True))
    graph = pruned(name, plan)
    parameters = canonical(name).initial
    shapes = {
        port.parameter: graph.output_nodes(Role.GRADIENT)[port.name].meta["val"].shape
        for port in graph.outputs
        if port.role is Role.GRADIENT
    }
    assert shapes == {
        key: taken(parameters[key], part).shape for key, part in plan.update.items()
    }
    assert graph.initial.keys() == set(plan.update)
    assert graph.input_nodes(Role.PARAMETER).keys() == set(plan.update)


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_new_weights_are_eagers(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(name, sliced=True))
    graph, _ = run_passes(
        pruned(name, plan), [AppendOptimizer(SGD()), Canonicalize(), NarrowGradients(), Prune()]
    )
    found = run(graph, {**batch(name), "lr": torch.tensor(LR)})
    for key, part in plan.update.items():
        expected = taken(eager_step(name)[key], part)
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_pruning_never_adds_an_operator_and_is_done_at_once(
    name: str, data: st.DataObject
) -> None:
    plan = data.draw(plans(name, sliced=True))
    before = planned(name, plan)
    after = pruned(name, plan)
    assert after.num_operators <= before.num_operators
    assert Prune().apply(after) is after
    whole = pruned(name, UpdatePlan(dict.fromkeys(plan.update)))
    every = [key for key in canonical(name).initial if not key.startswith("buffer.")]
    assert whole.num_operators <= pruned(name, UpdatePlan(dict.fromkeys(every))).num_operators


def backward_operators(name: str, plan: UpdatePlan) -> Counter[tuple[str, str]]:
    """Counts operators of the training step that the forward pass and the loss do not have."""
    train = pruned(name, plan)
    forward = train.keep_outputs(lambda port: port.role is not Role.GRADIENT)
    forward, _ = run_passes(forward, [Prune()])
    return _located(train) - _located(forward)


def _located(graph: JointGraph) -> Counter[tuple[str, str]]:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return Counter((node.meta.get("module", ""), str(node.target)) for node in calls)


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_the_backward_pass_ends_at_the_first_layer_that_learns(
    name: str, data: st.DataObject
) -> None:
    plan = data.draw(plans(name, sliced=False))
    layers = layers_of(name)
    first = next(
        i for i, layer in enumerate(layers) if set(layer.parameters) & set(plan.update)
    )
    learning = {layer.path for layer in layers[first:]}
    frozen = {layer.path for layer in layers[:first]} - learning
    frozen |= {layer.block for layer in layers[:first]} - {
        layer.block for layer in layers[first:]
    }
    remaining = {place for place in backward_operators(name, plan) if place[0] in frozen}
    assert remaining == set()


def test_a_frozen_backbone_leaves_no_backward_operator_behind() -> None:
    plan = UpdatePlan({"head.weight": None, "head.bias": None})
    assert "convolution_backward" not in operators(pruned("cnn", plan))
    remaining = backward_operators("cnn", plan)
    assert {module for module, _ in remaining} <= {"head", "the loss"}
    # The gradient of the logits (softmax minus one-hot, scaled), of the weight and the bias.
    assert sum(remaining.values()) < 20


def test_each_layer_that_learns_costs_one_more_convolution() -> None:
    layers = [layer for layer in layers_of("cnn") if layer.kind == "convolution"]
    for index, layer in enumerate(layers):
        graph = pruned("cnn", UpdatePlan({layer.weight: None}))
        assert operators(graph).count("convolution_backward") == len(layers) - index
        masks = [
            node.args[-1]
            for node in graph.nodes
            if node.name.startswith("convolution_backward")
        ]
        # The first one that learns needs no gradient of its input, the others no more.
        assert masks == [[True, False, False]] * (len(masks) - 1) + [[False, True, False]]
