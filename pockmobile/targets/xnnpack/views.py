"""Emits operators that move, cut and join data, along the axes on which it really lies."""

import operator
from collections.abc import Mapping
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from torch import fx

from pockmobile.graph.rewrite import arguments, shape_of
from pockmobile.targets.xnnpack.blob import NO_VALUE
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import (
    Order,
    Value,
    identity,
    permuted,
    storage_in,
    viewed,
)

_aten = torch.ops.aten

_SMALL: Final = 2**16
"""Elements that are rather transposed once than cut across at each place."""


def _view(emitter: Emitter, node: fx.Node) -> Operand:
    operand = emitter.operand(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value)
    shape = tuple(shape_of(node))
    found = viewed(operand, shape)
    if found is None:
        operand = emitter.in_order(operand, identity(len(operand.order)))
        found = shape, identity(len(shape))
    return emitter.reshaped(operand, *found)


def _permute(emitter: Emitter, node: fx.Node) -> Operand:
    operand = emitter.broadcastable(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value)
    return permuted(operand, node.args[1])  # type: ignore[arg-type]


def _expand(emitter: Emitter, node: fx.Node) -> Operand:
    operand = emitter.broadcastable(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value)
    extra = len(shape_of(node)) - len(operand.shape)
    order = (*range(extra), *(dim + extra for dim in operand.order))
    return emitter.reshaped(operand, (1,) * extra + operand.storage, order)


def _slice(emitter: Emitter, node: fx.Node) -> Operand:
    """Cuts a run of a dimension; of what was itself cut, all dimensions at once."""
    source, starts = node, dict.fromkeys(range(len(shape_of(node))), 0)
    while source is node or emitter.is_waiting(source):
        source, dim, start = arguments(source)[:3]
        starts[dim] += start
    operand = emitter.operand(source)
    assert isinstance(operand, Value)
    innermost = operand.order[-1]
    if shape_of(node)[innermost] == 1 < operand.shape[innermost] and operand.numel <= _SMALL:
        # One number of each row; what is left of the rows is then known without axes of one.
        operand = emitter.in_order(operand, (innermost, *operand.order[:-1]))
    result = emitter.new(shape_of(node), operand.order)
    offsets = [starts[axis] for axis in operand.order]
    emitter.blob.node(
        schema.XNNStaticSlice(
            len(offsets), offsets, list(result.storage), emitter.defined(operand), result.id, 0
        )
    )
    return result


def _pad(emitter: Emitter, node: fx.Node) -> Operand:
    operand = emitter.operand(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value)
    pads: list[int] = list(node.args[1])  # type: ignore[arg-type]
    value = float(node.args[2]) if len(node.args) > 2 else 0.0  # type: ignore[arg-type]
    rank = len(operand.order)
    before, after = [0] * rank, [0] * rank
    for index in range(len(pads) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = pads[2 * index], pads[2 * index + 1]
    result = emitter.new(shape_of(node), operand.order)
    emitter.blob.node(
        schema.XNNStaticConstantPad(
            [before[dim] for dim in operand.order],
            [after[dim] for dim in operand.order],
            value,
            emitter.defined(operand),
            result.id,
            0,
        )
    )
    return result


_MOST_JOINED: Final = 5
_CONCATENATIONS: Final = {
    2: schema.XNNConcatenate2,
    3: schema.XNNConcatenate3,
    4: schema.XNNConcatenate4,
    5: schema.XNNConcatenate5,
}


def _cat(emitter: Emitter, node: fx.Node) -> Operand:
    parts = [emitter.operand(arg) for arg in node.args[0]]  # type: ignore[union-attr, arg-type]
    dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    dim %= len(shape_of(node))
    values = [part for part in parts if isinstance(part, Value)]
    order = max(values, key=lambda value: value.numel).order
    sizes = [part.shape[dim] for part in parts]
    ids = [emitter.arranged(part, order) for part in parts]
    while len(ids) > 1:
        # Level by level, so that no part is copied more often than another.
        starts = range(0, len(ids), _MOST_JOINED)
        groups = [(ids[s : s + _MOST_JOINED], sum(sizes[s : s + _MOST_JOINED])) for s in starts]
        ids = [
            _join(emitter, node, group, size, dim, order) if len(group) > 1 else group[0]
            for group, size in groups
        ]
        sizes = [size for _, size in groups]
    return Value(ids[0], storage_in(shape_of(node), order), order)


def _join(
    emitter: Emitter, node: fx.Node, ids: list[int], size: int, dim: int, order: Order
) -> int:
    shape = shape_of(node)
    shape[dim] = size
    result = emitter.new(shape, order).id
    filled = (ids + [NO_VALUE] * 5)[:5]
    fields = {f"input{index + 1}_id": identifier for index, identifier in enumerate(filled)}
    axis = order.index(dim)
    emitter.blob.node(_CONCATENATIONS[len(ids)](axis=axis, output_id=result, flags=0, **fields))
    return result


def _getitem(emitter: Emitter, node: fx.Node) -> Operand:
    """The first result of a pooling, the only one that its emitter makes."""
    return emitter.broadcastable(node.args[0])  # type: ignore[arg-type]


VIEWS: Final[Mapping[Any, Emit]] = {
    _aten.view_copy.default: _view,
    _aten.permute_copy.default: _permute,
    _aten.expand_copy.default: _expand,
    _aten.slice_copy.Tensor: _slice,
    _aten.constant_pad_nd.default: _pad,
    _aten.cat.default: _cat,
    operator.getitem: _getitem,
}
