"""Emits arithmetic, comparisons and choices, element by element."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from coremltools.converters.mil.mil import Builder
from torch import fx

from pockmobile.graph.rewrite import value_of
from pockmobile.targets.coreml.emitter import Emit, Emitter, Var, source_of

_aten = torch.ops.aten


def _unary(operator: Callable[..., Var]) -> Emit:
    return lambda emitter, node, x: operator(x=x)


def _binary(operator: Callable[..., Var]) -> Emit:
    """Emits an operator on two values, of which either may be a number."""

    def emit(emitter: Emitter, node: fx.Node, left: Any, right: Any) -> Var:
        like = source_of(node)
        x, y = (
            emitter.number(value, like) if isinstance(value, (bool, int, float)) else value
            for value in (left, right)
        )
        return operator(x=x, y=y)

    return emit


def _neg(emitter: Emitter, node: fx.Node, x: Var) -> Var:
    return Builder.mul(x=x, y=emitter.number(-1, node))


def _reciprocal(emitter: Emitter, node: fx.Node, x: Var) -> Var:
    # `inverse` adds 1e-4 to what it divides by, where nothing else is asked for.
    return Builder.real_div(x=emitter.number(1, node), y=x)


def _rsqrt(emitter: Emitter, node: fx.Node, x: Var) -> Var:
    # `rsqrt` would add 1e-12, which is nothing in float16 and too much for AdamW.
    return Builder.real_div(x=emitter.number(1, node), y=Builder.sqrt(x=x))


def _clamp(
    emitter: Emitter, node: fx.Node, x: Var, low: float | None = None, high: float | None = None
) -> Var:
    if low is not None:
        x = Builder.maximum(x=x, y=emitter.number(low, node))
    if high is not None:
        x = Builder.minimum(x=x, y=emitter.number(high, node))
    return x


def _leaky_relu(emitter: Emitter, node: fx.Node, x: Var, slope: float = 0.01) -> Var:
    return Builder.leaky_relu(x=x, alpha=emitter.number(slope, node))


def _gelu(emitter: Emitter, node: fx.Node, x: Var, approximate: str = "none") -> Var:
    return Builder.gelu(x=x, mode="EXACT" if approximate == "none" else "TANH_APPROXIMATION")


def _to_copy(emitter: Emitter, node: fx.Node, x: Var, **_: Any) -> Var:
    dtype = value_of(node).dtype
    if dtype.is_floating_point:
        return emitter.cast(x)
    return Builder.cast(x=x, dtype="bool" if dtype == torch.bool else "int32")


def _where(emitter: Emitter, node: fx.Node, condition: Var, left: Var, right: Var) -> Var:
    return Builder.select(cond=condition, a=left, b=right)


ELEMENTWISE: Final[Mapping[Any, Emit]] = {
    _aten.abs.default: _unary(Builder.abs),
    _aten.add.Tensor: _binary(Builder.add),
    _aten.bitwise_and.Tensor: _binary(Builder.logical_and),
    _aten.bitwise_not.default: _unary(Builder.logical_not),
    _aten.bitwise_or.Tensor: _binary(Builder.logical_or),
    _aten.ceil.default: _unary(Builder.ceil),
    _aten.clamp.default: _clamp,
    _aten.cos.default: _unary(Builder.cos),
    _aten.div.Tensor: _binary(Builder.real_div),
    _aten.eq.Scalar: _binary(Builder.equal),
    _aten.eq.Tensor: _binary(Builder.equal),
    _aten.erf.default: _unary(Builder.erf),
    _aten.exp.default: _unary(Builder.exp),
    _aten.floor.default: _unary(Builder.floor),
    _aten.ge.Scalar: _binary(Builder.greater_equal),
    _aten.ge.Tensor: _binary(Builder.greater_equal),
    _aten.gelu.default: _gelu,
    _aten.gt.Scalar: _binary(Builder.greater),
    _aten.gt.Tensor: _binary(Builder.greater),
    _aten.hardtanh.default: _clamp,
    _aten.le.Scalar: _binary(Builder.less_equal),
    _aten.le.Tensor: _binary(Builder.less_equal),
    _aten.leaky_relu.default: _leaky_relu,
    _aten.log.default: _unary(Builder.log),
    _aten.logical_and.default: _binary(Builder.logical_and),
    _aten.logical_not.default: _unary(Builder.logical_not),
    _aten.logical_or.default: _binary(Builder.logical_or),
    _aten.lt.Scalar: _binary(Builder.less),
    _aten.lt.Tensor: _binary(Builder.less),
    _aten.maximum.default: _binary(Builder.maximum),
    _aten.minimum.default: _binary(Builder.minimum),
    _aten.mul.Tensor: _binary(Builder.mul),
    _aten.ne.Scalar: _binary(Builder.not_equal),
    _aten.ne.Tensor: _binary(Builder.not_equal),
    _aten.neg.default: _neg,
    _aten.reciprocal.default: _reciprocal,
    _aten.relu.default: _unary(Builder.relu),
    _aten.rsqrt.default: _rsqrt,
    _aten.sigmoid.default: _unary(Builder.sigmoid),
    _aten.sign.default: _unary(Builder.sign),
    _aten.sin.default: _unary(Builder.sin),
    _aten.sqrt.default: _unary(Builder.sqrt),
    _aten.sub.Tensor: _binary(Builder.sub),
    _aten.tanh.default: _unary(Builder.tanh),
    _aten._to_copy.default: _to_copy,
    _aten.where.self: _where,
}
