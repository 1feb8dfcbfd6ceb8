"""Pass: computes the loss of a choice among many by runs of what is chosen among."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import fx

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.graph.columns import Columns, is_row_view, run_width, runs, unviewed
from pockmobile.graph.joint import add_constant
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class ChunkLoss(Pass):
    """Takes a softmax over some columns at a time, so that logits are never whole in memory.

    One sweep over the runs keeps, for each row, the largest logit so far, the sum of the
    exponentials below it, the label's logit, and the product of these exponentials with what
    the backward pass multiplies them by, each brought to a new largest as it comes (Milakov &
    Gimelshein, Online normalizer calculation for softmax, 2018; here the product is a part of
    the sweep). So a run's gradient is made as soon as its logits are, and nothing is computed
    twice where the head is frozen. Where it learns, its gradient needs the sums of all runs:
    a second sweep computes the logits again.

    Columns are cut, not rows, since XNNPACK packs the weights of each operator: runs of rows
    would hold the head once for each, runs of columns hold it once.

    Before: z = mm(h, w); gather(_log_softmax(z), labels); mm(_softmax(z), v)
    After:  z1 = mm(h, w[:, :k]); m1 = amax(z1); e1 = exp(z1 - m1); s1 = sum(e1);
            a1 = mm(e1, v[:k]); z2 = mm(h, w[:, k:]); m2 = maximum(m1, amax(z2)); ...;
            z_label - m2 - log(s2); a2 / s2
    """

    width: int | None = None
    name = "chunk-loss"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without whole logits.

        Raises:
            UsageError: a width was asked for, and this loss has no logits that can be cut.
        """
        bases = _bases(graph)
        found = [choice for base in bases if (choice := _choice(base))]
        is_small = any(shape_of(base)[-1] <= (self.width or 0) for base in bases)
        if self.width and not found and not is_small:
            raise UsageError(
                "a loss in runs needs one that chooses a label by the outputs of a linear "
                "layer (cross_entropy, next_token), and nothing but products behind it; leave "
                "the size of a run out, or choose such a loss"
            )
        if not any(self._cuts(choice) for choice in found):
            return graph
        graph = graph.copy()
        for base in _bases(graph):
            choice = _choice(base)
            if choice is not None and self._cuts(choice):
                _Sweep(graph, choice, self._width(choice)).write()
        return finish(graph)

    def _cuts(self, choice: "_Choice") -> bool:
        return self._width(choice) < choice.columns.num_columns

    def _width(self, choice: "_Choice") -> int:
        return run_width(choice.columns.num_rows, choice.columns.num_columns, self.width)


@final
@dataclass
class _Choice:
    """Logits, and all that reads them.

    `picks` take the label's logarithm of a probability, `comparisons` the largest logit's
    place beside the label. `products` multiply probabilities, as rows, by a matrix with a row
    for each column; `turned` multiply them, as columns, by a matrix with a row for each row;
    `sums` add them up over the rows.
    """

    columns: Columns
    index: fx.Node | None = None
    picks: list[fx.Node] = field(default_factory=list)
    comparisons: list[fx.Node] = field(default_factory=list)
    products: list[fx.Node] = field(default_factory=list)
    turned: list[fx.Node] = field(default_factory=list)
    sums: list[fx.Node] = field(default_factory=list)

    @property
    def ends(self) -> list[fx.Node]:
        """The operators that are replaced."""
        return [*self.picks, *self.comparisons, *self.products, *self.turned, *self.sums]

    @property
    def operands(self) -> list[fx.Node]:
        """What the replacement reads beside the logits' own sources."""
        factors = [arguments(node)[1] for node in (*self.products, *self.turned)]
        labels = [] if self.index is None else [self.index]
        compared = [_compared(node) for node in self.comparisons]
        return [*labels, *compared, *factors]


def _bases(graph: JointGraph) -> list[fx.Node]:
    """Returns the logits of the graph's choices."""
    sources = [
        unviewed(node.all_input_nodes[0])
        for node in graph.nodes
        if node.target is _aten._log_softmax.default and _is_last(node)
    ]
    return list(dict.fromkeys(sources))


def _choice(base: fx.Node) -> _Choice | None:
    """Returns all that reads the logits, if each is known."""
    columns = Columns.of(base)
    if columns is None:
        return None
    choice = _Choice(columns)
    if not _reads(choice, base) or not _compares_labels(choice):
        return None
    return None if _depends(choice.operands, set(choice.ends)) else choice


