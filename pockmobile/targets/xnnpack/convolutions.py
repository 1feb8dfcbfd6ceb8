"""Writes a convolution's gradients, and convolutions with run-time weights, as products.

XNNPACK packs a convolution's weight, so one that is trained cannot be its weight. Where the
convolution is depthwise, what lies under each tap is a slice of the input, which is multiplied
by the tap's weights. Else the windows that it sees are gathered by a convolution with constant
one-hot filters (`unfold`: channel c and tap k become channel c*K + k, the order of the weight
itself), and the rest is a matrix product.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.passes.decompose import Decomposition

_aten = torch.ops.aten
_Pair: TypeAlias = tuple[int, int] | list[int]


def select_convolution(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a convolution or of its backward operator."""
    if node.target is _aten.convolution_backward.default:
        is_planar = len(shape_of(node.args[1])) == 4  # type: ignore[arg-type]
        return _backward(is_frozen=_is_constant(node.args[2])) if is_planar else None
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


_VIEWS: Final = (_aten.view_copy.default, _aten.permute_copy.default, _aten.flip.default)


@final
@dataclass(frozen=True)
class _Geometry:
    """How a 2-D convolution slides over its input."""

    stride: _Pair
    padding: _Pair
    dilation: _Pair
    groups: int

    @property
    def is_pointwise(self) -> bool:
        """Whether windows of one tap are the pixels themselves."""
        return not any(self.padding) and all(step == 1 for step in self.stride)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the convolution."""
        result: Tensor = _aten.convolution.default(
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0, 0],
            self.groups,
        )
        return result


def _separate_bias(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    result: Tensor = _aten.convolution.default(x, weight, None, *rest)
    return result + bias.reshape(1, -1, 1, 1)


def _forward_trained(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair,
    dilation: _Pair, transposed: bool, extra: _Pair, groups: int,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    geometry = _Geometry(stride, padding, dilation, groups)
    if _is_depthwise(weight, groups):
        result = _weighted(_taps(x, weight.shape[2:], geometry), weight)
    else:
        result = _apply(_unfold(x, weight.shape[2:], geometry), weight, groups)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _apply(windows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Multiplies windows [n, c*K, h, w] by weights [o, c/groups, kh, kw]: [n, o, h, w]."""
    n, width, height, length = windows.shape
    rows = windows.permute(0, 2, 3, 1)
    outputs, inner = weight.shape[0], weight[0].numel()
    if groups == 1:
        product = rows.reshape(-1, width) @ weight.reshape(outputs, inner).t()
    else:
        split = rows.reshape(-1, groups, inner).permute(1, 0, 2)
        filters = weight.reshape(groups, outputs // groups, inner).permute(0, 2, 1)
        product = torch.bmm(split, filters).permute(1, 0, 2)
    return product.reshape(n, height, length, outputs).permute(0, 3, 1, 2)


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return groups == weight.shape[0] and weight.shape[1] == 1


def _taps(
    x: Tensor, kernel: Sequence[int], geometry: _Geometry, *, flipped: bool = False
) -> list[Tensor]:
    """Returns what lies under each tap of a depthwise kernel, each [n, c, out_h, out_w].

    A depthwise convolution with one weight of 1 moves the input, in channels side by side.
    """
    taps = int(kernel[0]) * int(kernel[1])
    if taps == 1 and geometry.is_pointwise:
        return [x]
    if all(step == 1 for step in geometry.stride):
        found = _slices(x, kernel, geometry)
        return found[::-1] if flipped else found
    channels = x.shape[1]
    one_hot = torch.eye(taps).flip(0) if flipped else torch.eye(taps)
    filters = one_hot.reshape(taps, 1, 1, *kernel).expand(taps, channels, 1, *kernel)
    return [replace(geometry, groups=channels).convolve(x, one) for one in filters]


def _slices(x: Tensor, kernel: Sequence[int], geometry: _Geometry) -> list[Tensor]:
    """Returns what lies under each tap of a kernel that slides by one."""
    (above, left), (down, right) = geometry.padding, geometry.dilation
    padded = _pad(x, (left, left, above, above))
    sizes = [
        padded.shape[2 + i] - geometry.dilation[i] * (int(kernel[i]) - 1) for i in range(2)
    ]
    columns = [padded.narrow(3, j * right, sizes[1]) for j in range(int(kernel[1]))]
    return [
        column.narrow(2, i * down, sizes[0])
        for i in range(int(kernel[0]))
        for column in columns
    ]


def _weighted(taps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Sums taps [n, c, h, w], each times its weight of [c, 1, kh, kw]."""
    columns = weight.reshape(weight.shape[0], -1)
    parts = [tap * columns[:, k].reshape(1, -1, 1, 1) for k, tap in enumerate(taps)]
    return functools.reduce(torch.add, parts)


def _unfold(
    x: Tensor, kernel: Sequence[int], geometry: _Geometry, *, flipped: bool = False
) -> Tensor:
    """Gathers windows: [n, c, h, w] to [n, c*K, out_h, out_w]; `flipped` reverses the taps."""
    taps = int(kernel[0]) * int(kernel[1])
    if taps == 1 and geometry.is_pointwise:
        return x
    channels = x.shape[1]
    one_hot = torch.eye(taps).flip(0) if flipped else torch.eye(taps)
    filters = one_hot.reshape(taps, 1, *kernel).repeat(channels, 1, 1, 1)
    return replace(geometry, groups=channels).convolve(x, filters)


def _backward(*, is_frozen: bool) -> Decomposition:
    """Returns the decomposition of `convolution_backward`, whose weight is frozen or not."""

    def decompose(
        grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: _Pair, padding: _Pair,
        dilation: _Pair, transposed: bool, extra: _Pair, groups: int, mask: Sequence[bool],
    ) -> Any:  # fmt: skip
        if transposed:
            return NotImplemented
        geometry = _Geometry(stride, padding, dilation, groups)
        compute = _input_gradient(weight, groups, is_frozen=is_frozen)
        grad_x = compute(grad, x, weight, geometry) if mask[0] else None
        grad_weight = _weight_gradient(grad, x, weight, geometry) if mask[1] else None
        return grad_x, grad_weight, grad.sum([0, 2, 3]) if mask[2] else None

    return decompose


def _input_gradient(
    weight: Tensor, groups: int, *, is_frozen: bool
) -> Callable[[Tensor, Tensor, Tensor, _Geometry], Tensor]:
    """Returns how the input's gradient is best computed."""
    if not is_frozen:
        return _by_windows
    if _is_depthwise(weight, groups):
        return _by_flipped_filters
    return _by_transposed_convolution


def _by_transposed_convolution(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry
) -> Tensor:
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    extra = []
    for i in range(2):
        span = dilation[i] * (weight.shape[2 + i] - 1) + 1
        reached = (grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + span
        extra.append(x.shape[2 + i] - reached)
    result: Tensor = _aten.convolution.default(
        grad, weight, None, stride, padding, dilation, True, extra, geometry.groups
    )
    return result


def _by_flipped_filters(grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    spread, dense = _spread(grad, x, weight.shape[2:], geometry)
    return dense.convolve(spread, weight.flip([2, 3]))


def _by_windows(grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    outputs, inner, *kernel = weight.shape
    groups = geometry.groups
    spread, dense = _spread(grad, x, kernel, geometry)
    if _is_depthwise(weight, groups):
        return _weighted(_taps(spread, kernel, dense, flipped=True), weight)
    windows = _unfold(spread, kernel, dense, flipped=True)
    by_group = weight.reshape(groups, outputs // groups, inner, *kernel).transpose(1, 2)
    turned = by_group.reshape(groups * inner, outputs // groups, *kernel)
    return _apply(windows, turned, groups)


def _spread(
    grad: Tensor, x: Tensor, kernel: Sequence[int], geometry: _Geometry
) -> tuple[Tensor, _Geometry]:
    """Puts zeros between the elements of a strided convolution's gradient.

    Returns it with the convolution of stride one that takes it to the shape of x.
    """
    stride, dilation = geometry.stride, geometry.dilation
    pads = [dilation[i] * (kernel[i] - 1) - geometry.padding[i] for i in range(2)]
    if min(pads) < 0:
        grad = _pad(grad, [min(pads[1], 0)] * 2 + [min(pads[0], 0)] * 2)
        pads = [max(pad, 0) for pad in pads]
    dense = _Geometry([1, 1], pads, dilation, geometry.groups)
    if all(step == 1 for step in stride):
        return grad, dense
    n, c, height, width = grad.shape
    between = (0, stride[1] - 1, 0, 0, 0, stride[0] - 1)
    spread = _pad(grad.reshape(n, c, height, 1, width, 1), between)
    spread = spread.reshape(n, c, height * stride[0], width * stride[1])
    for i in range(2):
        wanted = x.shape[2 + i] + dilation[i] * (kernel[i] - 1) - 2 * pads[i]
        missing = wanted - spread.shape[2 + i]
        if missing < 0:
            spread = spread.narrow(2 + i, 0, wanted)
        elif missing > 0:
            spread = _pad(spread, (0, 0, 0, missing) if i == 0 else (0, missing))
    return spread, dense


def _pad(x: Tensor, widths: Sequence[int]) -> Tensor:
    return torch.nn.functional.pad(x, list(widths))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    if _is_depthwise(weight, geometry.groups):
        taps = _taps(x, weight.shape[2:], geometry)
        sums = [(tap * grad).sum([0, 2, 3]).reshape(1, -1) for tap in taps]
        return torch.cat(sums).t().reshape(weight.shape)
    windows = _unfold(x, weight.shape[2:], geometry)
    outputs, width, groups = grad.shape[1], windows.shape[1], geometry.groups
    errors = grad.permute(0, 2, 3, 1).reshape(-1, outputs)
    rows = windows.permute(0, 2, 3, 1).reshape(-1, width)
    if groups == 1:
        return (errors.t() @ rows).reshape(weight.shape)
    by_group = rows.reshape(-1, groups, width // groups)
    split = errors.reshape(-1, groups, outputs // groups).permute(1, 2, 0)
    result = torch.bmm(split, by_group.permute(1, 0, 2))
    return result.reshape(weight.shape)
