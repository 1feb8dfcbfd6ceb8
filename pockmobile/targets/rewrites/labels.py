"""Writes what picks or puts one number of a row as a comparison with the row's positions.

Targets without `where` multiply by what the comparison yields, as ones and zeros.
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
    chosen = _chosen(x, dim, index)
    if chosen is None:
        return NotImplemented
    return (x * chosen.to(x.dtype)).sum(-1, keepdim=True)


def scatter_into_zeros(x: Tensor, dim: int, index: Tensor, values: Tensor | float) -> Any:
    """Multiplies a row's value by 1 at the label's place and 0 elsewhere; x is zero."""
    chosen = _chosen(x, dim, index)
    if chosen is None or (isinstance(values, Tensor) and values.shape != index.shape):
        return NotImplemented
    return chosen.to(x.dtype) * values


def _chosen(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Returns where a row's label is; None if there is not one label for each row."""
    is_last = dim % x.dim() == x.dim() - 1
    if not is_last or index.shape != (*x.shape[:-1], 1):
        return None
    places = torch.arange(x.shape[-1], dtype=index.dtype, device=index.device)
    return index == places
