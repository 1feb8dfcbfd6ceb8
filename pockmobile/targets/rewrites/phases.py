"""The input's gradient of a convolution that strides, without zeros between its elements.

Pixels of the input that lie a stride apart meet the same taps of the kernel. The output's
gradient is multiplied by all taps; each such phase is a sum of some of the products, shifted,
and the phases are interleaved.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from pockmobile.targets.rewrites.windows import (
    Geometry,
    Pair,
    is_by_channel,
    pad,
    product,
)

_FIRST: Final = 2
"""Of the dimensions of an image, [n, c, h, w], the first that has places."""


def has_phases(weight: Tensor, geometry: Geometry) -> bool:
    """Whether `by_phases` takes a convolution."""
    is_plain = geometry.groups == 1 or is_by_channel(weight, geometry.groups)
    is_strided = not geometry.is_dense and all(step == 1 for step in geometry.dilation)
    return is_plain and is_strided and not geometry.at_once


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
    times = _each if geometry.groups > 1 else functools.partial(_all, turns=not is_frozen)
    tap = times(grad, weight, places)

    def phase(first: int, second: int) -> Tensor:
        parts = [
            tap(i * width + j, (i // down, j // right))
            for i in range(first, height, down)
            for j in range(second, width, right)
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


def _all(grad: Tensor, weight: Tensor, places: Sequence[int], *, turns: bool) -> _Tap:
    """Multiplies by all taps at once, and moves the products."""
    outputs, inner = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(-1, outputs)
    found = product(grad, taps, turns=turns)
    return lambda tap, starts: _placed(found.narrow(1, tap * inner, inner), starts, places)


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
