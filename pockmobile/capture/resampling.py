"""Pooling and upsampling in operators that every target has, with their gradients.

An average over windows is a depthwise convolution with equal weights. What else resamples an
axis is a product with a constant matrix: the operator itself, applied to the identity.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as func
from torch import Tensor

_aten = torch.ops.aten
_Numbers = int | Sequence[int]


def avg_pool2d(
    x: Tensor, size: _Numbers, stride: _Numbers = (), padding: _Numbers = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    """Averages windows of the last two dimensions of x [..., c, h, w]."""
    size, padding = _pair(size), _pair(padding)
    stride = _pair(stride) if stride else size
    planes = x.reshape(-1, *x.shape[-3:])
    kernel = torch.ones(1, 1, *size, dtype=x.dtype)
    windows = (size, stride, padding)
    sums = _sum_windows(planes, kernel.expand(planes.shape[1], 1, *size), *windows, ceil_mode)
    if divisor is None and (ceil_mode or (any(padding) and not count_include_pad)):
        # Windows at the border count less.
        ones = torch.ones(1, 1, *x.shape[-2:], dtype=x.dtype)
        averages = _aten.avg_pool2d.default(ones, *windows, ceil_mode, count_include_pad)
        sums = sums * (averages / _sum_windows(ones, kernel, *windows, ceil_mode))
    else:
        sums = sums * (1.0 / (divisor or size[0] * size[1]))
    return sums.reshape(*x.shape[:-2], *sums.shape[-2:])


def avg_pool1d(
    x: Tensor, size: _Numbers, stride: _Numbers = (), padding: _Numbers = 0,
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """Averages windows of the last dimension."""
    wide = (1, _single(size)), (1, _single(stride or size)), (0, _single(padding))
    result = avg_pool2d(x.unsqueeze(-2), *wide, ceil_mode, count_include_pad)
    return result.squeeze(-2)


def max_pool2d(
    x: Tensor, size: _Numbers, stride: _Numbers = (), padding: _Numbers = 0,
    dilation: _Numbers = 1, ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """Takes the maxima of windows; where the last ones reach beyond x, by padding it."""
    given = (_pair(size), _pair(stride or size), _pair(padding), _pair(dilation))
    if ceil_mode:
        x = func.pad(x, _missing(x, *given), value=torch.finfo(x.dtype).min)
    return func.max_pool2d(x, *given)


def adaptive_avg_pool2d(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Averages as many windows of the last two dimensions as `sizes` says."""
    if tuple(sizes) == (1, 1):
        return x.mean((-2, -1), keepdim=True)
    if _divides(sizes, x.shape[-2:]):
        return avg_pool2d(x, _quotients(sizes, x.shape[-2:]))
    axes = [functools.partial(func.adaptive_avg_pool1d, output_size=size) for size in sizes]
    return _resampled(x, axes)


def adaptive_avg_pool1d(x: Tensor, sizes: _Numbers) -> Tensor:
    """Averages as many windows of the last dimension as `sizes` says."""
    return adaptive_avg_pool2d(x.unsqueeze(-2), (1, _single(sizes))).squeeze(-2)


