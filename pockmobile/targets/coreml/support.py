"""Which operators Core ML takes, and why it leaves the others."""

import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of, value_of
from pockmobile.targets.coreml.elementwise import ELEMENTWISE
from pockmobile.targets.coreml.emitter import Emit
from pockmobile.targets.coreml.movement import MOVEMENT, refuse_index, refuse_index_put
from pockmobile.targets.coreml.products import PRODUCTS, first_of_pool

_aten = torch.ops.aten

EMITTERS: Final[Mapping[Any, Emit]] = {
    **ELEMENTWISE,
    **PRODUCTS,
    **MOVEMENT,
    operator.getitem: first_of_pool,
}
_MAX_RANK: Final = 5
_TYPES: Final = (torch.float32, torch.float16, torch.int64, torch.int32, torch.bool)
_Check = Callable[[fx.Node], str | None]


def refusal(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    """Returns why Core ML does not take a node, or None if it does."""
    if node.target not in EMITTERS:
        return "Core ML has no such operator"
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return refusal(source, constants)
    reason = _refuse_types(node)
    if reason:
        return reason
    if node.target is _aten.convolution.default:
        return _refuse_convolution(node, constants)
    check = _CHECKS.get(node.target)
    return check(node) if check else None


def _refuse_types(node: fx.Node) -> str | None:
    values = [parent.meta["val"] for parent in node.all_input_nodes]
    own = node.meta["val"]
    values.append(own[0] if isinstance(own, tuple) else own)
    for value in values:
        if not isinstance(value, Tensor) or value.dtype not in _TYPES:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            return f"Core ML takes no {str(found).removeprefix('torch.')}"
        if value.dim() > _MAX_RANK:
            return f"Core ML takes at most {_MAX_RANK} dimensions"
    return None


def _refuse_arithmetic(node: fx.Node) -> str | None:
    if node.kwargs:
        return f"with {', '.join(node.kwargs)}"
    types = {value_of(other).dtype for other in (*node.all_input_nodes, node)}
    return "Core ML computes with values of one type" if len(types) > 1 else None


def _refuse_convolution(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    weight, bias = node.args[1:3]
    if weight not in constants or (bias is not None and bias not in constants):
        return "a convolution whose weight or bias is trained, of other than 2 dimensions"
    padding, transposed, extra = (node.args[index] for index in (4, 6, 7))
    assert isinstance(padding, Sequence)
    assert isinstance(extra, Sequence)
    if len(shape_of(node)) > 4:
        return "Core ML's convolutions have 1 or 2 dimensions here"
    if transposed and (any(padding) or any(extra)):
        return "a transposed convolution with padding"
    return None


def _refuse_pooling(node: fx.Node) -> str | None:
    if any(user.args[1] != 0 for user in node.users):
        return "Core ML's max pooling does not tell where the maximum was"
    dilation: Any = node.args[4] if len(node.args) > 4 else ()
    return "Core ML pools without dilation" if any(size != 1 for size in dilation) else None


def _refuse_pad(node: fx.Node) -> str | None:
    pads: Any = node.args[1]
    return "Core ML does not crop by padding" if min(pads) < 0 else None


def _refuse_argmax(node: fx.Node) -> str | None:
    has_dim = len(node.args) > 1 and node.args[1] is not None
    return None if has_dim else "Core ML finds a maximum along one dimension"


_CHECKS: Final[Mapping[Any, _Check]] = {
    _aten.add.Tensor: _refuse_arithmetic,
    _aten.addmm.default: _refuse_arithmetic,
    _aten.argmax.default: _refuse_argmax,
    _aten.constant_pad_nd.default: _refuse_pad,
    _aten.div.Tensor: _refuse_arithmetic,
    _aten.index.Tensor: refuse_index,
    _aten.index_put.default: refuse_index_put,
    _aten.max_pool2d_with_indices.default: _refuse_pooling,
    _aten.maximum.default: _refuse_arithmetic,
    _aten.minimum.default: _refuse_arithmetic,
    _aten.mul.Tensor: _refuse_arithmetic,
    _aten.sub.Tensor: _refuse_arithmetic,
}
