"""Writes into a delegate's module between which numbers its values lie, in 16 bits."""

import math
import operator
from collections.abc import Sequence
from typing import Any, Final, final

import torch

# Registers the operators that say how a number is rounded.
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx

from pockmobile.graph.rewrite import arguments
from pockmobile.targets.qnn.encodings import (
    RANGE_KEY,
    Encoding,
    affine,
    ends_of,
    range_of,
    symmetric,
)

_aten = torch.ops.aten
_QUANTIZE: Final = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE: Final = torch.ops.quantized_decomposed.dequantize_per_tensor.default

_BELOW: Final = 32.0
"""So far below all others is what stands for -infinity: its exponential is nothing."""
_MARGIN: Final = 1.5
"""What is not constant may go so much further than it did in the calibration."""
_LIMIT_32: Final = torch.iinfo(torch.int32).max
_LARGEST_BIAS: Final = 2**29
"""The products are added to it in 32 bits, so there must be room for them."""
_MOVES: Final = frozenset(
    {
        _aten.expand_copy.default,
        _aten.index_select.default,
        _aten.permute_copy.default,
        _aten.slice_copy.Tensor,
        _aten.view_copy.default,
        operator.getitem,
    }
)
"""What only moves numbers, which stay as they are."""
_CUTS: Final = frozenset({_aten.clamp.default, _aten.hardtanh.default})
_STEPS: Final = frozenset({_aten.ceil.default, _aten.floor.default})
"""What makes masks of 0 and 1: one that is rounded to more than 1 must not become 2."""
_BORDERS: Final = frozenset({_aten.cat.default, _aten.constant_pad_nd.default})
"""What puts -infinity around a value whose maxima are looked for."""
_ALIKE: Final = frozenset({_aten.cat.default, _aten.where.self})
"""What QNN gets wrong if its operands are encoded otherwise than its result."""
_PRODUCTS: Final = frozenset({_aten.bmm.default, _aten.convolution.default, _aten.mm.default})
"""What QNN multiplies in 16 bits if the second factor's zero is in the middle."""


