"""Writes operators that XNNPACK lacks in those that it has."""

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.passes.decompose import Decomposition

_aten = torch.ops.aten


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if XNNPACK needs one."""
    return _TABLE.get(node.target)


def _positive(x: Tensor) -> Tensor:
    """Returns 1 where x > 0 and 0 elsewhere, exactly."""
    return x.clamp(0.0, 1.0).ceil()


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return grad * _positive(x - threshold if threshold else x)


def _hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The product of the distances to both bounds is positive between them alone."""
    return grad * _positive((x - low if low else x) * (high - x))


def _sign(x: Tensor) -> Tensor:
    return _positive(x) - _positive(-x)


def _erf(x: Tensor) -> Tensor:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| < 1.5e-7."""
    t = 1.0 / (x.abs() * 0.3275911 + 1.0)
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    poly = t * coefficients[0]
    for coefficient in coefficients[1:]:
        poly = (poly + coefficient) * t
    magnitude = 1.0 - poly * (-(x * x)).exp()
    return magnitude * _sign(x)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rstd = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    result = centred * rstd
    if weight is not None:
        result = result * weight
    if bias is not None:
        result = result + bias
    return result, mean, rstd


def _sum(x: Tensor, dims: list[int] | None = None, keepdim: bool = False, **_: Any) -> Any:
    """Sums to one number as a row, so that only the last view leaves the delegate."""
    everything = not dims or len({dim % max(x.dim(), 1) for dim in dims}) == x.dim()
    if not everything or keepdim or x.dim() == 0:
        return NotImplemented
    return x.reshape(1, -1).sum([1]).reshape(())


def _mean(x: Tensor, **_: Any) -> Tensor:
    return x.sum() * (1.0 / x.numel())


def _pow(x: Tensor, exponent: float) -> Any:
    table = {
        2: lambda: x * x,
        3: lambda: x * x * x,
        0.5: x.sqrt,
        -0.5: x.rsqrt,
        -1: x.reciprocal,
    }
    return table[exponent]() if exponent in table else NotImplemented


def _gelu(x: Tensor, approximate: str = "none") -> Any:
    if approximate == "none":
        return NotImplemented
    inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
    return x * 0.5 * (inner.tanh() + 1.0)


def _binary(operator: Any) -> Decomposition:
    """Gives a number without dimensions one, and writes `alpha` as a product."""

    def decompose(left: Any, right: Any, *, alpha: float = 1.0) -> Any:
        rank = max(x.dim() for x in (left, right) if isinstance(x, Tensor))
        wide = [
            x.reshape(1) if rank and isinstance(x, Tensor) and x.dim() == 0 else x
            for x in (left, right)
        ]
        if alpha == 1.0 and wide[0] is left and wide[1] is right:
            return NotImplemented
        return operator(wide[0], wide[1] if alpha == 1.0 else wide[1] * alpha)

    return decompose


def _expand(x: Tensor, shape: list[int], **_: Any) -> Any:
    return (
        x.reshape([1] * len(shape)).expand(shape) if shape and x.dim() == 0 else NotImplemented
    )


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.threshold_backward.default: _threshold_backward,
    _aten.hardtanh_backward.default: _hardtanh_backward,
    _aten.sign.default: _sign,
    _aten.erf.default: _erf,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.sum.default: _sum,
    _aten.sum.dim_IntList: _sum,
    _aten.mean.default: _mean,
    _aten.pow.Tensor_Scalar: _pow,
    _aten.gelu.default: _gelu,
    _aten.add.Tensor: _binary(torch.add),
    _aten.sub.Tensor: _binary(torch.sub),
    _aten.mul.Tensor: _binary(torch.mul),
    _aten.div.Tensor: _binary(torch.div),
    _aten.expand_copy.default: _expand,
}
