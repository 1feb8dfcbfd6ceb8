"""Writes a convolution's gradients, and convolutions with run-time weights, as products.

A delegate packs the weight of a convolution, so one that is trained cannot be it. Where the
convolution is depthwise, what lies under each tap is multiplied by the tap's weights. Else the
windows that it sees are gathered, and the rest are matrix products.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments, shape_of, value_of
from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites.blocks import seen
from pockmobile.targets.rewrites.phases import by_phases, has_phases
from pockmobile.targets.rewrites.windows import (
    Geometry,
    Pair,
    gather,
    is_by_channel,
    pad,
    product,
    run,
    taps,
    windows,
)

_aten = torch.ops.aten


def select_convolution(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a convolution or of its backward operator."""
    return _select(node, at_once=False)


def select_at_once(node: fx.Node) -> Decomposition | None:
    """The same in few operators, of which each does much.

    It is for a target that takes the weight of a depthwise convolution at run time, too.
    """
    return _select(node, at_once=True)


def _select(node: fx.Node, *, at_once: bool) -> Decomposition | None:
    if node.target is _aten.convolution_backward.default:
        is_planar = len(shape_of(node.args[1])) == 4  # type: ignore[arg-type]
        frozen = is_constant(node.args[2])
        return _backward(frozen, at_once) if is_planar else None
    if node.target is not _aten.convolution.default or len(shape_of(node)) != 4:
        return None
    is_kept = is_constant(node.args[1]) or (at_once and is_depthwise(node))
    if not is_kept:
        return _forward(at_once)
    return None if is_constant(node.args[2]) else _separate_bias


def is_depthwise(node: fx.Node) -> bool:
    """Whether it is a convolution of each channel into one."""
    weight, (is_transposed, _, groups) = arguments(node)[1], arguments(node)[6:9]
    return not is_transposed and is_by_channel(value_of(weight), groups)


def is_constant(node: Any) -> bool:
    """Whether a node (or None) is a constant, a fill, or a view of one."""
    while isinstance(node, fx.Node) and node.target in _VIEWS:
        node = node.args[0]
    return node is None or node.op == "get_attr" or node.target is _aten.full.default


_VIEWS: Final = (_aten.view_copy.default, _aten.permute_copy.default, _aten.flip.default)


def _separate_bias(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    result: Tensor = _aten.convolution.default(x, weight, None, *rest)
    return result + bias.reshape(1, -1, 1, 1)


@functools.cache
def _forward(at_once: bool) -> Decomposition:
    """Returns the decomposition of a convolution whose weight comes at run time."""

    def decompose(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair,
        dilation: Pair, transposed: bool, extra: Pair, groups: int,
    ) -> Any:  # fmt: skip
        geometry = Geometry(stride, padding, dilation, groups, at_once)
        if transposed:
            # It is the input's gradient of the convolution that its weight would be.
            result = _by_windows(x, _upsampled(x, weight, geometry, extra), weight, geometry)
        elif is_by_channel(weight, groups):
            result = _weighted(taps(x, weight.shape[2:], geometry), weight)
        else:
            return seen(x, weight, geometry).convolve(x, weight, bias)
        return result if bias is None else result + bias.reshape(1, -1, 1, 1)

    return decompose


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


def _weighted(under: Iterable[tuple[int, Tensor]], weight: Tensor) -> Tensor:
    """Sums what lies under each tap, [n, c, h, w], times the tap's weight of [c, 1, kh, kw]."""
    columns = weight.reshape(weight.shape[0], -1)
    parts = (value * columns[:, tap].reshape(1, -1, 1, 1) for tap, value in under)
    return functools.reduce(torch.add, parts)


@functools.cache
def _backward(is_frozen: bool, at_once: bool) -> Decomposition:
    """Returns the decomposition of `convolution_backward`, whose weight is frozen or not."""

    def decompose(
        grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Pair, padding: Pair,
        dilation: Pair, transposed: bool, extra: Pair, groups: int, mask: Sequence[bool],
    ) -> Any:  # fmt: skip
        if transposed:
            return NotImplemented
        geometry = Geometry(stride, padding, dilation, groups, at_once)
        is_depthwise = is_by_channel(weight, groups)
        of_input = _input_gradient(is_depthwise, is_frozen, at_once)
        of_weight = _weight_gradient(is_depthwise, at_once, shares=mask[0])
        grad_x = of_input(grad, list(x.shape[2:]), weight, geometry) if mask[0] else None
        grad_weight = of_weight(grad, x, weight, geometry) if mask[1] else None
        return grad_x, grad_weight, grad.sum([0, 2, 3]) if mask[2] else None

    return decompose


def _input_gradient(
    is_depthwise: bool, is_frozen: bool, at_once: bool
) -> Callable[[Tensor, Pair, Tensor, Geometry], Tensor]:
    """Returns how the gradient of an input of some height and width is best computed."""
    if is_depthwise and (is_frozen or at_once):
        return _by_flipped_filters
    return _by_transposed_convolution if is_frozen else _by_windows


def _weight_gradient(
    is_depthwise: bool, at_once: bool, *, shares: bool
) -> Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]:
    """Returns how the gradient of a weight is best computed.

    It may share with the gradient of the input what that sees of the output's.
    """
    if not is_depthwise:
        return _by_shared_windows if shares else _by_correlations
    return _by_all_taps if at_once else _by_each_tap


