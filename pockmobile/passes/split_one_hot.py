"""Pass: keeps one-hot labels out of the gradient of a large head."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.columns import run_width
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten

LEAST_CLASSES: Final = 512
"""With fewer, the one-hot labels cost less than the rows that take their place."""


@final
@dataclass(frozen=True)
class SplitOneHot(Pass):
    """Multiplies probabilities and labels apart, where a head with many classes learns.

    The gradient of the logits is f * p - v * onehot(labels), with one f and one v for each
    row. A product with one-hot rows picks rows of the other operand, or adds to rows of the
    result; a product with scaled rows is scaled where it is smaller. So nothing of the size
    of the logits is computed beside the probabilities themselves. Where these are computed by
    runs of classes (`width`, as in `ChunkLoss`), rows are picked from any weight.

    Before: e = f * p - scatter(0, labels, v); mm(e, w); mm(e.t(), h)
    After:  f * mm(p, w) - v * w[labels]; index_put(mm(p.t(), f * h), labels, -v * h, add)
    """

    width: int | None = None
    name = "split-one-hot"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without such one-hot labels."""
        if not any(self._ends(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            for user, rows in self._ends(node):
                with graph.module.graph.inserting_before(user):
                    emit = _Emitter(graph.module.graph, rows)
                    replace_node(user, _RULES[user.target](emit, user))  # type: ignore[index]
        return finish(graph)

    def _ends(self, node: fx.Node) -> "list[_End]":
        """Returns what reads the one-hot part that begins at `node`, if all can be split."""
        rows = _rows(node)
        if rows is None:
            return []
        num_classes = shape_of(node)[-1]
        num_rows = value_of(node).numel() // num_classes
        is_cut = run_width(num_rows, num_classes, self.width) < num_classes
        if num_classes < LEAST_CLASSES and not is_cut:
            return []
        found = list(_readers(node, replace(rows, picks_any=is_cut)))
        return [] if None in found else [end for end in found if end is not None]


@final
@dataclass(frozen=True)
class _Rows:
    """Rows of f * p - v * onehot(labels), the last dimension of p being classes.

    `scales` multiply both parts; `own` those of p alone. All are one number for each row, or
    one for all. `is_turned` says that classes come first, `picks_any` that rows may be picked
    from a weight that no other operator reads on the host.
    """

    p: fx.Node
    own: tuple[fx.Node, ...]
    labels: fx.Node
    v: fx.Node
    scales: tuple[fx.Node, ...] = ()
    is_turned: bool = False
    picks_any: bool = False


_End: TypeAlias = tuple[fx.Node, _Rows]


def _rows(node: fx.Node) -> _Rows | None:
    """Returns the parts of a difference of scaled probabilities and one-hot values."""
    if node.target is not _aten.sub.Tensor or node.kwargs or not _is_node(node.args[1]):
        return None
    p, one_hot = arguments(node)
    if one_hot.target is not _aten.scatter.src:
        return None
    zeros, dim, labels, v = arguments(one_hot)
    is_last = dim in (-1, len(shape_of(node)) - 1) and shape_of(labels)[-1] == 1
    is_zeros = zeros.target is _aten.full.default and arguments(zeros)[1] == 0
    if not (is_last and is_zeros and len(one_hot.users) == 1 and _is_node(p)):
        return None
    own: list[fx.Node] = []
    while p.target is _aten.mul.Tensor and len(p.users) == 1 and _scale(p) is not None:
        p, scale = _scale(p)  # type: ignore[misc]
        own.append(scale)
    return _Rows(p, tuple(own), labels, v)


def _is_node(value: object) -> bool:
    return isinstance(value, fx.Node)


def _scale(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns a product's large operand, and the one with a number for each row or for all."""
    if node.kwargs or not all(map(_is_node, node.args)):
        return None
    for value, scale in (arguments(node), arguments(node)[::-1]):
        shape = shape_of(scale)
        if shape_of(value) == shape_of(node) and (not shape or shape[-1] == 1):
            return value, scale
    return None


def _readers(node: fx.Node, rows: _Rows) -> Iterator[_End | None]:
    """Yields the operators that end the one-hot part; None for one that cannot."""
    for user in node.users:
        if user.target is _aten.mul.Tensor and not rows.is_turned and _scale(user):
            value, scale = _scale(user)  # type: ignore[misc]
            is_scaled = value is node
            scaled = replace(rows, scales=(*rows.scales, scale))
            yield from _readers(user, scaled) if is_scaled else [None]
        elif user.target is _aten.view_copy.default and not rows.is_turned:
            keeps_classes = shape_of(user)[-1] == shape_of(node)[-1]
            yield from _readers(user, rows) if keeps_classes else [None]
        elif user.target is _aten.permute_copy.default and arguments(user)[1] == [1, 0]:
            yield from _readers(user, replace(rows, is_turned=not rows.is_turned))
        else:
            yield (user, rows) if _is_end(user, node, rows) else None


def _is_end(user: fx.Node, node: fx.Node, rows: _Rows) -> bool:
    if len(shape_of(node)) != 2 or user.kwargs:
        return False
    if user.target is _aten.sum.dim_IntList:
        return arguments(user)[1] == [0] and not rows.is_turned
    if user.target is not _aten.mm.default or user.args[0] is not node:
        return False
    can_pick = rows.is_turned or rows.picks_any or _is_table(arguments(user)[1])
    return user.args[1] is not node and can_pick


def _is_table(node: fx.Node) -> bool:
    """Whether rows can be picked at no cost: the host has the whole tensor anyway."""
    return node.op == "placeholder" or any(
        user.target is _aten.embedding.default and user.args[0] is node for user in node.users
    )


@final
class _Emitter:
    """Adds what takes the place of an operator that read f * p - v * onehot(labels)."""

    def __init__(self, graph: fx.Graph, rows: _Rows) -> None:
        self._graph = graph
        self._rows = rows
        self.classes = shape_of(rows.p)[-1]
        self.p = self.view(rows.p, [-1, self.classes])
        self.num_rows = shape_of(self.p)[0]
        self.labels = self.view(rows.labels, [self.num_rows])
        minus = call(graph, _aten.neg.default, rows.v)
        self.v = self._rows_of([minus, *rows.scales])
        factors = [*rows.own, *rows.scales]
        self.f = self._rows_of(factors) if factors else None

    def view(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        return call(self._graph, _aten.view_copy.default, node, list(shape))

    def mul(self, a: fx.Node, b: fx.Node) -> fx.Node:
        return call(self._graph, _aten.mul.Tensor, a, b)

    def scaled(self, value: fx.Node) -> fx.Node:
        """Returns rows [n, d] times f."""
        return value if self.f is None else self.mul(value, self.f)

    def _rows_of(self, factors: Sequence[fx.Node]) -> fx.Node:
        """Returns the product, [n, 1], or [1, 1] if it is one number."""
        product = functools.reduce(self.mul, factors)
        if value_of(product).numel() not in (1, self.num_rows):
            shape = [*shape_of(self._rows.p)[:-1], 1]
            product = call(self._graph, _aten.expand_copy.default, product, shape)
        return self.view(product, [-1, 1])

    def product(self, user: fx.Node) -> fx.Node:
        """Returns a product with the rows, or with the turned rows."""
        return self._weight(user) if self._rows.is_turned else self._activations(user)

    def _activations(self, user: fx.Node) -> fx.Node:
        """Returns the gradient [n, d] of what the head's weight [classes, d] multiplies."""
        weight = arguments(user)[1]
        dense = self.scaled(call(self._graph, _aten.mm.default, self.p, weight))
        picked = call(self._graph, _aten.embedding.default, weight, self.labels)
        return call(self._graph, _aten.add.Tensor, dense, self.mul(picked, self.v))

    def _weight(self, user: fx.Node) -> fx.Node:
        """Returns the gradient [classes, d] of the head's weight, for activations [n, d]."""
        h = arguments(user)[1]
        turned = call(self._graph, _aten.permute_copy.default, self.p, [1, 0])
        dense = call(self._graph, _aten.mm.default, turned, self.scaled(h))
        return self._added(dense, self.mul(h, self.v))

    def bias(self, user: fx.Node) -> fx.Node:
        """Returns the gradient of the head's bias, in the shape of the sum."""
        if self.f is not None and shape_of(self.f) == [self.num_rows, 1]:
            # As for the weight: what is turned is the same.
            turned = call(self._graph, _aten.permute_copy.default, self.p, [1, 0])
            dense = call(self._graph, _aten.mm.default, turned, self.f)
        else:
            dense = self.scaled(call(self._graph, _aten.sum.dim_IntList, self.p, [0], True))
        dense = self.view(dense, [self.classes])
        values = self.v
        if shape_of(values) != [self.num_rows, 1]:
            values = call(self._graph, _aten.expand_copy.default, values, [self.num_rows, 1])
        added = self._added(dense, self.view(values, [self.num_rows]))
        return self.view(added, shape_of(user))

    def _added(self, dense: fx.Node, values: fx.Node) -> fx.Node:
        """Adds values to the labels' rows."""
        put = _aten.index_put.default
        return call(self._graph, put, dense, [self.labels], values, True)


_RULES: Final = {
    _aten.mm.default: _Emitter.product,
    _aten.sum.dim_IntList: _Emitter.bias,
}
