"""What each option costs: alone, and beside an earlier layer that is trained already."""

from collections.abc import Iterator, Sequence
from typing import Final, final

from pockmobile.search.budget import Cost
from pockmobile.search.problem import Problem, Shares

MAX_DEPTHS: Final = 12
"""The most depths at which all later options are costed."""
_NOTHING: Final = Cost(0, 0.0)


@final
class Marginals:
    """The extra costs of options, measured at several depths.

    The depth of a plan is its earliest trained layer, which the backward pass must reach: this
    alone decides a large part of the cost. An option's extra cost at a depth is that beside
    the cheapest option of the layer there. Models with many layers are measured at
    `MAX_DEPTHS` depths, evenly spaced; each other depth stands for itself with the cost of
    its own options, and takes the extra costs of later ones from the nearest depth before it
    that was measured.
    """

    def __init__(self, problem: Problem, *, max_depths: int = MAX_DEPTHS) -> None:
        """Measures; `problem` remembers all that was costed."""
        self._problem = problem
        self.depths = _spread(problem.layers, max_depths)
        self._anchors = {
            layer: max(depth for depth in self.depths if depth <= layer)
            for layer in problem.layers
        }
        self._extras = {
            (depth, layer, number): extra
            for depth in self.depths
            for layer, number, extra in self._measure(depth)
        }

    def anchor(self, depth: int) -> int:
        """Returns the nearest measured depth that is not after `depth`."""
        return self._anchors[depth]

    def single(self, layer: int, number: int) -> Cost:
        """Returns what one option alone adds to the base."""
        return self._problem.single(layer, number).cost - self._problem.frozen.cost

    def extra(self, depth: int, layer: int, number: int) -> Cost:
        """Returns what an option (or none: 0) of a later layer adds at a depth."""
        return self._extras[self._anchors[depth], layer, number] if number else _NOTHING

    def change(self, depth: int, layer: int, old: int, new: int) -> Shares:
        """Returns what another option of a later layer adds at a depth, in shares."""
        extra = self.extra(depth, layer, new) - self.extra(depth, layer, old)
        return self._problem.shares(extra)

    def _measure(self, depth: int) -> Iterator[tuple[int, int, Cost]]:
        problem = self._problem
        start = problem.single(depth, self._cheapest_of(depth))
        for layer in problem.layers:
            for number in problem.choices[layer] if layer > depth else ():
                candidate = problem.take(start.selection, layer, number)
                yield layer, number, candidate.cost - start.cost

    def _cheapest_of(self, layer: int) -> int:
        problem = self._problem
        numbers = problem.choices[layer]
        return min(numbers, key=lambda n: max(problem.used(problem.single(layer, n))))


def _spread(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns `count` of the layers, evenly spaced from the first on, or all of fewer."""
    if len(layers) <= count:
        return tuple(layers)
    return tuple(layers[index * len(layers) // count] for index in range(count))
