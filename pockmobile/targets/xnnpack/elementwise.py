"""Emits elementwise operators, which work in whatever order their operands lie in."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from torch import fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import (
    NHWC,
    Constant,
    Order,
    Value,
    identity,
    product,
    regrouped,
)

_aten = torch.ops.aten


def _unary(node_class: type[Any]) -> Emit:
    def emit(emitter: Emitter, node: fx.Node) -> Operand:
        value = _source(emitter, node)
        result = emitter.like(value)
        emitter.blob.node(node_class(value.id, result.id, 0))
        return result

    return emit


def _source(emitter: Emitter, node: fx.Node) -> Value:
    operand = emitter.broadcastable(node.args[0])  # type: ignore[arg-type]
    assert isinstance(operand, Value), "a constant operator that was not folded"
    return operand


def _clamped(low: float | None, high: float | None) -> Emit:
    return lambda emitter, node: _clamp_to(emitter, node, low, high)


def _clamp(emitter: Emitter, node: fx.Node) -> Operand:
    low, high = (*node.args[1:], None, None)[:2]
    return _clamp_to(emitter, node, low, high)  # type: ignore[arg-type]


def _hardtanh(emitter: Emitter, node: fx.Node) -> Operand:
    bounds: list[Any] = [*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :]]
    low, high = bounds
    return _clamp_to(emitter, node, low, high)


def _clamp_to(
    emitter: Emitter, node: fx.Node, low: float | None, high: float | None
) -> Operand:
    value = _source(emitter, node)
    result = emitter.like(value)
    bounds = ("-inf" if low is None else low, "+inf" if high is None else high)
    emitter.blob.node(schema.XNNClamp(value.id, result.id, 0), bounds)
    return result


def _leaky_relu(emitter: Emitter, node: fx.Node) -> Operand:
    value = _source(emitter, node)
    result = emitter.like(value)
    slope = float(node.args[1]) if len(node.args) > 1 else 0.01  # type: ignore[arg-type]
    emitter.blob.node(schema.XNNLeakyReLU(slope, value.id, result.id, 0))
    return result


def _binary(node_class: type[Any]) -> Emit:
    def emit(emitter: Emitter, node: fx.Node) -> Operand:
        left, right = (_operand(emitter, arg) for arg in node.args[:2])
        return combine(emitter, node_class, left, right, len(shape_of(node)))

    return emit


def _reciprocal(emitter: Emitter, node: fx.Node) -> Operand:
    one = Constant(torch.ones(1))
    return combine(emitter, schema.XNNDiv, one, _source(emitter, node), len(shape_of(node)))


def _operand(emitter: Emitter, argument: Any) -> Operand:
    if isinstance(argument, fx.Node):
        return emitter.broadcastable(argument)
    return Constant(torch.tensor([float(argument)]))


def combine(
    emitter: Emitter, node_class: type[Any], left: Operand, right: Operand, rank: int
) -> Value:
    """Emits a binary operator on operands of at most `rank`, in the larger one's order."""
    operands = [_padded(operand, rank) for operand in (left, right)]
    order = _leading_order(*operands)
    lying = [_in_order(emitter, operand, order) for operand in operands]
    # Smaller than the node's shape where the graph expanded both operands.
    storage = tuple(max(sizes) for sizes in zip(*(x.shape for x in lying), strict=True))
    seen = _shape_seen(emitter, lying, storage)
    ids = [_seen_as(emitter, operand, storage, seen) for operand in lying]
    # Without leading axes of size one that no operand has.
    known = itertools.zip_longest(*(emitter.blob.shape(x)[::-1] for x in ids), fillvalue=1)
    result = emitter.blob.value([max(sizes) for sizes in known][::-1])
    emitter.blob.node(node_class(*ids, result, 0))
    return Value(result, storage, order)


def _padded(operand: Operand, rank: int) -> Operand:
    """Gives the operand leading dimensions of size one."""
    extra = rank - len(operand.shape)
    if extra <= 0:
        return operand
    if isinstance(operand, Constant):
        return Constant(operand.tensor.reshape((1,) * extra + operand.shape))
    order = (*range(extra), *(dim + extra for dim in operand.order))
    return Value(operand.id, (1,) * extra + operand.storage, order)


