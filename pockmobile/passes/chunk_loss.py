"""Pass: computes the loss of a choice among many by runs of what is chosen among."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.graph.choices import Choice, choice_of, compared, logits_of
from pockmobile.graph.columns import run_width, runs
from pockmobile.graph.joint import add_constant
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of
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
        bases = logits_of(graph)
        found = [choice for base in bases if (choice := choice_of(base))]
        is_small = any(shape_of(base)[-1] <= (self.width or 0) for base in bases)
        if self.width and not found and not is_small:
            raise UsageError(
                f"--loss-chunk {self.width} needs a loss that chooses a label by the outputs "
                "of a linear layer, as cross_entropy and next_token do, with nothing between; "
                "leave it out, or choose such a loss"
            )
        if not any(self._cuts(choice) for choice in found):
            return graph
        graph = graph.copy()
        for base in logits_of(graph):
            choice = choice_of(base)
            if choice is not None and self._cuts(choice):
                _Sweep(graph, choice, self._width(choice)).write()
        return finish(graph)

    def _cuts(self, choice: Choice) -> bool:
        return self._width(choice) < choice.columns.num_columns

    def _width(self, choice: Choice) -> int:
        return run_width(choice.columns.num_rows, choice.columns.num_columns, self.width)


@final
class _Sweep:
    """Writes the sweeps over the runs of one choice."""

    def __init__(self, graph: JointGraph, choice: Choice, width: int) -> None:
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
        is_there = self._call(_aten.ge.Scalar, compared(node), 0)
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
