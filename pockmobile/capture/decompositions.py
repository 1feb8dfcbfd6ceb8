"""The operators that a joint graph is made of: core ATen, less what targets treat better."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from pockmobile.capture.masks import MASKS
from pockmobile.capture.padding import crop
from pockmobile.capture.pooling import max_pool2d_with_indices_backward

_aten = torch.ops.aten


def embedding_dense_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Any:
    """Adds the rows of `grad` where `indices` point, which are never negative."""
    if scale_grad_by_freq:
        return NotImplemented
    if padding_idx >= 0:
        grad = grad * (indices != padding_idx).to(grad.dtype).unsqueeze(-1)
    zeros = grad.new_zeros((num_weights, grad.shape[-1]))
    return _aten.index_put.default(zeros, [indices], grad, True)


def slice_backward(
    grad: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int
) -> Any:
    """Pads with zeros where the slice was cut; needs no scatter for a step of one."""
    if step != 1:
        return NotImplemented
    dim %= len(sizes)
    start, _, _ = slice(start, end).indices(sizes[dim])
    after = sizes[dim] - start - grad.shape[dim]
    pads = [0, 0] * (len(sizes) - 1 - dim) + [start, after]
    return _aten.constant_pad_nd.default(grad, pads, 0.0)


def select_backward(grad: Tensor, sizes: list[int], dim: int, index: int) -> Any:
    """Pads with zeros around the one index that was taken."""
    dim %= len(sizes)
    index %= sizes[dim]
    return slice_backward(grad.unsqueeze(dim), sizes, dim, index, index + 1, 1)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, extra: list[int], groups: int,
    mask: list[bool],
) -> Any:  # fmt: skip
    """Writes that of a transposed convolution as a convolution, whose roles are turned.

    A transposed convolution is the input's gradient of a convolution with its weight; so its
    input is that convolution's output, and its gradient that convolution's input.
    """
    if not transposed:
        return NotImplemented
    window = (stride, padding, dilation)
    turned: list[Tensor | None] = [None, None, None]
    if mask[0]:
        turned[0] = _aten.convolution.default(
            grad, weight, None, *window, False, [0] * len(extra), groups
        )
    if mask[1]:
        turned[1] = _aten.convolution_backward.default(
            x,
            grad,
            weight,
            None,
            *window,
            False,
            [0] * len(extra),
            groups,
            [False, True, False],
        )[1]
    if mask[2]:
        turned[2] = grad.sum([0, *range(2, grad.dim())])
    return tuple(turned)


_KEPT: Final = (
    # Targets write these masks in their own operators.
    _aten.threshold_backward.default,
    _aten.hardtanh_backward.default,
)


def _table() -> dict[Any, Callable[..., Any]]:
    table = dict(core_aten_decompositions())
    for target in _KEPT:
        table.pop(target, None)
    table[_aten.embedding_dense_backward.default] = embedding_dense_backward
    table[_aten.slice_backward.default] = slice_backward
    table[_aten.select_backward.default] = select_backward
    table[_aten.convolution_backward.default] = convolution_backward
    table[_aten.constant_pad_nd.default] = crop
    table.update(MASKS)
    table[_aten.max_pool2d_with_indices_backward.default] = max_pool2d_with_indices_backward
    return table


DECOMPOSITIONS: Final[Mapping[Any, Callable[..., Any]]] = _table()
"""What the capture decomposes, below autograd."""
