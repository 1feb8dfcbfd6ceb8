"""Writes operators that Core ML lacks, or does not take as they are, in others."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites import elementary, labels, rank

_aten = torch.ops.aten


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if Core ML needs one."""
    return _TABLE.get(node.target)


def select_transposed(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a transposed convolution with padding."""
    is_transposed = node.target is _aten.convolution.default and node.args[6]
    return _transposed_convolution if is_transposed else None


def _expm1(x: Tensor) -> Tensor:
    # exp(x) - 1 would lose the digits of a small x: AdamW's correction has x = -0.001.
    return (x * 0.5).tanh() * (x.exp() + 1.0)


def _transposed_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, extra: Sequence[int],
    groups: int,
) -> Any:  # fmt: skip
    """Takes the padding off what a transposed convolution without padding gives."""
    if not any(padding) and not any(extra):
        return NotImplemented
    zeros = [0] * len(padding)
    result: Tensor = _aten.convolution.default(
        x, weight, None, stride, zeros, dilation, True, zeros, groups
    )
    for index, (size, more) in enumerate(zip(padding, extra, strict=True)):
        dim = index + 2
        length = result.shape[dim] - 2 * size + more
        kept = min(length, result.shape[dim] - size)
        result = result.narrow(dim, size, kept)
        after = [0, 0] * (result.dim() - 1 - dim) + [0, length - kept]
        result = torch.constant_pad_nd(result, after) if length > kept else result
    return result if bias is None else result + bias.reshape(1, -1, *[1] * len(padding))


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.add.Tensor: elementary.scaled(torch.add),
    _aten.cat.default: rank.cat,
    _aten.constant_pad_nd.default: rank.pad,
    _aten.expm1.default: _expm1,
    _aten.gather.default: labels.gather,
    _aten.hardtanh_backward.default: elementary.hardtanh_backward,
    _aten._log_softmax.default: elementary.log_softmax,
    _aten.native_group_norm.default: elementary.group_norm,
    _aten.native_layer_norm.default: elementary.layer_norm,
    _aten.pow.Tensor_Scalar: elementary.power,
    _aten.scatter.src: labels.scatter,
    _aten.slice_copy.Tensor: rank.slice,
    _aten.sub.Tensor: elementary.scaled(torch.sub),
    _aten.threshold_backward.default: elementary.threshold_backward,
}
