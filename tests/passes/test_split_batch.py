"""What is widest of a frozen forward pass runs for a part of the batch at a time."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.graph.liveness import Liveness
from pockmobile.passes import Prune, SplitBatch
from tests.passes.graphs import apply, assert_close, aten, operators, trace

X = {"x": torch.randn(4, 2, 8, 8)}
FROZEN = {
    "wide": torch.randn(64, 2, 1, 1),
    "depthwise": torch.randn(64, 1, 3, 3),
    "narrow": torch.randn(2, 64, 1, 1),
}
WIDE = 4 * 64 * 8 * 8 * 4
VIEWS = frozenset({aten.view.default})


def peak(graph: JointGraph) -> int:
    return Liveness.of(graph, VIEWS).peak


def block(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
    x = func.conv2d(x, wide).sin()
    x = func.conv2d(x, depthwise, stride=2, padding=1, groups=64).cos()
    return func.conv2d(x, narrow)


def block_graph(
    function: Callable[..., Tensor] = block, inputs: Mapping[str, Tensor] = X
) -> JointGraph:
    return trace(function, inputs, constants=FROZEN)


def test_parts_of_the_batch_run_one_after_another() -> None:
    graph = block_graph()
    changed = apply(SplitBatch(), graph)
    names = operators(changed)
    count = names.count("sin")
    assert count in (2, 4)
    assert names.count("slice_copy") == count
    assert names[-1] == "cat"
    assert peak(graph) == 2 * WIDE
    assert peak(changed) < WIDE * 1.5
    for _ in range(3):
        assert_close(graph, changed, {"x": torch.randn(4, 2, 8, 8)}, tolerance=1e-4)


def test_of_equal_peaks_the_fewest_operators_are_split() -> None:
    graph = block_graph()
    limit = peak(graph) * 3 // 4
    changed = apply(SplitBatch(limit), graph)
    assert operators(changed).count("sin") == 2
    assert peak(changed) <= limit
    assert_close(graph, changed, X, tolerance=1e-4)


def test_below_the_limit_nothing_is_to_do() -> None:
    graph = block_graph()
    assert apply(SplitBatch(peak(graph)), graph) is graph


def test_a_residual_and_pooling_run_in_parts() -> None:
    def residual(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
        y = func.conv2d(x, wide).relu()
        y = func.conv2d(func.conv2d(y, depthwise, padding=1, groups=64) + y, narrow)
        return func.max_pool2d(y + x, 2)

    graph = block_graph(residual)
    changed = apply(SplitBatch(), graph)
    assert operators(changed).count("relu") > 1
    assert peak(changed) < peak(graph)
    assert_close(graph, changed, X, tolerance=1e-4)


def test_the_widest_may_be_pooled() -> None:
    def pooled(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
        y = func.max_pool2d(func.conv2d(x, wide), 3, stride=2, padding=1)
        return func.conv2d(func.max_pool2d(y.sin(), 2), narrow)

    graph = apply(Prune(), block_graph(pooled))
    changed = apply(SplitBatch(), graph)
    assert operators(changed).count("max_pool2d_with_indices") > 2
    assert peak(changed) < peak(graph)
    assert_close(graph, changed, X, tolerance=1e-4)


def test_elementwise_operators_alone_are_not_split() -> None:
    def elementwise(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True) * wide.reshape(1, 2, 8, 8)
        return (y.sin().cos() + x).mean((2, 3))

    graph = block_graph(elementwise)
    assert apply(SplitBatch(), graph) is graph


def test_one_example_is_not_split() -> None:
    inputs = {"x": torch.randn(1, 2, 8, 8)}
    graph = block_graph(inputs=inputs)
    assert apply(SplitBatch(), graph) is graph


def test_a_batch_of_seven_runs_one_by_one() -> None:
    inputs = {"x": torch.randn(7, 2, 8, 8)}
    graph = block_graph(inputs=inputs)
    changed = apply(SplitBatch(), graph)
    assert operators(changed).count("sin") == 7
    assert_close(graph, changed, inputs, tolerance=1e-4)


def trained(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
    """Also returns what lies between."""
    y = func.conv2d(x, wide)
    return func.conv2d(y.sin(), narrow).sum() + y.sum()


def mixed(x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor) -> Tensor:
    """Each example depends on all others."""
    y = func.conv2d(x, wide)
    return func.conv2d(y - y.mean(0, keepdim=True), narrow)


@pytest.mark.parametrize("function", [trained, mixed])
def test_what_is_read_otherwise_is_not_split(function: Callable[..., Tensor]) -> None:
    graph = block_graph(function)
    assert apply(SplitBatch(), graph) is graph


def test_a_trained_weight_is_not_split() -> None:
    graph = trace(block, {**X, **FROZEN})
    assert apply(SplitBatch(), graph) is graph


def test_weights_that_each_part_packs_are_reckoned() -> None:
    inputs = {"x": torch.randn(2, 2, 4, 4)}
    heavy = {**FROZEN, "narrow": torch.randn(512, 64, 1, 1), "last": torch.randn(2, 512, 1, 1)}

    def weighty(
        x: Tensor, wide: Tensor, depthwise: Tensor, narrow: Tensor, last: Tensor
    ) -> Tensor:
        return func.conv2d(func.conv2d(func.conv2d(x, wide), narrow).sin(), last)

    graph = trace(weighty, inputs, constants=heavy)
    assert apply(SplitBatch(), graph) is graph


def test_a_constant_with_a_row_for_each_example_stays_whole() -> None:
    def shifted(x: Tensor, wide: Tensor, narrow: Tensor, shift: Tensor) -> Tensor:
        return func.conv2d(func.conv2d(x, wide).sin() + shift, narrow)

    constants = {
        "wide": FROZEN["wide"], "narrow": FROZEN["narrow"], "shift": torch.randn(4, 64, 8, 8)
    }  # fmt: skip
    graph = trace(shifted, X, constants=constants)
    changed = apply(SplitBatch(), graph)
    assert_close(graph, changed, X, tolerance=1e-4)
    assert operators(changed).count("add") == 1
