"""The first look is made of squared gradients, and screens options that promise little."""

import pytest
import torch

from pockmobile.plan import Slice
from pockmobile.sensitivity import FirstLook, first_look
from pockmobile.sensitivity.task import train_batches
from pockmobile.space import LayerOptions, Option, UpdateSpace
from tests.sensitivity.tiny_tasks import mlp_task, space_of


def test_squares_are_the_mean_of_squared_batch_gradients() -> None:
    task = mlp_task()
    look = first_look(task, space_of(task.forward), num_batches=3)
    head = task.forward.parameters["head.weight"]
    expected = torch.zeros_like(head)
    for batch in train_batches(task, 3, 0):
        weights = {n: p.clone().requires_grad_() for n, p in task.forward.parameters.items()}
        x = batch.inputs["features"]
        for name in ("layers.0", "layers.1", "head"):
            x = torch.nn.functional.linear(
                x, weights[f"{name}.weight"], weights[f"{name}.bias"]
            )
            x = x if name == "head" else x.relu()
        loss = torch.nn.functional.cross_entropy(x, batch.targets[0])
        expected += torch.autograd.grad(loss, weights["head.weight"])[0] ** 2 / 3
    torch.testing.assert_close(look.squares["head.weight"], expected)
    assert set(look.squares) == set(task.forward.trainable)


def test_an_energy_is_of_a_channel_of_a_dimension() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    depthwise = torch.arange(8.0).reshape(4, 1, 2)
    look = FirstLook({"w": weight, "d": depthwise, "b": torch.ones(2)})
    assert look.energy("w", 1) == (5.0, 7.0, 9.0)
    assert look.energy("w", 0) == (6.0, 15.0)
    assert look.energy("d", 0) == (1.0, 5.0, 9.0, 13.0)


def test_a_score_sums_what_is_trained() -> None:
    look = FirstLook(
        {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": torch.ones(2)}
    )
    assert look.score(Option("l", 1.0, {"w": None, "b": None})) == 23.0
    assert look.score(Option("l", 0.5, {"w": Slice(1, 1, 3)})) == 16.0


@pytest.mark.parametrize(("small", "expected"), [(0.5, {"one bias"}), (2.0, set()), (0, set())])
def test_a_small_share_of_the_best_is_screened(small: float, expected: set[str]) -> None:
    look = FirstLook({"a": torch.tensor([small]), "b": torch.tensor([100.0 if small else 0.0])})
    layers = tuple(
        LayerOptions(layer, (Option(layer, 0.0, {name: None}),))
        for layer, name in (("one", "a"), ("two", "b"))
    )
    assert look.screened(UpdateSpace({}, layers)) == expected
