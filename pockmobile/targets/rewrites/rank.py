"""Gives operators that leave the first two of six dimensions alone a single one for both."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_TOO_MANY = 6


def pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Any:
    """Pads the last dimensions."""
    if len(pads) > 2 * (x.dim() - 2):
        return NotImplemented
    return _merged(lambda part: torch.constant_pad_nd(part, list(pads), value), x)


def slice(x: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Any:
    """Slices one of the last dimensions."""
    if dim < 2:
        return NotImplemented
    return _merged(
        lambda part: torch.ops.aten.slice.Tensor(part, dim - 1, start, stop, step), x
    )


def cat(values: Sequence[Tensor], dim: int = 0) -> Any:
    """Concatenates one of the last dimensions."""
    rank = values[0].dim()
    if dim % rank < 2:
        return NotImplemented
    return _merged(lambda *parts: torch.cat(parts, dim % rank - 1), *values)


def _merged(operator: Callable[..., Tensor], *values: Tensor) -> Any:
    if values[0].dim() != _TOO_MANY:
        return NotImplemented
    first, second = values[0].shape[:2]
    result = operator(*(value.reshape(-1, *value.shape[2:]) for value in values))
    return result.reshape(first, second, *result.shape[1:])