def adaptive_max_pool2d(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Takes the maxima of as many windows as `sizes` says; returns their places, too."""
    places = _aten.adaptive_max_pool2d.default(x.detach(), sizes)[1]
    if _divides(sizes, x.shape[-2:]):
        return func.max_pool2d(x, _quotients(sizes, x.shape[-2:])), places
    rows = [
        torch.cat([_largest(part) for part in _windows(band, -1, sizes[1])], -1)
        for band in _windows(x, -2, sizes[0])
    ]
    return torch.cat(rows, -2), places


def adaptive_max_pool1d(x: Tensor, sizes: _Numbers) -> tuple[Tensor, Tensor]:
    """Takes the maxima of as many windows of the last dimension as `sizes` says."""
    maxima, places = adaptive_max_pool2d(x.unsqueeze(-2), (1, _single(sizes)))
    return maxima.squeeze(-2), places.squeeze(-2)


_Axis = Callable[[Tensor], Tensor]
"""Resamples the last of three dimensions."""
_Upsample = Callable[..., Tensor]
"""Resamples each dimension after the second to a size, or by a factor."""


def nearest(operator: Any) -> _Upsample:
    """Returns what repeats the elements that an operator, along one dimension, has nearest."""

    def upsample(
        x: Tensor, sizes: Sequence[int] | None, factors: Sequence[float] | None = None
    ) -> Tensor:
        axes = _axes(x, sizes, factors)
        if all(
            size % old == 0 and (factor is None or factor == size // old)
            for old, size, factor in axes
        ):
            return _repeated(x, [size // old for old, size, _ in axes])
        return _resampled(x, [_along(operator, size, factor) for _, size, factor in axes])

    return upsample


def interpolated(operator: Any) -> _Upsample:
    """Returns what interpolates as `operator` does along one dimension."""

    def upsample(
        x: Tensor, sizes: Sequence[int] | None, align_corners: bool,
        factors: Sequence[float] | None = None,
    ) -> Tensor:  # fmt: skip
        axes = _axes(x, sizes, factors)
        return _resampled(
            x, [_along(operator, size, factor, align_corners) for _, size, factor in axes]
        )

    return upsample


def of_rows(operator: Any) -> Callable[..., Tensor]:
    """Returns an operator on planes as one on rows: planes of one row."""

    def along(
        x: Tensor, sizes: Sequence[int] | None, align_corners: bool,
        factors: Sequence[float] | None,
    ) -> Tensor:  # fmt: skip
        wide = None if sizes is None else [1, *sizes]
        scales = None if factors is None else [1.0, *factors]
        planes: Tensor = operator(x.unsqueeze(-2), wide, align_corners, scales)
        return planes.squeeze(-2)

    return along


upsample_nearest: Final = nearest(_aten.upsample_nearest1d.vec)
upsample_nearest_exact: Final = nearest(_aten._upsample_nearest_exact1d.vec)
upsample_linear: Final = interpolated(_aten.upsample_linear1d.vec)
upsample_cubic: Final = interpolated(of_rows(_aten.upsample_bicubic2d.vec))
upsample_linear_smooth: Final = interpolated(of_rows(_aten._upsample_bilinear2d_aa.vec))
upsample_cubic_smooth: Final = interpolated(of_rows(_aten._upsample_bicubic2d_aa.vec))


def _resampled(x: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """Resamples the last dimensions, each by its own rule."""
    for offset, resample in enumerate(reversed(axes)):
        dim = x.dim() - 1 - offset
        length = x.shape[dim]
        matrix = resample(torch.eye(length, dtype=x.dtype).unsqueeze(0)).squeeze(0)
        x = (x.transpose(dim, -1) @ matrix).transpose(dim, -1)
    return x


def _along(operator: Any, size: int, factor: float | None, *how: Any) -> _Axis:
    factors = None if factor is None else [factor]
    return lambda y: operator(y, None if factors else [size], *how, factors)


def _axes(
    x: Tensor, sizes: Sequence[int] | None, factors: Sequence[float] | None
) -> list[tuple[int, int, float | None]]:
    """Returns the old size, the new one and the factor that was given, of each dimension."""
    old = x.shape[2:]
    if sizes is not None:
        return [(length, size, None) for length, size in zip(old, sizes, strict=True)]
    assert factors is not None
    return [(n, int(n * factor), factor) for n, factor in zip(old, factors, strict=True)]


def _repeated(x: Tensor, times: Sequence[int]) -> Tensor:
    split, wide, shape = list(x.shape[:2]), list(x.shape[:2]), list(x.shape[:2])
    for length, count in zip(x.shape[2:], times, strict=True):
        split += [length, 1]
        wide += [length, count]
        shape += [length * count]
    return x.reshape(split).expand(wide).reshape(shape)


def _sum_windows(
    x: Tensor, kernel: Tensor, size: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool,
) -> Tensor:  # fmt: skip
    if ceil_mode:
        x = func.pad(x, _missing(x, size, stride, padding, [1, 1]))
    return func.conv2d(x, kernel, None, stride, padding, groups=x.shape[1])


def _missing(
    x: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """Returns how far the last windows of ceil mode reach beyond x, as a padding."""
    pads: list[int] = []
    for axis in (1, 0):
        length = x.shape[-2 + axis] + 2 * padding[axis]
        span = dilation[axis] * (size[axis] - 1) + 1
        count = -(-(length - span) // stride[axis]) + 1
        if (count - 1) * stride[axis] >= length - padding[axis]:
            count -= 1  # A window must not start in the padding at the end.
        pads += [0, max(0, (count - 1) * stride[axis] + span - length)]
    return pads


def _largest(x: Tensor) -> Tensor:
    return func.max_pool2d(x, x.shape[-2:])


def _windows(x: Tensor, dim: int, count: int) -> list[Tensor]:
    length = x.shape[dim]
    starts = [(index * length) // count for index in range(count)]
    stops = [-(-((index + 1) * length) // count) for index in range(count)]
    return [x.narrow(dim, a, b - a) for a, b in zip(starts, stops, strict=True)]


def _divides(sizes: Sequence[int], lengths: Sequence[int]) -> bool:
    return all(length % size == 0 for size, length in zip(sizes, lengths, strict=True))


def _quotients(sizes: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return [length // size for size, length in zip(sizes, lengths, strict=True)]


def _pair(numbers: _Numbers) -> list[int]:
    given = [numbers] if isinstance(numbers, int) else list(numbers)
    return given * 2 if len(given) == 1 else given


def _single(numbers: _Numbers) -> int:
    return numbers if isinstance(numbers, int) else numbers[0]


RESAMPLING: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.avg_pool1d.default: avg_pool1d,
    _aten.avg_pool2d.default: avg_pool2d,
    _aten.max_pool2d.default: max_pool2d,
    _aten.adaptive_avg_pool1d.default: adaptive_avg_pool1d,
    _aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    _aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    _aten.adaptive_max_pool1d.default: adaptive_max_pool1d,
    _aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    _aten.upsample_nearest1d.vec: upsample_nearest,
    _aten.upsample_nearest2d.vec: upsample_nearest,
    _aten.upsample_nearest3d.vec: upsample_nearest,
    _aten._upsample_nearest_exact1d.vec: upsample_nearest_exact,
    _aten._upsample_nearest_exact2d.vec: upsample_nearest_exact,
    _aten._upsample_nearest_exact3d.vec: upsample_nearest_exact,
    _aten.upsample_linear1d.vec: upsample_linear,
    _aten.upsample_bilinear2d.vec: upsample_linear,
    _aten.upsample_trilinear3d.vec: upsample_linear,
    _aten.upsample_bicubic2d.vec: upsample_cubic,
    _aten._upsample_bilinear2d_aa.vec: upsample_linear_smooth,
    _aten._upsample_bicubic2d_aa.vec: upsample_cubic_smooth,
}
"""Operators of the forward pass and what is traced in their place."""
