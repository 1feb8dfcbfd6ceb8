"""Finds operators that can run for a part of the batch at a time, so that less is alive."""

import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph.liveness import Liveness
from pockmobile.graph.rewrite import arguments, is_pointwise, is_random, num_bytes, shape_of

_aten = torch.ops.aten

_MOST_OPERATORS: Final = 64
"""That are run in parts."""
_MOST_PARTS: Final = 8
_LEAST_GAIN: Final = 16
"""A part so small of what is alive is not worth the copies at both ends."""
_SMALL: Final = 4
"""What is copied at both ends must be so many times smaller than the peak."""
_CLOSE: Final = 32
"""Of two ways whose peaks differ by so small a part, that with fewer operators is better."""


@final
@dataclass(frozen=True)
class Parts:
    """Operators, in order, to be run for one part of the batch after another.

    They read parts of `entries`, and what does not differ from example to example; of what
    they make only the last one's result is read by others.
    """

    operators: tuple[fx.Node, ...]
    entries: tuple[fx.Node, ...]
    num_parts: int

    @property
    def result(self) -> fx.Node:
        """The operator whose result is joined again."""
        return self.operators[-1]

    @property
    def num_calls(self) -> int:
        """How many operators run in all."""
        return self.num_parts * len(self.operators)


def best_parts(
    live: Liveness, constants: Container[fx.Node], limit_bytes: int = 0
) -> Parts | None:
    """Returns what is best run in parts, or None if nothing lowers the peak.

    Args:
        live: what is alive while each operator runs.
        constants: the nodes that depend on no input.
        limit_bytes: how low the peak need be.
    """
    peak = live.alive.index(live.peak)
    most = live.peak - live.peak // _LEAST_GAIN
    if live.peak <= limit_bytes or not _is_per_example(live.nodes[peak], constants):
        return None
    found = [
        (max(after, limit_bytes), parts)
        for operators in _candidates(live, constants, peak)
        for after, parts in _ways(live, operators)
        if after <= most
    ]
    least = min((after for after, _ in found), default=0)
    close = [item for item in found if item[0] <= least + live.peak // _CLOSE]
    best = min(close, key=lambda item: (item[1].num_calls, item[0]), default=None)
    return best and best[1]


def _candidates(
    live: Liveness, constants: Container[fx.Node], peak: int
) -> Iterator[tuple[fx.Node, ...]]:
    """Yields operators around the peak, in order, that can run in parts."""
    for end in live.nodes[peak : peak + _MOST_OPERATORS]:
        if not (_is_per_example(end, constants) and _is_small(live, [end])):
            continue
        chosen = {end: None}
        for node in reversed(live.nodes[: live.place[end]]):
            if len(chosen) == _MOST_OPERATORS:
                break
            users = [user for user in node.users if user in live.place]
            is_inner = bool(users) and all(user in chosen for user in users)
            if is_inner and _is_per_example(node, constants):
                chosen[node] = None
                # The copies at both ends cost as much as elementwise operators.
                is_worth = any(item.target in _ON_IMAGES for item in chosen)
                if is_worth and live.place[node] <= peak:
                    yield tuple(reversed(chosen))


def _is_small(live: Liveness, values: Sequence[fx.Node]) -> bool:
    """Whether tensors are so small that another copy of them does no harm."""
    if not all(isinstance(value.meta["val"], Tensor) for value in values):
        return False
    made = [live.owner[value] for value in values if live.owner[value].op == "call_function"]
    return _SMALL * sum(map(num_bytes, made)) <= live.peak


def _is_per_example(node: fx.Node, constants: Container[fx.Node]) -> bool:
    """Whether each example of the result depends on the same one of what is read alone."""
    if node.op != "call_function" or node in constants or is_random(node):
        return False
    parents = node.all_input_nodes
    if node.target is operator.getitem:
        return _is_per_example(parents[0], constants)
    if not parents or not all(isinstance(p.meta["val"], Tensor) for p in parents):
        return False
    if node.target in _ON_IMAGES:
        return all(parent in constants for parent in parents[1:])
    return is_pointwise(node) and all(
        not (_is_whole(parent, node) and parent in constants) for parent in parents
    )


_ON_IMAGES: Final = (
    _aten.convolution.default,
    _aten.avg_pool2d.default,
    _aten.max_pool2d_with_indices.default,
)
"""Operators whose first argument has the batch, and whose others must be constants."""


def _is_whole(value: fx.Node, user: fx.Node) -> bool:
    """Whether an argument of an operator has a row for each example."""
    if user.target in _ON_IMAGES:
        return value is arguments(user)[0]
    if user.target is operator.getitem:
        return True
    shape, result = shape_of(value), shape_of(user)
    return len(shape) == len(result) > 0 and shape[0] == result[0] > 1


def _ways(live: Liveness, operators: tuple[fx.Node, ...]) -> Iterator[tuple[int, Parts]]:
    """Yields how many bytes are alive at most with the operators run in parts."""
    inside = set(operators)
    entries = tuple(
        dict.fromkeys(
            parent
            for node in operators
            for parent in node.all_input_nodes
            if parent not in inside and _is_whole(parent, node)
        )
    )
    if not _is_small(live, entries):
        return
    copied = sum(_held(node) for node in operators)
    course = _Course.of(live, operators, entries)
    num_examples = shape_of(operators[-1])[0]
    for number in range(2, min(num_examples, _MOST_PARTS) + 1):
        if num_examples % number == 0:
            peak = course.peak(number) + (number - 1) * copied
            yield peak, Parts(operators, entries, number)


_POINTER: Final = 8
"""Bytes with which a kernel finds one place of an image that a window covers."""


def _held(node: fx.Node) -> int:
    """Returns the bytes that an operator holds from step to step: weights and pointers."""
    if node.target not in _ON_IMAGES:
        return 0
    weights = sum(map(num_bytes, node.all_input_nodes[1:]))
    is_convolution = node.target is _aten.convolution.default
    window = shape_of(node.all_input_nodes[1])[2:] if is_convolution else arguments(node)[1]
    value = node.meta["val"]
    _, _, *places = (value[0] if isinstance(value, tuple) else value).shape
    pointers = prod(window) * prod(places) if prod(window) > 1 else 0
    return weights + _POINTER * pointers


@final
@dataclass(frozen=True)
class _Course:
    """What is alive from the first of some operators to the last, copies of constants apart.

    `inner` is what lies between them, `cut` what they read of the entries; `outer` is alive
    beside, and what is read as long as a part is missing. `whole` is their result, and `rest`
    the most that is alive before and after.
    """

    inner: tuple[int, ...]
    cut: tuple[int, ...]
    outer: tuple[int, ...]
    whole: int
    rest: int

    @staticmethod
    def of(
        live: Liveness, operators: tuple[fx.Node, ...], entries: Sequence[fx.Node]
    ) -> "_Course":
        start, stop = live.place[operators[0]], live.place[operators[-1]]
        inner, cut, kept = ([0] * (stop + 2) for _ in range(3))
        for own in dict.fromkeys(live.owner[node] for node in operators):
            _add(inner, own, live.first[own], min(live.last[own], stop))
        for entry in entries:
            reads = [live.place[user] for user in entry.users if user in operators]
            _add(cut, entry, start, max(reads))
            if entry.op == "call_function":  # It stays until its last part was read.
                _add(kept, entry, max(start, live.last[live.owner[entry]] + 1), stop)
        inner, cut, kept = ([*accumulate(x)][start:-1] for x in (inner, cut, kept))
        alive = live.alive[start : stop + 1]
        outer = [a - i + k for a, i, k in zip(alive, inner, kept, strict=True)]
        rest = max((*live.alive[:start], *live.alive[stop + 1 :]), default=0)
        whole = num_bytes(operators[-1])
        return _Course(tuple(inner), tuple(cut), tuple(outer), whole, rest)

    def peak(self, count: int) -> int:
        """Returns the most bytes alive with so many parts."""
        made = self.whole - self.whole // count
        during = (
            beside + made + (inner + cut) // count
            for beside, inner, cut in zip(self.outer, self.inner, self.cut, strict=True)
        )
        joined = self.outer[-1] + 2 * self.whole
        return max(self.rest, joined, *during)


def _add(changes: list[int], value: fx.Node, first: int, last: int) -> None:
    """Adds a value that is alive from one place to another."""
    if first <= last:
        changes[first] += num_bytes(value)
        changes[last + 1] -= num_bytes(value)
