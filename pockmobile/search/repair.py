"""Makes any selection fit the budget, and use what is left of it."""

import math
import random
from typing import Final

from pockmobile.search.marginals import Marginals
from pockmobile.search.problem import Candidate, Problem, Shares
from pockmobile.space import Selection

_SKIPPED: Final = 0.2
"""The part of the upgrades that `fill` passes over, so that its answers differ."""


def repair(problem: Problem, marginals: Marginals, selection: Selection) -> Candidate:
    """Returns the selection, its options dropped or replaced by smaller ones until it fits.

    Each time the change that loses the least gain for the excess that it saves.
    """
    candidate = problem.evaluate(selection)
    while not problem.fits(candidate):
        candidate = _lessen(problem, marginals, candidate)
    return candidate


def _lessen(problem: Problem, marginals: Marginals, candidate: Candidate) -> Candidate:
    selection = candidate.selection
    excess = [max(used - 1, 0.0) for used in problem.used(candidate)]
    depth = problem.depth(selection)
    # Freezing the earliest layer also spares the backward pass below the next one, so what it
    # saves is measured. The other changes are estimated.
    best = problem.take(selection, depth, 0)
    saved = problem.shares(candidate.cost - best.cost)
    least = _loss(problem.gains[depth][selection[depth]], saved, excess)
    change = (depth, 0)
    for layer in problem.layers:
        old = selection[layer] if layer > depth else 0
        gains = problem.gains[layer]
        for new in (0, *problem.choices[layer]) if old else ():
            if gains[new] < gains[old]:
                saved = marginals.change(depth, layer, new, old)
                loss = _loss(gains[old] - gains[new], saved, excess)
                if loss < least:
                    least, change = loss, (layer, new)
    return problem.take(selection, *change)


def _loss(gain: float, saved: Shares, excess: list[float]) -> float:
    """The gain that is lost for each share of the excess that is saved."""
    useful = sum(min(share, over) for share, over in zip(saved, excess, strict=True))
    return gain / useful if useful > 0 else math.inf


def fill(
    problem: Problem, marginals: Marginals, candidate: Candidate, rng: random.Random
) -> Candidate:
    """Returns the plan with upgrades behind its depth that seem to fit, if they really do.

    They are taken by gain for their cost, but for some that are passed over at random.
    """
    depth = problem.depth(candidate.selection)
    left = [1 - used for used in problem.used(candidate)]
    selection = list(candidate.selection)
    for layer, number in _upgrades(problem, marginals, candidate.selection, depth):
        # A layer is upgraded once; what it had is what costs are counted from.
        old = candidate.selection[layer]
        if selection[layer] != old or rng.random() < _SKIPPED:
            continue
        added = marginals.change(depth, layer, old, number)
        rest = [room - more for room, more in zip(left, added, strict=True)]
        if min(rest) >= 0:
            left = rest
            selection[layer] = number
    filled = problem.evaluate(tuple(selection))
    return filled if problem.fits(filled) else candidate


def _upgrades(
    problem: Problem, marginals: Marginals, selection: Selection, depth: int
) -> list[tuple[int, int]]:
    """Returns layers behind the depth with an option of more gain, by gain for the cost."""
    rates: dict[tuple[int, int], float] = {}
    for layer in problem.layers:
        old, gains = selection[layer], problem.gains[layer]
        for number in problem.choices[layer] if layer > depth else ():
            if gains[number] > gains[old]:
                share = max(marginals.change(depth, layer, old, number))
                rate = (gains[number] - gains[old]) / share if share > 0 else math.inf
                rates[layer, number] = rate
    return sorted(rates, key=rates.__getitem__, reverse=True)
