"""One graph holds the gradient of every part: each equals that part of the whole gradient."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pockmobile.capture import capture_joint, export_forward
from pockmobile.cost.option_graph import OptionGraph, Part, option_graph
from pockmobile.graph import Role
from pockmobile.loss import CrossEntropy
from pockmobile.space import UpdateSpace
from pockmobile.targets import resolve_target
from tests.cost.subjects import TARGETS, space_of
from tests.passes.graphs import MODELS, batch, captured, operators, run


@cache
def space(name: str) -> UpdateSpace:
    inputs = tuple(value for key, value in batch(name).items() if key != "target")
    return space_of(export_forward(MODELS[name](), inputs))


@cache
def options(name: str, target: str) -> OptionGraph:
    return option_graph(captured(name), space(name), resolve_target(target))


def parts(found: UpdateSpace) -> set[Part]:
    updates = [found.base, *(option.update for option in found.options)]
    return {part for update in updates for part in update.items()}


def fresh(name: str, seed: int) -> dict[str, Tensor]:
    """Returns another batch, and other values of what can be trained, than were captured."""
    generator = torch.Generator().manual_seed(seed)
    initial = captured(name).initial
    moved = {
        key: initial[key] + 0.1 * torch.randn(initial[key].shape, generator=generator)
        for key in sorted({parameter for parameter, _ in parts(space(name))})
    }
    return {**moved, **batch(name, seed)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["cnn", "lm"])
def test_every_gradient_is_that_part_of_the_whole_gradient(name: str, target: str) -> None:
    found = options(name, target)
    assert set(found.gradients) == parts(space(name))
    for seed in (1, 2):
        values = fresh(name, seed)
        expected, results = run(captured(name), values), run(found.graph, values)
        torch.testing.assert_close(results["loss"], expected["loss"])
        for parameter, cut in found.gradients:
            port, part = f"grad.{parameter}", expected[f"grad.{parameter}"]
            if cut is not None:
                port += f"[{cut.dim}:{cut.start}:{cut.stop}]"
                part = part.narrow(cut.dim, cut.start, cut.stop - cut.start)
            torch.testing.assert_close(results[port], part, rtol=1e-3, atol=1e-5, msg=port)


def test_the_gradients_are_those_of_the_graphs_outputs() -> None:
    found = options("cnn", "xnnpack")
    assert set(found.gradients.values()) == set(
        found.graph.output_nodes(Role.GRADIENT).values()
    )
    assert set(found.graph.output_nodes(Role.LOSS)) == {"loss"}


def test_a_slice_is_computed_from_its_own_channels_alone() -> None:
    found = options("cnn", "portable")
    for (name, cut), node in found.gradients.items():
        if cut is not None:
            width = cut.stop - cut.start
            assert node.meta["val"].shape[cut.dim] == width, name
            assert node.target is not torch.ops.aten.slice_copy.Tensor, name


def test_a_convolutions_backward_computes_one_result() -> None:
    found = options("cnn", "portable")
    masks = [
        node.args[-1]
        for node in found.graph.nodes
        if node.target is torch.ops.aten.convolution_backward.default
    ]
    assert masks
    assert all(sum(mask) == 1 for mask in masks)  # type: ignore[arg-type]


def test_nothing_is_written_in_the_targets_own_operators_yet() -> None:
    assert "convolution_backward" in operators(options("cnn", "xnnpack").graph)


def test_the_joint_graph_is_left_as_it_was() -> None:
    before = operators(captured("cnn"))
    option_graph(captured("cnn"), space("cnn"), resolve_target("xnnpack"))
    assert operators(captured("cnn")) == before


def test_biases_of_summed_layers_share_a_gradient() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x) + self.b(x)))  # type: ignore[no-any-return]

    example = torch.randn(3, 4)
    forward = export_forward(Parallel(), (example,))
    target = {"target": torch.tensor([0, 1, 1])}
    joint = capture_joint(forward, forward.inputs, target, CrossEntropy())
    found = option_graph(joint, space_of(forward), resolve_target("portable"))
    assert found.gradients["a.bias", None] is found.gradients["b.bias", None]
