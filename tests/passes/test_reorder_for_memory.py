"""Operators run early where that frees memory, late where it takes some."""

import pytest
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pockmobile.graph import JointGraph
from pockmobile.optim import SGD, AdamW, Optimizer
from pockmobile.passes import (
    AppendOptimizer,
    ApplyPlan,
    Canonicalize,
    Prune,
    RemoveNoops,
    ReorderForMemory,
)
from pockmobile.plan import UpdatePlan
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_same,
    batch,
    canonical,
    operators,
    trace,
)


def num_bytes(node: fx.Node) -> int:
    if node.op != "call_function":
        return 0
    values = [leaf for leaf in tree_leaves(node.meta["val"]) if isinstance(leaf, Tensor)]
    return sum(value.numel() * value.element_size() for value in values)


def peak(graph: JointGraph) -> int:
    """The most bytes that are alive at once, inputs and constants not counted."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {
        node: max((order[user] for user in node.users), default=order[node]) for node in order
    }
    alive = [
        sum(num_bytes(node) for node in order if order[node] <= now <= last_use[node])
        for now in order.values()
    ]
    return max(alive)


WEIGHTS = {"w1": torch.randn(4, 4), "w2": torch.randn(4, 4)}
INPUTS = {**WEIGHTS, "x": torch.randn(8, 4), "lr": torch.tensor(0.1)}


def updates(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> dict[str, Tensor]:
    g1, g2 = torch.mm(w1, w1), torch.mm(w2, w2)
    return {"w1": w1 - lr * g1, "w2": w2 - lr * g2}


def test_an_update_runs_as_soon_as_its_gradient_exists() -> None:
    graph = trace(updates, INPUTS)
    assert operators(graph) == ["mm", "mm", "mul", "sub", "mul", "sub"]
    changed = apply(ReorderForMemory(), graph)
    assert operators(changed) == ["mm", "mul", "sub", "mm", "mul", "sub"]
    assert_same(graph, changed, INPUTS)


def test_what_frees_much_runs_first() -> None:
    def sums(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> Tensor:
        large, other = x.exp(), x.neg()
        return large.sum(0) + other.sum(0)

    graph = trace(sums, INPUTS)
    changed = apply(ReorderForMemory(), graph)
    assert operators(changed) == ["exp", "sum", "neg", "sum", "add"]
    assert peak(changed) == peak(graph) - 8 * 4 * 4 + 4 * 4
    assert_same(graph, changed, INPUTS)


def test_what_makes_more_than_it_frees_waits() -> None:
    def widened(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> Tensor:
        small, other = w1.sum(), w2.mm(w2)
        large = small.repeat(8, 8)
        return large.sum() + other.sum()

    graph = trace(widened, INPUTS)
    assert operators(graph)[:3] == ["sum", "mm", "repeat"]
    changed = apply(ReorderForMemory(), graph)
    assert operators(changed)[:3] == ["sum", "mm", "sum"]


def test_what_is_made_of_weights_alone_waits_for_its_first_user() -> None:
    def scaled(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> Tensor:
        joined = torch.cat([w1, w2], 1) * lr
        return x.mm(w1).mm(w2).mm(joined)

    graph = trace(scaled, INPUTS)
    assert operators(graph) == ["cat", "mul", "mm", "mm", "mm"]
    changed = apply(ReorderForMemory(), graph)
    assert operators(changed) == ["mm", "mm", "cat", "mul", "mm"]
    assert peak(changed) <= peak(graph)
    assert_same(graph, changed, INPUTS)


def test_a_long_chain_of_cheap_operators_is_moved() -> None:
    def chain(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> Tensor:
        for _ in range(1200):
            w1 = w1.sin()
        return x.mm(w2).mm(w1)

    changed = apply(ReorderForMemory(), trace(chain, INPUTS))
    assert operators(changed) == ["mm", *["sin"] * 1200, "mm"]


def test_what_does_not_fit_below_the_peak_waits() -> None:
    def step(w1: Tensor, w2: Tensor, x: Tensor, lr: Tensor) -> dict[str, Tensor]:
        large, other = x.exp(), x.neg()
        product = large * other
        return {"y": large.exp(), "z": product.sum()}

    graph = trace(step, INPUTS)
    changed = apply(ReorderForMemory(), graph)
    assert peak(changed) <= peak(graph)
    assert_same(graph, changed, INPUTS)


def test_inputs_stay_first_and_in_order() -> None:
    graph = apply(ReorderForMemory(), trace(updates, INPUTS))
    assert [node.name for node in graph.placeholders] == list(INPUTS)


def test_nothing_to_do_returns_the_same_graph() -> None:
    graph = trace(lambda w1, w2, x, lr: w1.exp().neg().sum(), INPUTS)
    assert apply(ReorderForMemory(), graph) is graph


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()], ids=lambda o: o.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_needs_no_more_memory_and_computes_the_same(
    name: str, optimizer: Optimizer
) -> None:
    graph = canonical(name)
    every = {port.parameter: None for port in graph.outputs if port.parameter}
    for item in (ApplyPlan(UpdatePlan(every)), Prune(), AppendOptimizer(optimizer)):
        graph = apply(item, graph)
    graph = apply(RemoveNoops(), apply(Canonicalize(), graph))
    changed = apply(ReorderForMemory(), graph)
    assert operators(changed) != operators(graph)
    assert peak(changed) <= peak(graph)
    zeros = {
        port.name: torch.zeros(node.meta["val"].shape)
        for port, node in zip(graph.inputs, graph.placeholders, strict=True)
        if port.name not in graph.initial
    }
    assert_same(graph, changed, {**zeros, **batch(name), "lr": torch.tensor(0.1)})
    assert apply(ReorderForMemory(), changed) is changed
