"""What a convolution sees of its input, gathered by operators that only move data."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

Pair: TypeAlias = tuple[int, int] | list[int]

_LEAST_CHANNELS: Final = 16
"""Of an input whose windows are products of their own for each row of the kernel: with fewer,
such a product is too narrow to be fast."""


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
    """How windows are gathered, and how a weight lies against them.

    `gather` gives parts one after another, so that no more than one need exist at a time. A
    convolution is the sum of the products of each with its part of the weight, and the
    weight's gradient is made of the products of each with the output's gradient.
    `is_flipped` turns the kernel around, as the input's gradient sees it.
    """

    kernel: tuple[int, int]
    geometry: Geometry
    is_flipped: bool

    @abstractmethod
    def gather(self, x: Tensor) -> Iterator[Tensor]:
        """Yields parts of the windows of x [n, c, h, w], each [n, m, out_h, out_w]."""

    @abstractmethod
    def parts(self, weight: Tensor) -> Sequence[Tensor]:
        """Returns the parts of a weight [o, i, kh, kw], each [o, m / groups]."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns the weight that has these parts."""


def windows(
    channels: int, kernel: Sequence[int], geometry: Geometry, *, is_flipped: bool = False
) -> Windows:
    """Returns how the windows over an input of `channels` are best gathered."""
    height, width = (int(size) for size in kernel)
    is_wide = channels >= _LEAST_CHANNELS and geometry.groups == 1
    by_rows = is_wide and geometry.is_dense and height * width > 1 and not geometry.at_once
    kind = _ByRows if by_rows else _AtOnce
    return kind((height, width), geometry, is_flipped)


@final
class _AtOnce(Windows):
    """One part: channel c and tap k become channel c*K + k, the order of the weight itself.

    A grouped convolution with constant one-hot filters gathers it.
    """

    def gather(self, x: Tensor) -> Iterator[Tensor]:
        height, width = self.kernel
        taps, channels = height * width, x.shape[1]
        if taps == 1 and self.geometry.is_dense and not any(self.geometry.padding):
            yield x
            return
        one_hot = torch.eye(taps).flip(0) if self.is_flipped else torch.eye(taps)
        filters = one_hot.reshape(taps, 1, height, width).repeat(channels, 1, 1, 1)
        yield replace(self.geometry, groups=channels).convolve(x, filters)

    def parts(self, weight: Tensor) -> Sequence[Tensor]:
        return [weight.reshape(weight.shape[0], -1)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        (part,) = parts
        return part.reshape(part.shape[0], -1, *self.kernel)


@final
class _ByRows(Windows):
    """A part for each row of the kernel, whose channels are those of its taps side by side.

    The taps of a row are put side by side once, and each row of the kernel is a slice of that.
    """

    def gather(self, x: Tensor) -> Iterator[Tensor]:
        height, width = self.kernel
        padded, sizes = _padded(x, self.kernel, self.geometry)
        down, right = self.geometry.dilation
        columns = [padded.narrow(3, j * right, sizes[1]) for j in self._turned(range(width))]
        row = torch.cat(columns, 1)
        for i in self._turned(range(height)):
            yield row.narrow(2, i * down, sizes[0])

    def _turned(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers[::-1] if self.is_flipped else numbers

    def parts(self, weight: Tensor) -> Sequence[Tensor]:
        turned = weight.permute(2, 0, 3, 1)
        return [turned[i].reshape(weight.shape[0], -1) for i in range(self.kernel[0])]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        outputs, width = parts[0].shape[0], self.kernel[1]
        rows = torch.cat([part.reshape(1, outputs, width, -1) for part in parts])
        return rows.permute(1, 3, 0, 2)


def taps(
    x: Tensor, kernel: Sequence[int], geometry: Geometry, *, is_flipped: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Yields each tap of a depthwise kernel with what lies under it, [n, c, out_h, out_w].

    Where it slides by one that is a slice. Else a depthwise convolution with one weight of 1
    gathers it.
    """
    height, width = (int(size) for size in kernel)
    count, channels = height * width, x.shape[1]
    if count == 1 and geometry.is_dense and not any(geometry.padding):
        yield 0, x
    elif geometry.is_dense:
        for tap, under in _slices(x, (height, width), geometry):
            yield (count - 1 - tap if is_flipped else tap), under
    else:
        one_hot = torch.eye(count).flip(0) if is_flipped else torch.eye(count)
        filters = one_hot.reshape(count, 1, 1, height, width)
        for tap, one in enumerate(filters):
            weight = one.expand(channels, 1, height, width)
            yield tap, replace(geometry, groups=channels).convolve(x, weight)


def _slices(
    x: Tensor, kernel: tuple[int, int], geometry: Geometry
) -> Iterator[tuple[int, Tensor]]:
    padded, sizes = _padded(x, kernel, geometry)
    down, right = geometry.dilation
    for j in range(kernel[1]):
        column = padded.narrow(3, j * right, sizes[1])
        for i in range(kernel[0]):
            yield i * kernel[1] + j, column.narrow(2, i * down, sizes[0])


def _padded(
    x: Tensor, kernel: tuple[int, int], geometry: Geometry
) -> tuple[Tensor, tuple[int, int]]:
    """Returns the padded input, and the height and width of what slides over it by one."""
    (above, left), dilation = geometry.padding, geometry.dilation
    padded = pad(x, (left, left, above, above))
    height, width = (padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) for i in range(2))
    return padded, (height, width)


def pad(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Returns x with zeros at its borders, the last dimension's first."""
    return torch.nn.functional.pad(x, list(widths)) if any(widths) else x
