"""Pareto fronts: the plans beside which no other gains as much for less."""

from collections.abc import Callable, Iterable

from pockmobile.search.problem import Candidate


def pareto_front(
    candidates: Iterable[Candidate], cost: Callable[[Candidate], float]
) -> tuple[Candidate, ...]:
    """Returns the plans with more gain than all that cost as much or less, by rising cost.

    Of equals the first in order of their selections stands for all.
    """
    front: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (cost(c), -c.gain, c.selection)):
        if not front or one.gain > front[-1].gain:
            front.append(one)
    return tuple(front)
