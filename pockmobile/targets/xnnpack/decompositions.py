"""Writes operators that XNNPACK lacks in those that it has."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import fx

from pockmobile.passes.decompose import Decomposition
from pockmobile.targets.rewrites import elementary

_aten = torch.ops.aten


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if XNNPACK needs one."""
    return _TABLE.get(node.target)


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.threshold_backward.default: elementary.threshold_backward,
    _aten.hardtanh_backward.default: elementary.hardtanh_backward,
    _aten.sign.default: elementary.sign,
    _aten.erf.default: elementary.erf,
    _aten.native_layer_norm.default: elementary.layer_norm,
    _aten.sum.default: elementary.sum_to_one,
    _aten.sum.dim_IntList: elementary.sum_to_one,
    _aten.mean.default: elementary.mean_to_one,
    _aten.amax.default: elementary.largest,
    _aten.pow.Tensor_Scalar: elementary.power,
    _aten.gelu.default: elementary.gelu,
    _aten.elu.default: elementary.elu,
    _aten.add.Tensor: elementary.binary(torch.add),
    _aten.sub.Tensor: elementary.binary(torch.sub),
    _aten.mul.Tensor: elementary.binary(torch.mul),
    _aten.div.Tensor: elementary.binary(torch.div),
    _aten.expand_copy.default: elementary.expand_number,
}
