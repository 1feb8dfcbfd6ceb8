"""int8 and int4 for frozen weights; XNNPACK quantises what they multiply as a program runs."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

import torch
from torch import Tensor

from pockmobile.targets.xnnpack.content import Content

Precision: TypeAlias = Literal["fp32", "int8", "int4"]

_LEAST_ELEMENTS: Final = 512
_LEAST_INPUTS: Final = 8
_LEAST_CLASSES, _TIMES_WIDER = 2048, 8
"""From how many outputs on, and how many times its inputs, a layer is a choice among many."""
_LARGEST: Final = 127
_GROUP: Final = 32
_LEAST_ELEMENTS_IN_GROUPS: Final = 4096
"""As fast in int4 as in int8; of fewer, int4 saves less than 2 kB."""
_LOWEST_OF_GROUP, _HIGHEST_OF_GROUP = -8, 7
_TRIED: Final = (6.4, 7.4, 7.8, 8.0, 8.2, 8.6, 9.0, 9.5)
"""Largest numbers of a group for which its scale is made, beside the highest."""


@final
@dataclass(frozen=True)
class Quantized:
    """A weight as numbers, int8 [channels, ...], and their scales: value = scale * number.

    In int8 each channel has a scale, float32 [channels]. In int4 a weight is [outputs, inputs],
    its numbers are from -8 to 7, and each `group` of a row's has a scale, bfloat16 [outputs,
    inputs / group]. `weight` is what was rounded.
    """

    values: Tensor
    scales: Tensor
    weight: Tensor
    group: int = 0

    def value_bytes(self) -> Content:
        """Returns the numbers as they are stored: those of int4 two a byte, the first low.

        They are then counted from 0, which stands for -8.
        """
        if self.weight.is_meta:
            size = self.values.numel() // (2 if self.group else 1)
            return Content.made_of(self.weight, f"int{4 if self.group else 8}", size)
        if not self.group:
            return Content.of(self.values)
        raised = (self.values - _LOWEST_OF_GROUP).to(torch.uint8)
        return Content.of(raised[:, 1::2] << 4 | raised[:, ::2])

    def scale_bytes(self) -> Content:
        """Returns the scales as they are stored, in their own type."""
        if self.scales.is_meta:
            size = self.scales.numel() * self.scales.element_size()
            return Content.made_of(self.weight, f"scales {self.group}", size)
        return Content.of(self.scales)


def precision(
    asked: Precision,
    outputs: int,
    inputs: int,
    *,
    is_linear: bool = False,
    is_spread: bool = False,
) -> Precision:
    """Returns how a weight is held where `asked` is the least that is allowed.

    Small weights are as fast in float32, and smaller matter little. int4 is for linear layers:
    XNNPACK has no convolutions in it. There both sizes are whole groups, so that a product and
    its gradient, which sums over the other, hold the weight alike. Rows that are not rounded,
    since they are spread (see the function `is_spread`), are multiplied by int8 at the least.
    """
    size = inputs * outputs
    if asked == "fp32" or inputs < _LEAST_INPUTS or size < _LEAST_ELEMENTS:
        return "fp32"
    are_groups = inputs % _GROUP == 0 and outputs % _GROUP == 0
    is_grouped = is_linear and are_groups and size >= _LEAST_ELEMENTS_IN_GROUPS
    return "int4" if asked == "int4" and is_grouped and not is_spread else "int8"


def is_spread(outputs: int, inputs: int) -> bool:
    """Whether rows of `inputs` numbers are the gradient of a choice among many, as of tokens.

    Nearly all of these are small, and would be 0 in int8 beside the largest.
    """
    return inputs >= max(_LEAST_CLASSES, _TIMES_WIDER * outputs)


def quantized(weight: Tensor) -> Quantized:
    """Rounds a weight to int8, symmetrically, with a scale for each row of dimension 0.

    The error of an element is at most half its row's scale, 1/254 of the row's largest.
    """
    rows = weight.detach().to(torch.float32).reshape(len(weight), -1)
    scales = _positive(rows.abs().amax(1) / _LARGEST)
    values = (rows / scales[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return Quantized(values.reshape(weight.shape), scales, weight)


def quantized_in_groups(weight: Tensor) -> Quantized:
    """Rounds a weight [outputs, inputs] to int4, with a scale for each 32 inputs of a row.

    Of scales around the one that just reaches a group's largest, the one with the least
    squared error is taken. So the root mean square of the errors in a group is at most half
    that first scale: 1/14 of the group's largest, and 1/256 of that for the rounding to
    bfloat16.
    """
    rows = weight.detach().to(torch.float32).reshape(len(weight), -1, _GROUP)
    largest = rows.abs().amax(2, keepdim=True)
    # The first is tried as it is: no other need be better.
    best = _scale_of_groups(largest / _HIGHEST_OF_GROUP)
    least = _squared_error(rows, best)
    for reached in _TRIED:
        scales = _scale_of_groups(largest / reached)
        error = _squared_error(rows, scales)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    values = _in_groups(rows, best).to(torch.int8).reshape(weight.shape)
    return Quantized(values, best.squeeze(2).to(torch.bfloat16), weight, _GROUP)


def _in_groups(rows: Tensor, scales: Tensor) -> Tensor:
    return (rows / scales).round().clamp(_LOWEST_OF_GROUP, _HIGHEST_OF_GROUP)


def _squared_error(rows: Tensor, scales: Tensor) -> Tensor:
    return (_in_groups(rows, scales) * scales - rows).square().sum(2, keepdim=True)


def _scale_of_groups(scales: Tensor) -> Tensor:
    """Rounds to bfloat16, as which a scale is stored."""
    return _positive(scales).to(torch.bfloat16).to(torch.float32)


def _positive(scales: Tensor) -> Tensor:
    """Replaces 0, which XNNPACK refuses, by the least normal number."""
    return scales.clamp(min=torch.finfo(torch.float32).tiny)
