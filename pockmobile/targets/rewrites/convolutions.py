"""Writes a convolution's gradients, and convolutions with run-time weights, as products.

A delegate packs the weight of a convolution, so one that is trained cannot be it. Where the
convolution is depthwise, what lies under each tap is multiplied by the tap's weights. Else the
windows that it sees are gathered, and the rest are matrix products.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites.phases import by_phases, has_phases
from pockmobile.targets.rewrites.windows import Geometry, Pair, pad, taps, windows

_aten = torch.ops.aten


def select_convolution(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a convolution or of its backward operator."""
    if node.target is _aten.convolution_backward.default:
        is_planar = len(shape_of(node.args[1])) == 4  # type: ignore[arg-type]
        return _backward(is_frozen=is_constant(node.args[2])) if is_planar else None
    if node.target is not _aten.convolution.default or len(shape_of(node)) != 4:
        return None
    if not is_constant(node.args[1]):
        return _forward_trained
    return None if is_constant(node.args[2]) else _separate_bias


def is_constant(node: Any) -> bool:
    """Whether a node (or None) is a constant, a fill, or a view of one."""
    while isinstance(node, fx.Node) and node.target in _VIEWS:
        node = node.args[0]
    return node is None or node.op == "get_attr" or node.target is _aten.full.default


_VIEWS: Final = (_aten.view_copy.default, _aten.permute_copy.default, _aten.flip.default)


def _separate_bias(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    result: Tensor = _aten.convolution.default(x, weight, None, *rest)
    return result + bias.reshape(1, -1, 1, 1)


def _forward_trained(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, transposed: bool, extra: Pair, groups: int,
) -> Any:  # fmt: skip
    geometry = Geometry(stride, padding, dilation, groups)
    if transposed:
        # It is the input's gradient of the convolution that its weight would be.
        result = _by_windows(x, _upsampled(x, weight, geometry, extra), weight, geometry)
    elif _is_depthwise(weight, groups):
        result = _weighted(taps(x, weight.shape[2:], geometry), weight)
    else:
        result = windows(x, weight, geometry).convolve(x, weight)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _upsampled(x: Tensor, weight: Tensor, geometry: Geometry, extra: Pair) -> Pair:
    """Returns the height and width of a transposed convolution's result."""
    return [
        (x.shape[2 + i] - 1) * geometry.stride[i]
        - 2 * geometry.padding[i]
        + geometry.dilation[i] * (weight.shape[2 + i] - 1)
        + 1
        + extra[i]
        for i in range(2)
    ]


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return groups == weight.shape[0] and weight.shape[1] == 1


def _weighted(under: Iterable[tuple[int, Tensor]], weight: Tensor) -> Tensor:
    """Sums what lies under each tap, [n, c, h, w], times the tap's weight of [c, 1, kh, kw]."""
    columns = weight.reshape(weight.shape[0], -1)
    parts = (value * columns[:, tap].reshape(1, -1, 1, 1) for tap, value in under)
    return functools.reduce(torch.add, parts)


@functools.cache
def _backward(*, is_frozen: bool) -> Decomposition:
    """Returns the decomposition of `convolution_backward`, whose weight is frozen or not."""

    def decompose(
        grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Pair, padding: Pair,
        dilation: Pair, transposed: bool, extra: Pair, groups: int, mask: Sequence[bool],
    ) -> Any:  # fmt: skip
        if transposed:
            return NotImplemented
        geometry = Geometry(stride, padding, dilation, groups)
        compute = _input_gradient(weight, groups, is_frozen=is_frozen)
        grad_x = compute(grad, list(x.shape[2:]), weight, geometry) if mask[0] else None
        grad_weight = _weight_gradient(grad, x, weight, geometry) if mask[1] else None
        return grad_x, grad_weight, grad.sum([0, 2, 3]) if mask[2] else None

    return decompose


def _input_gradient(
    weight: Tensor, groups: int, *, is_frozen: bool
) -> Callable[[Tensor, Pair, Tensor, Geometry], Tensor]:
    """Returns how the gradient of an input of some height and width is best computed."""
    if not is_frozen:
        return _by_windows
    if _is_depthwise(weight, groups):
        return _by_flipped_filters
    return _by_transposed_convolution


def _by_transposed_convolution(
    grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry
) -> Tensor:
    if has_phases(geometry):
        return by_phases(grad, sizes, weight, geometry)
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    extra = []
    for i in range(2):
        span = dilation[i] * (weight.shape[2 + i] - 1) + 1
        reached = (grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + span
        extra.append(sizes[i] - reached)
    result: Tensor = _aten.convolution.default(
        grad, weight, None, stride, padding, dilation, True, extra, geometry.groups
    )
    return result


def _by_flipped_filters(
    grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry
) -> Tensor:
    spread, dense = _spread(grad, sizes, weight.shape[2:], geometry)
    return dense.convolve(spread, weight.flip([2, 3]))


def _by_windows(grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry) -> Tensor:
    outputs, inner, *kernel = weight.shape
    groups = geometry.groups
    if has_phases(geometry):
        return by_phases(grad, sizes, weight, geometry)
    spread, dense = _spread(grad, sizes, kernel, geometry)
    if _is_depthwise(weight, groups):
        return _weighted(taps(spread, kernel, dense, is_flipped=True), weight)
    by_group = weight.reshape(groups, outputs // groups, inner, *kernel).transpose(1, 2)
    turned = by_group.reshape(groups * inner, outputs // groups, *kernel)
    return windows(spread, turned, dense, is_flipped=True).convolve(spread, turned)


def _spread(
    grad: Tensor, sizes: Pair, kernel: Sequence[int], geometry: Geometry
) -> tuple[Tensor, Geometry]:
    """Puts zeros between the elements of a strided convolution's gradient.

    Returns it with the convolution of stride one that takes it to that height and width.
    """
    stride, dilation = geometry.stride, geometry.dilation
    pads = [dilation[i] * (kernel[i] - 1) - geometry.padding[i] for i in range(2)]
    dense = Geometry([1, 1], [max(0, pads[0]), max(0, pads[1])], dilation, geometry.groups)
    n, c, height, width = grad.shape
    if not geometry.is_dense:
        between = (0, stride[1] - 1, 0, 0, 0, stride[0] - 1)
        grad = pad(grad.reshape(n, c, height, 1, width, 1), between)
        grad = grad.reshape(n, c, height * stride[0], width * stride[1])
    for i in range(2):
        wanted = sizes[i] + dilation[i] * (kernel[i] - 1) - 2 * dense.padding[i]
        grad = _resized(grad, 2 + i, max(0, -pads[i]), wanted)
    return grad, dense


def _resized(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Returns `length` elements of a dimension from `start`; zeros where there are none."""
    present = min(length, x.shape[dim] - start)
    if present < x.shape[dim]:
        x = x.narrow(dim, start, present)
    missing = length - present
    return pad(x, (0, missing) if dim == 3 else (0, 0, 0, missing))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    kernel = weight.shape[2:]
    if _is_depthwise(weight, geometry.groups):
        sums = {tap: (value * grad).sum([0, 2, 3]) for tap, value in taps(x, kernel, geometry)}
        ordered = [sums[tap].reshape(1, -1) for tap in sorted(sums)]
        return torch.cat(ordered).t().reshape(weight.shape)
    return windows(x, weight, geometry).weight_gradient(grad, x)
