"""The loss of a choice among many is computed by runs of what is chosen among."""

from typing import Final

import pytest
import torch
from torch import Tensor, nn

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph, Role
from pockmobile.graph.columns import run_width
from pockmobile.graph.rewrite import shape_of
from pockmobile.loss import CrossEntropy, Loss, MeanSquaredError, NextToken
from pockmobile.models.llama import Llama
from pockmobile.passes import (
    ApplyPlan,
    Canonicalize,
    ChunkLoss,
    EliminateCommon,
    Prune,
    RemoveNoops,
    SplitOneHot,
    run_passes,
)
from pockmobile.plan import UpdatePlan
from tests.captured import joint_of
from tests.passes.graphs import assert_close, aten, operators, run

NUM_TOKENS: Final = 90
ROWS: Final = 12
TOLERANCE: Final = 2e-6


def llama(*, is_tied: bool) -> Llama:
    torch.manual_seed(0)
    model = Llama(
        num_tokens=NUM_TOKENS,
        context=6,
        width=8,
        hidden=12,
        num_blocks=1,
        num_heads=2,
        num_key_heads=1,
        is_tied=is_tied,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def prepared(
    model: nn.Module, inputs: Tensor, target: Tensor, loss: Loss, trained: str = ""
) -> JointGraph:
    """Returns the joint graph as the pass meets it; of all parameters, or those so named."""
    graph = joint_of(model, (inputs,), target, loss)
    names = [port.parameter for port in graph.outputs if port.role is Role.GRADIENT]
    plan = UpdatePlan({name: None for name in names if trained in name})
    passes = [Canonicalize(), ApplyPlan(plan), Prune(), RemoveNoops()]
    return run_passes(graph, passes)[0]


def chunked(graph: JointGraph, width: int) -> JointGraph:
    return run_passes(graph, [SplitOneHot(width), ChunkLoss(width), EliminateCommon()])[0]


def largest(graph: JointGraph) -> int:
    """Returns how many columns of logits are there at most, in one value."""
    columns = [
        shape_of(node)[-1]
        for node in graph.nodes
        if node.op == "call_function"
        and isinstance(node.meta["val"], Tensor)
        and node.meta["val"].numel() == ROWS * (shape_of(node) or [0])[-1]
    ]
    return max(columns)


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(NUM_TOKENS, (2, 6), generator=generator)
    target = found.clone()
    target[0, :3] = -100
    return found, target


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("trained", ["", "blocks"])
@pytest.mark.parametrize("width", [30, 64])
def test_loss_metrics_and_gradients_are_those_of_whole_logits(
    is_tied: bool, trained: str, width: int
) -> None:
    inputs, target = tokens()
    graph = prepared(llama(is_tied=is_tied), inputs, target, NextToken(), trained)
    changed = chunked(graph, width)
    values = {"tokens": inputs, "target": target}
    assert_close(graph, changed, values, tolerance=TOLERANCE)
    assert run(changed, values)["num_counted"] == 3 + 5
    assert largest(graph) == NUM_TOKENS
    assert largest(changed) == width


def test_a_frozen_head_is_multiplied_once_forward_and_once_backward() -> None:
    inputs, target = tokens()
    graph = prepared(llama(is_tied=False), inputs, target, NextToken(), "blocks")
    plain, changed = operators(graph).count("mm"), operators(chunked(graph, 30)).count("mm")
    assert changed == plain - 2 + 2 * 3
    graph = prepared(llama(is_tied=False), inputs, target, NextToken())
    plain, changed = operators(graph).count("mm"), operators(chunked(graph, 30)).count("mm")
    # Where the head learns, its logits are computed a second time.
    assert changed == plain - 3 + 4 * 3


class Classifier(nn.Module):
    """A head with a bias, and bounded logits if wanted."""

    def __init__(self, *, bound: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, NUM_TOKENS)
        self.bound, self.scale = bound, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).tanh() * self.scale)
        return torch.tanh(logits / self.bound) * self.bound if self.bound else logits


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_head_with_a_bias_and_logits_that_would_overflow(scale: float) -> None:
    inputs = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(2))
    target = torch.arange(ROWS) * 7
    graph = prepared(Classifier(scale=scale), inputs, target, CrossEntropy())
    changed = chunked(graph, 32)
    tolerance = TOLERANCE * scale
    assert_close(graph, changed, {"x": inputs, "target": target}, tolerance=tolerance)
    assert largest(changed) == 32


def test_the_loss_alone_of_bounded_logits() -> None:
    inputs, target = torch.randn(ROWS, 5), torch.arange(ROWS)
    graph = prepared(Classifier(bound=0.5), inputs, target, CrossEntropy())
    graph = graph.keep_outputs(lambda port: port.role in (Role.LOSS, Role.METRIC))
    graph = run_passes(graph, [Prune()])[0]
    changed = run_passes(graph, [ChunkLoss(32)])[0]
    assert_close(graph, changed, {"x": inputs, "target": target}, tolerance=TOLERANCE)
    assert largest(changed) == 32


def test_a_second_sweep_is_not_merged_with_the_first() -> None:
    inputs, target = tokens()
    graph = prepared(llama(is_tied=True), inputs, target, NextToken())
    changed = chunked(graph, 30)
    products = [node for node in changed.nodes if node.target is aten.mm.default]
    assert sum(shape_of(node) == [ROWS, 30] for node in products) == 2 * 3


def test_the_input_stays_as_it_was_and_little_is_left_whole() -> None:
    inputs, target = tokens()
    graph = prepared(llama(is_tied=True), inputs, target, NextToken(), "blocks")
    before = operators(graph)
    assert ChunkLoss().apply(graph) is graph
    assert ChunkLoss(0).apply(graph) is graph
    assert ChunkLoss(NUM_TOKENS).apply(graph) is graph
    chunked(graph, 30)
    assert operators(graph) == before


@pytest.mark.parametrize(
    ("model", "loss", "target"),
    [
        (Classifier(), MeanSquaredError(), torch.zeros(ROWS, NUM_TOKENS)),
        (Classifier(bound=0.5), CrossEntropy(), torch.arange(ROWS)),
    ],
)
def test_what_cannot_be_cut_is_said(model: nn.Module, loss: Loss, target: Tensor) -> None:
    graph = prepared(model, torch.randn(ROWS, 5), target, loss)
    assert ChunkLoss().apply(graph) is graph
    with pytest.raises(UsageError, match="--loss-chunk 32 needs a loss that chooses a label"):
        ChunkLoss(32).apply(graph)


def test_how_wide_a_run_is() -> None:
    assert run_width(32, 8192, None) == 8192
    assert run_width(128, 32_000, None) == 4032
    assert run_width(128, 128_256, None) == 4032
    assert run_width(2048, 128_256, None) == 4032
    assert run_width(128, 32_000, 0) == 32_000
    assert run_width(128, 32_000, 5000) == 4608
    assert run_width(4, 90, 30) == 30
    assert run_width(4, 90, 1000) == 90
