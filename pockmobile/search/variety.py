"""Chooses the candidates that are worth measuring: good ones that are not all alike."""

from collections.abc import Sequence
from typing import Final

from pockmobile.search.greedy import greedy
from pockmobile.search.problem import Candidate, Problem

NEAR: Final = 0.95
"""Gains from this part of the best one on are as good as it: predictions are no better."""
NUM_STRONGEST: Final = 2
"""Layers that gain most alone, each of which is in some plan that is measured."""
_FAR: Final = 1 << 30


def choose_various(ranked: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """Returns up to `count` of the plans `ranked` (the best first), the best first.

    The best plan comes first. Each further one is, of the plans with nearly its gain
    (`NEAR`), that whose trained layers differ most from those of the plans chosen already:
    by the number of layers that one trains and the other does not, the nearest chosen plan
    counting; among equals the better plan. If no near plan trains other layers than the
    chosen ones, the best of all that are left follow.
    """
    if not ranked:
        return ()
    layers = [_trained_layers(one) for one in ranked]
    distances = [_FAR if one.gain >= NEAR * ranked[0].gain else 0 for one in ranked]
    chosen = [0]
    left = list(range(1, len(ranked)))
    while left and len(chosen) < count:
        for index in left:
            apart = (layers[index] ^ layers[chosen[-1]]).bit_count()
            distances[index] = min(distances[index], apart)
        best = max(left, key=distances.__getitem__)  # The first of equals: the better plan.
        left.remove(best)
        chosen.append(best)
    return tuple(ranked[index] for index in sorted(chosen))


def around_the_strongest(
    problem: Problem, chosen: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """Returns plans around the layers that gain most alone and that no plan `chosen` trains.

    What a layer gains alone was measured, but a sum of gains was not. Where layers learn the
    same, as in a language model that meets new words, it is far too high: one layer that is
    dear and gains nearly all there is falls behind many that gain the same little.
    """
    strongest = []
    for layer in problem.layers:
        singles = [problem.single(layer, number) for number in problem.choices[layer]]
        fitting = [single for single in singles if problem.fits(single)]
        strongest += [max(fitting, key=lambda one: one.gain)] if fitting else []
    strongest.sort(key=problem.rank)
    trained = 0
    for one in chosen:
        trained |= _trained_layers(one)
    found = (
        greedy(problem, single)
        for single in strongest[:NUM_STRONGEST]
        if not _trained_layers(single) & trained
    )
    return tuple(dict.fromkeys(found))


def _trained_layers(candidate: Candidate) -> int:
    """The layers that are trained, as bits."""
    return sum(1 << index for index, number in enumerate(candidate.selection) if number)
