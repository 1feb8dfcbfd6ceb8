"""Evolution improves on what it starts from; what it breeds fits."""

import random

import pytest

from pockmobile.search import Budget
from pockmobile.search.evolution import evolve
from pockmobile.search.greedy import greedy
from pockmobile.search.marginals import Marginals
from pockmobile.search.problem import Problem
from pockmobile.search.repair import fill, repair
from tests.search.spaces import instance


def problem_of(seed: int) -> Problem:
    found = instance(seed, [5] * 15)
    budget = Budget(found.full.memory_bytes // 3, 0.7)
    return Problem(found.space, found.contributions, found.cost, budget)


@pytest.mark.parametrize("seed", range(4))
def test_is_never_worse_than_its_seeds(seed: int) -> None:
    problem = problem_of(seed)
    lines: list[str] = []
    start = greedy(problem)
    best = evolve(problem, Marginals(problem), [start], random.Random(0), lines.append)
    assert problem.fits(best)
    assert best.gain >= start.gain
    assert best == problem.ranked()[0]
    assert lines[0].startswith("evolution: generation 1, gain ")
    assert len(lines) <= 150


def test_finds_as_much_from_nothing() -> None:
    problem = problem_of(1)
    marginals = Marginals(problem)
    start = greedy(problem)
    best = evolve(problem, marginals, [], random.Random(0), lambda _: None)
    assert best.gain >= start.gain


@pytest.mark.parametrize("seed", range(6))
def test_repair_makes_anything_fit_and_fill_keeps_it_so(seed: int) -> None:
    problem = problem_of(seed)
    marginals = Marginals(problem)
    rng = random.Random(seed)
    for _ in range(10):
        anything = tuple(rng.choice((0, *numbers)) for numbers in problem.choices)
        repaired = repair(problem, marginals, anything)
        filled = fill(problem, marginals, repaired, rng)
        assert problem.fits(repaired)
        assert problem.fits(filled)
        assert repaired.gain <= problem.evaluate(anything).gain
        assert filled.gain >= repaired.gain


def test_repair_leaves_what_fits_alone() -> None:
    problem = problem_of(0)
    start = greedy(problem)
    marginals = Marginals(problem)
    assert repair(problem, marginals, start.selection) is start
    assert fill(problem, marginals, problem.frozen, random.Random(0)) is problem.frozen
