"""A frozen BatchNorm disappears into its convolution."""

import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.passes import (
    ApplyPlan,
    Canonicalize,
    FoldConstants,
    FoldScale,
    Prune,
    run_passes,
)
from pockmobile.plan import UpdatePlan
from tests.passes.graphs import apply, assert_close, batch, captured, operators, trace

SCALE, SHIFT = torch.rand(1, 4, 1, 1) + 0.5, torch.randn(1, 4, 1, 1)
IMAGES = {"x": torch.randn(2, 3, 6, 6)}


def _normalised(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return func.conv2d(x, weight, padding=1) * scale + shift


def test_scale_and_shift_become_weight_and_bias() -> None:
    constants = {"weight": torch.randn(4, 3, 3, 3), "scale": SCALE, "shift": SHIFT}
    graph = trace(_normalised, IMAGES, constants=constants)
    folded = apply(FoldScale(), graph)
    assert operators(folded) == ["convolution"]
    assert_close(graph, folded, IMAGES, tolerance=1e-5)


def test_a_trained_weight_is_scaled_at_run_time() -> None:
    graph = trace(
        lambda weight, x, scale, shift: _normalised(x, weight, scale, shift),
        IMAGES,
        parameters={"weight": torch.randn(4, 3, 3, 3)},
        constants={"scale": SCALE, "shift": SHIFT},
    )
    folded = apply(FoldScale(), graph)
    assert operators(folded) == ["mul", "convolution"]
    assert_close(graph, folded, IMAGES, tolerance=1e-5)


def test_a_trained_weight_larger_than_its_result_is_not_scaled() -> None:
    def step(weight: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
        found = _normalised(x, weight, scale, shift)
        rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
        backward = torch.ops.aten.convolution_backward.default
        results = backward(found * scale, x, weight, [4], *rest)
        return {"result": found, "x": results[0], "weight": results[1]}

    images = {"x": torch.randn(2, 3, 2, 2)}
    graph = trace(
        step,
        images,
        parameters={"weight": torch.randn(4, 3, 3, 3)},
        constants={"scale": SCALE, "shift": SHIFT},
    )
    assert apply(FoldScale(), graph) is graph


def test_the_backward_pass_reads_the_same_scaled_weight() -> None:
    def backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
        results = torch.ops.aten.convolution_backward.default(
            grad * scale, x, weight, [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3
        )
        return dict(zip(("x", "weight", "bias"), results, strict=True))

    inputs = {"grad": torch.randn(2, 4, 6, 6), **IMAGES}
    constants = {"weight": torch.randn(4, 3, 3, 3), "scale": SCALE}
    graph = trace(backward, inputs, constants=constants)
    folded = apply(FoldScale(), graph)
    small = [node for node in folded.nodes if "mul" in str(node.target)]
    assert all(node.meta["val"].numel() <= 4 * 3 * 3 * 3 for node in small)
    assert_close(graph, folded, inputs, tolerance=1e-4)


def test_the_constant_part_of_a_trained_shift_becomes_the_bias() -> None:
    def shifted(trained: Tensor, x: Tensor, weight: Tensor, constant: Tensor) -> Tensor:
        return func.conv2d(x, weight) + (constant + trained).reshape(1, 4, 1, 1)

    graph = trace(
        shifted,
        IMAGES,
        parameters={"trained": torch.randn(4)},
        constants={"weight": torch.randn(4, 3, 3, 3), "constant": torch.randn(4)},
    )
    graph, _ = run_passes(graph, [Canonicalize()])
    folded = apply(FoldScale(), graph)
    assert sorted(operators(folded)) == ["add", "convolution", "view_copy"]
    assert_close(graph, folded, IMAGES, tolerance=1e-5)


def test_a_convolution_that_is_read_elsewhere_stays() -> None:
    def both(x: Tensor, weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
        raw = func.conv2d(x, weight, padding=1)
        return {"scaled": raw * scale, "raw": raw}

    constants = {"weight": torch.randn(4, 3, 3, 3), "scale": SCALE}
    graph = trace(both, IMAGES, constants=constants)
    assert apply(FoldScale(), graph) is graph


def test_nothing_to_fold_returns_the_same_graph() -> None:
    graph = trace(lambda x, s: x * s, IMAGES, constants={"s": torch.rand(1, 3, 1, 1)})
    assert apply(FoldScale(), graph) is graph


def test_a_whole_network_keeps_its_gradients() -> None:
    plan = UpdatePlan({"blocks.1.conv1.weight": None, "head.weight": None})
    before, _ = run_passes(
        captured("cnn"), [Canonicalize(), ApplyPlan(plan), Prune(), FoldConstants()]
    )
    after = apply(FoldScale(), before)
    assert after.num_operators < before.num_operators
    assert_close(before, after, batch("cnn", 1), tolerance=1e-5)
