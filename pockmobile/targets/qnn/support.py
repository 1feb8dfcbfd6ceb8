"""Which operators QNN takes, and why it leaves the others."""

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments, shape_of, value_of
from pockmobile.targets.qnn.decompositions import COMPARISONS, is_dilated_depthwise
from pockmobile.targets.rewrites.convolutions import is_depthwise
from pockmobile.targets.rewrites.pads import is_symmetric

_aten = torch.ops.aten

_CHOICES: Final = frozenset(
    {
        *COMPARISONS,
        _aten.bitwise_and.Tensor,
        _aten.bitwise_or.Tensor,
        _aten.logical_and.default,
        _aten.logical_not.default,
        _aten.where.self,
        _aten._to_copy.default,
    }
)
"""What reads truth values, which never leave a delegate."""
_WHOLE: Final = frozenset({*_CHOICES, _aten.argmax.default, _aten.index_select.default})
"""What takes or returns whole numbers, or truth values."""

OPERATORS: Final = frozenset(
    {
        _aten._log_softmax.default,
        _aten._softmax.default,
        _aten._to_copy.default,
        _aten.abs.default,
        _aten.add.Tensor,
        _aten.amax.default,
        _aten.avg_pool2d.default,
        _aten.bmm.default,
        _aten.cat.default,
        _aten.ceil.default,
        _aten.clamp.default,
        _aten.constant_pad_nd.default,
        _aten.convolution.default,
        _aten.cos.default,
        _aten.div.Tensor,
        _aten.exp.default,
        _aten.expand_copy.default,
        _aten.floor.default,
        _aten.gelu.default,
        _aten.hardtanh.default,
        _aten.log.default,
        _aten.max_pool2d_with_indices.default,
        _aten.maximum.default,
        _aten.mean.dim,
        _aten.minimum.default,
        _aten.mm.default,
        _aten.mul.Tensor,
        _aten.neg.default,
        _aten.permute_copy.default,
        _aten.reciprocal.default,
        _aten.relu.default,
        _aten.rsqrt.default,
        _aten.sigmoid.default,
        _aten.sin.default,
        _aten.slice_copy.Tensor,
        _aten.sqrt.default,
        _aten.sub.Tensor,
        _aten.sum.dim_IntList,
        _aten.tanh.default,
        _aten.view_copy.default,
        operator.getitem,
        *_WHOLE,
    }
)
"""Operators that ExecuTorch has builders for, and that were compared with eager PyTorch."""

_REDUCTIONS: Final = (_aten.amax.default, _aten.mean.dim, _aten.argmax.default)
_TRUTH: Final = "QNN's truth values stay inside the delegate"
_LONGEST_SUM: Final = 2048
"""Beyond, float16 leaves out numbers when it counts."""
_LONGEST_CHOICE: Final = 64
"""So many classes were right on the simulator; 256 were not, when a loss was summed of them."""
_MAX_RANK: Final = 5


