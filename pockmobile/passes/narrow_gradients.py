"""Pass: computes only the slice of a gradient that is trained."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import arguments, call, replace_node, shape_of, value_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class NarrowGradients(Pass):
    """Moves slices up through the operators that made the value, to where they cost least.

    A slice of activations is taken right where they are made, so that only those channels
    are kept for the backward pass.

    Before: slice_copy(mm(a, b), dim=0, start, stop)
    After:  mm(slice_copy(a, dim=0, start, stop), b)
    """

    name = "narrow-gradients"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with slices as early as they can be."""
        if not any(_is_movable(node) for node in graph.nodes):
            return graph
        narrowed = graph.copy()
        pending = [node for node in narrowed.nodes if _is_movable(node)]
        num_moved = 0
        while pending:
            made = _move(narrowed.module.graph, pending.pop())
            if made is not None:
                num_moved += 1
                pending.extend(made)
        return finish(narrowed) if num_moved else graph


@final
@dataclass(frozen=True)
class _Cut:
    """A slice `start:stop` of dimension `dim` of `source`."""

    source: fx.Node
    dim: int
    start: int
    stop: int

    def take(self, graph: fx.Graph, node: fx.Node, dim: int) -> fx.Node:
        """Returns the same range of another tensor's dimension, cut where it is made."""
        if self.start == 0 and self.stop == shape_of(node)[dim]:
            return node
        place = node
        while place.next.op in ("placeholder", "get_attr"):
            place = place.next
        with graph.inserting_after(place):
            return call(graph, _aten.slice_copy.Tensor, node, dim, self.start, self.stop, 1)


_Rule = Callable[[fx.Graph, _Cut], fx.Node | None]


def _is_movable(node: fx.Node) -> bool:
    if node.target is not _aten.slice_copy.Tensor or node.args[4:] not in ((), (1,)):
        return False
    source = node.all_input_nodes[0]
    return source.target in _RULES and len(source.users) == 1 and not source.kwargs


def _move(graph: fx.Graph, node: fx.Node) -> list[fx.Node] | None:
    """Moves one slice; returns the slices to go on with, or None if it stays where it is."""
    if not _is_movable(node):
        return None
    source, dim, start, stop = arguments(node)[:4]
    with graph.inserting_before(node):
        result = _RULES[source.target](graph, _Cut(source, dim, start, stop))
    if result is None:
        return None
    replace_node(node, result)
    graph.erase_node(source)
    made = result.all_input_nodes[0] if result.target is operator.getitem else result
    return [
        parent for parent in made.all_input_nodes if parent.target is _aten.slice_copy.Tensor
    ]


def _permute(graph: fx.Graph, cut: _Cut) -> fx.Node:
    source, dims = arguments(cut.source)
    piece = cut.take(graph, source, dims[cut.dim])
    return call(graph, _aten.permute_copy.default, piece, dims)


def _mm(graph: fx.Graph, cut: _Cut) -> fx.Node:
    operands = list(arguments(cut.source))
    operands[cut.dim] = cut.take(graph, operands[cut.dim], cut.dim)
    return call(graph, _aten.mm.default, *operands)


