"""What a convolution sees of its input, gathered by operators that only move data."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, TypeAlias, final

import torch
from torch import Tensor

Pair: TypeAlias = tuple[int, int] | list[int]

_LEAST_WIDTH: Final = 48
"""Of products for each row of the kernel, in channels times taps: narrower ones are slow."""

LARGE: Final = 2**18
"""Elements of a weight that is better read as it lies than packed."""

_MOST_LOST: Final = 0.25
"""Of an input's height: where fewer rows come out, products of all cost more than slices."""


@final
@dataclass(frozen=True)
class Geometry:
    """How a 2-D convolution slides over its input.

    `at_once` gathers all that it sees by one operator, for a target that is better at that.
    """

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    at_once: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether it slides by one."""
        return all(step == 1 for step in self.stride)

    def steps(self, x: Tensor, kernel: Sequence[int]) -> list[int]:
        """Returns the height and width of the output."""
        return [
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        ]

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the convolution."""
        result: Tensor = torch.ops.aten.convolution.default(
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


@dataclass(frozen=True)
class Windows(ABC):
    """How a convolution and the gradient of its weight are made of products.

    `is_flipped` turns the kernel around, as the input's gradient sees it.
    """

    kernel: tuple[int, int]
    geometry: Geometry
    is_flipped: bool
    are_shared: ClassVar[bool] = False
    """Whether what a convolution gathers is worth gathering once for a gradient, too."""

    @abstractmethod
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns x [n, i, h, w] convolved with a weight [o, i / groups, kh, kw]."""

    @abstractmethod
    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Returns [o, i / groups, kh, kw] from the output's gradient [n, o, h, w]."""

    def _turned(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers[::-1] if self.is_flipped else numbers


def windows(
    x: Tensor, weight: Tensor, geometry: Geometry, *, is_flipped: bool = False
) -> Windows:
    """Returns how the windows over x [n, i, h, w] best meet a weight [o, i/groups, kh, kw]."""
    height, width = weight.shape[2:]
    seen = [
        (x.shape[2 + i] + 2 * geometry.padding[i] - geometry.dilation[i] * (size - 1))
        for i, size in enumerate((height, width))
    ]
    is_wide = x.shape[1] * width >= _LEAST_WIDTH and geometry.groups == 1
    is_large = x.shape[0] * seen[0] * seen[1] >= weight.shape[0]
    kind: type[Windows] = _AtOnce
    if (
        is_wide
        and is_large
        and geometry.is_dense
        and height * width > 1
        and not geometry.at_once
    ):
        is_narrow = weight.shape[0] <= width * x.shape[1]
        rows = x.shape[2]
        are_used = seen[0] > geometry.padding[0] and rows - seen[0] <= _MOST_LOST * rows
        kind = _ByShifts if is_narrow and are_used else _ByRows
    return kind((height, width), geometry, is_flipped)


@final
class _AtOnce(Windows):
    """Channel c and tap k become channel c*K + k, the order of the weight itself.

    A grouped convolution with constant one-hot filters gathers them: nothing beside a large
    weight, which is read as it lies.
    """

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = weight.reshape(weight.shape[0], -1)
        return product(self._seen(x), parts, self.geometry.groups, bias=bias)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        found = correlation(grad, self._seen(x), self.geometry.groups)
        return found.reshape(found.shape[0], -1, *self.kernel)

    def _seen(self, x: Tensor) -> Tensor:
        return gather(x, self.kernel, self.geometry, is_flipped=self.is_flipped)


@dataclass(frozen=True)
class _SideBySide(Windows):
    """The taps of a row of the kernel are put side by side once, as channels."""

    def _row(self, x: Tensor, above: int) -> tuple[Tensor, int]:
        """Returns them, [n, kw*i, h, w], with `above` rows of zeros above and below.

        And the height of the output.
        """
        height, width = self.geometry.steps(x, self.kernel)
        left, right = self.geometry.padding[1], self.geometry.dilation[1]
        padded = pad(x, (left, left, above, above))
        taps_ = self._turned(range(self.kernel[1]))
        return torch.cat([padded.narrow(3, j * right, width) for j in taps_], 1), height

    def _starts(self) -> list[int]:
        """Returns where each row of the kernel begins to see, from the padding on."""
        down = self.geometry.dilation[0]
        return [i * down for i in self._turned(range(self.kernel[0]))]

    def _rows(self, weight: Tensor) -> Tensor:
        """Returns the weights of each row of the kernel, one below the other: [kh*o, kw*i]."""
        return weight.permute(2, 0, 3, 1).reshape(self.kernel[0] * weight.shape[0], -1)

    def _join(self, rows: Tensor, outputs: int) -> Tensor:
        """Returns the weight of which these, [kh*o, kw*i], are the parts."""
        height, width = self.kernel
        return rows.reshape(height, outputs, width, -1).permute(1, 3, 0, 2)


@final
class _ByRows(_SideBySide):
    """Each row of the kernel multiplies its slice of them."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        outputs, rows = weight.shape[0], self._rows(weight)
        parts = [
            product(under, rows.narrow(0, i * outputs, outputs))
            for i, under in enumerate(self._slices(x))
        ]
        return _shifted(functools.reduce(torch.add, parts), bias)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        parts = [correlation(grad, rows) for rows in self._slices(x)]
        return self._join(torch.cat(parts), grad.shape[1])

    def _slices(self, x: Tensor) -> Iterator[Tensor]:
        row, height = self._row(x, self.geometry.padding[0])
        n, channels, _, width = row.shape
        # Places and channels as one dimension, so that what is cut lies in rows already.
        lines = row.permute(0, 2, 3, 1).reshape(n, -1, width * channels)
        for start in self._starts():
            cut = lines.narrow(1, start, height)
            yield cut.reshape(n, height, width, channels).permute(0, 3, 1, 2)


@final
class _ByShifts(_SideBySide):
    """Each row of the kernel multiplies all of them, and the products are shifted.

    They are narrower than what is multiplied, so that less is copied; and what pads the input
    above and below is not multiplied. Where rows are not padded, some products are lost.
    """

    are_shared = True

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        row, height = self._row(x, 0)
        outputs, found = weight.shape[0], product(row, self._rows(weight))
        shifted = [
            run(found.narrow(1, i * outputs, outputs), 2, start, height)
            for i, start in enumerate(self._shifts())
        ]
        return _shifted(functools.reduce(torch.add, shifted), bias)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        row, _ = self._row(x, 0)
        shifted = [run(grad, 2, -start, row.shape[2]) for start in self._shifts()]
        errors, rows = as_rows(torch.cat(shifted, 1)), as_rows(row)
        if not self.is_flipped:
            return self._join(errors.t() @ rows, grad.shape[1])
        # Outputs and inputs are exchanged next: then this lies nearer to the weight.
        height, width = self.kernel
        found = (rows.t() @ errors).reshape(width, -1, height, grad.shape[1])
        return found.permute(3, 1, 2, 0)

    def _shifts(self) -> list[int]:
        return [start - self.geometry.padding[0] for start in self._starts()]


def gather(
    x: Tensor, kernel: Sequence[int], geometry: Geometry, *, is_flipped: bool = False
) -> Tensor:
    """Returns the windows of x [n, c, h, w], [n, c*kh*kw, out_h, out_w]: the taps innermost."""
    height, width = (int(size) for size in kernel)
    count, channels = height * width, x.shape[1]
    if count == 1 and geometry.is_dense and not any(geometry.padding):
        return x
    one_hot = torch.eye(count).flip(0) if is_flipped else torch.eye(count)
    filters = one_hot.reshape(count, 1, height, width).repeat(channels, 1, 1, 1)
    return replace(geometry, groups=channels).convolve(x, filters)


def is_by_channel(weight: Tensor, groups: int) -> bool:
    """Whether a weight takes each channel to one of its own."""
    return groups == weight.shape[0] and weight.shape[1] == 1


def as_rows(x: Tensor) -> Tensor:
    """Returns the pixels of x [n, c, h, w] as rows [n*h*w, c]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def product(
    x: Tensor, weight: Tensor, groups: int = 1, *, bias: Tensor | None = None
) -> Tensor:
    """Multiplies the pixels of x [n, m, h, w] by weights [o, m/groups]: [n, o, h, w].

    A bias [o] is added.
    """
    n, _, height, length = x.shape
    outputs, inner = weight.shape
    rows = as_rows(x)
    if groups > 1:
        split = rows.reshape(-1, groups, inner).permute(1, 0, 2)
        filters = weight.reshape(groups, outputs // groups, inner).permute(0, 2, 1)
        found = torch.bmm(split, filters).permute(1, 0, 2)
    elif bias is None:
        found = rows @ weight.t()
    else:
        found, bias = torch.addmm(bias, rows, weight.t()), None
    return _shifted(found.reshape(n, height, length, outputs).permute(0, 3, 1, 2), bias)


def _shifted(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.reshape(1, -1, 1, 1)


def correlation(grad: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """Returns the gradient [o, m/groups] of what multiplied the pixels of x [n, m, h, w].

    `grad` is that of the product, [n, o, h, w].
    """
    errors, rows = as_rows(grad), as_rows(x)
    if groups == 1:
        return errors.t() @ rows
    outputs, width = errors.shape[1], rows.shape[1]
    by_group = rows.reshape(-1, groups, width // groups).permute(1, 0, 2)
    split = errors.reshape(-1, groups, outputs // groups).permute(1, 2, 0)
    return torch.bmm(split, by_group).reshape(outputs, -1)


def taps(
    x: Tensor, kernel: Sequence[int], geometry: Geometry, *, is_flipped: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Yields each tap of a depthwise kernel with what lies under it, [n, c, out_h, out_w].

    Where it strides, places that lie a stride apart are gathered first, by a depthwise
    convolution with one weight of 1. So what lies under a tap is always a slice.
    """
    height, width = (int(size) for size in kernel)
    down, right = geometry.dilation
    sizes, phase = geometry.steps(x, kernel), _phases(x, geometry)
    for j in range(width):
        first, across = divmod(j * right, geometry.stride[1])
        for i in range(height):
            above, along = divmod(i * down, geometry.stride[0])
            column = run(phase(along, across), 3, first, sizes[1])
            tap = i * width + j
            yield (
                (height * width - 1 - tap if is_flipped else tap),
                run(column, 2, above, sizes[0]),
            )


def _phases(x: Tensor, geometry: Geometry) -> Callable[[int, int], Tensor]:
    """Returns what gives the padded places from a row and column on, a stride apart."""
    (above, left), channels = geometry.padding, x.shape[1]
    if geometry.is_dense:
        padded = pad(x, (left, left, above, above))
        return lambda row, column: padded
    gathering = replace(geometry, dilation=[1, 1], groups=channels)

    def phase(row: int, column: int) -> Tensor:
        last = torch.eye((row + 1) * (column + 1))[-1].reshape(1, 1, row + 1, column + 1)
        return gathering.convolve(x, last.expand(channels, -1, -1, -1))

    return phase


def run(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Returns `length` elements of a dimension from `start`; zeros where there are none.

    `start` may be negative, and some elements must be there.
    """
    before, behind = max(0, -start), max(0, start + length - x.shape[dim])
    present = length - before - behind
    if present < x.shape[dim]:
        x = x.narrow(dim, start + before, present)
    return pad(x, (*(0, 0) * (x.dim() - 1 - dim), before, behind))


def pad(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Returns x with zeros at its borders, the last dimension's first."""
    return torch.nn.functional.pad(x, list(widths)) if any(widths) else x
