"""Writes elementwise operators, norms and sums in simpler ones, for targets to choose from."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from pockmobile.passes.decompose import Decomposition
from pockmobile.passes.gather_log_softmax import SMALLEST

_LEAST, _MARGIN = -1e30, 1e-3
"""In the place of minus infinity, which times zero is no number; and of 87 and more, 1e-5."""


def positive(x: Tensor) -> Tensor:
    """Returns 1 where x > 0 and 0 elsewhere, exactly."""
    return x.clamp(0.0, 1.0).ceil()


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Lets the gradient through where x is above the threshold."""
    return grad * positive(x - threshold if threshold else x)


def hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The product of the distances to both bounds is positive between them alone."""
    return grad * positive((x - low if low else x) * (high - x))


def sign(x: Tensor) -> Tensor:
    """Returns -1, 0 or 1."""
    return positive(x) - positive(-x)


def erf(x: Tensor) -> Tensor:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| < 1.5e-7."""
    t = 1.0 / (x.abs() * 0.3275911 + 1.0)
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    poly = t * coefficients[0]
    for coefficient in coefficients[1:]:
        poly = (poly + coefficient) * t
    magnitude = 1.0 - poly * (-(x * x)).exp()
    return magnitude * sign(x)


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises over the last dimensions; returns the mean and 1 / deviation, too."""
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


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, spatial: int,
    groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalises over groups of channels; returns the means and 1 / deviations, too."""
    rows = x.reshape(n, groups, -1)
    normal, mean, rstd = layer_norm(rows, [rows.shape[2]], None, None, eps)
    result, shape = normal.reshape(x.shape), [1, c, *[1] * (x.dim() - 2)]
    if weight is not None:
        result = result * weight.reshape(shape)
    if bias is not None:
        result = result + bias.reshape(shape)
    return result, mean.reshape(n, groups), rstd.reshape(n, groups)


def flip(x: Tensor, dims: list[int]) -> Any:
    """Turns the last dimensions around, by a product with a turned identity."""
    if sorted(dim % x.dim() for dim in dims) != list(range(x.dim() - len(dims), x.dim())):
        return NotImplemented
    length = math.prod(x.shape[dim] for dim in dims)
    turned = torch.eye(length, dtype=x.dtype, device=x.device).flip(0)
    return (x.reshape(-1, length) @ turned).reshape(x.shape)


def sum_to_one(
    x: Tensor, dims: list[int] | None = None, keepdim: bool = False, **_: Any
) -> Any:
    """Sums to one number as a row, so that only the last view leaves the delegate."""
    everything = not dims or len({dim % max(x.dim(), 1) for dim in dims}) == x.dim()
    if not everything or keepdim or x.dim() == 0:
        return NotImplemented
    return x.reshape(1, -1).sum([1]).reshape(())


def mean_to_one(x: Tensor, **_: Any) -> Tensor:
    """Averages all of x, as a sum to one number."""
    return x.sum() * (1.0 / x.numel())


def largest(x: Tensor, dims: list[int], keepdim: bool = False) -> Any:
    """Takes the largest of a row by comparing its halves, again and again."""
    if not keepdim or [dim % x.dim() for dim in dims] != [x.dim() - 1]:
        return NotImplemented
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        # Of an odd number the one in the middle is in both.
        x = torch.maximum(x[..., :half], x[..., x.shape[-1] - half :])
    return x


def mean_by_row(x: Tensor, **_: Any) -> Any:
    """Averages all of x, as a sum to one number as a row."""
    total = sum_to_one(x)
    return NotImplemented if total is NotImplemented else total * (1.0 / x.numel())


def power(x: Tensor, exponent: float) -> Any:
    """Writes the powers that have a name."""
    table = {
        2: lambda: x * x,
        3: lambda: x * x * x,
        0.5: x.sqrt,
        -0.5: x.rsqrt,
        -1: x.reciprocal,
    }
    return table[exponent]() if exponent in table else NotImplemented


def gelu(x: Tensor, approximate: str = "none") -> Any:
    """Writes a GELU by tanh."""
    if approximate == "none":
        return NotImplemented
    inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
    return x * 0.5 * (inner.tanh() + 1.0)


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, slope: float = 1.0) -> Tensor:
    """Writes an exponential linear unit as its two halves, one of which is always zero."""
    low = ((x.clamp(max=0.0) * slope).exp() - 1.0) * (alpha * scale)
    return x.relu() * scale + low


def binary(operator: Any) -> Decomposition:
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


@functools.cache
def as_row(operator: Any) -> Decomposition:
    """Gives numbers without dimensions one while `operator` computes on them."""

    def decompose(*args: Any, **kwargs: Any) -> Any:
        wide = [x.reshape(1) if isinstance(x, Tensor) else x for x in args]
        return operator(*wide, **kwargs).reshape(())

    return decompose


def scaled(operator: Any) -> Decomposition:
    """Writes `alpha` as a product."""

    def decompose(left: Any, right: Any, *, alpha: float = 1.0) -> Any:
        return NotImplemented if alpha == 1.0 else operator(left, right * alpha)

    return decompose


def log_softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    """Subtracts the largest before, and the logarithm of the sum after the exponential."""
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def log_of_softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    """Takes the logarithm of the softmax; where that underflows, x less log(sum(exp(x))).

    The latter is the mean of x - log(p) under p. It is rounded as x is, so that a little more
    of it keeps it from being the smaller one where the former is exact.
    """
    x = x.clamp(min=_LEAST)
    p = torch.softmax(x, dim)
    bounded = p.clamp(min=SMALLEST).log()
    total = (p * (x - bounded)).sum(dim, keepdim=True)
    return torch.minimum(bounded, x - total + _MARGIN)


def expand_number(x: Tensor, shape: list[int], **_: Any) -> Any:
    """Gives a number without dimensions those that it is expanded to, each of one."""
    return (
        x.reshape([1] * len(shape)).expand(shape) if shape and x.dim() == 0 else NotImplemented
    )