def _add(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Passes a sum of two tensors of one shape (the gradients of a tied weight)."""
    operands = cut.source.all_input_nodes
    if any(shape_of(operand) != shape_of(cut.source) for operand in operands):
        return None
    pieces = {operand: cut.take(graph, operand, cut.dim) for operand in operands}
    args = [pieces.get(operand, operand) for operand in arguments(cut.source)]
    return call(graph, _aten.add.Tensor, *args)


def _view(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Passes a view that only adds or drops dimensions of size one."""
    source = cut.source.all_input_nodes[0]
    before, after = shape_of(source), shape_of(cut.source)
    if [s for s in before if s != 1] != [s for s in after if s != 1] or after[cut.dim] == 1:
        return None
    rank = sum(size != 1 for size in after[: cut.dim])
    dim = [index for index, size in enumerate(before) if size != 1][rank]
    shape = list(after)
    shape[cut.dim] = cut.stop - cut.start
    return call(graph, _aten.view_copy.default, cut.take(graph, source, dim), shape)


def _sum(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Passes a sum over other dimensions than the one that is cut."""
    source, dims, *keep = arguments(cut.source)
    rank = len(shape_of(source))
    reduced = {dim % rank for dim in dims}
    keeps_dims = bool(keep and keep[0])
    kept = [dim for dim in range(rank) if keeps_dims or dim not in reduced]
    if kept[cut.dim] in reduced:
        return None
    piece = cut.take(graph, source, kept[cut.dim])
    return call(graph, cut.source.target, piece, dims, *keep)


def _convolution_weight(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Cuts the weight's gradient (result 1) out of a convolution's backward operator.

    Output channels (dim 0) of the weight are channels of the incoming gradient, input
    channels (dim 1) those of the activations; a depthwise weight's channels are both.
    """
    backward, index = arguments(cut.source)
    if backward.target is not _aten.convolution_backward.default or index != 1:
        return None
    grad, x, weight, _, *geometry, _ = arguments(backward)
    *geometry, transposed, extra, groups = geometry
    is_depthwise = groups > 1 and groups == shape_of(x)[1] == shape_of(weight)[0]
    if transposed or not (groups == 1 or (is_depthwise and cut.dim == 0)):
        return None
    if cut.dim == 0:
        grad = cut.take(graph, grad, 1)
    if cut.dim == 1 or is_depthwise:
        x = cut.take(graph, x, 1)
    weight = cut.take(graph, weight, cut.dim)
    groups = cut.stop - cut.start if is_depthwise else 1
    asked = [False, True, False]
    narrowed = call(
        graph,
        backward.target,
        grad,
        x,
        weight,
        None,
        *geometry,
        transposed,
        extra,
        groups,
        asked,
    )
    return call(graph, operator.getitem, narrowed, 1)


def _index_put(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Cuts a table's gradient, which adds rows to another table: columns of it, or rows.

    What is added to other rows becomes zero, and goes to the first or the last row.
    """
    table, indices, values, *accumulates = arguments(cut.source)
    if len(indices) != 1 or accumulates != [True] or len(shape_of(indices[0])) == 0:
        return None
    piece = _narrow_table(graph, table, cut)
    if cut.dim > 0:
        rank = len(shape_of(values)) - len(shape_of(table))
        values = cut.take(graph, values, rank + cut.dim)
        return call(graph, _aten.index_put.default, piece, indices, values, True)
    (rows,) = indices
    places = call(graph, _aten.sub.Tensor, rows, cut.start) if cut.start else rows
    places = call(graph, _aten.clamp.default, places, 0, cut.stop - cut.start - 1)
    back = call(graph, _aten.add.Tensor, places, cut.start) if cut.start else places
    is_kept = call(graph, _aten.eq.Tensor, back, rows)
    kept = call(graph, _aten._to_copy.default, is_kept, dtype=value_of(values).dtype)
    width = [1] * (len(shape_of(table)) - 1)
    kept = call(graph, _aten.view_copy.default, kept, [*shape_of(rows), *width])
    values = call(graph, _aten.mul.Tensor, values, kept)
    return call(graph, _aten.index_put.default, piece, [places], values, True)


def _narrow_table(graph: fx.Graph, table: fx.Node, cut: _Cut) -> fx.Node:
    if table.target is not _aten.full.default:
        return cut.take(graph, table, cut.dim)
    shape = shape_of(table)
    shape[cut.dim] = cut.stop - cut.start
    fill, dtype = arguments(table)[1], value_of(table).dtype
    return call(graph, _aten.full.default, shape, fill, dtype=dtype)


_RULES: Final[Mapping[Any, _Rule]] = {
    _aten.permute_copy.default: _permute,
    _aten.mm.default: _mm,
    _aten.add.Tensor: _add,
    _aten.view_copy.default: _view,
    _aten.sum.dim_IntList: _sum,
    _aten.index_put.default: _index_put,
    operator.getitem: _convolution_weight,
}
