"""Finds what is better computed a second time than kept, since it needs weights alone."""

from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

from torch import fx

from pockmobile.graph.liveness import Liveness
from pockmobile.graph.rewrite import is_cheap, num_bytes

_LEAST: Final = 64
"""An operator more is not worth a smaller part of the peak."""
_NEAR: Final = 8
"""Where less is alive than at the peak by a larger part, nothing need be saved."""
_FAR: Final = 32
"""Operators between two uses; for fewer a value is kept."""
_MOST_OPERATORS: Final = 8
"""That make one value again, views among them."""


@final
@dataclass(frozen=True)
class Again:
    """A value that is made of weights, and what makes it.

    `operators` are run again, in order: those that make it, and its views. Those in `late`
    read it, in order, long after the last one that does before them.
    """

    value: fx.Node
    operators: tuple[fx.Node, ...]
    last_early: fx.Node
    late: tuple[fx.Node, ...]


def values_again(live: Liveness, constants: Container[fx.Node]) -> list[Again]:
    """Returns what is kept though it can be made again, where that adds to the peak.

    Args:
        live: what is alive while each operator runs.
        constants: the nodes that depend on no input.
    """
    made = (own for own in live.owned if own.op == "call_function" and own not in constants)
    large = (own for own in made if _LEAST * num_bytes(own) >= live.peak)
    found = (_again(own, live, constants) for own in large)
    return [item for item in found if item is not None]


def _again(own: fx.Node, live: Liveness, constants: Container[fx.Node]) -> Again | None:
    owned = live.owned[own]
    operators = _operators(owned, constants)
    if operators is None:
        return None
    users = {user for node in owned for user in node.users if user in live.place}
    ordered = sorted(users - {*owned}, key=live.place.__getitem__)
    for index, (before, after) in enumerate(pairwise(ordered)):
        between = live.alive[live.place[before] + 1 : live.place[after]]
        if len(between) >= _FAR and max(between) * _NEAR >= live.peak * (_NEAR - 1):
            return Again(own, operators, before, tuple(ordered[index + 1 :]))
    return None


def _operators(
    owned: tuple[fx.Node, ...], constants: Container[fx.Node]
) -> tuple[fx.Node, ...] | None:
    """Returns all operators that make values, in order, if they need weights alone."""
    found: dict[fx.Node, None] = {}
    pending = [*owned]
    while pending:
        node = pending.pop()
        found[node] = None
        if not is_cheap(node) or len(found) > _MOST_OPERATORS:
            return None
        parents = (p for p in node.all_input_nodes if p not in found and p not in constants)
        pending += [parent for parent in parents if parent.op != "placeholder"]
    return tuple(sorted(found))
