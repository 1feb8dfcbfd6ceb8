"""Writes graph nodes as operators of MIL, the language of Core ML's model packages."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder, types
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of, value_of

Var: TypeAlias = Any
"""A value of MIL; coremltools has no types."""
Emit: TypeAlias = Callable[..., Var]
"""Gets the emitter and the node, then the operator's arguments: values, numbers and lists."""

_LARGEST_HALF: Final = float(np.finfo(np.float16).max)


@final
class Emitter:
    """Emits the nodes of one delegate, inside a function of MIL.

    A tensor without dimensions has one of size 1 here, since Core ML passes no other. A
    constant that is one number everywhere stays one number until an operator needs it whole.
    Inputs and outputs are in float32. `is_half` says whether the operator that is emitted now
    computes in float16; what it reads is cast to its precision.
    """

    def __init__(
        self,
        table: Mapping[Any, Emit],
        constants: Mapping[fx.Node, Tensor],
        *,
        half: Container[fx.Node],
    ) -> None:
        """Starts a delegate whose operators are emitted by `table`, `half` in float16."""
        self._table = table
        self._constants = constants
        self._half = half
        self._values: dict[fx.Node, Var] = {}
        self._casts: dict[tuple[fx.Node, bool], Var] = {}
        self._whole: dict[tuple[fx.Node, bool], Var] = {}
        self.is_half = False

    def add_input(self, node: fx.Node, value: Var) -> None:
        """Takes an input of the function for a node."""
        self._values[node] = value

    def add(self, node: fx.Node) -> None:
        """Emits a node."""
        self.is_half = node in self._half
        arguments = fx.map_arg(node.args, lambda other: self._value(other, node))
        keywords = fx.map_arg(node.kwargs, lambda other: self._value(other, node))
        self._values[node] = self._table[node.target](self, node, *arguments, **keywords)

    def turned_constant(self, node: Any) -> Var | None:
        """Returns the constant matrix of which a node is the transpose, if it is."""
        if node.target is not _aten.permute_copy.default or node.args[1] != [1, 0]:
            return None
        source = node.args[0]
        return self._constant(source) if source in self._constants else None

    def output(self, node: fx.Node, name: str) -> Var:
        """Returns a node's value under a name, as an output of the function."""
        value = self._values[node]
        if value.dtype == types.fp16:
            return Builder.cast(x=value, dtype="fp32", name=name)
        return Builder.identity(x=value, name=name)

    def cast(self, value: Var) -> Var:
        """Returns a number with a point in the precision of what is emitted now."""
        wanted, name = (types.fp16, "fp16") if self.is_half else (types.fp32, "fp32")
        return value if value.dtype == wanted else Builder.cast(x=value, dtype=name)

    def _value(self, node: fx.Node, user: fx.Node) -> Var:
        if node in self._values:
            return self._cast(node) if _is_float(node) else self._values[node]
        if user.target in _BROADCASTING and _is_one_number(self._constants[node]):
            return self.array(self._constants[node].flatten()[:1], node)
        return self._constant(node)

    def _cast(self, node: fx.Node) -> Var:
        key = node, self.is_half
        if key not in self._casts:
            self._casts[key] = self.cast(self._values[node])
        return self._casts[key]

    def _constant(self, node: fx.Node) -> Var:
        key = node, self.is_half
        if key not in self._whole:
            self._whole[key] = Builder.const(val=self.array(self._constants[node], node))
        return self._whole[key]

    def array(self, value: Tensor, like: fx.Node) -> np.ndarray[Any, Any]:
        """Returns a constant in the types of MIL; `like` tells of what kind it is."""
        array = value.detach().contiguous().numpy()
        array = array.reshape(array.shape or (1,))
        return self._typed(array, value_of(like).dtype)

    def number(self, value: float, like: fx.Node) -> Any:
        """Returns a number in the type in which MIL holds the values of a node."""
        return self._typed(np.asarray(value), value_of(like).dtype)[()]

    def _typed(self, array: np.ndarray[Any, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
        if dtype == torch.bool:
            return array.astype(np.bool_)
        if not dtype.is_floating_point:
            return array.astype(np.int32)
        if not self.is_half:
            return array.astype(np.float32)
        # What stands for "lowest of all" in float32 is infinite here, and then not a number.
        return array.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def sizes(node: fx.Node) -> list[int]:
    """Returns the shape that a node's value has in MIL."""
    return shape_of(node) or [1]


def axes(dims: Sequence[int] | int | None, source: fx.Node) -> list[int]:
    """Returns the dimensions, all if there are none, counted from the first."""
    rank = len(sizes(source))
    if isinstance(dims, int):
        dims = [dims]
    return sorted(dim % rank for dim in dims) if dims else list(range(rank))


def source_of(node: fx.Node) -> fx.Node:
    """Returns the first input of a node."""
    return node.all_input_nodes[0]


def _is_float(node: fx.Node) -> bool:
    """Whether it has values with a point; one of several tensors is a pooling's, which has."""
    value = node.meta["val"]
    return not isinstance(value, Tensor) or value.is_floating_point()


def _is_one_number(value: Tensor) -> bool:
    return value.numel() == 1 or all(stride == 0 for stride in value.stride())


_aten = torch.ops.aten
_BROADCASTING: Final = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.maximum.default,
        _aten.minimum.default,
    }
)
