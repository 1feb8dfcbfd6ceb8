"""Writes what compares, picks or puts by whole numbers: QNN has them in 32 bits at most."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites import labels


def narrow(operator: Callable[..., Tensor]) -> Decomposition:
    """Gives an operator its whole numbers in 32 bits; the cast is the host's."""

    def decompose(*values: Any) -> Any:
        given = [_in_32_bits(value) for value in values]
        is_narrow = all(ours is theirs for ours, theirs in zip(given, values, strict=True))
        return NotImplemented if is_narrow else operator(*given)

    return decompose


def gather(x: Tensor, dim: int, index: Tensor, **_: Any) -> Any:
    """Picks one number of each row, by comparison."""
    return labels.gather(x, dim, _in_32_bits(index))


def scatter(x: Tensor, dim: int, index: Tensor, values: Tensor) -> Any:
    """Puts one number into each row, by comparison."""
    return labels.scatter(x, dim, _in_32_bits(index), values)


def embedding(table: Tensor, rows: Tensor, *_: Any) -> Any:
    """Picks rows of a table, which QNN does of a trained one, too, by this operator alone."""
    picked = torch.index_select(table, 0, _in_32_bits(rows).reshape(-1))
    return picked.reshape(*rows.shape, table.shape[1])


def index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """Adds rows to a table, as the product of one-hot rows with them."""
    if not accumulate or len(indices) != 1 or indices[0] is None:
        return NotImplemented
    rows = _in_32_bits(indices[0]).reshape(1, -1)
    places = torch.arange(x.shape[0], dtype=torch.int32, device=x.device).reshape(-1, 1)
    chosen = (places == rows).to(x.dtype)
    added = chosen @ values.expand(*indices[0].shape, *x.shape[1:]).reshape(rows.shape[1], -1)
    return x + added.reshape(x.shape)


def _in_32_bits(value: Any) -> Any:
    is_wide = isinstance(value, Tensor) and value.dtype == torch.int64
    return value.to(torch.int32) if is_wide else value
