"""The losses that people use, on few numbers: what every target must train by as eager does.

Shared by `tests/test_layers.py` and `scripts/coverage.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.loss import Loss

ROWS: Final = 4


@dataclass(frozen=True)
class Criterion:
    """A loss: how it is named or computed, the outputs that it takes, and its targets."""

    loss: str | Loss | Callable[..., Tensor]
    shape: tuple[int, ...]
    targets: Callable[[torch.Generator], tuple[Tensor, ...]]


def _labels(num_classes: int, *shape: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """Draws labels, of which the first is ignored."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        labels = torch.randint(num_classes, (ROWS, *shape), generator=generator)
        labels.view(-1)[0] = -100
        return (labels,)

    return draw


def _values(*shape: int, low: float | None = None) -> Callable[..., tuple[Tensor, ...]]:
    """Draws numbers, normal or between `low` and 1."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        if low is None:
            return (torch.randn(ROWS, *shape, generator=generator),)
        return (low + (1.0 - low) * torch.rand(ROWS, *shape, generator=generator),)

    return draw


def _signs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(2, (ROWS,), generator=generator).float() * 2.0 - 1.0,)


def _pairs(generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draws the column that belongs to each row; the first row has none."""
    columns = torch.randperm(ROWS, generator=generator)
    columns[0] = -100
    return (columns,)


def _smoothed(output: Tensor, labels: Tensor) -> Tensor:
    return func.cross_entropy(output, labels, label_smoothing=0.1)


def _weighted(output: Tensor, labels: Tensor) -> Tensor:
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1, 1.5])
    return func.cross_entropy(output, labels, weight, label_smoothing=0.1)


def _next_token(output: Tensor, tokens: Tensor) -> Tensor:
    return func.cross_entropy(output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _soft_labels(output: Tensor, target: Tensor) -> Tensor:
    return func.cross_entropy(output, target / target.sum(-1, keepdim=True))


def _of_images(output: Tensor, labels: Tensor) -> Tensor:
    return func.cross_entropy(output, labels)


def _kl(output: Tensor, target: Tensor) -> Tensor:
    return func.kl_div(output.log_softmax(-1), target, reduction="batchmean")


def _cosine(output: Tensor, sign: Tensor) -> Tensor:
    return func.cosine_embedding_loss(output[:, 0], output[:, 1], sign, margin=0.2)


def _triplet(output: Tensor, margin: Tensor) -> Tensor:
    anchor, positive, negative = output.unbind(1)
    loss = func.triplet_margin_loss(anchor, positive, negative, margin=2.0)
    return loss + (margin * anchor).mean()


def _margin(output: Tensor, sign: Tensor) -> Tensor:
    return func.margin_ranking_loss(output[:, 0], output[:, 1], sign, margin=0.3)


def _weighted_bits(output: Tensor, target: Tensor) -> Tensor:
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    return func.binary_cross_entropy_with_logits(output, target, pos_weight=weight)


LOSSES: Final[Mapping[str, Criterion]] = {
    "cross_entropy": Criterion("cross_entropy", (5,), _labels(5)),
    "cross_entropy-smoothed": Criterion(_smoothed, (5,), _labels(5)),
    "cross_entropy-weighted": Criterion(_weighted, (5,), _labels(5)),
    "cross_entropy-soft": Criterion(_soft_labels, (5,), _values(5, low=0.1)),
    "cross_entropy-images": Criterion(_of_images, (5, 3, 2), _labels(5, 3, 2)),
    "next_token": Criterion("next_token", (4, 7), _labels(7, 4)),
    "next_token-own": Criterion(_next_token, (4, 7), _labels(7, 4)),
    "mse": Criterion("mse", (5,), _values(5)),
    "mse-own": Criterion(func.mse_loss, (5,), _values(5)),
    "l1": Criterion(func.l1_loss, (5,), _values(5)),
    "smooth_l1": Criterion(func.smooth_l1_loss, (5,), _values(5)),
    "huber": Criterion(func.huber_loss, (5,), _values(5)),
    "bce": Criterion("bce", (5,), _values(5, low=0.0)),
    "bce-own": Criterion(func.binary_cross_entropy_with_logits, (5,), _values(5, low=0.0)),
    "bce-weighted": Criterion(_weighted_bits, (5,), _values(5, low=0.0)),
    "kl": Criterion(_kl, (5,), _values(5, low=0.1)),
    "cosine": Criterion(_cosine, (2, 5), _signs),
    "triplet": Criterion(_triplet, (3, 5), _values(5)),
    "margin_ranking": Criterion(_margin, (2,), _signs),
    "contrastive": Criterion("contrastive", (ROWS,), _pairs),
    "sigmoid_contrastive": Criterion("sigmoid_contrastive", (ROWS,), _pairs),
}
