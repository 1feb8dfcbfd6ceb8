"""How one plan is fine-tuned: the same for all, so that only the plan makes a difference."""

from dataclasses import dataclass
from typing import final

from pockmobile.errors import UsageError
from pockmobile.optim import Optimizer


@final
@dataclass(frozen=True)
class Schedule:
    """`num_steps` steps of `optimizer`, whose rate falls linearly from `lr` to 0.

    Raises:
        UsageError: a number that is not above 0.
    """

    num_steps: int
    lr: float
    optimizer: Optimizer
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        numbers = {"num_steps": self.num_steps, "lr": self.lr, "clip_norm": self.clip_norm}
        for name, number in numbers.items():
            if number is not None and not number > 0:
                raise UsageError(f"{name} must be above 0, found {number}")

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step (from 0)."""
        return self.lr * (1.0 - step / self.num_steps)
