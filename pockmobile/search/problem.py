"""The search problem: which options are worth taking, and what selections gain and cost."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from pockmobile.errors import PlanError
from pockmobile.search.budget import Budget, Cost
from pockmobile.space import Selection, UpdateSpace

Shares = tuple[float, float]
"""Memory and time, as shares of what the budget leaves; 0 where there is no limit."""


@final
@dataclass(frozen=True)
class Candidate:
    """A selection with its predicted gain (the sum of its options') and its cost."""

    selection: Selection
    gain: float
    cost: Cost


@final
class Problem:
    """Costs selections, each once, and remembers all of them.

    `choices` holds, for each layer, the numbers of the options with a positive contribution:
    no other is ever selected, as training what does not help costs. `layers` are the indices
    of the layers that have any. `gains` holds, for each layer, the contribution of each
    number (0, frozen, first). `weights` are what a byte, and a unit of time, are of what the
    base leaves of the budget (0 where there is no limit).
    """

    def __init__(
        self,
        space: UpdateSpace,
        contributions: Mapping[str, float],
        cost: Callable[[Selection], Cost],
        budget: Budget,
    ) -> None:
        """Takes what `search` takes.

        Raises:
            PlanError: no plan fits the budget, or there is nothing to train.
        """
        self.budget = budget
        self.gains = tuple(
            (0.0, *(contributions.get(option.name, 0.0) for option in layer.options))
            for layer in space.layers
        )
        self.choices = tuple(
            tuple(number for number, gain in enumerate(gains) if gain > 0)
            for gains in self.gains
        )
        self.layers = tuple(index for index, found in enumerate(self.choices) if found)
        self._base = tuple(space.base)
        self._cost = cost
        self._candidates: dict[Selection, Candidate] = {}
        if not self._base:  # As with a tied head: no step trains nothing, so none is costed.
            free = Candidate(space.frozen, 0.0, Cost(0, 0.0))
            self._candidates[space.frozen] = free
        self.frozen = self.evaluate(space.frozen)
        self._check_smallest()
        self.weights = self._weigh()

    def evaluate(self, selection: Selection) -> Candidate:
        """Returns the selection with its gain and cost; asks for the cost of a new one."""
        found = self._candidates.get(selection)
        if found is None:
            pairs = zip(self.gains, selection, strict=True)
            gain = math.fsum(gains[number] for gains, number in pairs)
            found = Candidate(selection, gain, self._cost(selection))
            self._candidates[selection] = found
        return found

    def take(self, selection: Selection, layer: int, number: int) -> Candidate:
        """Returns the selection with another number for one layer."""
        return self.evaluate((*selection[:layer], number, *selection[layer + 1 :]))

    def single(self, layer: int, number: int) -> Candidate:
        """Returns the selection of one option alone."""
        return self.take(self.frozen.selection, layer, number)

    def fits(self, candidate: Candidate) -> bool:
        """Whether the budget allows it."""
        return candidate.cost.fits(self.budget)

    def shares(self, extra: Cost) -> Shares:
        """Returns what an extra cost is of what the base leaves of the budget."""
        memory, time = self.weights
        return extra.memory_bytes * memory, extra.step_ratio * time

    def used(self, candidate: Candidate) -> Shares:
        """Returns what a plan takes of what the base leaves of the budget."""
        return self.shares(candidate.cost - self.frozen.cost)

    def rank(self, candidate: Candidate) -> tuple[float, float, Selection]:
        """A key that sorts the best first: by gain, then by the share of the budget taken."""
        load = max(self.used(candidate))
        return -candidate.gain, load, candidate.selection

    def depth(self, selection: Selection) -> int:
        """Returns the earliest layer that is trained; the number of layers if none is."""
        trained = (index for index, number in enumerate(selection) if number)
        return next(trained, len(selection))

    @property
    def num_selections(self) -> int:
        """The number of selections worth considering."""
        return math.prod(len(numbers) + 1 for numbers in self.choices)

    @property
    def num_evaluated(self) -> int:
        """The number of selections that were costed so far."""
        return len(self._candidates)

    @property
    def plans(self) -> list[Candidate]:
        """What was evaluated so far and trains anything."""
        found = self._candidates.values()
        return [one for one in found if self._base or any(one.selection)]

    def ranked(self) -> list[Candidate]:
        """Returns the plans evaluated so far that fit, the best first."""
        return sorted(filter(self.fits, self.plans), key=self.rank)

    def _check_smallest(self) -> None:
        name = f"the smallest plan (the base alone: {_listing(self._base)})"
        smallest = self.frozen
        if not self._base:
            if not self.layers:
                raise PlanError(
                    "there is nothing to train: the model has no head of its own, and no "
                    "option has a positive contribution; measure more of them, or with more "
                    "data"
                )
            singles = [
                self.single(i, number) for i in self.layers for number in self.choices[i]
            ]
            smallest = min(singles, key=lambda one: _excess(one.cost, self.budget))
            name = "the smallest plan (one option alone)"
        if not self.fits(smallest):
            raise PlanError(
                f"no plan fits a budget of {self.budget}: {name} needs {smallest.cost}; raise "
                f"the budget to at least that, or make the batch smaller"
            )

    def _weigh(self) -> Shares:
        weights = []
        for name in ("memory_bytes", "step_ratio"):
            limit = getattr(self.budget, name)
            left = limit - getattr(self.frozen.cost, name) if limit is not None else 0.0
            # The floor keeps shares finite where the base takes the whole budget.
            weights.append(1 / max(left, 1e-9 * limit) if limit is not None else 0.0)
        return weights[0], weights[1]


def _excess(cost: Cost, budget: Budget) -> float:
    """The largest of a cost's parts, each divided by its limit."""
    memory = cost.memory_bytes / budget.memory_bytes if budget.memory_bytes else 0.0
    return max(memory, cost.step_ratio / budget.step_ratio if budget.step_ratio else 0.0)


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
