"""Greedy search: the upgrade with the most gain for its share of the budget, repeatedly."""

import math

from pockmobile.search.problem import Candidate, Problem, Shares

_Upgrade = tuple[int, int]
"""A layer's index, and the number of the option that it would take."""


def greedy(problem: Problem, start: Candidate | None = None) -> Candidate:
    """Returns the plan to which the best upgrades of `start` (default: the base) lead.

    An upgrade gives one layer an option with more gain. The best of those that fit has the
    most gain for its share of what is left of the budget. Upgrades are sorted by what they
    were last seen to cost, and costed again from the best down until none that follows can
    be better: few evaluations, and the same answer as with all of them as long as upgrades
    do not become cheaper. They do where the backward pass newly reaches, so that is where
    what was seen is forgotten.
    """
    current = start or problem.frozen
    seen: dict[_Upgrade, Shares | None] = {
        (layer, number): None
        for layer in problem.layers
        for number in problem.choices[layer]
        if _added_gain(problem, current, (layer, number)) > 0
    }
    while (upgrade := _best_upgrade(problem, current, seen)) is not None:
        layer, number = upgrade
        depth = problem.depth(current.selection)
        current = problem.take(current.selection, layer, number)
        reached = depth if layer < depth else 0
        for other in list(seen):
            if other[0] < reached or other[0] == layer:
                seen[other] = None
            if other[0] == layer and _added_gain(problem, current, other) <= 0:
                del seen[other]
    return current


def _best_upgrade(
    problem: Problem, current: Candidate, seen: dict[_Upgrade, Shares | None]
) -> _Upgrade | None:
    """Updates `seen`, from which it takes what no longer fits."""
    used = problem.used(current)
    rates = {one: _rate(_added_gain(problem, current, one), seen[one], used) for one in seen}
    best: _Upgrade | None = None
    best_rate = (-math.inf, -math.inf)
    for upgrade in sorted(seen, key=lambda one: rates[one], reverse=True):
        if best is not None and best_rate >= rates[upgrade]:
            break
        following = problem.take(current.selection, *upgrade)
        if not problem.fits(following):
            del seen[upgrade]
            continue
        seen[upgrade] = problem.shares(following.cost - current.cost)
        rate = _rate(_added_gain(problem, current, upgrade), seen[upgrade], used)
        if rate > best_rate:
            best, best_rate = upgrade, rate
    return best


def _added_gain(problem: Problem, current: Candidate, upgrade: _Upgrade) -> float:
    layer, number = upgrade
    gains = problem.gains[layer]
    return gains[number] - gains[current.selection[layer]]


def _rate(gain: float, added: Shares | None, used: Shares) -> tuple[float, float]:
    """Gain for the share of what is left; the most for what is free, or was not seen yet.

    Among the latter the gain decides.
    """
    if added is None:
        return math.inf, math.inf
    share = max(more / max(1 - taken, 1e-9) for more, taken in zip(added, used, strict=True))
    return (gain / share if share > 0 else math.inf), gain
