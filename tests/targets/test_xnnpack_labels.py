"""What belongs to labels, and single numbers, keep out of the delegate's way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

import pockmobile
from pockmobile.passes.split_one_hot import LEAST_CLASSES
from pockmobile.targets.xnnpack import Xnnpack
from tests.passes.graphs import trace
from tests.targets.running import check_on_xnnpack, execute, rewritten

LOGITS = torch.randn(4, 5)
LABELS = torch.tensor([3, 0, 4, 1])


def names_outside(
    function: Callable[..., Tensor], *inputs: Tensor, num_outside: int
) -> list[str]:
    lowered = check_on_xnnpack(function, *inputs, num_outside=num_outside)
    assert lowered.num_partitions == 1
    return [item.operator for item in lowered.outside]


def test_the_label_s_probability_is_a_product_with_ones_and_zeros() -> None:
    def picked(x: Tensor, labels: Tensor) -> Tensor:
        return -func.log_softmax(x, -1).gather(-1, labels.unsqueeze(-1))

    assert names_outside(picked, LOGITS, LABELS, num_outside=2) == [
        "aten.view_copy.default",  # Of the labels, as are the ones.
        "aten.scatter.value",
    ]


def test_values_at_the_labels_places_are_one_too() -> None:
    def scattered(x: Tensor, labels: Tensor) -> Tensor:
        return x * torch.zeros_like(x).scatter(-1, labels.unsqueeze(-1), x[:, :1] * 2.0)

    names = names_outside(scattered, LOGITS, LABELS, num_outside=2)
    assert names[-1] == "aten.scatter.value"


@pytest.mark.parametrize(
    "function",
    [
        # Not of a softmax: what is not finite times zero would be no zero.
        lambda x, places: x.exp().gather(-1, places[:, :1]),
        # Into what is not zero.
        lambda x, places: x.scatter(-1, places[:, :1], x[:, :1] * 2.0),
        # Several values of a row.
        lambda x, places: torch.zeros_like(x).scatter(-1, places, x[:, 1:] + 1.0),
    ],
)
def test_what_is_no_label_is_picked_by_the_host(function: Callable[..., Tensor]) -> None:
    places = torch.tensor([[3, 0, 4, 1], [1, 2, 0, 3]] * 2)
    graph = rewritten(trace(function, {"x": LOGITS, "places": places}), Xnnpack())
    lowered = Xnnpack().lower(graph)
    names = {item.operator for item in lowered.outside}
    assert {"aten.gather.default", "aten.scatter.src"} & names
    (found,) = execute(graph, lowered, [LOGITS, places])
    torch.testing.assert_close(found, function(LOGITS, places))


def test_of_many_classes_the_host_picks_one() -> None:
    def picked(x: Tensor, labels: Tensor) -> Tensor:
        return func.softmax(x, -1).gather(-1, labels.unsqueeze(-1))

    lowered = check_on_xnnpack(picked, torch.randn(4, LEAST_CLASSES), LABELS, num_outside=2)
    assert "aten.gather.default" in [item.operator for item in lowered.outside]


def test_a_single_number_is_computed_inside() -> None:
    def scaled(x: Tensor) -> Tensor:
        length = (x * x).sum().sqrt()
        return x * (1.0 / length.clamp(min=0.5) + 2.0 * length)

    assert names_outside(scaled, LOGITS, num_outside=0) == []


@pytest.mark.parametrize("dim", [-1, 0])
def test_the_logarithm_of_a_softmax(dim: int) -> None:
    logits = torch.randn(4, 5) * 3.0
    check_on_xnnpack(lambda x: func.log_softmax(x, dim), logits)
    # Beyond the smallest probability, and of what nothing is left.
    far = torch.tensor([[0.0, 20.0, -200.0, 1.0, -5000.0], [-1e30, -1e30, 7.0, 7.0, -1e30]])
    (found,) = _run(lambda x: func.log_softmax(x, -1), far)
    torch.testing.assert_close(found, func.log_softmax(far, -1), rtol=2e-5, atol=1e-6)
    (found,) = _run(lambda x: func.log_softmax(x, -1), torch.tensor([[0.0, -torch.inf]]))
    assert found[0, 0] == 0.0
    assert found[0, 1] < -1e29


def _run(function: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    graph = rewritten(trace(function, {"x": x}), Xnnpack())
    lowered = Xnnpack().lower(graph)
    assert not lowered.outside
    return execute(graph, lowered, [x])


def test_a_loss_of_one_s_own_is_one_delegate_but_for_its_end() -> None:
    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return func.cross_entropy(x, labels)

    program = pockmobile.compile(
        torch.nn.Linear(6, 5), (torch.randn(4, 6),), (LABELS,), loss=loss
    )
    step = program.manifest.methods["train_step"]
    assert step.num_partitions == 1
    assert "aten._log_softmax.default" not in {item.operator for item in step.outside}
