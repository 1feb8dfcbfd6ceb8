"""Layers that have no joint graph of their own, in operators that have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as func
from torch import Tensor

_aten = torch.ops.aten
_conv2d: Any = func.conv2d


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,),
    padding: str | Sequence[int] = (0,), dilation: Sequence[int] = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolves along the last dimension, as a row of an image."""
    planes, kernel = x.unsqueeze(-2), weight.unsqueeze(-2)
    steps, spread = (1, _single(stride)), (1, _single(dilation))
    if isinstance(padding, str):
        result = padded_conv2d(planes, kernel, bias, steps, padding, spread, groups)
    else:
        pads = (0, _single(padding))
        result = _conv2d(planes, kernel, bias, steps, pads, spread, groups)
    return result.squeeze(-2)


def padded_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1, 1),
    padding: str = "valid", dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolves with as much padding as a word says, written in numbers."""
    rows, columns = (
        step * (size - 1) if padding == "same" else 0
        for step, size in zip(_pair(dilation), weight.shape[2:], strict=True)
    )
    if rows % 2 or columns % 2:
        # One more at the end than at the start.
        x = func.pad(x, (0, columns % 2, 0, rows % 2))
    result: Tensor = _conv2d(
        x, weight, bias, stride, (rows // 2, columns // 2), dilation, groups
    )
    return result


def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,), extra: Sequence[int] = (0,), groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:  # fmt: skip
    """The same for a transposed convolution."""
    result = func.conv_transpose2d(
        x.unsqueeze(-2), weight.unsqueeze(-2), bias, (1, _single(stride)),
        (0, _single(padding)), (0, _single(extra)), groups, (1, _single(dilation)),
    )  # fmt: skip
    return result.squeeze(-2)


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolves planes: those under one place of the kernel become the channels of one."""
    (step, *steps), (pad, *pads), (gap, *gaps) = map(_triple, (stride, padding, dilation))
    rows = x if x.dim() == 5 else x.unsqueeze(0)
    rows = func.pad(rows, (0, 0, 0, 0, pad, pad)) if pad else rows
    size = weight.shape[2]
    depth = (rows.shape[2] - gap * (size - 1) - 1) // step + 1
    starts = [gap * index for index in range(size)]
    stack = torch.stack([rows[:, :, a : a + step * (depth - 1) + 1 : step] for a in starts], 2)
    planes = stack.permute(0, 3, 1, 2, 4, 5).reshape(-1, rows.shape[1] * size, *x.shape[-2:])
    kernel = weight.reshape(len(weight), -1, *weight.shape[3:])
    flat = _conv2d(planes, kernel, bias, steps, pads, gaps, groups)
    result: Tensor = flat.reshape(len(rows), depth, *flat.shape[1:]).transpose(1, 2)
    return result if x.dim() == 5 else result.squeeze(0)


def bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns sum_ij left_i weight_oij right_j for each output o."""
    outputs, inner, other = weight.shape
    flat = weight.permute(1, 0, 2).reshape(inner, outputs * other)
    mixed = (left @ flat).reshape(*left.shape[:-1], outputs, other)
    result = (mixed * right.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


def weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """Returns vectors of these directions and lengths; the vectors lie across `dim`."""
    others = [axis for axis in range(direction.dim()) if axis != dim % direction.dim()]
    return direction * (length / (direction * direction).sum(others, keepdim=True).sqrt())


class _Length(torch.autograd.Function):
    """The length of vectors, whose gradient is zero where they are, without a `where`."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, dims: list[int]) -> Tensor:
        length = (x * x).sum(dims, keepdim=True).sqrt()
        ctx.save_for_backward(x, length)
        return length

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        x, length = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * (x / length.clamp(min=_SHORTEST)), None


