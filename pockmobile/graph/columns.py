"""A run of the columns of logits, computed without the others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph.rewrite import AGAIN_KEY, arguments, call, shape_of, value_of

_aten = torch.ops.aten

WHOLE: Final = 0
"""As the width that is asked for: all columns at once."""
_LEAST_BYTES: Final = 12 << 20
"""Logits that are smaller are computed whole, if no width is asked for."""
_BYTES_AT_ONCE: Final = 2 << 20
"""Of logits: about what a core's cache holds."""
_MOST_RUNS: Final = 32
"""Each is some thirty operators more in the graph."""
_GRANULE: Final = 64


def run_width(num_rows: int, num_columns: int, asked: int | None) -> int:
    """Returns how many columns of logits are computed at once: all, where that is little.

    Args:
        num_rows: labels, as tokens of a batch.
        num_columns: what a label chooses among.
        asked: the most columns at once; None leaves the choice to this function.
    """
    if asked == WHOLE:
        return num_columns
    row_bytes = 4 * num_rows
    if asked is None:
        if row_bytes * num_columns < _LEAST_BYTES:
            return num_columns
        asked = max(_BYTES_AT_ONCE // row_bytes, -(-num_columns // _MOST_RUNS))
        asked = -(-asked // _GRANULE) * _GRANULE
    if asked >= num_columns:
        return num_columns
    num_runs = -(-num_columns // asked)
    even = -(-num_columns // num_runs)
    # Runs of one width: the last one is shorter by as little as can be.
    return min(asked, -(-even // _GRANULE) * _GRANULE)


def runs(num_columns: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields the start and the stop of each run."""
    for start in range(0, num_columns, width):
        yield start, min(start + width, num_columns)


def is_row_view(node: fx.Node) -> bool:
    """Whether a node sees rows of the same columns in other dimensions."""
    if node.target is not _aten.view_copy.default:
        return False
    (source,) = node.all_input_nodes
    shape, own = shape_of(source), shape_of(node)
    return bool(shape) and bool(own) and shape[-1] == own[-1]


def unviewed(node: fx.Node) -> fx.Node:
    """Returns what a node sees rows of."""
    while is_row_view(node):
        node = node.all_input_nodes[0]
    return node


@final
@dataclass(frozen=True)
class Columns:
    """Computes runs of columns of `base`, whose last dimension they are, as rows [n, width].

    They come from products, whose right operand is cut, and from arithmetic on them: the
    adapter of a head, its bias, a bound on logits.
    """

    base: fx.Node
    inside: frozenset[fx.Node] = field(default=frozenset(), repr=False)

    @staticmethod
    def of(base: fx.Node) -> "Columns | None":
        """Returns what computes columns of `base` alone, if its operators allow it."""
        inside: dict[fx.Node, None] = {}
        columns = Columns(base)
        if not columns._collect(base, inside):
            return None
        wide = [node for node in inside if node is not base]
        # What else reads a whole value on the way would have it computed all the same.
        if any(user not in inside for node in wide for user in node.users):
            return None
        return Columns(base, frozenset(inside))

    @property
    def num_columns(self) -> int:
        """The size of the last dimension."""
        return shape_of(self.base)[-1]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return value_of(self.base).numel() // self.num_columns

    @property
    def sources(self) -> list[fx.Node]:
        """What comes from outside, in the order in which it is found."""
        found = [parent for node in self.inside for parent in node.all_input_nodes]
        return [node for node in dict.fromkeys(found) if node not in self.inside]

    def _collect(self, node: fx.Node, inside: dict[fx.Node, None]) -> bool:
        """Adds the operators that make a value of whole rows; returns whether all are known."""
        if node in inside:
            return True
        inside[node] = None
        if is_row_view(node):
            return self._collect(node.all_input_nodes[0], inside)
        if node.target in (_aten.mm.default, _aten.addmm.default):
            return not node.kwargs and shape_of(node)[0] == self.num_rows
        if node.target not in _ELEMENTWISE or node.kwargs:
            return False
        operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
        return all(
            self._is_small(operand) or self._collect(operand, inside) for operand in operands
        )

    def _is_small(self, node: fx.Node) -> bool:
        """Whether a value is one number, one for each column, or one for each row."""
        size, shape = value_of(node).numel(), shape_of(node)
        if size == 1:
            return True
        return size == shape[-1] == self.num_columns or (
            shape[-1] == 1 and size == self.num_rows
        )

    def select(self, graph: fx.Graph, start: int, stop: int, *, again: bool = False) -> fx.Node:
        """Adds what computes the columns from `start` to `stop`, [n, stop - start].

        `again` says that they were computed before, and that this is not to be merged.
        """
        return _Selection(graph, self, start, stop, again=again).of(self.base)


@final
class _Selection:
    """Adds the operators of one run of columns."""

    def __init__(
        self, graph: fx.Graph, columns: Columns, start: int, stop: int, *, again: bool
    ) -> None:
        self._graph, self._columns = graph, columns
        self._start, self._stop = start, stop
        self._again = again
        self._made: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """Returns a value of whole rows, in the run's columns."""
        if node not in self._made:
            self._made[node] = self._make(node)
        return self._made[node]

    def cut(self, node: fx.Node, dim: int) -> fx.Node:
        """Returns a run of a dimension."""
        whole = shape_of(node)[dim]
        if (self._start, self._stop) == (0, whole):
            return node
        return self._call(_aten.slice_copy.Tensor, node, dim, self._start, self._stop, 1)

    def _make(self, node: fx.Node) -> fx.Node:
        if is_row_view(node):
            return self.of(node.all_input_nodes[0])
        operands = arguments(node)
        if node.target is _aten.mm.default:
            return self._call(node.target, operands[0], self.cut(operands[1], 1))
        if node.target is _aten.addmm.default:
            bias, left, right = operands
            return self._call(node.target, self._small(bias), left, self.cut(right, 1))
        return self._call(node.target, *map(self._operand, operands))

    def _operand(self, operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return operand
        is_inside = operand in self._columns.inside
        return self.of(operand) if is_inside else self._small(operand)

    def _small(self, node: fx.Node) -> fx.Node:
        shape = shape_of(node)
        if not shape:
            return node
        if shape[-1] == self._columns.num_columns:
            vector = self._call(_aten.view_copy.default, node, [shape[-1]])
            return self.cut(vector, 0)
        return self._call(_aten.view_copy.default, node, [-1, 1])

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node = call(self._graph, target, *args)
        if self._again:
            node.meta[AGAIN_KEY] = True
        return node


_ELEMENTWISE: Final = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.neg.default,
        _aten.tanh.default,
    }
)
