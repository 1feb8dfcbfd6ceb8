"""Which operators the delegate takes, and why it leaves the others."""

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pockmobile.graph.rewrite import shape_of, value_of
from pockmobile.targets.partition import VIEWED
from pockmobile.targets.xnnpack.convolution import CONVOLUTION
from pockmobile.targets.xnnpack.elementwise import ELEMENTWISE
from pockmobile.targets.xnnpack.emitter import Emit
from pockmobile.targets.xnnpack.matmul import MATMUL
from pockmobile.targets.xnnpack.reduce import REDUCE
from pockmobile.targets.xnnpack.views import VIEWS

_aten = torch.ops.aten

EMITTERS: Final[Mapping[Any, Emit]] = {
    **ELEMENTWISE,
    **MATMUL,
    **VIEWS,
    **REDUCE,
    **CONVOLUTION,
}
WHOLE_NUMBERS: Final = "of whole numbers or truth values"
"""Why what computes on no numbers with a point is left: it is no work for a delegate."""

_MAX_RANK: Final = 6


def refusal(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    """Returns why the delegate does not take a node, or None if it does."""
    if not _touches_floats(node):
        return WHOLE_NUMBERS
    if node.target not in EMITTERS:
        return "XNNPACK has no such operator"
    if node.target is operator.getitem:
        return _refuse_getitem(node, constants)
    reason = _refuse_types(node)
    if reason:
        return reason
    check = _CHECKS.get(node.target)
    return check(node, constants) if check else None


def _touches_floats(node: fx.Node) -> bool:
    values = tree_leaves([other.meta["val"] for other in (node, *node.all_input_nodes)])
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in values)


def _refuse_types(node: fx.Node) -> str | None:
    values = [parent.meta["val"] for parent in node.all_input_nodes]
    own = node.meta["val"]
    values.append(own[0] if isinstance(own, tuple) else own)
    for value in values:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return "XNNPACK takes float32 only"
        if value.dim() > _MAX_RANK:
            return f"XNNPACK takes at most {_MAX_RANK} dimensions"
    if values[-1].dim() == 0:
        return "one number, cheaper outside"
    if any(value.dim() == 0 for value in values):
        return "takes one number without dimensions"
    return None


_Check = Callable[[fx.Node, Container[fx.Node]], str | None]


def _refuse_getitem(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return refusal(source, constants)


def _refuse_convolution(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    weight, bias = node.args[1:3]
    if weight not in constants or (bias is not None and bias not in constants):
        return "XNNPACK packs a convolution's weight and bias, so they must be frozen"
    if len(shape_of(node)) != 4:
        return "XNNPACK takes 2-D convolutions only"
    return None


def _refuse_slice(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    step = node.args[4] if len(node.args) > 4 else 1
    return None if step == 1 else "XNNPACK slices with a step of one only"


def _refuse_pooling(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    if any(user.args[1] != 0 for user in node.users):
        return "XNNPACK's max pooling does not tell where the maximum was"
    if len(node.args) > 5 and node.args[5]:
        return "XNNPACK does not pool in ceil mode"
    return None


def _refuse_gelu(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    return None if node.kwargs.get("approximate", "none") == "none" else "a GELU by tanh"


def _refuse_scaled(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    return f"with {', '.join(node.kwargs)}" if node.kwargs else None


def _refuse_pad(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    pads: list[int] = list(node.args[1])  # type: ignore[arg-type]
    return "XNNPACK does not crop by padding" if min(pads) < 0 else None


def _refuse_addmm(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    bias = node.args[0]
    assert isinstance(bias, fx.Node)
    if node.kwargs or shape_of(bias) != shape_of(node)[1:]:
        return "its first argument is no bias"
    return None


_LARGE: Final = 2**14
"""Elements of an input that are not copied."""


def _refuse_view(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    (source, _) = node.args
    assert isinstance(source, fx.Node)
    is_large = source.op == "placeholder" and value_of(source).numel() >= _LARGE
    return VIEWED if is_large else None


_CHECKS: Final[Mapping[Any, _Check]] = {
    _aten.view_copy.default: _refuse_view,
    _aten.convolution.default: _refuse_convolution,
    _aten.slice_copy.Tensor: _refuse_slice,
    _aten.max_pool2d_with_indices.default: _refuse_pooling,
    _aten.gelu.default: _refuse_gelu,
    _aten.add.Tensor: _refuse_scaled,
    _aten.sub.Tensor: _refuse_scaled,
    _aten.div.Tensor: _refuse_scaled,
    _aten.constant_pad_nd.default: _refuse_pad,
    _aten.addmm.default: _refuse_addmm,
}
