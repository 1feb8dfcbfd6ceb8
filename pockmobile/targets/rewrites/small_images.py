"""A convolution over a small image, without the products of what lies beyond its borders.

Of the windows over a small image much is padding: of a 3 x 3 kernel over 3 x 3 pixels, 32 of 81
products. Here each tap of the kernel multiplies only the pixels that it sees. A tap's weights
are few besides, so that they stay in the cache while all pixels pass.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments, shape_of
from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites.convolutions import is_constant
from pockmobile.targets.rewrites.windows import Geometry, Pair, pad

_aten = torch.ops.aten

_LEAST_SAVED: Final = 48
"""Multiplications for each result and tap: moving it costs as much (measured on a CPU)."""


def select_small_image(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a frozen convolution or its gradient, where it pays."""
    if node.target is _aten.convolution.default:
        _, weight, _, *geometry = arguments(node)
        return _forward if _pays(arguments(node)[0], weight, node, geometry, 1) else None
    if node.target is _aten.convolution_backward.default:
        grad, x, weight, _, *geometry = arguments(node)
        return _backward if _pays(grad, weight, x, geometry, -1) else None
    return None


def _pays(
    source: fx.Node, weight: fx.Node, result: fx.Node, geometry: Sequence[Any], sign: int
) -> bool:
    stride, padding, dilation, is_transposed, _, groups, *_ = geometry
    is_plain = groups == 1 and not is_transposed and all(step == 1 for step in stride)
    if not is_plain or not is_constant(weight) or len(shape_of(weight)) != 4:
        return False
    (outputs, inputs, *kernel), sizes = shape_of(weight), shape_of(result)[2:]
    seen = _seen(shape_of(source)[2:], sizes, kernel, padding, dilation, sign)
    num_seen = sum(_num_seen(pair) for pair in itertools.product(*seen))
    share = num_seen / (kernel[0] * kernel[1] * sizes[0] * sizes[1])
    return num_seen > 0 and min(outputs, inputs) * (1 - share) >= _LEAST_SAVED


@final
@dataclass(frozen=True)
class _Run:
    """What a tap sees along one dimension: `length` from `start`, for results from `place`."""

    tap: int
    start: int
    length: int
    place: int


def _seen(
    sizes: Sequence[int],
    results: Sequence[int],
    kernel: Sequence[int],
    padding: Pair,
    dilation: Pair,
    sign: int,
) -> list[list[_Run]]:
    """Returns what the taps see down and along; `sign` is -1 for the gradient's way back."""
    runs: list[list[_Run]] = [[], []]
    for i in range(2):
        for tap in range(kernel[i]):
            shift = sign * (tap * dilation[i] - padding[i])
            start, end = max(0, shift), min(sizes[i], results[i] + shift)
            if start < end:
                runs[i].append(_Run(tap, start, end - start, start - shift))
    return runs


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, transposed: bool, extra: Pair, groups: int,
) -> Tensor:  # fmt: skip
    kernel = weight.shape[2:]
    sizes = Geometry(stride, padding, dilation, groups).steps(x, kernel)
    seen = _seen(x.shape[2:], sizes, kernel, padding, dilation, 1)
    taps = weight.permute(2, 3, 1, 0)
    return _sum_of_products(x, taps, sizes, seen, bias)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Pair, padding: Pair,
    dilation: Pair, transposed: bool, extra: Pair, groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    sizes, kernel = x.shape[2:], weight.shape[2:]
    seen = _seen(grad.shape[2:], sizes, kernel, padding, dilation, -1)
    taps = weight.permute(2, 3, 0, 1)
    gradient = _sum_of_products(grad, taps, sizes, seen, None) if mask[0] else None
    return gradient, None, grad.sum([0, 2, 3]) if mask[2] else None


def _sum_of_products(
    x: Tensor,
    taps: Tensor,
    sizes: Sequence[int],
    seen: Sequence[Sequence[_Run]],
    bias: Tensor | None,
) -> Tensor:
    """Multiplies what each tap sees of x [n, m, h, w] by its weights: [n, o, *sizes].

    `taps` is [kh, kw, m, o].
    """
    n, channels = x.shape[:2]
    pixels = x.permute(0, 2, 3, 1)
    parts: list[Tensor] = []
    # What sees most comes first: if it sees all, the bias is added with its products.
    for down, right in sorted(itertools.product(*seen), key=_num_seen, reverse=True):
        cut = pixels.narrow(1, down.start, down.length).narrow(2, right.start, right.length)
        rows, weights = cut.reshape(-1, channels), taps[down.tap, right.tap]
        if bias is not None and len(rows) == n * sizes[0] * sizes[1]:
            found, bias = torch.addmm(bias, rows, weights), None
        else:
            found = rows @ weights
        images = found.reshape(n, down.length, right.length, -1).permute(0, 3, 1, 2)
        parts.append(pad(images, _around(right, sizes[1]) + _around(down, sizes[0])))
    total = functools.reduce(torch.add, parts)
    return total if bias is None else total + bias.reshape(1, -1, 1, 1)


def _num_seen(pair: Sequence[_Run]) -> int:
    return pair[0].length * pair[1].length


def _around(run: _Run, size: int) -> list[int]:
    return [run.place, size - run.place - run.length]
