"""Where costs are additive at each depth, the knapsack's answer is the optimum."""

import random

import pytest

from pockmobile.search import Budget, Cost, enumerate_best
from pockmobile.search.knapsack import Knapsacks, knapsack, sweep
from pockmobile.search.marginals import Marginals
from pockmobile.search.problem import Problem
from pockmobile.space import Selection
from tests.search.spaces import instance, space_of


def problem_of(seed: int, num_layers: int, *, has_head: bool = True) -> Problem:
    """Costs are a part for the depth and whole hundredths for each option: no rounding."""
    rng = random.Random(seed)
    space = space_of([3] * num_layers, has_head=has_head)
    gains = {option.name: rng.uniform(-0.1, 1) for option in space.options}
    prices = [[0, *(rng.randint(1, 20) for _ in range(3))] for _ in range(num_layers)]

    def cost(selection: Selection) -> Cost:
        depth = next((i for i, n in enumerate(selection) if n), num_layers)
        chosen = sum(row[n] for row, n in zip(prices, selection, strict=True))
        return Cost(1000 + 5 * (num_layers - depth) + chosen, 0.1)

    return Problem(space, gains, cost, Budget(1000 + rng.randint(20, 100)))


@pytest.mark.parametrize("seed", range(25))
def test_is_the_optimum_of_additive_costs(seed: int) -> None:
    problem = problem_of(seed, 6)
    answers = knapsack(problem, Marginals(problem))
    for selection in every(problem):
        problem.evaluate(selection)
    assert max(one.gain for one in answers) == pytest.approx(problem.ranked()[0].gain)


def every(problem: Problem) -> list[Selection]:
    selections: list[Selection] = [()]
    for numbers in problem.choices:
        selections = [(*one, number) for one in selections for number in (0, *numbers)]
    return selections


@pytest.mark.parametrize("seed", range(5))
def test_all_answers_fit_and_lie_at_several_depths(seed: int) -> None:
    found = instance(seed, [5] * 20)
    budget = Budget(found.full.memory_bytes // 2, 0.8)
    problem = Problem(found.space, found.contributions, found.cost, budget)
    answers = knapsack(problem, Marginals(problem))
    assert all(problem.fits(one) for one in answers)
    assert len({problem.depth(one.selection) for one in answers}) > 5


def test_of_two_limits_the_tighter_decides() -> None:
    def cost(selection: Selection) -> Cost:
        return Cost(10 + 3 * sum(n > 0 for n in selection), 0.1 + 0.1 * (selection[1] > 0))

    gains = {"layer0 bias": 1.0, "layer1 bias": 2.0, "layer2 bias": 1.5}
    for budget in (Budget(16, 0.15), Budget(16, 0.25), Budget(13, 0.25)):
        space = space_of([1, 1, 1])
        problem = Problem(space, gains, cost, budget)
        answers = knapsack(problem, Marginals(problem))
        assert min(answers, key=problem.rank) == enumerate_best(space, gains, cost, budget)


def test_a_depth_that_does_not_fit_holds_nothing() -> None:
    problem = problem_of(0, 4)
    knapsacks = Knapsacks(problem, Marginals(problem), (1.0, 0.0), size=0.5)
    depth = problem.layers[0]
    assert knapsacks.selection(depth, 0) is None
    assert knapsacks.gain(depth, 0) == float("-inf")


def test_few_depths_are_measured_in_long_models() -> None:
    found = instance(3, [5] * 40)
    problem = Problem(found.space, found.contributions, found.cost, Budget(step_ratio=0.8))
    marginals = Marginals(problem, max_depths=4)
    assert len(marginals.depths) == 4
    assert marginals.depths[0] == problem.layers[0]
    assert problem.num_evaluated < 5 * 40 * 5
    last = problem.layers[-1]
    assert marginals.anchor(last) == marginals.depths[-1]
    assert marginals.change(last - 1, last, 0, 0) == (0.0, 0.0)


def test_a_sweep_reaches_from_the_base_to_everything() -> None:
    found = instance(5, [5] * 20)
    budget = Budget(found.full.memory_bytes // 8)
    problem = Problem(found.space, found.contributions, found.cost, budget)
    sweep(problem, Marginals(problem))
    gains = [max(row) for row in problem.gains]
    most = max(one.gain for one in problem.plans)
    assert most == pytest.approx(sum(gain for gain in gains if gain > 0))
    for part in (0.25, 0.5, 0.75):
        assert any(0.9 < one.gain / most / part < 1.1 for one in problem.plans)
