"""Evolutionary search, as in the paper: from good answers to better ones by small changes."""

import random
from collections.abc import Callable, Sequence
from typing import Final, final

from pockmobile.search.marginals import Marginals
from pockmobile.search.problem import Candidate, Problem
from pockmobile.search.repair import fill, repair
from pockmobile.space import Selection

_POPULATION: Final = 60
_ELITE: Final = 10
_TOURNAMENT: Final = 3
_CROSSED: Final = 0.7
_FILLED: Final = 0.5
_RAISED: Final = 0.1
_PATIENCE: Final = 25
"""The generations without improvement after which the search ends."""
_MAX_GENERATIONS: Final = 150
_MAX_EVALUATED: Final = 5000
"""The new selections after which it ends: 10 seconds, of 2 ms each."""


def evolve(
    problem: Problem,
    marginals: Marginals,
    seeds: Sequence[Candidate],
    rng: random.Random,
    progress: Callable[[str], None],
) -> Candidate:
    """Returns the best plan found; `problem` remembers the others.

    Each generation keeps the best and fills up with children: the winners of two tournaments
    crossed layer by layer, changed in a few layers, and made to fit.
    """
    breeder = _Breeder(problem, marginals, rng)
    population = breeder.first(seeds)
    num_before, num_idle = problem.num_evaluated, 0
    for generation in range(1, _MAX_GENERATIONS + 1):
        best = population[0]
        population = breeder.next(population)
        is_better = population[0].gain > best.gain
        num_idle = 0 if is_better else num_idle + 1
        progress(
            f"evolution: generation {generation}, gain {population[0].gain:.6g}, "
            f"{problem.num_evaluated} plans costed"
        )
        if num_idle == _PATIENCE or problem.num_evaluated - num_before > _MAX_EVALUATED:
            break
    return population[0]


@final
class _Breeder:
    """Makes populations: plans that fit, each once, the best first."""

    def __init__(self, problem: Problem, marginals: Marginals, rng: random.Random) -> None:
        self._problem = problem
        self._marginals = marginals
        self._rng = rng

    def first(self, seeds: Sequence[Candidate]) -> list[Candidate]:
        """Returns the best seeds, their neighbours, and random plans."""
        ranked = self._ranked(seeds)[: _POPULATION // 2]
        neighbours = [self._fit(self._mutated(one.selection)) for one in ranked]
        randoms = [self._fit(self._random()) for _ in range(_POPULATION // 2)]
        return self._ranked([*ranked, *neighbours, *randoms])

    def next(self, population: list[Candidate]) -> list[Candidate]:
        """Returns the elite and the children of a population."""
        elite = population[:_ELITE]
        children = [self._child(population) for _ in range(_POPULATION - len(elite))]
        return self._ranked([*elite, *children])

    def _child(self, population: list[Candidate]) -> Candidate:
        selection = self._winner(population)
        if self._rng.random() < _CROSSED:
            other = self._winner(population)
            pairs = zip(selection, other, strict=True)
            selection = tuple(self._rng.choice(pair) for pair in pairs)
        return self._fit(self._mutated(selection))

    def _winner(self, population: list[Candidate]) -> Selection:
        # A population is sorted, so the lowest index wins.
        index = min(self._rng.randrange(len(population)) for _ in range(_TOURNAMENT))
        return population[index].selection

    def _mutated(self, selection: Selection) -> Selection:
        """Another option for one to three layers; sometimes all before a layer are frozen."""
        numbers = list(selection)
        layers = self._problem.layers
        if self._rng.random() < _RAISED:
            depth = self._rng.choice(layers)
            numbers[:depth] = [0] * depth
        for _ in range(self._rng.randint(1, 3)):
            layer = self._rng.choice(layers)
            others = [n for n in (0, *self._problem.choices[layer]) if n != numbers[layer]]
            numbers[layer] = self._rng.choice(others)
        return tuple(numbers)

    def _random(self) -> Selection:
        """Any options of the layers from a random one on; about half of them stay frozen."""
        depth = self._rng.choice(self._problem.layers)
        numbers = [0] * len(self._problem.choices)
        for layer in self._problem.layers:
            if layer >= depth and self._rng.random() < 0.5:
                numbers[layer] = self._rng.choice(self._problem.choices[layer])
        return tuple(numbers)

    def _fit(self, selection: Selection) -> Candidate:
        candidate = repair(self._problem, self._marginals, selection)
        if any(candidate.selection) and self._rng.random() < _FILLED:
            return fill(self._problem, self._marginals, candidate, self._rng)
        return candidate

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        unique = {one.selection: one for one in candidates}
        return sorted(unique.values(), key=self._problem.rank)
