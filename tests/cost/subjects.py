"""Small models with their update spaces and cost models, for the tests of the cost model."""

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from pockmobile import models
from pockmobile.capture import Forward, describe_layers, export_forward
from pockmobile.cost import CostModel, cost_model
from pockmobile.loss import CrossEntropy
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.optim import SGD, Optimizer
from pockmobile.space import Selection, UpdateSpace, update_space
from pockmobile.targets import resolve_target

TARGETS: Final = ("portable", "xnnpack")


def _lm() -> nn.Module:
    return TransformerLM(num_tokens=64, context=8, width=32, num_blocks=2, num_heads=2)


SUBJECTS: Final[Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]]] = {
    "cnn": (models.residual_cnn, lambda: torch.randn(4, 3, 16, 16)),
    "lm": (_lm, lambda: torch.randint(64, (4, 8))),
    "mlp": (models.mlp, lambda: torch.randn(8, 16)),
}


@cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SUBJECTS[name][0]().eval()


@cache
def batch_of(name: str) -> Tensor:
    torch.manual_seed(1)
    return SUBJECTS[name][1]()


@cache
def forward_of(name: str) -> Forward:
    return export_forward(model_of(name), (batch_of(name),))


def space_of(forward: Forward) -> UpdateSpace:
    shapes = {name: forward.parameters[name].shape for name in forward.trainable}
    return update_space(describe_layers(forward), shapes)


@cache
def space(name: str) -> UpdateSpace:
    return space_of(forward_of(name))


@cache
def costs(name: str, target: str = "xnnpack", optimizer: Optimizer | None = None) -> CostModel:
    return cost_model(
        forward_of(name),
        CrossEntropy(),
        space(name),
        optimizer=optimizer or SGD(),
        target=resolve_target(target),
    )


def whole(found: UpdateSpace) -> Selection:
    return tuple(len(layer.options) for layer in found.layers)


def random_selection(found: UpdateSpace, seed: int) -> Selection:
    """Draws how deep and how densely a plan trains, then what it trains of each layer."""
    rng = random.Random(seed)
    first = rng.randrange(len(found.layers))
    share = rng.choice((0.2, 0.5))
    numbers = [
        rng.randint(1, len(layer.options)) if place >= first and rng.random() < share else 0
        for place, layer in enumerate(found.layers)
    ]
    if not any(numbers) and not found.base:
        numbers[-1] = 1
    return tuple(numbers)
