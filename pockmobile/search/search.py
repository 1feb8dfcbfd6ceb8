"""The search: enumeration, or greedy, knapsack and evolution; then the fronts and the best."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from pockmobile.search.budget import Budget, Cost
from pockmobile.search.enumeration import enumerate_all
from pockmobile.search.evolution import evolve
from pockmobile.search.greedy import greedy
from pockmobile.search.knapsack import knapsack, sweep
from pockmobile.search.marginals import Marginals
from pockmobile.search.pareto import pareto_front
from pockmobile.search.problem import Candidate, Problem
from pockmobile.search.variety import around_the_strongest, choose_various
from pockmobile.space import Selection, UpdateSpace

CHEAP_TO_ENUMERATE: Final = 10_000
"""The most selections that a search enumerates: 20 seconds, of 2 ms each."""


@final
@dataclass(frozen=True)
class SearchResult:
    """The plans found.

    `best` are distinct plans that fit the budget, by falling gain, and behind them those
    around layers that gain much alone (`around_the_strongest`). The fronts are of all plans
    evaluated, those beyond the budget included, by rising cost. `num_evaluated` selections
    were costed.
    """

    best: tuple[Candidate, ...]
    front_memory: tuple[Candidate, ...]
    front_time: tuple[Candidate, ...]
    num_evaluated: int


def search(
    space: UpdateSpace,
    contributions: Mapping[str, float],
    cost: Callable[[Selection], Cost],
    budget: Budget,
    *,
    seed: int = 0,
    num_best: int = 4,
    max_enumerated: int = CHEAP_TO_ENUMERATE,
    progress: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Maximises the predicted gain, the sum of the contributions, under a budget.

    A space of up to `max_enumerated` selections is enumerated, so its answer is the optimum.
    Others are searched by evolution from the answers of greedy and knapsack.

    Args:
        space: the plans to choose from.
        contributions: by option's name, else 0. Only positive ones are ever chosen.
        cost: should seldom fall when more is trained. Called once for each selection.
        budget: the most that a plan may cost.
        seed: of the evolution; the same arguments give the same answer.
        num_best: the plans to return: the best, and others nearly as good that train other
            layers (see `choose_various`); fewer if fewer fit, and up to `NUM_STRONGEST` more.
        max_enumerated: see above.
        progress: told a line at each stage and generation.

    Raises:
        PlanError: no plan fits the budget, or there is nothing to train.
    """
    problem = Problem(space, contributions, cost, budget)
    if problem.num_selections <= max(1, max_enumerated):  # 1: nothing contributes.
        progress(f"enumeration: {problem.num_selections} plans")
        enumerate_all(problem)
    else:
        _approach(problem, random.Random(seed), progress)
    result = _result(problem, num_best)
    progress(f"done: gain {result.best[0].gain:.6g}, {result.num_evaluated} plans costed")
    return result


def _result(problem: Problem, num_best: int) -> SearchResult:
    best = choose_various(problem.ranked(), num_best)
    best += around_the_strongest(problem, best)
    plans = problem.plans
    return SearchResult(
        best,
        pareto_front(plans, lambda one: one.cost.memory_bytes),
        pareto_front(plans, lambda one: one.cost.step_ratio),
        problem.num_evaluated,
    )


def _approach(problem: Problem, rng: random.Random, progress: Callable[[str], None]) -> None:
    start = greedy(problem)
    progress(f"greedy: gain {start.gain:.6g}, {problem.num_evaluated} plans costed")
    marginals = Marginals(problem)
    answers = knapsack(problem, marginals)
    gain = max((one.gain for one in answers), default=0.0)
    progress(f"knapsack: gain {gain:.6g}, {problem.num_evaluated} plans costed")
    evolve(problem, marginals, [start, *answers], rng, progress)
    sweep(problem, marginals)