def vector_norm(
    x: Tensor, order: float = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False,
    **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Returns lengths of vectors, or other norms as PyTorch computes them."""
    if order != 2 or kwargs.get("dtype") is not None:
        norm: Tensor = torch.linalg.vector_norm(x, order, dim, keepdim, **kwargs)
        return norm
    dims = [dim] if isinstance(dim, int) else [*(range(x.dim()) if dim is None else dim)]
    length: Tensor = _Length.apply(x, dims)  # type: ignore[no-untyped-call]
    return length if keepdim else length.squeeze(dims)


def cdist(left: Tensor, right: Tensor, order: float = 2.0, mode: int | None = None) -> Tensor:
    """Returns the distance from each row of `left` to each row of `right`."""
    return vector_norm(left.unsqueeze(-2) - right.unsqueeze(-3), order, -1)


def prod(x: Tensor, dim: int, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """Multiplies halves, and halves of these, so that no gradient divides by a zero."""
    if kwargs.get("dtype") is not None or not x.is_floating_point() or not x.shape[dim]:
        plain: Tensor = torch.prod(x, dim, keepdim, **kwargs)
        return plain
    while x.shape[dim] > 1:
        half, odd = divmod(x.shape[dim], 2)
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([pairs, x.narrow(dim, 2 * half, odd)], dim) if odd else pairs
    return x if keepdim else x.squeeze(dim)


def prod_of_all(x: Tensor, **kwargs: Any) -> Tensor:
    """Multiplies all numbers."""
    return prod(x.reshape(-1), 0, **kwargs)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Takes as many of the largest or smallest as there are, which come in order."""
    values, places = torch.topk(x, x.shape[dim], dim, largest=descending)
    return values, places


def embedding_bag(
    table: Tensor, indices: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False,
    mode: int = 0, sparse: bool = False, weights: Tensor | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Sums, averages or takes the maxima of a table's rows, by bags.

    A matrix says which row lies in which bag, so that bags of any sizes are one product; where
    all have the same size, as for a matrix of indices, it is a constant.
    """
    rows = func.embedding(indices, table)
    starts = offsets[:-1] if include_last_offset else offsets
    ends = torch.cat([starts[1:], torch.full_like(starts[:1], len(indices))])
    places = torch.arange(len(indices), device=indices.device)
    inside = (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))
    member = inside.to(table.dtype)
    if padding_idx is not None:
        member = member * (indices != padding_idx % len(table)).to(table.dtype)
    bags = _bags(rows, member, mode, weights)
    # What PyTorch's own gradient would read, and nothing else.
    return bags, indices, offsets, offsets


def _bags(rows: Tensor, member: Tensor, mode: int, weights: Tensor | None) -> Tensor:
    if mode == _MAX:
        beyond = (1.0 - member).unsqueeze(-1) * _ABSENT
        largest = (rows + beyond).amax(1)
        return largest * member.amax(1, keepdim=True)
    total = (member if weights is None else member * weights) @ rows
    return total / member.sum(1, keepdim=True).clamp(min=1.0) if mode == _MEAN else total


def rrelu(
    x: Tensor, low: float = 1 / 8, high: float = 1 / 3, training: bool = False, *_: Any
) -> Tensor:
    """Has the mean of the random slopes, as in evaluation mode."""
    return func.leaky_relu(x, (low + high) / 2.0)


def _pair(numbers: int | Sequence[int]) -> Sequence[int]:
    numbers = [numbers] if isinstance(numbers, int) else numbers
    return [*numbers] * (2 // len(numbers))


def _triple(numbers: Sequence[int]) -> Sequence[int]:
    return [*numbers] * (3 // len(numbers))


def _single(numbers: int | Sequence[int]) -> int:
    return numbers if isinstance(numbers, int) else numbers[0]


_MEAN, _MAX = 1, 2
_ABSENT: Final = -1e30
_SHORTEST: Final = 1e-30

PLAIN: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.conv1d.default: conv1d,
    _aten.conv1d.padding: conv1d,
    _aten.conv2d.padding: padded_conv2d,
    _aten.conv_transpose1d.default: conv_transpose1d,
    _aten.conv3d.default: conv3d,
    _aten.bilinear.default: bilinear,
    _aten.linalg_vector_norm.default: vector_norm,
    _aten.cdist.default: cdist,
    _aten._cdist_forward.default: cdist,
    _aten.prod.default: prod_of_all,
    _aten.prod.dim_int: prod,
    _aten.sort.default: sort,
    _aten._weight_norm.default: weight_norm,
    _aten.embedding_bag.default: embedding_bag,
    _aten.embedding_bag.padding_idx: embedding_bag,
    _aten.rrelu.default: rrelu,
    _aten.rrelu_.default: rrelu,
}
"""Operators of the forward pass and what is traced in their place."""
