"""Single operators are costed as the target writes them, and each kind of them once."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pockmobile import passes
from pockmobile.cost import Work
from pockmobile.cost.template import Templates
from pockmobile.cost.work import NO_LOAD, Load
from pockmobile.graph import JointGraph
from pockmobile.optim import SGD, AdamW, Momentum
from pockmobile.targets import Target
from pockmobile.targets.portable import Portable
from pockmobile.targets.xnnpack import Xnnpack
from tests.passes.graphs import aten, trace


def nodes_of(graph: JointGraph, target: Any) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is target]


def convolution() -> fx.Node:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = aten.convolution.default(
            x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )
        return result

    inputs = {"x": torch.ones(2, 3, 8, 8), "weight": torch.ones(4, 3, 3, 3)}
    (node,) = nodes_of(trace(function, inputs), aten.convolution.default)
    return node


def load(target: Target, node: fx.Node, frozen: tuple[int, ...] = ()) -> Load:
    parents = node.all_input_nodes
    return Templates(target).operator(node, frozenset(parents[i] for i in frozen), frozenset())


def test_a_frozen_convolution_is_delegated_as_it_is() -> None:
    found = load(Xnnpack(), convolution(), (1,))
    assert not found.is_host
    assert found.work == {
        Work.DENSE: 2 * 8 * 8 * 4 * 3 * 9, Work.OPERATORS: 1,
        Work.BYTES: 4 * 2 * 8 * 8 * (3 + 4),
    }  # fmt: skip
    assert found.transient_bytes == 0


def test_a_trained_convolution_is_a_product_on_xnnpack_with_its_windows() -> None:
    found = load(Xnnpack(), convolution())
    assert found.work[Work.DENSE] == 2 * 8 * 8 * 4 * 3 * 9
    assert found.work[Work.OPERATORS] > 1
    assert found.transient_bytes >= 4 * 2 * 8 * 8 * 3 * 9, "the windows of each place"


def test_portable_runs_a_trained_convolution_as_it_is() -> None:
    found = load(Portable(), convolution())
    assert found.is_host
    assert found.work[Work.DENSE] == 2 * 8 * 8 * 4 * 3 * 9
    assert found.work[Work.OPERATORS] == 1


def test_a_mask_that_portable_writes_out_is_held_meanwhile() -> None:
    inputs = {"grad": torch.ones(64), "x": torch.ones(64)}
    graph = trace(lambda grad, x: aten.threshold_backward.default(grad, x, 0), inputs)
    (node,) = nodes_of(graph, aten.threshold_backward.default)
    found = load(Portable(), node)
    assert found.work[Work.OPERATORS] == 3
    # The mask as numbers, beside the result.
    assert found.transient_bytes == 4 * 64


def test_an_input_that_dies_frees_its_bytes() -> None:
    graph = trace(lambda x: x.exp(), {"x": torch.ones(8)})
    (node,) = nodes_of(graph, aten.exp.default)
    templates = Templates(Portable())
    kept = templates.operator(node, frozenset(), frozenset())
    dying = templates.operator(node, frozenset(), frozenset(node.all_input_nodes))
    assert (kept.transient_bytes, dying.transient_bytes) == (0, 0)


def test_picking_a_result_costs_nothing() -> None:
    graph = trace(lambda x: x.max(0).values, {"x": torch.ones(3, 4)})
    pick = nodes_of(graph, operator.getitem)[0]
    assert load(Portable(), pick) is NO_LOAD
    (node,) = nodes_of(graph, aten.max.dim)
    assert load(Portable(), node).work[Work.OPERATORS] == 1


def test_operators_of_the_same_shapes_are_rewritten_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a.exp().sum() + b.exp().sum() + c.exp().sum()

    inputs = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(5)}
    nodes = nodes_of(trace(function, inputs), aten.exp.default)
    runs: list[JointGraph] = []
    run_passes = passes.run_passes

    def counted(graph: JointGraph, *rest: Any) -> Any:
        runs.append(graph)
        return run_passes(graph, *rest)

    monkeypatch.setattr(passes, "run_passes", counted)
    templates = Templates(Portable())
    loads = [templates.operator(node, frozenset(), frozenset()) for node in nodes]
    assert loads[0] is loads[1]
    assert loads[1] is not loads[2]
    assert len(runs) == 2


@pytest.mark.parametrize("target", [Portable(), Xnnpack()])
def test_an_update_costs_more_with_more_state(target: Target) -> None:
    templates = Templates(target)
    moved = [
        templates.update(optimizer, torch.ones(8, 4)).work[Work.BYTES]
        for optimizer in (SGD(), Momentum(), AdamW())
    ]
    assert moved == sorted(set(moved))
    assert templates.update(SGD(), torch.ones(8, 4)) is templates.update(
        SGD(), torch.zeros(8, 4)
    )


def test_a_gradient_that_dies_in_its_update_makes_room() -> None:
    templates = Templates(Portable())
    kept = templates.update(SGD(), torch.ones(100))
    dying = templates.update(SGD(), torch.ones(100), grad_dies=True)
    # lr * gradient beside the new parameter; the gradient is gone by then.
    assert kept.transient_bytes == 400
    assert dying.transient_bytes == 0
    assert kept.work == dying.work
