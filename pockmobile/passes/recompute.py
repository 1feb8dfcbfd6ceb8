"""Pass: computes values again instead of keeping them through the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.liveness import Liveness
from pockmobile.graph.rewrite import is_random, num_bytes, shape_of
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten

_MOST_OPERATORS: Final = 16
"""That make one value again."""
_SMALL: Final = 4
"""A source so many times smaller than what is made of it is kept for that, if it must be."""
_PER_ELEMENT: Final = 2
"""What an element that is read or written costs, in multiply-adds."""


@final
@dataclass(frozen=True)
class Recompute(Pass):
    """Makes values again before the backward pass reads them, until few enough are kept.

    The most bytes alive at once (inputs and constants not counted) sink to `limit_bytes`, or
    as far as they can. Of the values alive at the peak that are read only later, that goes
    first which frees the most for the least work. `views` are the operators that move nothing.
    After Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, with the choice of
    what to keep left to the graph instead of to its author.

    Before: a = exp(x); ...; sin(a)
    After:  a = exp(x); ...; b = exp(x); sin(b)
    """

    limit_bytes: int
    views: frozenset[Any] = field(default=frozenset(), repr=False)
    name = "recompute"

    def options(self) -> dict[str, Any]:
        """The limit; the views are the target's."""
        return {"limit_bytes": self.limit_bytes}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with a lower peak, if there is one above the limit."""
        live = Liveness.of(graph, self.views)
        before = live.peak
        if before <= self.limit_bytes:
            return graph
        changed = graph.copy()
        live = Liveness.of(changed, self.views)
        while live.peak > self.limit_bytes:
            choice = _best(live)
            if choice is None:
                break
            _make_again(choice, live)
            live = Liveness.of(changed, self.views)
        return finish(changed) if live.peak < before else graph


@final
@dataclass(frozen=True)
class _Choice:
    """Operators, in order, that are run again at a place for the sake of some of them."""

    operators: tuple[fx.Node, ...]
    place: int
    freed: int

    @property
    def gain(self) -> float:
        """Bytes freed at the peak for each unit of work."""
        return self.freed / sum(map(_work, self.operators))


def _best(live: Liveness) -> _Choice | None:
    """Returns what is best made again instead of kept through the peak."""
    peak = live.alive.index(live.peak)
    choices = filter(None, (_choice(live, own, peak) for own in live.at(peak)))
    return max(choices, key=lambda choice: choice.gain, default=None)


def _choice(live: Liveness, own: fx.Node, peak: int) -> _Choice | None:
    """Returns how the memory of `own` can be free at the peak."""
    uses = [live.place[user] for node in live.owned[own] for user in node.users]
    later = [place for place in uses if place > peak]
    if live.first[own] >= peak or peak in uses or not later:
        return None
    sources = _Sources(live, own, peak, min(later))
    read_later = (n for n in live.owned[own] if _last_use(live, n) > peak)
    if not all(sources.collect(node) for node in read_later):
        return None
    operators = tuple(sorted(sources.operators, key=live.place.__getitem__))
    freed = num_bytes(own) - sum(map(num_bytes, sources.kept_longer))
    # What is made on the way must not be the next peak.
    made = sum(num_bytes(node) for node in operators if live.owner[node] is node)
    fits = live.alive[min(later)] + made - num_bytes(own) < live.peak
    return _Choice(operators, min(later), freed) if freed > 0 and fits else None


@final
@dataclass
class _Sources:
    """Collects the operators that make a value of what is there at a place after the peak."""

    live: Liveness
    own: fx.Node
    peak: int
    place: int
    operators: dict[fx.Node, None] = field(default_factory=dict)
    kept_longer: dict[fx.Node, None] = field(default_factory=dict)

    def collect(self, node: fx.Node) -> bool:
        """Adds what makes `node`; returns whether it can be made."""
        if node in self.operators:
            return True
        can_run = node.op == "call_function" and not is_random(node)
        if not can_run or len(self.operators) >= _MOST_OPERATORS:
            return False
        self.operators[node] = None
        return all(self._is_there(p) or self.collect(p) for p in node.all_input_nodes)

    def _is_there(self, node: fx.Node) -> bool:
        """Whether a value is there at the place, or is kept so long for it."""
        own = self.live.owner[node]
        if own.op != "call_function":
            return node is own  # A view of an input is made again.
        if own is self.own:
            return False
        if self.live.last[own] >= self.place or own in self.kept_longer:
            return True
        is_small = _SMALL * num_bytes(own) <= num_bytes(self.own)
        most = max(self.live.alive[self.live.last[own] : self.peak], default=0)
        if self.live.last[own] < self.peak:
            if not is_small or most + num_bytes(own) >= self.live.peak:
                return False
            self.kept_longer[own] = None
        # After the peak it takes the place of the value that is freed there.
        return num_bytes(own) <= num_bytes(self.own)


def _last_use(live: Liveness, node: fx.Node) -> int:
    return max((live.place[user] for user in node.users), default=-1)


def _make_again(choice: _Choice, live: Liveness) -> None:
    """Runs the operators once more, for those who read them from the place on."""
    at = live.nodes[choice.place]
    copies: dict[fx.Node, fx.Node] = {}
    for node in choice.operators:
        with at.graph.inserting_before(at):
            copies[node] = at.graph.node_copy(node, lambda old: copies.get(old, old))
    for node, copy in copies.items():
        for user in list(node.users):
            if user in live.place and live.place[user] >= choice.place:
                user.replace_input_with(node, copy)


def _work(node: fx.Node) -> int:
    """Returns what an operator costs, in multiply-adds."""
    values = [parent for parent in node.all_input_nodes if "val" in parent.meta]
    moved = sum(map(num_bytes, [node, *values])) // 4
    return max(1, moved * _PER_ELEMENT + _multiply_adds(node, values))


def _multiply_adds(node: fx.Node, values: Sequence[fx.Node]) -> int:
    if node.target is _aten.convolution.default:
        first, weight = values[:2]
        filters = shape_of(weight)
        # Each element of the input of a transposed one meets a filter, else of the output.
        many = first if node.args[6] else node
        return math.prod(shape_of(many)) * math.prod(filters) // filters[0]
    if node.target in _PRODUCTS:
        left = node.args[_PRODUCTS[node.target]]
        assert isinstance(left, fx.Node)
        return math.prod(shape_of(node)) * shape_of(left)[-1]
    return 0


_PRODUCTS: Final = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.linear.default: 0,
}
"""Operators that multiply matrices, and which argument is the left one."""