def quantize(module: fx.GraphModule) -> fx.GraphModule:
    """Returns the module with each float32 value rounded to one of 65,536 numbers.

    A value's node has its range in `meta`; of a constant it is what it is. Rounding is written
    as a pair of operators, which the backend reads as the encoding of the value before it.

    The module itself is changed.

    Before: mm(x, y)
    After:  r(mm(r(x), s(r(y)))), where r and s are dequantize(quantize(...)), s symmetric
    """
    writer = _Writer(module)
    for node in list(module.graph.nodes):
        writer.add(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


@final
class _Writer:
    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._graph = module.graph

    def add(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._add_constant(node)
            return
        if node.op == "call_function":
            self._add_numbers(node)
            self._add_alike(node)
            self._add_factor(node)
        if RANGE_KEY in node.meta:
            users = list(node.users)
            self._replace(node, self._rounded(node, _encoding_for(node)), users)

    def _add_constant(self, node: fx.Node) -> None:
        """Rounds a constant as its users read it: two encodings of one would be mixed up."""
        value = self._value(node)
        if value.dtype != torch.float32:
            return
        readers: dict[Encoding, list[fx.Node]] = {}
        for user in node.users:
            if not _is_bias(node, user):
                readers.setdefault(_encoding_in(node, user, value), []).append(user)
        for encoding, users in readers.items():
            own = self._constant(value.clamp(*ends_of(encoding)), before=node)
            self._replace(node, self._rounded(own, encoding), users)

    def _add_numbers(self, node: fx.Node) -> None:
        """Makes constants of Python's numbers, which the backend would leave in float32."""
        if node.target is _aten.reciprocal.default:
            # ExecuTorch would write it so, with a number in float32.
            node.target, node.args = _aten.div.Tensor, (1.0, *node.args)
        if (
            node.target is _aten.clamp.default
            and _bounds(node)[0] > 0.0
            and len(node.args) == 2
        ):
            # It would be cut off at 0.
            node.target = _aten.maximum.default
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in _BINARY or not any(map(_is_rounded, node.all_input_nodes)):
            return
        for index, number in enumerate(node.args):
            if isinstance(number, (int, float)):
                constant = self._constant(torch.tensor([float(number)]), before=node)
                node.target = getattr(packet, "Tensor", node.target)
                node.update_arg(index, self._rounded(constant, affine(number, number)))

    def _add_alike(self, node: fx.Node) -> None:
        """Gives what is chosen from, or joined, the encoding of the result."""
        if node.target not in _ALIKE or RANGE_KEY not in node.meta:
            return
        encoding = _encoding_for(node)

        def alike(operand: fx.Node) -> fx.Node:
            is_other = _is_rounded(operand) and _encoding_of(operand) != encoding
            return self._rounded(operand, encoding) if is_other else operand

        node.args = fx.node.map_arg(node.args, alike)

    def _add_factor(self, node: fx.Node) -> None:
        """Makes a product's second factor symmetric."""
        if node.target not in _PRODUCTS:
            return
        _, second, *rest = node.args
        encoding = _encoding_of(second)
        if encoding[-1] != torch.int16:
            node.update_arg(1, self._rounded(second, symmetric(*ends_of(encoding))))
        if node.target is _aten.convolution.default and rest[0] is not None:
            self._add_bias(node)

    def _add_bias(self, node: fx.Node) -> None:
        """Rounds a convolution's bias to the products' own steps.

        Where it has too many of these, the weight gets wider ones.
        """
        x, weight, old = arguments(node)[:3]
        value = self._value(old)
        step = _encoding_of(x)[0]
        least = float(value.abs().max()) / _LARGEST_BIAS / step
        scale, *others = _encoding_of(weight)
        scale = max(scale, least)
        for half in (weight.args[0], weight):
            half.args = (half.args[0], scale, *others)
        bias = self._constant(value.clone(), before=node)
        encoding = (step * scale, 0, -_LIMIT_32, _LIMIT_32, torch.int32)
        node.update_arg(2, self._rounded(bias, encoding))

    def _value(self, node: Any) -> Tensor:
        return self._module.get_buffer(str(node.target))

    def _constant(self, value: Tensor, *, before: fx.Node) -> fx.Node:
        name = f"own_{len(self._module._buffers)}"
        self._module.register_buffer(name, value)
        with self._graph.inserting_before(before):
            return self._graph.get_attr(name)

    def _rounded(self, node: Any, encoding: Encoding) -> fx.Node:
        with self._graph.inserting_after(node):
            whole = self._graph.call_function(_QUANTIZE, (node, *encoding))
        with self._graph.inserting_after(whole):
            return self._graph.call_function(_DEQUANTIZE, (whole, *encoding))

    def _replace(self, node: fx.Node, rounded: fx.Node, users: Sequence[fx.Node]) -> None:
        for user in users:
            user.replace_input_with(node, rounded)


_BINARY: Final = frozenset(
    {
        _aten.add, _aten.div, _aten.eq, _aten.ge, _aten.gt, _aten.le, _aten.lt, _aten.maximum,
        _aten.mul, _aten.ne, _aten.sub,
    }
)  # fmt: skip
"""What takes a number in the place of a tensor."""


def _encoding_for(node: fx.Node) -> Encoding:
    """Returns the encoding of what a node computes: that of its source, if it only moves it."""
    source: Any = node.args[0] if node.args else None
    if node.target is operator.getitem:
        source = source.args[0]
    if node.target in _MOVES and _is_rounded(source):
        return _encoding_of(source)
    low, high, is_open = node.meta[RANGE_KEY]
    if is_open and node.target in _BORDERS:
        # What is joined to it is compared with it: both must be rounded alike.
        return next(_encoding_of(x) for x in node.all_input_nodes if _is_rounded(x))
    margin = 1.0 if node.target in _STEPS else _MARGIN
    least, most = _bounds(node)
    low = low * margin - (_BELOW if is_open else 0.0)
    return affine(max(low, least), min(high * margin, most))


def _bounds(node: fx.Node) -> tuple[float, float]:
    """Returns what a node cuts its values off at."""
    ends = (*node.args[1:3], None, None) if node.target in _CUTS else (None, None)
    least, most = ends[:2]
    return (
        -math.inf if least is None else float(least),  # type: ignore[arg-type]
        math.inf if most is None else float(most),  # type: ignore[arg-type]
    )


def _is_rounded(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is _DEQUANTIZE


def _encoding_of(node: Any) -> Encoding:
    assert _is_rounded(node), f"{node} has no range"
    encoding: Encoding = node.args[1:]
    return encoding


def _encoding_in(node: fx.Node, user: fx.Node, value: Tensor) -> Encoding:
    """Returns the encoding in which a user reads a constant."""
    if user.target in _ALIKE and RANGE_KEY in user.meta:
        return _encoding_for(user)
    low, high, is_open = range_of(value)
    encode = symmetric if _is_factor(node, user) else affine
    return encode(low - 2.0 * _BELOW if is_open else low, high)


def _is_factor(node: fx.Node, user: fx.Node) -> bool:
    return user.target in _PRODUCTS and user.args[1] is node


def _is_bias(node: fx.Node, user: fx.Node) -> bool:
    return user.target is _aten.convolution.default and user.args[2] is node
