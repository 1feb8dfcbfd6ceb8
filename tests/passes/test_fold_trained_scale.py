"""A trained BatchNorm costs its weight's size where it follows a trained convolution."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, fx, nn

from pockmobile.capture import capture_joint, export_forward
from pockmobile.graph import JointGraph
from pockmobile.loss import MeanSquaredError
from pockmobile.passes import (
    ApplyPlan,
    Canonicalize,
    FoldConstants,
    FoldScale,
    FoldTrainedScale,
    NarrowGradients,
    Prune,
    run_passes,
)
from pockmobile.plan import Slice, UpdatePlan
from tests.passes.graphs import apply, assert_close

WHOLE: Mapping[str, Slice | None] = dict.fromkeys(
    ("0.weight", "1.weight", "2.weight", "2.bias")
)


def _step(
    update: Mapping[str, Slice | None], *, groups: int = 1, size: int = 6, bias: bool = False
) -> tuple[JointGraph, dict[str, Tensor]]:
    """Returns a training step up to the pass, and a batch."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    for value, low, high in (
        (norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 2)
    ):  # fmt: skip
        nn.init.uniform_(value, low, high)
    inner = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=bias)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), inner, norm, nn.ReLU6()).eval()
    values = {"input": torch.randn(2, 3, size, size), "target": torch.randn(2, 4, size, size)}
    forward = export_forward(net, (values["input"],))
    graph = capture_joint(
        forward, {"input": values["input"]}, {"target": values["target"]}, MeanSquaredError()
    )
    passes = [
        Canonicalize(),
        ApplyPlan(UpdatePlan(update)),
        Prune(),
        NarrowGradients(),
        FoldConstants(),
        FoldScale(),
    ]
    return run_passes(graph, passes)[0], values


def _num_large(graph: JointGraph) -> int:
    """Returns how many products are as large as the activations, 2 x 4 x 6 x 6."""
    products = [node for node in graph.nodes if node.target is torch.ops.aten.mul.Tensor]
    return sum(node.meta["val"].numel() == 288 for node in products)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_weight_is_scaled_and_tells_the_scale_s_gradient(groups: int) -> None:
    graph, values = _step(WHOLE, groups=groups)
    folded = apply(FoldTrainedScale(), graph)
    # Gone are the scaled activations, the scaled gradient, and the scale's.
    assert _num_large(graph) - _num_large(folded) == 3
    convolutions = [node for node in folded.nodes if "convolution" in str(node.target)]
    assert {node.meta["module"] for node in convolutions} == {"0", "1"}
    assert_close(graph, folded, values, tolerance=1e-5)


def test_a_shift_alone_becomes_the_bias() -> None:
    graph, values = _step(dict.fromkeys(("1.weight", "2.bias")))
    folded = apply(FoldTrainedScale(), graph)
    (found,) = (node for node in folded.nodes if node.meta.get("module") == "1" and _is(node))
    assert found.args[2] is not None
    assert_close(graph, folded, values, tolerance=1e-5)


def _is(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.convolution.default


@pytest.mark.parametrize(
    ("update", "options"),
    [
        # The sum over a part of the weight is not the scale's gradient.
        ({**WHOLE, "1.weight": Slice(0, 1, 3)}, {}),
        # A frozen weight would no longer be packed once.
        (dict.fromkeys(("0.weight", "2.weight", "2.bias")), {}),
        # A bias would have to be scaled, too.
        (WHOLE, {"bias": True}),
        # A weight larger than what it makes costs more.
        (WHOLE, {"size": 2}),
    ],
)
def test_what_would_cost_more_stays(
    update: Mapping[str, Slice | None], options: Mapping[str, bool | int]
) -> None:
    graph, _ = _step(update, **options)
    assert apply(FoldTrainedScale(), graph) is graph
