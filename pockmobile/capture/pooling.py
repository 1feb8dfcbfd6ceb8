"""The gradient of max pooling, by operators that every target has."""

from collections.abc import Mapping, Sequence
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

    @property
    def around(self) -> tuple[int, int]:
        """How much the windows cover before and behind it; negative where less than all."""
        return self.padding, self.strides * self.stride - self.padding - self.length

    def under(self, tap: int) -> tuple[int, int]:
        """How many strides lie before what is under a tap, and how many behind."""
        before = self.taps[tap][0]
        return before, self.strides - self.windows - before


def _by_taps(grad: Tensor, x: Tensor, maxima: Tensor, axes: tuple[_Axis, _Axis]) -> Tensor:
    """All are [n, c, h, w]: the gradient and the maxima of the windows, x of what they see."""
    high, wide = axes
    covered = _padded(x, high.around, wide.around, torch.finfo(x.dtype).min)
    cut = covered.reshape(*x.shape[:2], high.strides, high.stride, wide.strides, wide.stride)
    left, sums = grad, dict[tuple[int, int], Tensor]()
    for row, (down, i) in enumerate(high.taps):
        for column, (right, j) in enumerate(wide.taps):
            place = cut.narrow(3, i, 1).narrow(5, j, 1)
            under = place.narrow(2, down, high.windows).narrow(4, right, wide.windows)
            # 1 where the tap lies below the maximum, exactly.
            passed = left * (maxima - under.reshape(grad.shape)).clamp(0.0, 1.0).ceil()
            part = _padded(left - passed, high.under(row), wide.under(column), 0.0)
            sums[i, j] = sums[i, j] + part if (i, j) in sums else part
            left = passed
    back = [[-width for width in axis.around] for axis in axes]
    return _padded(_woven(sums, cut), back[0], back[1], 0.0)


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


def _padded(x: Tensor, down: Sequence[int], right: Sequence[int], value: float) -> Tensor:
    """Returns x [n, c, h, w] with `value` before and behind; cropped where that is negative."""
    for dim, (before, behind) in ((2, down), (3, right)):
        crop, rest = max(0, -before), x.shape[dim] + min(0, before) + min(0, behind)
        x = x.narrow(dim, crop, rest) if rest < x.shape[dim] else x
    pads = [max(0, width) for width in (*right, *down)]
    return torch.nn.functional.pad(x, pads, value=value) if any(pads) else x
