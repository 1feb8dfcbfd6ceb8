"""What operators mean while a model is fine-tuned: rules that the capture applies.

BatchNorm uses its stored statistics, as PockEngine does (MICRO 2023, section 3.3): running
statistics of a few private examples are worse than those of the pretraining. Dropout is
off. Attention is written in plain operators, since fused kernels have no joint graph.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from pockmobile.capture.masks import above
from pockmobile.capture.padding import PADDING
from pockmobile.capture.plain import PLAIN
from pockmobile.capture.recurrence import RECURRENCE
from pockmobile.capture.resampling import RESAMPLING

_aten = torch.ops.aten


def frozen_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: Any
) -> Tensor:
    """Applies stored statistics as one scale and one shift for each channel (dim 1)."""
    eps = float(rest[2])
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x * scale.reshape(shape) + shift.reshape(shape)


def no_dropout(x: Tensor, *_: Any) -> Tensor:
    """Returns its input: dropout is off."""
    return x


def frozen_native_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The same where an archive holds decomposed operators, whose last constant is eps."""
    result = frozen_batch_norm(x, weight, bias, mean, var, None, None, rest[-1])
    # Batch statistics, and new running statistics: nothing uses or changes them.
    return result, mean, var, mean, var


def no_check(*_: Any, **__: Any) -> None:
    """Checks nothing: the program has its types and sizes from the capture."""


def no_native_dropout(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Returns its input, and a mask that keeps everything."""
    return x, torch.ones_like(x, dtype=torch.bool)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Writes scaled dot product attention in matmuls and a softmax."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
    scores = (query * (scale or 1.0 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if is_causal:
        # A large number, not infinity: inf - inf inside a delegate's softmax would be NaN.
        upper = torch.ones(scores.shape[-2:], dtype=scores.dtype, device=scores.device).triu(1)
        scores = scores + upper * _MASKED
    if mask is None:
        return scores.softmax(-1) @ value
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, _MASKED).to(scores.dtype)
    return (scores + mask).softmax(-1) @ value


class _Clamp(torch.autograd.Function):
    """Clamps; the gradient passes at the bounds, as PyTorch's, in operators of activations.

    PyTorch's own is a `where` over comparisons, which no delegate takes.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        low: float | None,
        high: float | None,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high  # type: ignore[attr-defined]
        return x.clamp(low, high)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds  # type: ignore[attr-defined]
        # What lies beyond a bound is taken away again: exactly nothing is left of it.
        if low is not None:
            grad = grad - _aten.threshold_backward(grad, -x, -low)
        if high is not None:
            grad = grad - _aten.threshold_backward(grad, x, high)
        return grad, None, None


def clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Clamps floating-point values between two numbers."""
    if not x.is_floating_point():
        return x.clamp(low, high)
    result: Tensor = _Clamp.apply(x, low, high)  # type: ignore[no-untyped-call]
    return result


def clamp_min(x: Tensor, low: float) -> Tensor:
    """Clamps from below."""
    return clamp(x, low, None)


def clamp_max(x: Tensor, high: float) -> Tensor:
    """Clamps from above."""
    return clamp(x, None, high)


class _Maximum(torch.autograd.Function):
    """The larger of two, by masks; where they are equal each has half of the gradient."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, left: Tensor, right: Tensor
    ) -> Tensor:
        ctx.save_for_backward(left, right)
        return torch.maximum(left, right)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors  # type: ignore[attr-defined]
        difference = left - right
        of_left, of_right = above(grad, difference), above(grad, -difference)
        half = (grad - of_left - of_right) * 0.5
        return (of_left + half).sum_to_size(left.shape), (of_right + half).sum_to_size(
            right.shape
        )


def maximum(left: Tensor, right: Tensor) -> Tensor:
    """Returns the larger of two values, at each place."""
    if not (left.is_floating_point() and left.dtype == right.dtype):
        return torch.maximum(left, right)
    result: Tensor = _Maximum.apply(left, right)  # type: ignore[no-untyped-call]
    return result


def minimum(left: Tensor, right: Tensor) -> Tensor:
    """Returns the smaller of two values, at each place."""
    return -maximum(-left, -right)


_MASKED: Final = -1e30

RULES: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten._assert_tensor_metadata.default: no_check,
    _aten.batch_norm.default: frozen_batch_norm,
    _aten.clamp.default: clamp,
    _aten.clamp_min.default: clamp_min,
    _aten.clamp_max.default: clamp_max,
    _aten.maximum.default: maximum,
    _aten.max.other: maximum,
    _aten.minimum.default: minimum,
    _aten.min.other: minimum,
    _aten._native_batch_norm_legit_functional.default: frozen_native_batch_norm,
    _aten._native_batch_norm_legit_no_training.default: frozen_native_batch_norm,
    _aten.native_dropout.default: no_native_dropout,
    _aten.dropout.default: no_dropout,
    _aten.dropout_.default: no_dropout,
    _aten.feature_dropout.default: no_dropout,
    _aten.feature_dropout_.default: no_dropout,
    _aten.alpha_dropout.default: no_dropout,
    _aten.alpha_dropout_.default: no_dropout,
    _aten.feature_alpha_dropout.default: no_dropout,
    _aten.feature_alpha_dropout_.default: no_dropout,
    _aten.scaled_dot_product_attention.default: plain_attention,
    **PADDING,
    **PLAIN,
    **RECURRENCE,
    **RESAMPLING,
}
"""Operators of the exported forward pass and what is traced in their place."""
