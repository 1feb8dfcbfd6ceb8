"""A convolution that strides over few channels, as one that slides over blocks of pixels.

The pixels of a block, as large as the stride, become its channels (space to depth): so there
are more of them, and what the windows see is cut from the blocks in long runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from torch import Tensor

from pockmobile.targets.rewrites.windows import Geometry, Windows, pad, windows

_MOST_CHANNELS: Final = 4
"""Of an input that is cut into blocks."""

_MOST_WIDENED: Final = 1.5
"""By how much a kernel may grow until it consists of blocks: the rest is multiplied by 0."""

_FIRST: Final = 2
"""Of the dimensions of an image, [n, c, h, w], the first that has places."""


def seen(x: Tensor, weight: Tensor, geometry: Geometry) -> Windows:
    """Returns how the windows over x [n, i, h, w] best meet a weight [o, i/groups, kh, kw]."""
    kernel = (weight.shape[2], weight.shape[3])
    if not _has_blocks(x, kernel, geometry):
        return windows(x, weight, geometry)
    blocks = _Blocks(geometry, kernel)
    inner = windows(blocks.of_input(x), blocks.of_weight(weight), _DENSE)
    return _InBlocks(kernel, geometry, False, blocks, inner)


def _has_blocks(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> bool:
    is_plain = geometry.groups == 1 and all(step == 1 for step in geometry.dilation)
    if geometry.at_once or geometry.is_dense or not is_plain or x.shape[1] > _MOST_CHANNELS:
        return False
    blocks = _Blocks(geometry, (kernel[0], kernel[1]))
    widened = math.prod(blocks.kernel) * math.prod(geometry.stride) / math.prod(kernel)
    return widened <= _MOST_WIDENED


_DENSE: Final = Geometry([1, 1], [0, 0], [1, 1], 1)


@final
@dataclass(frozen=True)
class _Blocks:
    """How images and kernels are cut into blocks."""

    geometry: Geometry
    pixels: tuple[int, int]

    @property
    def kernel(self) -> list[int]:
        """Height and width of the kernel in blocks."""
        return [-(-self.pixels[i] // self.geometry.stride[i]) for i in range(2)]

    def of_input(self, x: Tensor) -> Tensor:
        """Returns x [n, c, h, w] as blocks, [n, c * stride * stride, ...]."""
        widths: list[int] = []
        steps = self.geometry.steps(x, self.pixels)
        for i in (1, 0):
            before, length = self.geometry.padding[i], x.shape[_FIRST + i]
            covered = (steps[i] + self.kernel[i] - 1) * self.geometry.stride[i]
            x = x.narrow(_FIRST + i, 0, min(length, covered - before))
            widths += [before, max(0, covered - before - length)]
        return self._cut(pad(x, widths))

    def of_weight(self, weight: Tensor) -> Tensor:
        """Returns a weight [o, c, kh, kw] as blocks, filled up with zeros."""
        widths: list[int] = []
        for i in (1, 0):
            widths += [0, self.kernel[i] * self.geometry.stride[i] - self.pixels[i]]
        return self._cut(pad(weight, widths))

    def to_weight(self, blocks: Tensor) -> Tensor:
        """Returns what `of_weight` made blocks of."""
        down, right = self.geometry.stride
        outputs, _, height, width = blocks.shape
        # Outputs and channels are one dimension: Core ML has five.
        apart = blocks.reshape(-1, down, right, height, width)
        together = apart.permute(0, 3, 1, 4, 2)
        whole = together.reshape(outputs, -1, height * down, width * right)
        for i in range(2):
            whole = whole.narrow(_FIRST + i, 0, self.pixels[i])
        return whole

    def _cut(self, x: Tensor) -> Tensor:
        down, right = self.geometry.stride
        n, channels, height, width = x.shape
        apart = x.reshape(n * channels, height // down, down, width // right, right)
        together = apart.permute(0, 2, 4, 1, 3)
        return together.reshape(n, -1, height // down, width // right)


@final
@dataclass(frozen=True)
class _InBlocks(Windows):
    """What `inner` makes of blocks."""

    blocks: _Blocks
    inner: Windows

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        blocks = self.blocks.of_input(x), self.blocks.of_weight(weight)
        return self.inner.convolve(*blocks, bias)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        found = self.inner.weight_gradient(grad, self.blocks.of_input(x))
        return self.blocks.to_weight(found)