def _leading_order(left: Operand, right: Operand) -> Order:
    """Returns the larger one's order; of equals, one with channels innermost is preferred."""
    values = [operand for operand in (left, right) if isinstance(operand, Value)]
    assert values, "a constant operator that was not folded"
    return max(values, key=lambda value: (value.numel, value.order == NHWC)).order


def _in_order(emitter: Emitter, operand: Operand, order: Order) -> Operand:
    """Returns the operand as its memory is read in `order`: its shape is that of the memory."""
    if isinstance(operand, Constant):
        return Constant(operand.tensor.permute(order))
    value = emitter.in_order(operand, order)
    return Value(value.id, value.storage, identity(len(order)))


def _shape_seen(
    emitter: Emitter, operands: Sequence[Operand], storage: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns by which axes the result is known, so that XNNPACK has to copy least."""
    known = [emitter.blob.shape(x.id) for x in operands if isinstance(x, Value)]
    whole = [shape for shape in known if product(shape) == product(storage)]
    found = [shape for shape in whole if _copies(emitter, operands, storage, shape) is not None]
    return min(
        (storage, *found), key=lambda shape: _copies(emitter, operands, storage, shape) or 0
    )


def _copies(
    emitter: Emitter, operands: Sequence[Operand], storage: Sequence[int], seen: Sequence[int]
) -> int | None:
    """Returns how many elements are copied to see operands by other axes, None if none can."""
    copied = 0
    for operand in operands:
        sizes = regrouped(operand.shape, storage, seen)
        if sizes is None:
            return None
        if isinstance(operand, Value) and not _is_known(emitter, operand, sizes):
            copied += operand.numel
    return copied


def _is_known(emitter: Emitter, value: Value, sizes: Sequence[int]) -> bool:
    """Whether a value broadcasts as one of these sizes does, without having them."""
    known = emitter.blob.shape(value.id)
    return len(known) <= len(sizes) and _stripped(known) == _stripped(tuple(sizes))


def _seen_as(
    emitter: Emitter, operand: Operand, storage: Sequence[int], seen: Sequence[int]
) -> int:
    sizes = regrouped(operand.shape, storage, seen)
    assert sizes is not None
    if isinstance(operand, Constant):
        return emitter.blob.constant(operand.tensor.reshape(_stripped(sizes)))
    if _is_known(emitter, operand, sizes):
        return operand.id
    return emitter.defined(Value(operand.id, sizes, identity(len(sizes))))


def _stripped(storage: tuple[int, ...]) -> tuple[int, ...]:
    """Drops leading axes of size one, which broadcasting adds by itself."""
    index = 0
    while index < len(storage) - 1 and storage[index] == 1:
        index += 1
    return storage[index:] if product(storage) != 1 else (1,)


ELEMENTWISE: Final[Mapping[Any, Emit]] = {
    _aten.abs.default: _unary(schema.XNNAbs),
    _aten.neg.default: _unary(schema.XNNNegate),
    _aten.exp.default: _unary(schema.XNNExp),
    _aten.log.default: _unary(schema.XNNLog),
    _aten.sqrt.default: _unary(schema.XNNSquareRoot),
    _aten.rsqrt.default: _unary(schema.XNNReciprocalSquareRoot),
    _aten.sin.default: _unary(schema.XNNSin),
    _aten.cos.default: _unary(schema.XNNCos),
    _aten.ceil.default: _unary(schema.XNNCeiling),
    _aten.floor.default: _unary(schema.XNNFloor),
    _aten.tanh.default: _unary(schema.XNNTanh),
    _aten.sigmoid.default: _unary(schema.XNNSigmoid),
    _aten.gelu.default: _unary(schema.XNNGelu),
    _aten.hardswish.default: _unary(schema.XNNHardswish),
    _aten.square.default: _unary(schema.XNNSquare),
    _aten.relu.default: _clamped(0.0, None),
    _aten.clamp.default: _clamp,
    _aten.hardtanh.default: _hardtanh,
    _aten.leaky_relu.default: _leaky_relu,
    _aten.reciprocal.default: _reciprocal,
    _aten.add.Tensor: _binary(schema.XNNAdd),
    _aten.sub.Tensor: _binary(schema.XNNSubtract),
    _aten.mul.Tensor: _binary(schema.XNNMultiply),
    _aten.div.Tensor: _binary(schema.XNNDiv),
    _aten.maximum.default: _binary(schema.XNNMaximum),
    _aten.minimum.default: _binary(schema.XNNMinimum),
}
