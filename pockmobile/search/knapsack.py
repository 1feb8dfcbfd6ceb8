"""The grouped knapsack: at most one option a layer, solved as if costs were additive.

Costs are nearly additive once the depth (the earliest layer that is trained) is given. So each
depth has a knapsack of its own, solved by dynamic programming over a budget in equal parts.
With two limits, weighted means of the two shares are limited instead, for several weights;
the true cost decides what fits.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from pockmobile.search.budget import Cost
from pockmobile.search.marginals import Marginals
from pockmobile.search.problem import Candidate, Problem, Shares
from pockmobile.space import Selection

NUM_PARTS: Final = 1000
"""The parts into which what is left of the budget is divided."""
_HEADROOM: Final = 1.5
"""The largest knapsack: what it thinks too much may fit, as a peak is less than a sum."""
_BALANCES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_NUM_LEVELS: Final = 24
_NUM_BEST_DEPTHS: Final = 3


@final
@dataclass(frozen=True)
class _Answers:
    """What the knapsacks of one depth, of each size in parts, hold: at [size]."""

    gains: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]
    """The option of the depth's own layer; 0 where none of them fits."""


@final
class Knapsacks:
    """All knapsacks of a problem, for one price of costs.

    `weights` are the price of a byte and of a unit of time; `size` is the largest knapsack's.
    """

    def __init__(
        self, problem: Problem, marginals: Marginals, weights: Shares, *, size: float
    ) -> None:
        """Solves them."""
        self._problem = problem
        self._marginals = marginals
        self._weights = weights
        self._size = int(size * NUM_PARTS)
        self._chosen: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._prices: dict[tuple[int, int, int], int] = {}
        self._answers: dict[int, _Answers] = {}
        for anchor in marginals.depths:
            self._solve(anchor)

    def gain(self, depth: int, size: int) -> float:
        """Returns what the knapsack of a depth and a size gains, -inf if it stays empty."""
        return float(self._answers[depth].gains[size])

    def selection(self, depth: int, size: int) -> Selection | None:
        """Returns what the knapsack of a depth and a size holds."""
        number = int(self._answers[depth].numbers[size])
        if not number:
            return None
        selection = list(self._problem.frozen.selection)
        selection[depth] = number
        size -= self._single_price(depth, number)
        anchor = self._marginals.anchor(depth)
        for layer in self._problem.layers:
            if layer > depth:
                number = int(self._chosen[anchor, layer][size])
                selection[layer] = number
                size -= self._prices[anchor, layer, number] if number else 0
        return tuple(selection)

    def _solve(self, anchor: int) -> None:
        """Solves the depths whose extra costs are those at `anchor`, from the last layer on."""
        best = np.zeros(self._size + 1)
        for layer in reversed(self._problem.layers):
            if layer < anchor:
                break
            if self._marginals.anchor(layer) == anchor:
                prices = {
                    number: self._single_price(layer, number)
                    for number in self._problem.choices[layer]
                }
                nothing = np.full_like(best, -np.inf)
                self._answers[layer] = _Answers(*self._with_layer(layer, prices, best, nothing))
            if layer > anchor:
                prices = {
                    number: self._extra_price(anchor, layer, number)
                    for number in self._problem.choices[layer]
                }
                best, self._chosen[anchor, layer] = self._with_layer(layer, prices, best, best)

    def _with_layer(
        self,
        layer: int,
        prices: dict[int, int],
        later: npt.NDArray[np.float64],
        without: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Returns the gain and this layer's number for each size.

        `later` is the gain of the later layers alone, `without` that if this one is frozen.
        """
        best = without.copy()
        numbers = np.zeros(len(best), dtype=np.int64)
        for number, price in prices.items():
            gains = np.full_like(best, -np.inf)
            gains[price:] = later[: len(later) - price] + self._problem.gains[layer][number]
            is_better = gains > best
            best[is_better] = gains[is_better]
            numbers[is_better] = number
        return best, numbers

    def _extra_price(self, anchor: int, layer: int, number: int) -> int:
        price = self._in_parts(self._marginals.extra(anchor, layer, number))
        self._prices[anchor, layer, number] = price
        return price

    def _single_price(self, layer: int, number: int) -> int:
        return self._in_parts(self._marginals.single(layer, number))

    def _in_parts(self, extra: Cost) -> int:
        share = extra.memory_bytes * self._weights[0] + extra.step_ratio * self._weights[1]
        return round(min(max(share * NUM_PARTS, 0.0), self._size + 1.0))


def knapsack(problem: Problem, marginals: Marginals) -> list[Candidate]:
    """Returns, for each depth and balance of limits, the best plan of a knapsack that fits."""
    memory, time = problem.weights
    weightings = [(memory * part, time * (1 - part)) for part in _BALANCES]
    found: dict[Selection, Candidate] = {}
    for weights in weightings if memory and time else [problem.weights]:
        knapsacks = Knapsacks(problem, marginals, weights, size=_HEADROOM)
        for depth in problem.layers:
            candidate = _largest_that_fits(problem, knapsacks, depth)
            if candidate is not None:
                found[candidate.selection] = candidate
    return list(found.values())


def _largest_that_fits(problem: Problem, knapsacks: Knapsacks, depth: int) -> Candidate | None:
    """Bisects the size; every plan that was met on the way competes."""
    best: Candidate | None = None
    low, high = 0, int(_HEADROOM * NUM_PARTS)
    while low <= high:
        size = (low + high) // 2
        selection = knapsacks.selection(depth, size)
        candidate = problem.evaluate(selection) if selection is not None else None
        if candidate is not None and not problem.fits(candidate):
            high = size - 1
            continue
        low = size + 1
        if candidate is not None:
            best = min(best or candidate, candidate, key=problem.rank)
    return best


def sweep(problem: Problem, marginals: Marginals) -> None:
    """Evaluates good plans at budgets from the least to the most, of memory and of time.

    They are for the fronts: the fullest knapsacks of each size, over the few best depths.
    """
    greatest = problem.evaluate(
        tuple(
            max((0, *numbers), key=gains.__getitem__)
            for numbers, gains in zip(problem.choices, problem.gains, strict=True)
        )
    ).cost
    span = greatest - problem.frozen.cost
    if span.memory_bytes > 0:
        weights = (1 / span.memory_bytes, 0.0)
        _sweep(problem, Knapsacks(problem, marginals, weights, size=1.0))
    if span.step_ratio > 0:
        weights = (0.0, 1 / span.step_ratio)
        _sweep(problem, Knapsacks(problem, marginals, weights, size=1.0))


def _sweep(problem: Problem, knapsacks: Knapsacks) -> None:
    for level in range(1, _NUM_LEVELS + 1):
        size = NUM_PARTS * level // _NUM_LEVELS
        depths = sorted(problem.layers, key=lambda depth: -knapsacks.gain(depth, size))
        for depth in depths[:_NUM_BEST_DEPTHS]:
            selection = knapsacks.selection(depth, size)
            if selection is not None:
                problem.evaluate(selection)
