"""Activations and their gradients in operators that mask: no comparison, no `where`.

`threshold_backward(value, x, t)` keeps a value where x > t and is 0 elsewhere; every target
writes it in its own operators. PyTorch's decompositions are a `where` over a comparison, which
no delegate takes. What a mask does not keep is `value - kept`, exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

_aten = torch.ops.aten
_SMOOTH: Final = 17.0
"""Beyond this, softplus is its argument, and its gradient 1, but for float32's rounding."""


def above(value: Tensor, x: Tensor, threshold: float = 0.0) -> Tensor:
    """Returns the value where x is above the threshold, and 0 elsewhere."""
    result: Tensor = _aten.threshold_backward.default(value, x, threshold)
    return result


def threshold(x: Tensor, limit: float, value: float) -> Tensor:
    """Puts a number in the place of what is not above a limit."""
    return above(x - value, x, limit) + value if value else above(x, x, limit)


def leaky_relu_backward(grad: Tensor, x: Tensor, slope: float, is_result: bool) -> Tensor:
    """Scales the gradient below zero."""
    passed = above(grad, x)
    return passed + (grad - passed) * slope


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Scales what is below zero by a weight."""
    return x.relu() - weight * (-x).relu()


def prelu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the input and, of its shape, of the weight."""
    passed = above(grad, x)
    rest = grad - passed
    return passed + rest * weight, rest * x


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Is an exponential linear unit whose halves meet without a kink."""
    result: Tensor = _aten.elu.default(x, alpha, 1.0, 1.0 / alpha)
    return result


def elu_backward(
    grad: Tensor, alpha: float, scale: float, slope: float, is_result: bool, x: Tensor
) -> Tensor:
    """Scales the gradient above zero, and by the exponential below; x may be the result."""
    passed = above(grad, x)
    low = x.clamp(max=0.0)
    steep = (low + alpha * scale) if is_result else (low * slope).exp() * (alpha * scale)
    return passed * scale + (grad - passed) * (steep * slope)


def hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Passes a sixth of the gradient between -3 and 3."""
    result: Tensor = _aten.hardtanh_backward.default(grad, x, -3.0, 3.0)
    return result * (1.0 / 6.0)


def hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Scales the gradient between -3 and 3, and passes it above."""
    within: Tensor = _aten.hardtanh_backward.default(grad, x, -3.0, 3.0)
    return within * (x * (1.0 / 3.0) + 0.5) + above(grad, x, 3.0)


def softplus(x: Tensor, beta: float = 1.0, limit: float = 20.0) -> Tensor:
    """Returns log(1 + exp(beta x)) / beta without overflow, and x where beta x > limit."""
    z = x * beta
    smooth = (z.relu() + _tail(z)) * (1.0 / beta)
    return smooth if limit >= _SMOOTH else smooth + above(x - smooth, z, limit)


def softplus_backward(grad: Tensor, x: Tensor, beta: float, limit: float) -> Tensor:
    """Returns the gradient times the sigmoid of beta x."""
    z = x * beta
    smooth = grad * z.sigmoid()
    return smooth if limit >= _SMOOTH else smooth + above(grad - smooth, z, limit)


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log(sigmoid(x)), and a buffer that nothing reads."""
    return -((-x).relu() + _tail(x)), x


def log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    """Returns the gradient times the sigmoid of -x."""
    return grad * (-x).sigmoid()


def hardshrink(x: Tensor, bound: float = 0.5) -> Tensor:
    """Keeps what is further from zero than the bound."""
    return above(x, x, bound) + above(x, -x, bound)


def softshrink(x: Tensor, bound: float = 0.5) -> Tensor:
    """Moves everything towards zero by the bound."""
    return x - x.clamp(-bound, bound)


def shrink_backward(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    """Passes the gradient of what is further from zero than the bound."""
    return above(grad, x, bound) + above(grad, -x, bound)


def _tail(z: Tensor) -> Tensor:
    return ((-z.abs()).exp() + 1.0).log()


MASKS: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.threshold.default: threshold,
    _aten.leaky_relu_backward.default: leaky_relu_backward,
    _aten._prelu_kernel.default: prelu,
    _aten._prelu_kernel_backward.default: prelu_backward,
    _aten.celu.default: celu,
    _aten.elu_backward.default: elu_backward,
    _aten.hardsigmoid_backward.default: hardsigmoid_backward,
    _aten.hardswish_backward.default: hardswish_backward,
    _aten.softplus.default: softplus,
    _aten.softplus_backward.default: softplus_backward,
    _aten.log_sigmoid_forward.default: log_sigmoid,
    _aten.log_sigmoid_backward.default: log_sigmoid_backward,
    _aten.hardshrink.default: hardshrink,
    _aten.hardshrink_backward.default: shrink_backward,
    _aten.softshrink.default: softshrink,
    _aten.softshrink_backward.default: shrink_backward,
}
"""What the capture decomposes so."""
