"""A cheap first look at the gradients of the start, so that the hopeless is not measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from pockmobile.sensitivity.partial import PartlyTrained
from pockmobile.sensitivity.task import Task, train_batches
from pockmobile.space import Option, UpdateSpace

SCREENED_SHARE: Final = 0.01
"""An option whose score is below this share of the best one's is not measured."""

_SEED: Final = 0


@final
@dataclass(frozen=True)
class FirstLook:
    """`squares`: by parameter, the mean over batches of the squared gradient at the start.

    That is the diagonal of the Fisher information, as batches see it.
    """

    squares: Mapping[str, Tensor]

    def energy(self, weight: str, dim: int) -> tuple[float, ...]:
        """Returns the sum for each channel of a weight along a dimension."""
        square = self.squares[weight].transpose(0, dim)
        return tuple(square.flatten(1).sum(1).tolist())

    def score(self, option: Option) -> float:
        """Returns the sum over all that the option trains.

        A small step of gradient descent lowers the loss by that, times the learning rate.
        """
        score = 0.0
        for name, part in option.update.items():
            square = self.squares[name]
            if part is not None:
                square = square.narrow(part.dim, part.start, part.stop - part.start)
            score += float(square.sum())
        return score

    def screened(self, space: UpdateSpace) -> frozenset[str]:
        """Returns the names of the options that are not worth a measurement."""
        scores = {option.name: self.score(option) for option in space.options}
        limit = SCREENED_SHARE * max(scores.values(), default=0.0)
        return frozenset(name for name, score in scores.items() if score < limit)


def first_look(task: Task, space: UpdateSpace, *, num_batches: int = 8) -> FirstLook:
    """Computes the gradients of all that the space can train, whole, on a few batches."""
    names = dict.fromkeys([*space.base, *(n for o in space.options for n in o.update)])
    model = PartlyTrained(task.forward, dict.fromkeys(names))
    squares = {name: torch.zeros_like(leaf) for name, leaf in model.leaves.items()}
    for batch in train_batches(task, num_batches, _SEED):
        loss = task.loss.evaluate(model.output(batch.inputs), batch.targets).loss
        for name, grad in model.gradients(loss).items():
            squares[name] += grad.detach() ** 2 / num_batches
    return FirstLook(squares)
