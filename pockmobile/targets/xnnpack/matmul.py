"""Emits matrix products. A weight may be a constant, which is packed once, or a value."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNAdd,
    XNNBatchMatrixMultiply,
    XNNFullyConnected,
    XNNMultiply,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import (
    XNN_FLAG_TRANSPOSE_B,
    XNN_FLAG_TRANSPOSE_WEIGHTS,
)
from torch import Tensor, fx

from pockmobile.targets.xnnpack.blob import NO_VALUE
from pockmobile.targets.xnnpack.elementwise import combine
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import Constant, Order, Value, lies_in
from pockmobile.targets.xnnpack.quantize import (
    is_spread,
    precision,
    quantized,
    quantized_in_groups,
)

_aten = torch.ops.aten


def _mm(emitter: Emitter, node: fx.Node) -> Operand:
    left, right = (emitter.operand(arg) for arg in node.args[:2])  # type: ignore[arg-type]
    return fully_connected(emitter, node, left, right, NO_VALUE)


def _addmm(emitter: Emitter, node: fx.Node) -> Operand:
    bias, left, right = (emitter.operand(arg) for arg in node.args[:3])  # type: ignore[arg-type]
    if isinstance(bias, Constant) is isinstance(right, Constant):
        bias_id = (
            emitter.blob.weight(bias.tensor)
            if isinstance(bias, Constant)
            else emitter.defined(bias)
        )
        return fully_connected(emitter, node, left, right, bias_id)
    # With one of weight and bias known only at run time XNNPACK packs neither, and goes on
    # reading the constant, which the runtime has freed.
    product = fully_connected(emitter, node, left, right, NO_VALUE)
    return combine(emitter, XNNAdd, product, bias, 2)


def fully_connected(
    emitter: Emitter, node: fx.Node, left: Operand, right: Operand, bias: int
) -> Operand:
    """Emits [m, k] @ [k, n] (+ bias [n]).

    XNNPACK reads a weight as [n, k], or as [k, n] under a flag, so that a weight which is
    used forward and backward is stored once, and is never transposed. The rows may have more
    axes than one in XNNPACK, and so has the result if it is to be seen by other axes.
    """
    storage = left.shape[0], right.shape[1]
    is_viewed = any(user.target is _aten.view_copy.default for user in node.users)
    source, axes = _rows(emitter, left, is_viewed=is_viewed)
    result = Value(emitter.blob.value((*axes, storage[1])), storage, (0, 1))
    if isinstance(right, Constant):
        transposed = right.tensor.t()
        is_turned = not transposed.is_contiguous()
        frozen_product(
            emitter,
            source,
            transposed,
            bias,
            result.id,
            is_turned=is_turned,
            is_linear=True,
            are_shares=_are_shares(node),
        )
        return result
    weight, flags = _weight(emitter, right)
    emitter.blob.node(XNNFullyConnected(source, weight, bias, result.id, flags))
    return result


def _are_shares(node: fx.Node) -> bool:
    """Whether the rows are shares of one, or multiples of such, as those of a softmax."""
    left: Any = node.args[0]
    while left.target is _aten.view_copy.default:
        left = left.args[0]
    return left.target in (_aten._softmax.default, _aten.exp.default)


def frozen_product(
    emitter: Emitter,
    source: int,
    weight: Tensor,
    bias: int,
    result: int,
    *,
    is_turned: bool,
    is_linear: bool = False,
    are_shares: bool = False,
) -> None:
    """Emits rows [m, k] times a constant weight [n, k] (+ bias [n]).

    `is_turned` says that the weight is stored as [k, n]: it serves another product, too, of
    which this is the gradient. In int8 it has a scale for each of the k then, which goes to
    the rows. int4, for what `is_linear`, has scales along k and no kernel that turns: there
    each of the two products has a weight of its own. Rows of which most are small beside the
    largest, as `are_shares` says, stay float32: only the weight is rounded.
    """
    outputs, inputs = weight.shape
    flags = XNN_FLAG_TRANSPOSE_WEIGHTS if is_turned else 0
    stored = weight.t() if is_turned else weight
    blob = emitter.blob
    keeps_rows = are_shares or (is_turned and is_spread(outputs, inputs))
    held = precision(
        emitter.frozen_weights, outputs, inputs, is_linear=is_linear, is_spread=keeps_rows
    )
    if held == "fp32":
        filter_id = blob.weight(stored)
    elif held == "int4":
        source, flags = blob.quantized_rows(source, 1), 0
        filter_id = blob.quantized_weight(quantized_in_groups(weight))
    else:
        found = quantized(stored)
        if is_turned:
            scaled = blob.value(blob.shape(source))
            blob.node(XNNMultiply(source, blob.constant(found.scales), scaled, 0))
            source, found = scaled, replace(found, scales=torch.ones(outputs))
        if not keeps_rows:
            source = blob.quantized_rows(source, 1)
        filter_id = blob.quantized_weight(found, 1 if is_turned else 0)
    blob.node(XNNFullyConnected(source, filter_id, bias, result, flags))


def _rows(emitter: Emitter, left: Operand, *, is_viewed: bool) -> tuple[int, tuple[int, ...]]:
    """Returns the id of rows [m, k], and their axes."""
    if isinstance(left, Constant) or not is_viewed:
        return emitter.arranged(left, (0, 1)), left.shape[:1]
    return emitter.rows(emitter.in_order(left, (0, 1)), left.shape[1])


def _weight(emitter: Emitter, right: Value) -> tuple[int, int]:
    if lies_in(right, (1, 0)):
        return emitter.arranged(right, (1, 0)), 0
    return emitter.arranged(right, (0, 1)), XNN_FLAG_TRANSPOSE_WEIGHTS


def _bmm(emitter: Emitter, node: fx.Node) -> Operand:
    left, right = (emitter.operand(arg) for arg in node.args[:2])  # type: ignore[arg-type]
    is_turned = not isinstance(right, Constant) and lies_in(right, (0, 2, 1))
    order, flags = ((0, 2, 1), XNN_FLAG_TRANSPOSE_B) if is_turned else ((0, 1, 2), 0)
    ids = _batches(emitter, left, right, order)
    result = emitter.blob.value((*emitter.blob.shape(ids[0])[:-1], right.shape[2]))
    emitter.blob.node(XNNBatchMatrixMultiply(*ids, result, flags))
    return Value(result, (*left.shape[:2], right.shape[2]), (0, 1, 2))


def _batches(emitter: Emitter, left: Operand, right: Operand, order: Order) -> tuple[int, int]:
    """Returns the ids of two batches of matrices, which may have more axes than one."""
    if isinstance(left, Value) and isinstance(right, Value):
        left, right = emitter.in_order(left, (0, 1, 2)), emitter.in_order(right, order)
        seen = [emitter.blob.shape(value.id) for value in (left, right)]
        are_matrices = all(
            shape[-2:] == value.storage[-2:]
            for shape, value in zip(seen, (left, right), strict=True)
        )
        if are_matrices and seen[0][:-2] == seen[1][:-2]:
            return left.id, right.id
    return emitter.arranged(left, (0, 1, 2)), emitter.arranged(right, order)


MATMUL: Final[Mapping[Any, Emit]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.bmm.default: _bmm,
}
