"""How an analysis works: what it fine-tunes with, how often, and where it writes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from pockmobile.cost.rates import RATES
from pockmobile.errors import UsageError
from pockmobile.optim import SGD, Optimizer
from pockmobile.sensitivity import Schedule

DEFAULT_RATES: Final = {"sgd": 0.02, "momentum": 0.005, "adamw": 1e-3, "lion": 1e-4}
"""Optimizer -> the learning rate with which plans are compared, unless another is given."""


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an analysis works.

    Each plan is fine-tuned `num_steps` steps, `num_repeats` times with other batches, in
    `num_processes` processes of one thread each. What was measured is written to `store` as
    it comes, and a later analysis of the same takes it from there. `lr` is the learning rate
    at the start (None: the optimizer's in `DEFAULT_RATES`); it falls to 0. `num_best` plans
    of the search are measured. `shows_progress` draws bars on stderr, if it is a terminal;
    `progress` is told each stage.

    Raises:
        UsageError: costs on the target were never measured.
    """

    optimizer: Optimizer = field(default_factory=SGD)
    clip_norm: float | None = None
    target: str = "xnnpack"
    lr: float | None = None
    num_steps: int = 100
    num_repeats: int = 2
    num_best: int = 3
    num_processes: int = 2
    seed: int = 0
    store: Path | None = None
    shows_progress: bool = True
    progress: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        """Refuses a target whose costs nobody measured."""
        if self.target not in RATES:
            raise UsageError(
                f"plans for target {self.target} cannot be compared: what its operators cost "
                f"was measured for {' and '.join(sorted(RATES))} alone; find a plan for one of "
                "these, and compile that"
            )

    @property
    def schedule(self) -> Schedule:
        """How each plan is fine-tuned."""
        lr = self.lr or DEFAULT_RATES[self.optimizer.name]
        return Schedule(self.num_steps, lr, self.optimizer, self.clip_norm)
