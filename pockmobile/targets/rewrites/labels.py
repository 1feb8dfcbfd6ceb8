"""Writes what picks or puts one number of a row as a comparison with the row's positions."""

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


def _chosen(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Returns where a row's label is; None if there is not one label for each row."""
    is_last = dim % x.dim() == x.dim() - 1
    if not is_last or index.shape != (*x.shape[:-1], 1):
        return None
    places = torch.arange(x.shape[-1], dtype=index.dtype, device=index.device)
    return index == places