def _depends(nodes: Iterable[fx.Node], ends: set[fx.Node]) -> bool:
    """Whether some of the nodes are made of what is replaced."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in ends:
            return True
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return False


def _reads(choice: _Choice, node: fx.Node) -> bool:
    """Collects what reads logits; returns whether all of it is known."""
    return all(_read(choice, node, user) for user in node.users)


def _read(choice: _Choice, node: fx.Node, user: fx.Node) -> bool:
    if is_row_view(user):
        return _reads(choice, user)
    if user.target is _aten._log_softmax.default and _is_last(user):
        return all(_picks(choice, pick) for pick in user.users)
    if user.target is _aten._softmax.default and _is_last(user):
        return all(_multiplies(choice, user, end) for end in user.users)
    if user.target is _aten.argmax.default and _is_last(user) and len(user.args) == 2:
        choice.comparisons += user.users
        return all(end.target is _aten.eq.Tensor for end in user.users)
    return False


def _picks(choice: _Choice, node: fx.Node) -> bool:
    if node.target is not _aten.gather.default or not _is_last(node) or node.kwargs:
        return False
    index = arguments(node)[2]
    if choice.index not in (None, index) or value_of(index).numel() != choice.columns.num_rows:
        return False
    choice.index = index
    choice.picks.append(node)
    return True


def _multiplies(
    choice: _Choice, node: fx.Node, user: fx.Node, *, is_turned: bool = False
) -> bool:
    if is_row_view(user) and not is_turned:
        return all(_multiplies(choice, user, end) for end in user.users)
    is_matrix = len(shape_of(node)) == 2
    if user.target is _aten.permute_copy.default and is_matrix and not is_turned:
        return all(_multiplies(choice, user, end, is_turned=True) for end in user.users)
    if user.target is _aten.mm.default and user.args[0] is node is not user.args[1]:
        (choice.turned if is_turned else choice.products).append(user)
        return True
    if user.target is _aten.sum.dim_IntList and is_matrix and arguments(user)[1] == [0]:
        choice.sums.append(user)
        return not is_turned
    return False


def _is_last(node: fx.Node) -> bool:
    """Whether an operator works along the last dimension."""
    source, dim = arguments(node)[:2]
    return dim in (-1, len(shape_of(source)) - 1)


def _compares_labels(choice: _Choice) -> bool:
    """Whether what is compared are the labels whose logits are picked."""
    if not choice.comparisons:
        return True
    if choice.index is None:
        return False
    clamped = choice.index
    while clamped.target is _aten.view_copy.default:
        clamped = clamped.all_input_nodes[0]
    is_clamped = clamped.target is _aten.clamp.default and clamped.args[1:] == (0,)
    labels = clamped.all_input_nodes[0] if is_clamped else None
    return all(_compared(node) is labels for node in choice.comparisons)


def _compared(node: fx.Node) -> fx.Node:
    """Returns what the largest logit's place is compared with."""
    found: fx.Node = next(
        operand
        for operand in node.args
        if operand.target is not _aten.argmax.default  # type: ignore
    )
    return found


@final
class _Sweep:
    """Writes the sweeps over the runs of one choice."""

    def __init__(self, graph: JointGraph, choice: _Choice, width: int) -> None:
        self._module = graph.module
        self._graph = graph.module.graph
        self._choice = choice
        self._columns = choice.columns
        self._runs = list(runs(self._columns.num_columns, width))
        self._width = width

    def write(self) -> None:
        """Puts the sweeps in the place of what reads the logits."""
        place = _first(self._graph, self._choice.ends)
        _hoist([*self._columns.sources, *self._choice.operands], place)
        with self._graph.inserting_before(place):
            results = self._first_sweep()
            if self._choice.turned or self._choice.sums:
                results |= self._second_sweep()
        for node, result in results.items():
            replace_node(node, result)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return call(self._graph, target, *args)

    def _first_sweep(self) -> dict[fx.Node, fx.Node]:
        """Returns what takes the place of picks, comparisons and products."""
        rows = _Rows(self._graph)
        label = self._label()
        for start, stop in self._runs:
            logits = self._columns.select(self._graph, start, stop)
            rows.add(logits)
            if label is not None:
                chosen = self._chosen(label, start, stop)
                rows.pick(self._call(_aten.mul.Tensor, logits, chosen))
            for node in self._choice.products:
                factor = arguments(node)[1]
                part = self._call(_aten.slice_copy.Tensor, factor, 0, start, stop, 1)
                rows.multiply(node, part)
        self._total = rows.total()
        results: dict[fx.Node, fx.Node] = {
            node: self._call(_aten.div.Tensor, product, rows.sum)
            for node, product in rows.products.items()
        }
        for node in self._choice.picks:
            log = self._call(_aten.sub.Tensor, rows.picked, self._total)
            results[node] = self._call(_aten.view_copy.default, log, shape_of(node))
        for node in self._choice.comparisons:
            results[node] = self._compare(node, rows)
        return results

    def _label(self) -> fx.Node | None:
        """Returns the labels as numbers [n, 1], and makes those of a run's columns."""
        if self._choice.index is None:
            return None
        numbers = torch.arange(self._width, dtype=torch.float32).reshape(1, -1)
        self._numbers = add_constant(self._module, numbers)
        self._one = add_constant(self._module, torch.ones(1, 1))
        index = self._call(_aten.view_copy.default, self._choice.index, [-1, 1])
        return call(self._graph, _aten._to_copy.default, index, dtype=torch.float32)

    def _chosen(self, label: fx.Node, start: int, stop: int) -> fx.Node:
        """Returns ones where a label is among the columns of a run, and zeros.

        By arithmetic, exact up to 2^24 columns: comparisons are no work for a delegate.
        """
        numbers = self._numbers
        if stop - start < self._width:
            numbers = self._call(_aten.slice_copy.Tensor, numbers, 1, 0, stop - start, 1)
        own = self._call(_aten.sub.Tensor, label, float(start)) if start else label
        away = self._call(_aten.abs.default, self._call(_aten.sub.Tensor, numbers, own))
        return self._call(_aten.relu.default, self._call(_aten.sub.Tensor, self._one, away))

    def _compare(self, node: fx.Node, rows: "_Rows") -> fx.Node:
        """The largest logit is the label's, which is there."""
        reaches = self._call(_aten.ge.Tensor, rows.picked, rows.largest)
        reaches = self._call(_aten.view_copy.default, reaches, shape_of(node))
        is_there = self._call(_aten.ge.Scalar, _compared(node), 0)
        return self._call(_aten.bitwise_and.Tensor, reaches, is_there)

    def _second_sweep(self) -> dict[fx.Node, fx.Node]:
        """Returns what takes the place of products with turned probabilities, and of sums."""
        parts: dict[fx.Node, list[fx.Node]] = {}
        for start, stop in self._runs:
            logits = self._columns.select(self._graph, start, stop, again=True)
            below = self._call(_aten.sub.Tensor, logits, self._total)
            probabilities = self._call(_aten.exp.default, below)
            for node in self._choice.turned:
                turned = self._call(_aten.permute_copy.default, probabilities, [1, 0])
                part = self._call(_aten.mm.default, turned, arguments(node)[1])
                parts.setdefault(node, []).append(part)
            for node in self._choice.sums:
                part = self._call(_aten.sum.dim_IntList, probabilities, *arguments(node)[1:])
                parts.setdefault(node, []).append(part)
        return {
            node: self._call(_aten.cat.default, own, 0 if node in self._choice.turned else -1)
            for node, own in parts.items()
        }


