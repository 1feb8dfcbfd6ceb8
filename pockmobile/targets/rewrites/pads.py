"""Writes pads as concatenations, for targets that pad wrongly or only a few dimensions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_symmetric(widths: Sequence[int]) -> bool:
    """Whether as much is added before as behind, to height and width at most."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    return all(left == right >= 0 for left, right in pairs) and not any(widths[4:])


def pad_by_joining(x: Tensor, widths: list[int], value: float = 0.0) -> Any:
    """Joins x and constants; three dimensions at a time, whatever the rank of x."""
    if min(widths) < 0 or (is_symmetric(widths) and x.dim() == 4):
        return NotImplemented
    shape = list(x.shape)
    for index in range(len(widths) // 2):
        before, after = widths[2 * index : 2 * index + 2]
        if not before and not after:
            continue
        dim = len(shape) - 1 - index
        # What lies behind is no dimension of its own if it is one element.
        outer, inner = math.prod(shape[:dim]), [math.prod(shape[dim + 1 :])]
        inner = inner if inner != [1] else []
        parts = [x.reshape(outer, shape[dim], *inner)]
        for size, place in ((before, 0), (after, 2)):
            fill = torch.full((outer, size, *inner), value, device=x.device)
            parts[place:place] = [fill] if size else []
        shape[dim] += before + after
        x = torch.cat(parts, 1)
    return x.reshape(shape)
