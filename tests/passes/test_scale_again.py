"""What is made of weights alone is made again late, where keeping it adds to the peak."""

import torch
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.graph.liveness import Liveness
from pockmobile.passes import ScaleAgain
from tests.passes.graphs import apply, assert_same, operators, trace

WEIGHTS = {"w": torch.randn(32, 32), "s": torch.randn(32, 1)}
X = {"x": torch.randn(8, 32)}
INPUTS = {**WEIGHTS, **X}


def peak(graph: JointGraph) -> int:
    return Liveness.of(graph, frozenset()).peak


def chain(x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        x = torch.sin(x)
    return x


def kept(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """Reads a scaled weight early, and late again."""
    scaled = w * s
    y = chain(x.mm(scaled), 40)
    return y.mm(scaled)


def test_a_weight_is_scaled_again() -> None:
    graph = trace(kept, INPUTS)
    changed = apply(ScaleAgain(), graph)
    assert operators(changed) == ["mul", "mm", *["sin"] * 40, "mul", "mm"]
    assert_same(graph, changed, INPUTS)


def test_while_much_else_is_alive_it_takes_no_memory() -> None:
    def widened(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        scaled = w * s
        small = x.mm(scaled)
        wide = chain(small.repeat(8, 4), 40)
        return wide.sum() + small.mm(scaled).sum()

    graph = trace(widened, INPUTS)
    changed = apply(ScaleAgain(), graph)
    assert peak(changed) == peak(graph) - 32 * 32 * 4
    assert_same(graph, changed, INPUTS)


def test_all_that_makes_it_of_weights_is_run_again() -> None:
    def joined(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        whole = torch.cat([w.neg(), w], 1) * 2
        y = chain(x.mm(whole).repeat(8, 1), 40)
        return y.mm(whole.t())

    graph = trace(joined, INPUTS)
    changed = apply(ScaleAgain(), graph)
    made = ["neg", "cat", "mul"]
    assert operators(changed) == [*made, "mm", "repeat", *["sin"] * 40, *made, "t", "mm"]
    assert_same(graph, changed, INPUTS)


def test_what_is_not_cheap_is_kept() -> None:
    def multiplied(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        square = w.mm(w)
        return chain(x.mm(square), 40).mm(square)

    graph = trace(multiplied, INPUTS)
    assert apply(ScaleAgain(), graph) is graph


def test_what_depends_on_the_batch_is_kept() -> None:
    def activations(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        y = x.mm(w).sin()
        return chain(y.mm(w), 40) + y

    graph = trace(activations, INPUTS)
    assert apply(ScaleAgain(), graph) is graph


def test_between_near_uses_it_is_kept() -> None:
    def near(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        scaled = w * s
        return chain(x.mm(scaled), 8).mm(scaled)

    graph = trace(near, INPUTS)
    assert apply(ScaleAgain(), graph) is graph


def test_a_small_part_of_the_peak_is_kept() -> None:
    def small(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
        scaled = s * 2
        wide = chain((w * scaled).repeat(16, 16), 40)
        return wide.sum() + (w * scaled).sum()

    graph = trace(small, INPUTS)
    assert apply(ScaleAgain(), graph) is graph
