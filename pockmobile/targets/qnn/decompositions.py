"""Writes operators that QNN lacks, or gets wrong, in those that it has."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments, shape_of
from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.qnn import whole_numbers
from pockmobile.targets.rewrites import elementary, pads, rank
from pockmobile.targets.rewrites.convolutions import is_constant

_aten = torch.ops.aten


COMPARISONS: Final = (
    _aten.eq.Scalar,
    _aten.eq.Tensor,
    _aten.ge.Scalar,
    _aten.ge.Tensor,
    _aten.gt.Scalar,
    _aten.gt.Tensor,
    _aten.le.Scalar,
    _aten.le.Tensor,
    _aten.lt.Scalar,
    _aten.lt.Tensor,
    _aten.ne.Scalar,
    _aten.ne.Tensor,
)


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if QNN needs one."""
    if is_dilated_depthwise(node) and is_constant(node.args[1]):
        return _dense
    return _TABLE.get(node.target)


def is_dilated_depthwise(node: fx.Node) -> bool:
    """Whether it is a dilated convolution of each channel into several: QNN gets it wrong."""
    if node.target is not _aten.convolution.default:
        return False
    weight, (dilation, is_transposed, _, groups) = arguments(node)[1], arguments(node)[5:9]
    outputs, inner = shape_of(weight)[:2]
    is_depthwise = inner == 1 and outputs > groups > 1 and not is_transposed
    return is_depthwise and bool(max(dilation) > 1)


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: list[int], *rest: Any,
) -> Tensor:  # fmt: skip
    """Puts zeros between the taps of the kernel, which is a constant."""
    outputs, inner, high, wide = weight.shape
    down, right = dilation
    between = (0, right - 1, 0, 0, 0, down - 1)
    apart = torch.nn.functional.pad(weight.reshape(outputs, inner, high, 1, wide, 1), between)
    spread = apart.reshape(outputs, inner, high * down, wide * right)
    kernel = spread[:, :, : (high - 1) * down + 1, : (wide - 1) * right + 1]
    result: Tensor = _aten.convolution(x, kernel, bias, stride, padding, [1, 1], *rest)
    return result


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Any:
    return NotImplemented if scales else left @ right + bias


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.addmm.default: _addmm,
    _aten.threshold_backward.default: elementary.threshold_backward,
    _aten.hardtanh_backward.default: elementary.hardtanh_backward,
    _aten.sign.default: elementary.sign,
    _aten.erf.default: elementary.erf,
    _aten.native_group_norm.default: elementary.group_norm,
    _aten.native_layer_norm.default: elementary.layer_norm,
    _aten.mean.default: elementary.mean_to_one,
    _aten.pow.Tensor_Scalar: elementary.power,
    _aten.gelu.default: elementary.gelu,
    _aten.add.Tensor: elementary.binary(torch.add),
    _aten.sub.Tensor: elementary.binary(torch.sub),
    _aten.mul.Tensor: elementary.binary(torch.mul),
    _aten.div.Tensor: elementary.binary(torch.div),
    _aten.expand_copy.default: elementary.expand_number,
    _aten.flip.default: elementary.flip,
    _aten.constant_pad_nd.default: pads.pad_by_joining,
    _aten.cat.default: rank.cat,
    _aten.slice_copy.Tensor: rank.slice,
    _aten.sum.default: elementary.sum_to_one,
    _aten.sum.dim_IntList: elementary.sum_to_one,
    _aten.embedding.default: whole_numbers.embedding,
    _aten.gather.default: whole_numbers.gather,
    _aten.index_put.default: whole_numbers.index_put,
    _aten.scatter.src: whole_numbers.scatter,
    **{target: whole_numbers.narrow(target) for target in COMPARISONS},
}
