"""Emits elementwise operators, which work in whatever order their operands lie in."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from torch import fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import (
    Constant,
    Order,
    Value,
    identity,
    product,
    significant,
    storage_in,
)

_aten = torch.ops.aten


def _unary(node_class: type[Any]) -> Emit:
    def emit(emitter: Emitter, node: fx.Node) -> Operand:
        value = _source(emitter, node)
        result = emitter.new(value.shape, value.order)
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
    result = emitter.new(value.shape, value.order)
    bounds = ("-inf" if low is None else low, "+inf" if high is None else high)
    emitter.blob.node(schema.XNNClamp(value.id, result.id, 0), bounds)
    return result


def _leaky_relu(emitter: Emitter, node: fx.Node) -> Operand:
    value = _source(emitter, node)
    result = emitter.new(value.shape, value.order)
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
    left, right = (_padded(operand, rank) for operand in (left, right))
    order = _leading_order(left, right)
    # Smaller than the node's shape where the graph expanded both operands.
    shape = [max(a, b) for a, b in zip(left.shape, right.shape, strict=True)]
    result = emitter.new(shape, order)
    ids = [_aligned(emitter, operand, order) for operand in (left, right)]
    emitter.blob.node(node_class(*ids, result.id, 0))
    return result


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
    values = [operand for operand in (left, right) if isinstance(operand, Value)]
    assert values, "a constant operator that was not folded"
    return max(values, key=lambda value: value.numel).order


def _aligned(emitter: Emitter, operand: Operand, order: Order) -> int:
    """Returns the operand's id in `order`, without reshaping where broadcasting does it."""
    if isinstance(operand, Constant):
        tensor = operand.tensor.permute(order)
        return emitter.blob.constant(tensor.reshape(_stripped(tuple(tensor.shape))))
    # Padding to a common rank added axes of size one without an operator.
    defined = emitter.blob.shape(operand.id)
    target = storage_in(operand.shape, order)
    same_memory = significant(operand.order, operand.shape) == significant(order, operand.shape)
    if same_memory and _stripped(defined) == _stripped(target):
        return operand.id
    flat = Value(operand.id, defined, identity(len(defined)))
    if same_memory:
        return emitter.reshaped(flat, target, order).id
    return emitter.in_order(emitter.reshaped(flat, operand.storage, operand.order), order).id


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
