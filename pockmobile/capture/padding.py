"""Padding by what x holds itself, in slices that are joined; and padding that crops."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as func
from torch import Tensor

_aten = torch.ops.aten


def pad(
    x: Tensor, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Pads the last dimensions, the last one's first."""
    if mode == "constant":
        return func.pad(x, list(pads), value=0.0 if value is None else value)
    for index in range(len(pads) // 2):
        dim, before, after = x.dim() - 1 - index, pads[2 * index], pads[2 * index + 1]
        x = _cropped(x, dim, min(0, before), min(0, after))
        parts = _SIDES[mode](x, dim, max(0, before), max(0, after))
        x = torch.cat([part for part in parts if part.shape[dim]], dim)
    return x


def crop(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Any:
    """Writes padding by negative numbers as slices."""
    if min(pads, default=0) >= 0:
        return NotImplemented
    for index in range(len(pads) // 2):
        dim, before, after = x.dim() - 1 - index, pads[2 * index], pads[2 * index + 1]
        x = _cropped(x, dim, min(0, before), min(0, after))
    rest = [max(0, number) for number in pads]
    return func.pad(x, rest, value=value) if any(rest) else x


def _cropped(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    return x.narrow(dim, -before, x.shape[dim] + before + after) if before or after else x


def _reflect(x: Tensor, dim: int, before: int, after: int) -> list[Tensor]:
    last = x.shape[dim] - 1
    left = [x.narrow(dim, index, 1) for index in range(before, 0, -1)]
    right = [x.narrow(dim, last - index, 1) for index in range(1, after + 1)]
    return [*left, x, *right]


def _replicate(x: Tensor, dim: int, before: int, after: int) -> list[Tensor]:
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    return [first] * before + [x] + [last] * after


def _circular(x: Tensor, dim: int, before: int, after: int) -> list[Tensor]:
    return [x.narrow(dim, x.shape[dim] - before, before), x, x.narrow(dim, 0, after)]


_SIDES: Final[Mapping[str, Callable[[Tensor, int, int, int], list[Tensor]]]] = {
    "reflect": _reflect,
    "replicate": _replicate,
    "circular": _circular,
}

PADDING: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.pad.default: pad,
    **{
        getattr(_aten, f"{kind}_pad{rank}d").default: functools.partial(pad, mode=mode)
        for kind, mode in (("reflection", "reflect"), ("replication", "replicate"))
        for rank in (1, 2)
    },
}
"""Operators of the forward pass and what is traced in their place."""
