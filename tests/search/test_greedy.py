"""Greedy takes what gains most for its share of what is left."""

import pytest

from pockmobile.search import Budget, Cost
from pockmobile.search.greedy import greedy
from pockmobile.search.problem import Candidate, Problem
from pockmobile.space import Selection
from tests.search.spaces import instance, space_of

GAINS = {"layer0 bias": 3.0, "layer0 1/8": 4.0, "layer1 bias": 2.0, "layer2 bias": 1.0}
PRICES = ((0, 3, 9), (0, 1), (0, 2))


def additive(selection: Selection) -> Cost:
    return Cost(1 + sum(p[n] for p, n in zip(PRICES, selection, strict=True)), 0.1)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (1, (0, 0, 0)),
        (2, (0, 1, 0)),
        (4, (0, 1, 1)),  # layer0 no longer fits behind layer1, the best for its cost.
        (5, (1, 1, 0)),
        (7, (1, 1, 1)),
        (12, (1, 1, 1)),
        (13, (2, 1, 1)),
    ],
)
def test_takes_the_best_rate_that_fits(memory: int, expected: Selection) -> None:
    problem = Problem(space_of([2, 1, 1]), GAINS, additive, Budget(memory))
    assert greedy(problem).selection == expected


def test_what_is_free_comes_first() -> None:
    def cost(selection: Selection) -> Cost:
        return Cost(1 + 5 * (selection[0] > 0 or selection[1] > 0), 0.1 * sum(selection) + 0.1)

    gains = {"layer0 bias": 1.0, "layer1 bias": 0.1, "layer2 bias": 0.01}
    assert greedy(Problem(space_of([1, 1, 1]), gains, cost, Budget(6))).selection == (1, 1, 1)


@pytest.mark.parametrize("seed", range(8))
def test_gains_about_what_it_would_if_it_costed_every_upgrade(seed: int) -> None:
    found = instance(seed, [5] * 12)
    budget = Budget(found.full.memory_bytes // 3, 0.7)
    problem = Problem(found.space, found.contributions, found.cost, budget)
    lazy, num_evaluated = greedy(problem), problem.num_evaluated
    eager = thorough(problem)
    assert problem.fits(lazy)
    assert lazy.gain >= 0.95 * eager.gain
    assert num_evaluated < 60 * 12


def thorough(problem: Problem) -> Candidate:
    """Costs all upgrades in each round."""
    current = problem.frozen
    while True:
        rates = {}
        for layer in problem.layers:
            for number in problem.choices[layer]:
                following = problem.take(current.selection, layer, number)
                if following.gain > current.gain and problem.fits(following):
                    rates[following.selection] = rate(problem, current, following)
        if not rates:
            return current
        current = problem.evaluate(max(rates, key=rates.__getitem__))


def rate(problem: Problem, current: Candidate, following: Candidate) -> tuple[float, float]:
    added = problem.shares(following.cost - current.cost)
    left = [1 - used for used in problem.used(current)]
    share = max(more / max(room, 1e-9) for more, room in zip(added, left, strict=True))
    gain = following.gain - current.gain
    return (gain / share if share > 0 else float("inf")), gain
