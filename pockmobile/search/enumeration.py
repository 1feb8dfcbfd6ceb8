"""Exhaustive search, for spaces that are small enough: what the others are held to."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Final

from pockmobile.errors import UsageError
from pockmobile.search.budget import Budget, Cost
from pockmobile.search.problem import Candidate, Problem
from pockmobile.space import Selection, UpdateSpace

MAX_ENUMERATED: Final = 200_000
"""The most selections that are enumerated."""


def enumerate_best(
    space: UpdateSpace,
    contributions: Mapping[str, float],
    cost: Callable[[Selection], Cost],
    budget: Budget,
) -> Candidate:
    """Returns the optimum: the plan that fits with the most gain, of these the cheapest.

    The arguments are those of `search`.

    Raises:
        PlanError: no plan fits the budget.
        UsageError: there are more than `MAX_ENUMERATED` selections.
    """
    problem = Problem(space, contributions, cost, budget)
    enumerate_all(problem)
    return problem.ranked()[0]


def enumerate_all(problem: Problem) -> None:
    """Evaluates every selection worth considering; `problem` remembers them.

    Raises:
        UsageError: there are more than `MAX_ENUMERATED`.
    """
    if problem.num_selections > MAX_ENUMERATED:
        raise UsageError(
            f"the space has {problem.num_selections} selections, too many to enumerate "
            f"(at most {MAX_ENUMERATED}); use search"
        )
    for selection in product(*((0, *numbers) for numbers in problem.choices)):
        problem.evaluate(selection)
