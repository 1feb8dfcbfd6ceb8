"""Writes operators that XNNPACK lacks in those that it has."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments, shape_of, value_of
from pockmobile.passes.decompose import Decomposition
from pockmobile.passes.split_one_hot import LEAST_CLASSES
from pockmobile.targets.rewrites import elementary, labels
from pockmobile.targets.rewrites.windows import LARGE
from pockmobile.targets.xnnpack.elementwise import ELEMENTWISE

_aten = torch.ops.aten


def select(node: fx.Node) -> Decomposition | None:
    """Returns the decomposition of a node, if XNNPACK needs one."""
    return _TABLE.get(node.target)


def select_label(node: fx.Node) -> Decomposition | None:
    """Returns products with one-hot labels, unless there are so many that picking is cheaper.

    Then the loss and its gradient do not wait for the host in between.
    """
    if node.target not in _OF_LABELS:
        return None
    is_fit, rule = _OF_LABELS[node.target]
    source = arguments(node)[0]
    is_narrow = bool(shape_of(source)) and shape_of(source)[-1] < LEAST_CLASSES
    return rule if is_narrow and is_fit(source) else None


def select_number(node: fx.Node) -> Decomposition | None:
    """Returns what computes one number as a row of one, which the delegate takes."""
    if node.target not in ELEMENTWISE:
        return None
    values = [value_of(part) for part in (node, *node.all_input_nodes)]
    is_number = all(value.dim() == 0 and value.dtype == torch.float32 for value in values)
    return elementary.as_row(node.target) if is_number else None


def select_large_weight(node: fx.Node) -> Decomposition | None:
    """Returns the product with both sides exchanged, where the right one is a large weight.

    XNNPACK packs the right side anew at each step, and goes through all of it for every few
    rows of the left one.
    """
    if node.target not in _TURNED or node.kwargs:
        return None
    left, right = arguments(node)[-2:]
    is_turned = right.target is _aten.permute_copy.default
    if not is_turned or value_of(right).numel() < LARGE:
        return None
    (rows, inner), outputs = shape_of(left), shape_of(right)[1]
    saved, moved = (outputs - rows) * inner, rows * outputs
    return _TURNED[node.target] if saved >= _LEAST_SAVED * moved else None


_LEAST_SAVED: Final = 3
"""Elements that are not packed, for each of the result, which may be moved."""


def _turned_mm(left: Tensor, right: Tensor) -> Tensor:
    return (right.t() @ left.t()).t()


def _turned_addmm(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return _turned_mm(left, right) + bias


_TURNED: Final[Mapping[Any, Decomposition]] = {
    _aten.mm.default: _turned_mm,
    _aten.addmm.default: _turned_addmm,
}


def _is_finite(node: fx.Node) -> bool:
    """Whether it is a softmax, or its logarithm as this target writes it."""
    if node.target is _aten.view_copy.default:
        return _is_finite(arguments(node)[0])
    return node.target in (_aten._softmax.default, _aten._log_softmax.default)


def _is_zeros(node: fx.Node) -> bool:
    return node.target is _aten.full.default and arguments(node)[1] == 0


_OF_LABELS: Final[Mapping[Any, tuple[Callable[[fx.Node], bool], Decomposition]]] = {
    _aten.gather.default: (_is_finite, labels.gather_finite),
    _aten.scatter.src: (_is_zeros, labels.scatter_into_zeros),
    _aten.scatter.value: (_is_zeros, labels.scatter_into_zeros),
}
"""What the first argument must be, and then what is written."""


_TABLE: Final[Mapping[Any, Decomposition]] = {
    _aten.threshold_backward.default: elementary.threshold_backward,
    _aten.hardtanh_backward.default: elementary.hardtanh_backward,
    _aten.sign.default: elementary.sign,
    _aten.erf.default: elementary.erf,
    _aten._log_softmax.default: elementary.log_of_softmax,
    _aten.native_layer_norm.default: elementary.layer_norm,
    _aten.sum.default: elementary.sum_to_one,
    _aten.sum.dim_IntList: elementary.sum_to_one,
    _aten.amax.default: elementary.largest,
    _aten.mean.default: elementary.mean_by_row,
    _aten.pow.Tensor_Scalar: elementary.power,
    _aten.gelu.default: elementary.gelu,
    _aten.elu.default: elementary.elu,
    _aten.add.Tensor: elementary.binary(torch.add),
    _aten.sub.Tensor: elementary.binary(torch.sub),
    _aten.mul.Tensor: elementary.binary(torch.mul),
    _aten.div.Tensor: elementary.binary(torch.div),
    _aten.expand_copy.default: elementary.expand_number,
}
