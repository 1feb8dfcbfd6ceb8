"""The input's gradient of a convolution that strides, without zeros between its elements.

Pixels of the input that lie a stride apart meet the same taps of the kernel. The output's
gradient is multiplied by all taps; each such phase is a sum of some of the products, shifted,
and the phases are interleaved. Where a weight is large beside what it meets, its products are
better shifted, too, than the weight turned: then there may be one phase only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from pockmobile.targets.rewrites.windows import (
    LARGE,
    Geometry,
    Pair,
    as_rows,
    is_by_channel,
    pad,
    product,
)

_FIRST: Final = 2
"""Of the dimensions of an image, [n, c, h, w], the first that has places."""


def has_phases(
    grad: Tensor, weight: Tensor, geometry: Geometry, *, is_frozen: bool = False
) -> bool:
    """Whether `by_phases` is best for a convolution of which `grad` is the gradient."""
    if geometry.at_once or any(step != 1 for step in geometry.dilation):
        return False
    if geometry.is_dense:
        return not is_frozen and geometry.groups == 1 and _is_large(weight, grad)
    return geometry.groups == 1 or is_by_channel(weight, geometry.groups)


def _is_large(weight: Tensor, grad: Tensor) -> bool:
    """Whether a weight is better read as it lies, though the products are then turned."""
    pixels = grad.numel() // grad.shape[1]
    return weight.numel() >= LARGE and pixels < weight.shape[1]


def by_phases(
    grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry, *, is_frozen: bool
) -> Tensor:
    """Returns the gradient [n, i, *sizes] from the output's gradient [n, o, h, w].

    The weight is [o, i, kh, kw], or [o, 1, kh, kw] where it is depthwise; one that is frozen
    stays the right operand, which is packed once.
    """
    height, width = weight.shape[2:]
    down, right = geometry.stride
    places = [-(-(sizes[i] + geometry.padding[i]) // geometry.stride[i]) for i in range(2)]
    if geometry.groups > 1:
        times = _each
    else:
        times = _as_it_lies if not is_frozen and _is_large(weight, grad) else _all
    tap = times(grad, weight, places)

    def phase(first: int, second: int) -> Tensor:
        parts = [
            tap(i * width + j, (i // down, j // right))
            # Those that begin behind all places are seen by none.
            for i in range(first, min(height, down * places[0]), down)
            for j in range(second, min(width, right * places[1]), right)
        ]
        return functools.reduce(torch.add, parts).permute(0, 2, 3, 1)

    rows = [
        _side_by_side([phase(i, j) for j in range(min(right, width))], right)
        for i in range(min(down, height))
    ]
    n = grad.shape[0]
    whole = _side_by_side([row.reshape(n, places[0], 1, -1) for row in rows], down)
    whole = whole.reshape(n, places[0] * down, places[1] * right, -1).permute(0, 3, 1, 2)
    for i in range(2):
        whole = whole.narrow(_FIRST + i, geometry.padding[i], sizes[i])
    return whole


_Tap = Callable[[int, Sequence[int]], Tensor]
"""Returns the gradient times a tap of the kernel, moved to some starts: [n, i, *places]."""


def _all(grad: Tensor, weight: Tensor, places: Sequence[int]) -> _Tap:
    """Multiplies by all taps at once, and moves the products."""
    outputs, inner = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(-1, outputs)
    found = product(grad, taps)
    return lambda tap, starts: _placed(found.narrow(1, tap * inner, inner), starts, places)


def _as_it_lies(grad: Tensor, weight: Tensor, places: Sequence[int]) -> _Tap:
    """The same, but the taps are innermost in the products first, as in the weight."""
    n, _, height, width = grad.shape
    outputs, inner = weight.shape[:2]
    found = as_rows(grad) @ weight.reshape(outputs, -1)
    by_tap = found.reshape(n * height * width, inner, -1).permute(2, 0, 1)
    images = by_tap.reshape(-1, height, width, inner).permute(0, 3, 1, 2)
    return lambda tap, starts: _placed(images.narrow(0, tap * n, n), starts, places)


def _each(grad: Tensor, weight: Tensor, places: Sequence[int]) -> _Tap:
    """Moves the gradient, to fewer places than there are taps, and multiplies it by each."""
    columns = weight.reshape(weight.shape[0], -1)
    return lambda tap, starts: (
        _placed(grad, starts, places) * columns[:, tap].reshape(1, -1, 1, 1)
    )


def _placed(x: Tensor, starts: Sequence[int], places: Sequence[int]) -> Tensor:
    """Puts x [n, c, h, w] from `starts` on into zeros [n, c, *places]; the rest is lost."""
    widths: list[int] = []
    for i in (1, 0):
        dim = _FIRST + i
        x = x.narrow(dim, 0, min(x.shape[dim], places[i] - starts[i]))
        widths += [starts[i], places[i] - starts[i] - x.shape[dim]]
    return pad(x, widths)


def _side_by_side(parts: Sequence[Tensor], count: int) -> Tensor:
    """Joins `count` parts along the last dimension; those that no tap meets are zeros."""
    width = parts[0].shape[-1]
    return pad(torch.cat(list(parts), -1), (0, (count - len(parts)) * width))
