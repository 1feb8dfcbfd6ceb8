"""Emits sums and means as matrix products with ones, or as pooling, where they lie best."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNFullyConnected,
    XNNGlobalAvgPooling2d,
    XNNMultiply,
    XNNSoftmax,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_FLAG_KEEP_DIMS
from torch import fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.xnnpack.blob import NO_VALUE
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import Value, identity, product, significant

_aten = torch.ops.aten
_MOST_ONES: Final = 512
_LEAST_WIDTH: Final = 16
"""Of a row that is folded: narrower, its sums would not fill a vector register."""


def _reduction(*, mean: bool) -> Emit:
    def emit(emitter: Emitter, node: fx.Node) -> Operand:
        operand = emitter.operand(node.args[0])  # type: ignore[arg-type]
        assert isinstance(operand, Value)
        dims = {int(dim) % len(operand.shape) for dim in node.args[1]}  # type: ignore
        count = product([operand.shape[dim] for dim in dims])
        return _reduce(emitter, operand, dims, shape_of(node), 1.0 / count if mean else 1.0)

    return emit


def _reduce(
    emitter: Emitter, value: Value, dims: set[int], shape: list[int], scale: float
) -> Operand:
    """Sums over `dims`, times `scale`; `shape` is the result's."""
    lying = significant(value.order, value.shape)
    reduced = [dim for dim in lying if dim in dims]
    kept = [dim for dim in lying if dim not in dims]
    if not reduced and scale == 1.0:
        return _as_graph_sees(emitter, value, value, kept, dims, shape)
    runs = [dim in dims for dim in lying]
    first = runs.index(True) if reduced else 0
    is_one_run = all(runs[first : first + len(reduced)])
    if not is_one_run:
        kept_sorted = sorted(kept)
        order = (*(d for d in range(len(value.order)) if d not in dims), *sorted(dims))
        value = emitter.in_order(value, order)
        kept, first = kept_sorted, len(kept_sorted)
    count = product([value.shape[dim] for dim in reduced])
    outer = product([value.shape[dim] for dim in kept[:first]])
    inner = product([value.shape[dim] for dim in kept[first:]])
    if inner == 1:
        result = _sum_last(emitter, value, outer, count, scale)
    else:
        result = _sum_middle(emitter, value, (outer, count, inner), scale)
    return _as_graph_sees(emitter, result, value, kept, dims, shape)


def _sum_last(emitter: Emitter, value: Value, outer: int, count: int, scale: float) -> Value:
    """Sums rows of `count` numbers; long ones are folded first.

    XNNPACK packs the ones many columns wide: those for a gradient of 320,000 would take 20 MB.
    """
    width = _width(count)
    if width < count:
        value = _sum_middle(emitter, value, (outer, count // width, width), width / count)
        count, scale = width, scale * (count // width)
    source, axes = emitter.rows(value, count)
    ones = emitter.blob.weight(torch.full((1, count), scale))
    result = emitter.blob.value((*axes, 1))
    emitter.blob.node(XNNFullyConnected(source, ones, NO_VALUE, result, 0))
    return Value(result, (outer, 1), (0, 1))


def _width(count: int) -> int:
    """Returns how wide a row is folded: the divisor that makes it about square."""
    if count <= _MOST_ONES:
        return count
    divisors = (width for width in range(_LEAST_WIDTH, count) if count % width == 0)
    return min(divisors, key=lambda width: width + count // width, default=count)


def _sum_middle(
    emitter: Emitter, value: Value, sizes: tuple[int, int, int], scale: float
) -> Value:
    outer, count, inner = sizes
    seen = emitter.blob.shape(value.id)
    is_planar = len(seen) == 4 and (seen[0], seen[3]) == (outer, inner)
    flat = emitter.reshaped(value, (outer, count, 1, inner), identity(4))
    source = value.id if is_planar else emitter.defined(flat)
    mean = emitter.new((outer, 1, 1, inner))
    emitter.blob.node(XNNGlobalAvgPooling2d(source, mean.id, XNN_FLAG_KEEP_DIMS))
    if scale * count == 1.0:
        return mean
    factor = emitter.blob.constant(torch.tensor([scale * count]))
    result = emitter.new((outer, 1, 1, inner))
    emitter.blob.node(XNNMultiply(mean.id, factor, result.id, 0))
    return result


def _as_graph_sees(
    emitter: Emitter,
    result: Value,
    source: Value,
    kept: list[int],
    dims: set[int],
    shape: list[int],
) -> Value:
    """Gives the result the graph's dimensions, in the memory order of what was kept."""
    if len(shape) == len(source.shape):
        names = {dim: dim for dim in range(len(shape))}
    else:
        left = [dim for dim in range(len(source.shape)) if dim not in dims]
        names = {dim: index for index, dim in enumerate(left)}
    lying = [names[dim] for dim in kept]
    rest = [dim for dim in range(len(shape)) if dim not in lying]
    order = (*rest, *lying)
    return emitter.reshaped(result, tuple(shape[dim] for dim in order), order)


def _softmax(emitter: Emitter, node: fx.Node) -> Operand:
    operand = emitter.operand(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value)
    rank = len(operand.order)
    dim = int(node.args[1]) % rank  # type: ignore[arg-type]
    value = operand
    if value.order[-1] != dim:
        others = (axis for axis in range(rank) if axis != dim)
        value = emitter.in_order(value, (*others, dim))
    width = value.storage[-1]
    source, axes = emitter.rows(value, width)
    result = emitter.blob.value((*axes, width))
    emitter.blob.node(XNNSoftmax(source, result, 0))
    return Value(result, value.storage, value.order)


REDUCE: Final[Mapping[Any, Emit]] = {
    _aten.sum.dim_IntList: _reduction(mean=False),
    _aten.mean.dim: _reduction(mean=True),
    _aten._softmax.default: _softmax,
}
