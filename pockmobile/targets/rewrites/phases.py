"""The input's gradient of a convolution that strides, without zeros between its elements.

Pixels of the input that lie a stride apart meet the same taps of the kernel. The output's
gradient is multiplied by all taps at once; each such phase is a sum of some of the products,
shifted, and the phases are interleaved.
"""

import functools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from pockmobile.targets.rewrites.windows import Geometry, Pair, pad, product

_FIRST: Final = 2
"""Of the dimensions of an image, [n, c, h, w], the first that has places."""


def has_phases(geometry: Geometry) -> bool:
    """Whether `by_phases` takes a convolution."""
    is_plain = geometry.groups == 1 and all(step == 1 for step in geometry.dilation)
    return is_plain and not geometry.is_dense and not geometry.at_once


def by_phases(
    grad: Tensor, sizes: Pair, weight: Tensor, geometry: Geometry, *, is_frozen: bool
) -> Tensor:
    """Returns the gradient [n, i, *sizes] from the output's gradient [n, o, h, w].

    The weight is [o, i, kh, kw]; one that is frozen stays the right operand, which is packed
    once.
    """
    outputs, inner, height, width = weight.shape
    down, right = geometry.stride
    places = [-(-(sizes[i] + geometry.padding[i]) // geometry.stride[i]) for i in range(2)]
    taps = weight.permute(2, 3, 1, 0).reshape(height * width * inner, outputs)
    found = product(grad, taps, turns=not is_frozen)

    def phase(first: int, second: int) -> Tensor:
        parts = [
            _placed(
                found.narrow(1, (i * width + j) * inner, inner), (i // down, j // right), places
            )
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
    whole = whole.reshape(n, places[0] * down, places[1] * right, inner).permute(0, 3, 1, 2)
    for i in range(2):
        whole = whole.narrow(_FIRST + i, geometry.padding[i], sizes[i])
    return whole


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
