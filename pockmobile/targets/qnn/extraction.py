"""Takes the operators of a delegate out of a graph, as a module of its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, final

import torch
from torch import Tensor, fx, nn

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.qnn.encodings import RANGE_KEY

_aten = torch.ops.aten

_BROADCASTING: Final = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.maximum.default,
        _aten.minimum.default,
        _aten.where.self,
    }
)


_MOST_DIMENSIONS: Final = 3


def input_shape(node: fx.Node) -> list[int]:
    """Returns the shape in which a delegate takes an input.

    QNN brings one of more dimensions into a layout in which the last one has room for 32
    elements at least; for a kernel of 3x3 it then compiles for minutes what takes it out.
    """
    shape = shape_of(node)
    if len(shape) > _MOST_DIMENSIONS:
        return [shape[0], math.prod(shape[1:])]
    return shape or [1]


def extract(
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    constants: Mapping[fx.Node, Tensor],
) -> fx.GraphModule:
    """Returns a module of `nodes`, from `inputs` to `outputs`, in their order.

    Its buffers are the constants that it reads, each laid out as it is read. What has no
    dimensions has one here, of one element, since QNN has no other numbers; and an input of
    many is a matrix.
    """
    writer = _Writer(constants)
    writer.add_inputs(inputs)
    for node in nodes:
        writer.add(node)
    return writer.finish(outputs)


@final
class _Writer:
    def __init__(self, constants: Mapping[fx.Node, Tensor]) -> None:
        self._constants = constants
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._memo: dict[fx.Node, fx.Node] = {}
        self._matrices: dict[fx.Node, fx.Node] = {}
        self._buffers: dict[object, fx.Node] = {}

    def add_inputs(self, inputs: Sequence[fx.Node]) -> None:
        for index, node in enumerate(inputs):
            matrix = self._graph.placeholder(f"in_{index}")
            self._memo[node] = matrix
            if len(shape_of(node)) > _MOST_DIMENSIONS:
                self._matrices[node] = matrix
                view = (matrix, shape_of(node))
                self._memo[node] = self._graph.call_function(_aten.view_copy.default, view)
            for copied in {matrix, self._memo[node]} if RANGE_KEY in node.meta else ():
                copied.meta[RANGE_KEY] = node.meta[RANGE_KEY]

    def add(self, node: fx.Node) -> None:
        def operand(parent: fx.Node) -> fx.Node:
            if parent in self._constants:
                return self._constant(parent, node)
            if node.target is _aten.view_copy.default and parent in self._matrices:
                return self._matrices[parent]
            return self._memo[parent]

        copied = self._graph.node_copy(node, operand)
        if node.target is _aten.view_copy.default and not node.args[1]:
            copied.update_arg(1, [1])
        self._memo[node] = copied

    def finish(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        self._graph.output(tuple(self._memo[node] for node in outputs))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def _constant(self, node: fx.Node, user: fx.Node) -> fx.Node:
        value = self._constants[node]
        if user.target in _BROADCASTING and not any(value.stride()):
            value = value.as_strided([1] * value.dim(), [1] * value.dim())
        # ExecuTorch gives a weight one layout, although a convolution and a transposed one
        # read it in two: each gets a copy of its own.
        own = user if user.target is _aten.convolution.default else None
        key = (value.data_ptr(), tuple(value.shape), value.stride(), own)
        if key not in self._buffers:
            name = f"constant_{len(self._buffers)}"
            shape = value.shape or (1,)
            self._root.register_buffer(name, value.detach().reshape(shape).contiguous().clone())
            self._buffers[key] = self._graph.get_attr(name)
        return self._buffers[key]
