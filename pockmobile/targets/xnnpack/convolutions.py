"""Writes a convolution's gradients, and convolutions with run-time weights, as products.

XNNPACK packs a convolution's weight, so one that is trained cannot be its weight. The
windows that it sees are gathered by a convolution with constant one-hot filters (`unfold`:
channel c and tap k become channel c*K + k, the order of the weight itself), and the rest is
a matrix product, or a weighted sum over taps where the convolution is depthwise.
"""

from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.passes.decompose import Decomposition

_aten = torch.ops.aten


def select_convolution(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a convolution or of its backward operator."""
    if node.target is _aten.convolution_backward.default and len(shape_of(node.args[1])) == 4:  # type: ignore
        return _backward_frozen if _is_constant(node.args[2]) else _backward_trained
    if node.target is not _aten.convolution.default or len(shape_of(node)) != 4:
        return None
    if not _is_constant(node.args[1]):
        return _forward_trained
    return None if _is_constant(node.args[2]) else _separate_bias


def _is_constant(node: Any) -> bool:
    """Whether a node (or None) is a constant, or a view of one."""
    while isinstance(node, fx.Node) and node.target in _VIEWS:
        node = node.args[0]
    return node is None or node.op == "get_attr"


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    result: Tensor = _aten.convolution.default(x, weight, bias, *geometry)
    return result


_VIEWS: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.flip.default,
)


def _separate_bias(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    return _convolve(x, weight, None, *rest) + bias.reshape(1, -1, 1, 1)


def _forward_trained(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, extra: Any, groups: int,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    windows = _unfold(x, weight.shape[2:], stride, padding, dilation)
    result = _apply(windows, weight, groups)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _apply(windows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Multiplies windows [n, c*K, h, w] by weights [o, c/groups, kh, kw]: [n, o, h, w]."""
    n, width, height, length = windows.shape
    rows = windows.permute(0, 2, 3, 1)
    outputs, inner = weight.shape[0], weight[0].numel()
    if groups == 1:
        product = rows.reshape(-1, width) @ weight.reshape(outputs, inner).t()
    elif outputs == groups:
        product = (rows.reshape(-1, groups, inner) * weight.reshape(1, groups, inner)).sum(-1)
    else:
        split = rows.reshape(-1, groups, inner).permute(1, 0, 2)
        filters = weight.reshape(groups, outputs // groups, inner).permute(0, 2, 1)
        product = torch.bmm(split, filters).permute(1, 0, 2)
    return product.reshape(n, height, length, outputs).permute(0, 3, 1, 2)


def _unfold(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, *, flipped: bool = False
) -> Tensor:
    """Gathers windows: [n, c, h, w] to [n, c*K, out_h, out_w]; `flipped` reverses the taps."""
    taps = int(kernel[0]) * int(kernel[1])
    if taps == 1 and not any(padding) and all(step == 1 for step in stride):
        return x
    channels = x.shape[1]
    one_hot = torch.eye(taps).flip(0) if flipped else torch.eye(taps)
    filters = one_hot.reshape(taps, 1, *kernel).repeat(channels, 1, 1, 1)
    return _convolve(x, filters, None, stride, padding, dilation, False, [0, 0], channels)


def _backward_frozen(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, extra: Any, groups: int, mask: Any,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    grad_x = None
    if mask[0]:
        geometry = (stride, padding, dilation, groups)
        if groups == weight.shape[0] and weight.shape[1] == 1:
            grad_x = _input_gradient_depthwise(grad, x, weight, *geometry)
        else:
            grad_x = _input_gradient_transposed(grad, x, weight, *geometry)
    return grad_x, *_parameter_gradients(
        grad, x, weight, stride, padding, dilation, groups, mask
    )


def _backward_trained(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, extra: Any, groups: int, mask: Any,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    grad_x = None
    if mask[0]:
        grad_x = _input_gradient_trained(grad, x, weight, stride, padding, dilation, groups)
    return grad_x, *_parameter_gradients(
        grad, x, weight, stride, padding, dilation, groups, mask
    )


def _input_gradient_transposed(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    extra = [
        x.shape[2 + i]
        - (
            (grad.shape[2 + i] - 1) * stride[i]
            - 2 * padding[i]
            + dilation[i] * (weight.shape[2 + i] - 1)
            + 1
        )
        for i in range(2)
    ]
    return _convolve(grad, weight, None, stride, padding, dilation, True, extra, groups)


def _input_gradient_depthwise(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    spread, pads = _spread(grad, x, weight.shape[2:], stride, padding, dilation)
    return _convolve(
        spread, weight.flip([2, 3]), None, [1, 1], pads, dilation, False, [0, 0], groups
    )


def _input_gradient_trained(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    outputs, inner, *kernel = weight.shape
    spread, pads = _spread(grad, x, kernel, stride, padding, dilation)
    windows = _unfold(spread, kernel, [1, 1], pads, dilation, flipped=True)
    by_group = weight.reshape(groups, outputs // groups, inner, *kernel).transpose(1, 2)
    return _apply(windows, by_group.reshape(groups * inner, outputs // groups, *kernel), groups)


def _spread(
    grad: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Tensor, list[int]]:
    """Puts zeros between the elements of a strided convolution's gradient.

    Returns it with the padding under which a convolution of stride one gives x's shape.
    """
    pads = [dilation[i] * (kernel[i] - 1) - padding[i] for i in range(2)]
    if min(pads) < 0:
        grad = torch.nn.functional.pad(grad, [min(pads[1], 0)] * 2 + [min(pads[0], 0)] * 2)
        pads = [max(pad, 0) for pad in pads]
    if all(step == 1 for step in stride):
        return grad, pads
    n, c, height, width = grad.shape
    spread = torch.nn.functional.pad(
        grad.reshape(n, c, height, 1, width, 1), (0, stride[1] - 1, 0, 0, 0, stride[0] - 1)
    )
    spread = spread.reshape(n, c, height * stride[0], width * stride[1])
    for i in range(2):
        wanted = x.shape[2 + i] + dilation[i] * (kernel[i] - 1) - 2 * pads[i]
        missing = wanted - spread.shape[2 + i]
        if missing < 0:
            spread = spread.narrow(2 + i, 0, wanted)
        elif missing > 0:
            spread = torch.nn.functional.pad(
                spread, (0, 0, 0, missing) if i == 0 else (0, missing)
            )
    return spread, pads


def _parameter_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any,
    groups: int, mask: Any,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_weight = None
    if mask[1]:
        windows = _unfold(x, weight.shape[2:], stride, padding, dilation)
        grad_weight = _weight_gradient(grad, windows, groups).reshape(weight.shape)
    return grad_weight, grad.sum([0, 2, 3]) if mask[2] else None


def _weight_gradient(grad: Tensor, windows: Tensor, groups: int) -> Tensor:
    outputs, width = grad.shape[1], windows.shape[1]
    errors = grad.permute(0, 2, 3, 1).reshape(-1, outputs)
    rows = windows.permute(0, 2, 3, 1).reshape(-1, width)
    if groups == 1:
        return errors.t() @ rows
    if outputs == groups:
        inner = width // groups
        return (rows.reshape(-1, groups, inner) * errors.reshape(-1, groups, 1)).sum(0)
    by_group = errors.reshape(-1, groups, outputs // groups).permute(1, 2, 0)
    return torch.bmm(by_group, rows.reshape(-1, groups, width // groups).permute(1, 0, 2))