def _by_transposed_convolution(
    grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry
) -> Tensor:
    if has_phases(grad, weight, geometry, is_frozen=True):
        return by_phases(grad, sizes, weight, geometry, is_frozen=True)
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
    if has_phases(grad, weight, geometry):
        return by_phases(grad, sizes, weight, geometry, is_frozen=False)
    spread, dense = _spread(grad, sizes, kernel, geometry)
    if is_by_channel(weight, groups):
        return _weighted(taps(spread, kernel, dense, is_flipped=True), weight)
    if groups == 1 and geometry.at_once:
        # The weight is turned once, and as a matrix for each output.
        seen = gather(spread, kernel, dense, is_flipped=True)
        filters = weight.reshape(outputs, inner, -1).transpose(1, 2).reshape(-1, inner)
        return product(seen, filters.t())
    turned = weight.transpose(0, 1)
    if groups > 1:
        by_group = weight.reshape(groups, outputs // groups, inner, *kernel).transpose(1, 2)
        turned = by_group.reshape(groups * inner, outputs // groups, *kernel)
    return windows(spread, turned, dense, is_flipped=True).convolve(spread, turned)


def _by_shared_windows(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Correlates the input with the windows over the output's gradient.

    The input's gradient sees these, too: so the input's own need not be gathered.
    """
    if geometry.groups == 1 and not has_phases(grad, weight, geometry):
        spread, dense = _spread(grad, list(x.shape[2:]), weight.shape[2:], geometry)
        over = windows(spread, weight.transpose(0, 1), dense, is_flipped=True)
        if over.are_shared:
            return over.weight_gradient(x, spread).transpose(0, 1)
    return _by_correlations(grad, x, weight, geometry)


def _spread(
    grad: Tensor, sizes: Pair, kernel: Sequence[int], geometry: Geometry
) -> tuple[Tensor, Geometry]:
    """Puts zeros between the elements of a strided convolution's gradient.

    Returns it with the convolution of stride one that takes it to that height and width.
    """
    stride, dilation = geometry.stride, geometry.dilation
    pads = [dilation[i] * (kernel[i] - 1) - geometry.padding[i] for i in range(2)]
    padding = [max(0, size) for size in pads]
    dense = replace(geometry, stride=[1, 1], padding=padding)
    if not geometry.is_dense:
        grad = (_apart_by_product if geometry.at_once else _apart)(grad, stride)
    for i in range(2):
        wanted = sizes[i] + dilation[i] * (kernel[i] - 1) - 2 * dense.padding[i]
        grad = run(grad, 2 + i, max(0, -pads[i]), wanted)
    return grad, dense


def _apart(grad: Tensor, stride: Pair) -> Tensor:
    """Puts zeros behind each element, and behind each row."""
    n, c, height, width = grad.shape
    between = (0, stride[1] - 1, 0, 0, 0, stride[0] - 1)
    grad = pad(grad.reshape(n, c, height, 1, width, 1), between)
    return grad.reshape(n, c, height * stride[0], width * stride[1])


def _apart_by_product(grad: Tensor, stride: Pair) -> Tensor:
    """The same by a product with ones where the elements go, and zeros elsewhere."""
    n, c, height, width = grad.shape
    down, right = stride
    places = torch.arange(width).unsqueeze(1) * right == torch.arange(down * right * width)
    spread = grad.reshape(-1, width) @ places.to(grad.dtype)
    return spread.reshape(n, c, height * down, width * right)


def _by_each_tap(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    n, channels, height, width = grad.shape
    under = taps(x, weight.shape[2:], geometry)
    means = {tap: (value * grad).mean([2, 3]) for tap, value in under}
    # What is left to do for an image is done for all taps at once.
    images = torch.cat([means[tap] for tap in sorted(means)]).reshape(-1, n, channels)
    return (images.mean(1) * (n * height * width)).t().reshape(weight.shape)


def _by_all_taps(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    n, channels, height, width = grad.shape
    seen = gather(x, weight.shape[2:], geometry)
    errors = grad.reshape(n, channels, 1, height * width)
    products = seen.reshape(n, channels, -1, height * width) * errors
    return products.sum([0, 3]).reshape(weight.shape)


def _by_correlations(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return seen(x, weight, geometry).weight_gradient(grad, x)
