"""The gradient of max pooling, by operators that every target has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_aten = torch.ops.aten


def max_pool2d_with_indices_backward(
    grad: Tensor, x: Tensor, size: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil_mode: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    """Gives each gradient to the first maximum of its window, without looking at `indices`.

    ExecuTorch 1.5's portable kernel of this name adds into memory that it never clears, so
    its gradients are wrong (kernels/portable/cpu/op_max_pool2d_with_indices_backward.cpp);
    and no delegate tells where a maximum was. So what lies under each tap of a window is
    compared with the maximum, and what one tap does not take is left for the next.
    """
    if ceil_mode:
        return _by_indices(grad, x, indices)
    largest = _aten.max_pool2d_with_indices.default(x, size, stride, padding, dilation)[0]
    planes, errors, maxima = (y.reshape(-1, *y.shape[-3:]) for y in (x, grad, largest))
    axes = [
        _Axis(planes.shape[2 + i], errors.shape[2 + i], *numbers)
        for i, numbers in enumerate(zip(size, stride or size, padding, dilation, strict=True))
    ]
    return _by_taps(errors, planes, maxima, (axes[0], axes[1])).reshape(x.shape)


def _by_indices(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    zeros = x.new_zeros((*x.shape[:-2], x.shape[-2] * x.shape[-1]))
    added = zeros.scatter_add(-1, indices.flatten(-2), grad.flatten(-2))
    return added.reshape(x.shape)


@final
@dataclass(frozen=True)
class _Axis:
    """How windows lie along an axis. It is cut into strides; a tap has a place in one."""

    length: int
    windows: int
    size: int
    stride: int
    padding: int
    dilation: int

    @property
    def strides(self) -> int:
        """How many strides the windows cover."""
        return self.windows + self.dilation * (self.size - 1) // self.stride

    @property
    def taps(self) -> list[tuple[int, int]]:
        """For each tap, the stride in which it lies under the first window, and its place."""
        return [divmod(tap * self.dilation, self.stride) for tap in range(self.size)]

    def covered(self, x: Tensor, dim: int, value: float) -> Tensor:
        """Returns what the windows cover of a dimension, with `value` beyond its ends."""
        after = self.strides * self.stride - self.padding - self.length
        inside = x.narrow(dim, 0, self.length + min(0, after))
        return _pad(inside, dim, self.padding, max(0, after), value)

    def uncovered(self, x: Tensor, dim: int) -> Tensor:
        """Returns the dimension as it was, with zeros where no window was."""
        length = min(self.length, x.shape[dim] - self.padding)
        inside = x.narrow(dim, self.padding, length)
        return _pad(inside, dim, 0, self.length - length, 0.0)


def _by_taps(grad: Tensor, x: Tensor, maxima: Tensor, axes: tuple[_Axis, _Axis]) -> Tensor:
    """All are [n, c, h, w]: the gradient and the maxima of the windows, x of what they see."""
    high, wide = axes
    lowest = torch.finfo(x.dtype).min
    covered = wide.covered(high.covered(x, 2, lowest), 3, lowest)
    cut = covered.reshape(*x.shape[:2], high.strides, high.stride, wide.strides, wide.stride)
    left, sums = grad, dict[tuple[int, int], Tensor]()
    for down, i in high.taps:
        for right, j in wide.taps:
            place = cut[:, :, :, i, :, j]
            under = place.narrow(2, down, high.windows).narrow(3, right, wide.windows)
            # 1 where the tap lies below the maximum, exactly.
            passed = left * (maxima - under).clamp(0.0, 1.0).ceil()
            taken = _pad(left - passed, 2, down, high.strides - high.windows - down, 0.0)
            part = _pad(taken, 3, right, wide.strides - wide.windows - right, 0.0)
            sums[i, j] = sums[i, j] + part if (i, j) in sums else part
            left = passed
    return wide.uncovered(high.uncovered(_woven(sums, cut), 2), 3)


def _woven(sums: Mapping[tuple[int, int], Tensor], cut: Tensor) -> Tensor:
    """Returns [n, c, h, w] from what lies at each place of the strides."""
    n, c, high, down, wide, right = cut.shape
    nothing = cut.new_zeros((n, c, high, wide))
    rows = [
        torch.cat([sums.get((i, j), nothing).unsqueeze(4) for j in range(right)], 4)
        for i in range(down)
    ]
    woven = torch.cat([row.unsqueeze(3) for row in rows], 3)
    return woven.reshape(n, c, high * down, wide * right)


def _pad(x: Tensor, dim: int, before: int, after: int, value: float) -> Tensor:
    pads = [0, 0] * (x.dim() - 1 - dim) + [before, after]
    return torch.nn.functional.pad(x, pads, value=value) if before or after else x