def refusal(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    """Returns why QNN does not take a node, or None if it does."""
    if node.target not in OPERATORS:
        return "QNN has no such operator for a training step"
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return refusal(source, constants)
    check = _CHECKS.get(node.target)
    return _refuse_types(node) or (check(node, constants) if check else None)


def refusal_in_int16(node: fx.Node) -> str | None:
    """Returns why QNN does not take a node in 16-bit numbers that it takes in float16."""
    if node.target is _aten.log.default:
        return "QNN's logarithm of 16-bit numbers is 0"
    if node.target is _aten.sum.dim_IntList and _is_long_choice(node):
        return f"QNN gets the sum of a choice among over {_LONGEST_CHOICE} 16-bit numbers wrong"
    if node.target is _aten.clamp.default and _is_window(*arguments(node)[1:]):
        return "QNN cuts 16-bit numbers off below 0, not below a positive number"
    if node.target is _aten.convolution.default and max(arguments(node)[5]) > 1:
        return "QNN gets a dilated convolution of 16-bit numbers wrong"
    return None


def _is_long_choice(node: fx.Node) -> bool:
    """Whether each result is the sum of many numbers that `where` chose."""
    source = node.all_input_nodes[0]
    while source.target is _aten.view_copy.default:
        source = source.all_input_nodes[0]
    many = value_of(source).numel() > _LONGEST_CHOICE * value_of(node).numel()
    return many and source.target is _aten.where.self


def _is_window(least: float | None = None, most: float | None = None) -> bool:
    return least is not None and least > 0 and most is not None


def _refuse_types(node: fx.Node) -> str | None:
    own = node.meta["val"]
    if any(parent.meta["val"].dtype == torch.float16 for parent in node.all_input_nodes):
        return "the optimizer goes on in float32"
    values = [parent.meta["val"] for parent in node.all_input_nodes]
    values.append(own[0] if isinstance(own, tuple) else own)
    for value in values:
        if not isinstance(value, Tensor) or not _is_known(node, value.dtype):
            return "QNN takes floats here, no whole numbers"
        if value.dim() > _MAX_RANK:
            return f"QNN takes at most {_MAX_RANK} dimensions"
    if value.dim() == 0 and node.target in _REDUCTIONS:
        return "one number, cheaper outside"
    return None


def _is_known(node: fx.Node, dtype: torch.dtype) -> bool:
    """Whether an operator may read or write values of a type."""
    if dtype == torch.float32:
        return True
    if dtype == torch.float16:
        # What a gradient ends in.
        return node.target is _aten._to_copy.default
    if dtype == torch.int64:
        return _is_place(node)
    return node.target in _WHOLE and dtype in (torch.bool, torch.int32)


def _is_place(node: fx.Node) -> bool:
    """Whether it is the place of a maximum, or makes that a whole number of 32 bits."""
    if node.target is _aten.argmax.default:
        return all(user.meta["val"].dtype == torch.int32 for user in node.users)
    is_narrow = node.meta["val"].dtype == torch.int32
    return is_narrow and node.all_input_nodes[0].target is _aten.argmax.default


def _refuse_choice(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    """Keeps truth values inside: only what a delegate computes itself is read there."""
    read = [parent for parent in node.all_input_nodes if _is_truth(parent)]
    if any(parent not in constants and refusal(parent, constants) for parent in read):
        return _TRUTH
    if _is_truth(node) and any(user.target not in _CHOICES for user in node.users):
        return _TRUTH
    return None


def _is_truth(node: fx.Node) -> bool:
    return bool(node.meta["val"].dtype == torch.bool)


_Check = Callable[[fx.Node, Container[fx.Node]], str | None]


def _refuse_convolution(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    weight, bias = node.args[1:3]
    is_held = weight in constants or is_depthwise(node)
    if not is_held or (bias is not None and bias not in constants):
        return "QNN holds a convolution's weight and bias, so they must be frozen"
    if is_dilated_depthwise(node):
        return "QNN gets a dilated convolution of each channel into several wrong"
    return None if len(shape_of(node)) == 4 else "QNN takes 2-D convolutions only"


def _refuse_pooling(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    if any(user.args[1] != 0 for user in node.users):
        return "QNN's max pooling does not tell where the maximum was"
    return None


def _refuse_sum(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    """Leaves long sums to one number, like a loss's, to float32."""
    source: Any = node.args[0]
    is_long = value_of(node).numel() == 1 and value_of(source).numel() > _LONGEST_SUM
    return f"float16 adds up to {_LONGEST_SUM} numbers only" if is_long else None


def _refuse_softmax(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    is_last = int(node.args[1]) % len(shape_of(node)) == len(shape_of(node)) - 1  # type: ignore
    return None if is_last else "QNN takes a softmax over the last dimension only"


def _refuse_gelu(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    return None if node.kwargs.get("approximate", "none") == "none" else "a GELU by tanh"


def _refuse_scaled(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    return f"with {', '.join(node.kwargs)}" if node.kwargs else None


def _refuse_pad(node: fx.Node, constants: Container[fx.Node]) -> str | None:
    if is_symmetric(node.args[1]):  # type: ignore[arg-type]
        return None
    return "QNN pads both sides alike; it returns garbage for other pads"


_CHECKS: Final[Mapping[Any, _Check]] = {
    _aten.convolution.default: _refuse_convolution,
    _aten.max_pool2d_with_indices.default: _refuse_pooling,
    _aten._softmax.default: _refuse_softmax,
    _aten._log_softmax.default: _refuse_softmax,
    _aten.gelu.default: _refuse_gelu,
    _aten.add.Tensor: _refuse_scaled,
    _aten.sub.Tensor: _refuse_scaled,
    _aten.div.Tensor: _refuse_scaled,
    _aten.constant_pad_nd.default: _refuse_pad,
    _aten.sum.dim_IntList: _refuse_sum,
    **dict.fromkeys(_CHOICES, _refuse_choice),
}
