"""Turns a run of graph nodes into one delegate, moving memory only where it must."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNCopy,
    XNNMultiply,
    XNNStaticReshape,
    XNNStaticTranspose,
)
from torch import Tensor, fx

from pockmobile.graph.rewrite import MODULE_KEY, shape_of
from pockmobile.targets.xnnpack.blob import BlobBuilder
from pockmobile.targets.xnnpack.layout import (
    Constant,
    Order,
    Value,
    identity,
    lies_in,
    regrouped_permutation,
    storage_in,
)
from pockmobile.targets.xnnpack.quantize import Precision
from pockmobile.targets.xnnpack.workspace import alive

Operand: TypeAlias = Value | Constant
Emit: TypeAlias = Callable[["Emitter", fx.Node], Operand]

_NEAR: Final = 32
"""Operators after which what was moved is moved again, lest it be kept for long."""


def is_cut_again(node: fx.Node) -> bool:
    """Whether a node is a run of a dimension, of which only runs are read."""
    return all(part.target is torch.ops.aten.slice_copy.Tensor for part in (node, *node.users))


@final
class Emitter:
    """Emits one delegate.

    `constants` holds the tensors of nodes that depend on no input. A value may be smaller
    than its node says where the graph expands it: elementwise operators broadcast anyway,
    and everything else asks for `operand`, which makes it whole.
    """

    def __init__(
        self,
        table: Mapping[Any, Emit],
        constants: Mapping[fx.Node, Tensor],
        *,
        frozen_weights: Precision = "fp32",
    ) -> None:
        """Starts a delegate whose operators are emitted by `table`.

        `frozen_weights` is how products may hold constant weights.
        """
        self.blob = BlobBuilder()
        self.frozen_weights = frozen_weights
        self._table = table
        self._constants = constants
        self._values: dict[fx.Node, Operand] = {}
        self._waiting: set[fx.Node] = set()
        self._modules: list[str] = []
        self._moved: dict[tuple[int, tuple[int, ...], Order], tuple[int, int]] = {}

    def add_input(self, node: fx.Node) -> None:
        """Makes a node from outside an input of the delegate."""
        shape = tuple(shape_of(node)) or (1,)
        self._values[node] = Value(self.blob.input(shape), shape, identity(len(shape)))

    def add(self, node: fx.Node) -> None:
        """Emits a node; one that is only cut again waits until it is needed whole."""
        if is_cut_again(node):
            self._waiting.add(node)
        else:
            self._emit(node)

    def _emit(self, node: fx.Node) -> None:
        self._values[node] = self._table[node.target](self, node)
        self._mark(node)

    def is_waiting(self, node: fx.Node) -> bool:
        """Whether a node of this delegate was not emitted yet."""
        return node in self._waiting and node not in self._values

    def add_output(self, node: fx.Node) -> None:
        """Makes a node an output of the delegate, in the graph's own order."""
        shape = tuple(shape_of(node))
        value = self.arranged(self.operand(node), identity(len(shape)))
        if self.blob.is_external(value):
            copy = self.blob.value(shape)
            self.blob.node(XNNCopy(value, copy, 0))
            value = copy
        self.blob.mark_output(value)
        self._mark(node)

    def memory(self) -> list[tuple[int, str]]:
        """Returns the bytes alive while each operator runs, and the module that it is of."""
        num_bytes = alive(self.blob.lives(), self.blob.num_nodes)
        return list(zip(num_bytes, self._modules, strict=True))

    def _mark(self, node: fx.Node) -> None:
        """Says that the operators since the last mark were emitted for a node."""
        num_new = self.blob.num_nodes - len(self._modules)
        self._modules += [str(node.meta.get(MODULE_KEY, ""))] * num_new

    def broadcastable(self, node: fx.Node) -> Operand:
        """Returns a node's value, which may be smaller than the node where it is expanded."""
        if node in self._constants:
            return Constant(self._constants[node])
        if self.is_waiting(node):
            self._emit(node)
        return self._values[node]

    def operand(self, node: fx.Node) -> Operand:
        """Returns a node's value in its full shape."""
        operand = self.broadcastable(node)
        return self.expanded(operand, shape_of(node))

    def expanded(self, operand: Operand, shape: Sequence[int]) -> Operand:
        """Returns `operand` broadcast to `shape` (of the same rank)."""
        if tuple(operand.shape) == tuple(shape):
            return operand
        if isinstance(operand, Constant):
            return Constant(operand.tensor.expand(*shape))
        sizes = [
            new if old != new else 1 for old, new in zip(operand.shape, shape, strict=True)
        ]
        ones = self.blob.constant(torch.ones(storage_in(sizes, operand.order)))
        result = self.new(shape, operand.order)
        self.blob.node(XNNMultiply(self.defined(operand), ones, result.id, 0))
        return result

    def new(self, shape: Sequence[int], order: Order | None = None) -> Value:
        """Returns a new value of the graph's `shape`, lying in `order`."""
        order = identity(len(shape)) if order is None else order
        storage = storage_in(shape, order)
        return Value(self.blob.value(storage), storage, order)

    def like(self, value: Value) -> Value:
        """Returns a new value that lies as another does, known by the same axes."""
        return Value(self.blob.value(self.blob.shape(value.id)), value.storage, value.order)

    def arranged(self, operand: Operand, order: Order) -> int:
        """Returns the id of `operand` lying in `order`; moves memory if it must."""
        if isinstance(operand, Constant):
            return self.blob.constant(operand.tensor.permute(order))
        return self.defined(self.in_order(operand, order))

    def in_order(self, value: Value, order: Order) -> Value:
        """Returns `value` lying in `order`, transposed if its memory differs."""
        if value.order == order:
            return value
        shape = value.shape
        if lies_in(value, order):
            return self.reshaped(value, storage_in(shape, order), order)
        perm = tuple(value.order.index(dim) for dim in order)
        moved = self._once(value, perm, lambda: self._transposed(value, perm))
        return Value(moved, storage_in(value.shape, order), order)

    def _transposed(self, value: Value, perm: Order) -> int:
        seen = self.blob.shape(value.id)
        source, moves = value.id, regrouped_permutation(perm, value.storage, seen)
        if moves is None:
            source, seen, moves = self.defined(value), value.storage, list(perm)
        result = self.blob.value([seen[axis] for axis in moves])
        self.blob.node(XNNStaticTranspose(len(moves), moves, source, result, 0))
        return result

    def defined(self, value: Value) -> int:
        """Returns the id of a value that XNNPACK knows by the axes of its storage."""
        sizes = value.storage or (1,)
        if self.blob.shape(value.id) == sizes:
            return value.id
        return self._once(value, (), lambda: self._reshaped(value.id, sizes))

    def rows(self, value: Value, width: int) -> tuple[int, tuple[int, ...]]:
        """Returns the id of a value that lies in rows of `width`, and the axes of these."""
        *axes, last = self.blob.shape(value.id)
        if last == width:
            return value.id, tuple(axes)
        axes = [*axes, last // width] if last % width == 0 else [value.numel // width]
        rows = Value(value.id, (*axes, width), identity(len(axes) + 1))
        return self.defined(rows), tuple(axes)

    def _reshaped(self, source: int, sizes: tuple[int, ...]) -> int:
        result = self.blob.value(sizes)
        self.blob.node(XNNStaticReshape(len(sizes), list(sizes), source, result, 0))
        return result

    def _once(self, value: Value, perm: Order, move: Callable[[], int]) -> int:
        """Moves memory, unless the same was done a few operators ago."""
        key = value.id, value.storage, perm
        made, result = self._moved.get(key, (0, value.id))
        if key not in self._moved or self.blob.num_nodes - made > _NEAR:
            result = move()
            self._moved[key] = self.blob.num_nodes, result
        return result

    def reshaped(self, value: Value, storage: tuple[int, ...], order: Order) -> Value:
        """Returns the same memory with other axes, which moves nothing yet."""
        return Value(value.id, storage, order)
