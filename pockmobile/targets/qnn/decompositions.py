"""Writes operators that QNN lacks, or gets wrong, in those that it has."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites import elementary, pads, rank

_aten = torch.ops.aten


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if QNN needs one."""
    return _TABLE.get(node.target)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Any:
    return NotImplemented if scales else left @ right + bias


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.addmm.default: _addmm,
    _aten.threshold_backward.default: elementary.threshold_backward,
    _aten.hardtanh_backward.default: elementary.hardtanh_backward,
    _aten.sign.default: elementary.sign,
    _aten.erf.default: elementary.erf,
    _aten.native_layer_norm.default: elementary.layer_norm,
    _aten.mean.default: elementary.mean_to_one,
    _aten.pow.Tensor_Scalar: elementary.power,
    _aten.gelu.default: elementary.gelu,
    _aten.add.Tensor: elementary.binary(torch.add),
    _aten.sub.Tensor: elementary.binary(torch.sub),
    _aten.mul.Tensor: elementary.binary(torch.mul),
    _aten.div.Tensor: elementary.binary(torch.div),
    _aten.expand_copy.default: elementary.expand_number,
    _aten.constant_pad_nd.default: pads.pad_by_joining,
    _aten.cat.default: rank.cat,
    _aten.slice_copy.Tensor: rank.slice,
}
