"""Writes what picks or puts one number of a row as a comparison with the row's positions.

Targets without `where` multiply by ones and zeros, which the host puts there.
"""

from typing import Any

import torch
from torch import Tensor


def gather(x: Tensor, dim: int, index: Tensor, **_: Any) -> Any:
    """Sums what lies at the label's place and zeros elsewhere."""
    chosen = _chosen(x, dim, index)
    if chosen is None:
        return NotImplemented
    return torch.where(chosen, x, torch.zeros_like(x)).sum(-1, keepdim=True)


def scatter(x: Tensor, dim: int, index: Tensor, values: Tensor) -> Any:
    """Takes the value at the label's place and x elsewhere."""
    chosen = _chosen(x, dim, index)
    return NotImplemented if chosen is None else torch.where(chosen, values, x)


def gather_finite(x: Tensor, dim: int, index: Tensor, **_: Any) -> Any:
    """Sums x, which must be finite, times 1 at the label's place and 0 elsewhere."""
    if not _is_one_a_row(x, dim, index):
        return NotImplemented
    return (x * _one_hot(x, index)).sum(-1, keepdim=True)


def scatter_into_zeros(x: Tensor, dim: int, index: Tensor, values: Tensor | float) -> Any:
    """Multiplies a row's value by 1 at the label's place and 0 elsewhere; x is zero."""
    if not _is_one_a_row(x, dim, index):
        return NotImplemented
    if isinstance(values, Tensor):
        return NotImplemented if values.shape != index.shape else _one_hot(x, index) * values
    return NotImplemented if values == 1.0 else _one_hot(x, index) * values


def _one_hot(x: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, index, 1.0)


def _chosen(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Returns where a row's label is; None if there is not one label for each row."""
    if not _is_one_a_row(x, dim, index):
        return None
    places = torch.arange(x.shape[-1], dtype=index.dtype, device=index.device)
    return index == places


def _is_one_a_row(x: Tensor, dim: int, index: Tensor) -> bool:
    return dim % x.dim() == x.dim() - 1 and index.shape == (*x.shape[:-1], 1)
