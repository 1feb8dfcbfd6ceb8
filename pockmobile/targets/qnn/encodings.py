"""Between which numbers a value lies, and the 65,536 numbers that stand for it there."""

from typing import Final, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

RANGE_KEY: Final = "range"
"""Where a node keeps the least and the largest number that was measured of it."""
_INFINITE: Final = 1e30
_LEVELS: Final = 65535
_LIMIT_16: Final = torch.iinfo(torch.int16).max


@final
class Range(NamedTuple):
    """Between which numbers a value lies; `is_open` if some of it stands for -infinity."""

    low: float
    high: float
    is_open: bool = False

    def joined(self, other: "Range") -> "Range":
        """Returns the range of both."""
        ends = min(self.low, other.low), max(self.high, other.high)
        return Range(*ends, self.is_open or other.is_open)


def range_of(value: Tensor) -> Range:
    """Returns the range of a tensor; what stands for infinity does not count."""
    finite = value[value.abs() < _INFINITE]
    is_open = bool((value <= -_INFINITE).any())
    if not finite.numel():
        return Range(0.0, 0.0, is_open)
    low, high = torch.aminmax(finite)
    return Range(float(low), float(high), is_open)


Encoding: TypeAlias = tuple[float, int, int, int, torch.dtype]
"""Scale, zero point, least and largest whole number, and the type that holds them."""


def affine(low: float, high: float) -> Encoding:
    """Returns the encoding of the numbers from `low` to `high`, and of zero, exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low or 1.0) / _LEVELS
    # ExecuTorch's name of unsigned numbers of 16 bits.
    return scale, round(-low / scale), 0, _LEVELS, torch.int32


def symmetric(low: float, high: float) -> Encoding:
    """Returns the encoding whose zero is in the middle."""
    return (max(-low, high) or 1.0) / _LIMIT_16, 0, -_LIMIT_16, _LIMIT_16, torch.int16


def ends_of(encoding: Encoding) -> tuple[float, float]:
    """Returns the least and the largest number of an encoding."""
    scale, zero, low, high, _ = encoding
    return (low - zero) * scale, (high - zero) * scale
