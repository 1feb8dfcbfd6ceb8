"""int8 for frozen weights; XNNPACK quantises what they multiply as the program runs."""

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

_LEAST_ELEMENTS: Final = 512
_LEAST_INPUTS: Final = 8
_LEAST_CLASSES, _TIMES_WIDER = 2048, 8
"""From how many outputs on, and how many times its inputs, a layer is a choice among many."""
_LARGEST: Final = 127


@final
@dataclass(frozen=True)
class Quantized:
    """int8 values [channels, ...] with a scale for each channel: value = scale * number."""

    values: Tensor
    scales: Tensor


def pays(outputs: int, inputs: int, *, is_turned: bool = False) -> bool:
    """Whether a weight is large enough: small ones are as fast, and smaller matter little.

    What multiplies one to get a gradient (`is_turned`) through a choice among many, as of
    tokens, is better float32: nearly all of its numbers are small, and would be 0 in int8
    beside the largest.
    """
    if is_turned and inputs >= max(_LEAST_CLASSES, _TIMES_WIDER * outputs):
        return False
    return inputs >= _LEAST_INPUTS and inputs * outputs >= _LEAST_ELEMENTS


def quantized(weight: Tensor) -> Quantized:
    """Rounds a weight to int8, symmetrically, with a scale for each row of dimension 0.

    The error of an element is at most half its row's scale, 1/254 of the row's largest.
    """
    rows = weight.detach().to(torch.float32).reshape(len(weight), -1)
    scales = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    values = (rows / scales[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return Quantized(values.reshape(weight.shape), scales)