@final
class _Rows:
    """What one sweep keeps for each row; all but `products` are [n, 1]."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._powers: fx.Node | None = None
        self._decay: fx.Node | None = None
        self.products: dict[fx.Node, fx.Node] = {}
        self._state: dict[str, fx.Node] = {}

    @property
    def largest(self) -> fx.Node:
        """The largest logit."""
        return self._state["largest"]

    @property
    def sum(self) -> fx.Node:
        """The sum of the exponentials of what the logits are below the largest."""
        return self._state["sum"]

    @property
    def picked(self) -> fx.Node:
        """The label's logit."""
        return self._state["picked"]

    def add(self, logits: fx.Node) -> None:
        """Takes a run of logits [n, width] in."""
        top = self._call(_aten.amax.default, logits, [1], True)
        self._decay = None
        if "largest" in self._state:
            before, top = self.largest, self._call(_aten.maximum.default, self.largest, top)
            below = self._call(_aten.sub.Tensor, before, top)
            self._decay = self._call(_aten.exp.default, below)
        self._state["largest"] = top
        below = self._call(_aten.sub.Tensor, logits, top)
        self._powers = self._call(_aten.exp.default, below)
        own = self._call(_aten.sum.dim_IntList, self._powers, [1], True)
        self._state["sum"] = self._decayed(self._state.get("sum"), own)

    def pick(self, chosen: fx.Node) -> None:
        """Takes a run in which all but the labels' logits are zeros."""
        own = self._call(_aten.sum.dim_IntList, chosen, [1], True)
        before = self._state.get("picked")
        self._state["picked"] = (
            own if before is None else self._call(_aten.add.Tensor, before, own)
        )

    def multiply(self, key: fx.Node, factor: fx.Node) -> None:
        """Multiplies the exponentials of the run taken in last by a matrix [width, k]."""
        own = self._call(_aten.mm.default, self._powers, factor)
        self.products[key] = self._decayed(self.products.get(key), own)

    def total(self) -> fx.Node:
        """Returns the logarithm of the sum of the exponentials of all logits."""
        return self._call(
            _aten.add.Tensor, self.largest, self._call(_aten.log.default, self.sum)
        )

    def _decayed(self, before: fx.Node | None, own: fx.Node) -> fx.Node:
        """Adds a run's share to what came before, which a new largest makes smaller."""
        if before is None:
            return own
        smaller = self._call(_aten.mul.Tensor, before, self._decay)
        return self._call(_aten.add.Tensor, smaller, own)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return call(self._graph, target, *args)


def _first(graph: fx.Graph, nodes: Sequence[fx.Node]) -> fx.Node:
    """Returns the node that comes first in the graph."""
    known = set(nodes)
    found: fx.Node = next(node for node in graph.nodes if node in known)
    return found


def _hoist(nodes: Iterable[fx.Node], place: fx.Node) -> None:
    """Moves nodes, and what they are made from, before a place, if they come later."""
    order = {node: number for number, node in enumerate(place.graph.nodes)}
    late: dict[fx.Node, None] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if order[node] > order[place] and node not in late:
            late[node] = None
            pending += node.all_input_nodes
    for node in sorted(late, key=order.__getitem__):
        place.prepend(node)
