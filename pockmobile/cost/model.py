"""Predicts the memory and the time of a plan's training step, without lowering it."""

from collections.abc import Mapping
from typing import final

import numpy as np

from pockmobile.cost.estimate import Estimate
from pockmobile.cost.operators import Operators
from pockmobile.cost.option_graph import OptionGraph
from pockmobile.cost.step import Step
from pockmobile.errors import PlanError
from pockmobile.optim import Optimizer
from pockmobile.plan import Slice
from pockmobile.targets import Target


@final
class CostModel:
    """The cost of any plan whose parts the option graph has.

    The operators that a plan needs are found by reachability; those that depend on frozen
    weights alone cost nothing; what is alive is followed operator by operator.
    """

    def __init__(
        self, options: OptionGraph, optimizer: Optimizer, target: Target, *, clips: bool = False
    ) -> None:
        """Finds what each operator depends on, and what each gradient needs.

        `clips` says that gradients are clipped by their joint norm.
        """
        self._operators = Operators(options, optimizer, target, clips=clips)

    def estimate(self, update: Mapping[str, Slice | None]) -> Estimate:
        """Predicts the cost of training `update`: parameter -> None (whole) or a slice.

        Raises:
            PlanError: a part that the option graph does not have, or none at all.
        """
        operators, parts = self._operators, list(update.items())
        unknown = [part for part in parts if part not in operators.gradients]
        if unknown or not parts:
            found = unknown[0] if unknown else "nothing"
            raise PlanError(f"the cost of training {found} is unknown: it is not in the space")
        needed = np.logical_or.reduce(
            [operators.loss_needs, *(operators.needs[p] for p in parts)]
        )
        return Step(operators, parts, np.flatnonzero(needed).tolist()).estimate()
