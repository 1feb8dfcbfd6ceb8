"""Pass: one spelling for operators that move data, fill, or take a number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import (
    arguments,
    call,
    contiguous,
    infer,
    origin,
    replace_node,
    replace_results,
    shape_of,
    value_of,
)
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Writes views as copies of static shape, so that every tensor is contiguous.

    Before: unsqueeze, squeeze, select, view, permute, expand, slice, clone, full_like
    After:  view_copy, permute_copy, expand_copy, slice_copy, full
    """

    name = "canonicalize"
    # Kernels add in another order where memory lies in another order.
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph in the dialect that all other passes expect."""
        if not any(_is_foreign(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            if node.target is _aten.split_with_sizes.default:
                _split(graph.module.graph, node)
        for node in list(graph.nodes):
            rewrite = _rewrite_of(node)
            if rewrite is None:
                _refresh(node)
                continue
            with graph.module.graph.inserting_before(node):
                result = rewrite(graph.module.graph, node)
            if result not in node.all_input_nodes:
                result.meta.update(origin(node))
            replace_node(node, result)
        return finish(graph)


_Rewrite = Callable[[fx.Graph, fx.Node], fx.Node]


def _is_foreign(node: fx.Node) -> bool:
    if node.target is _aten.split_with_sizes.default or _rewrite_of(node):
        return True
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_contiguous()


def _rewrite_of(node: fx.Node) -> _Rewrite | None:
    if node.target is _aten.full.default and set(node.kwargs) == {"dtype"}:
        return None
    return _REWRITES.get(node.target)


def _refresh(node: fx.Node) -> None:
    """Computes the value again, since the strides of the arguments may have changed."""
    if node.op in ("placeholder", "get_attr"):
        node.meta["val"] = contiguous(node.meta["val"])
    elif node.op == "call_function":
        node.meta["val"] = infer(node.target, node.args, node.kwargs)


def _split(graph: fx.Graph, node: fx.Node) -> None:
    source, sizes, dim = (*arguments(node), 0)[:3]
    dim %= len(shape_of(source))
    pieces: list[fx.Node | None] = []
    start = 0
    with graph.inserting_before(node):
        for size in sizes:
            cut = (source, dim, start, start + size, 1)
            pieces.append(call(graph, _aten.slice_copy.Tensor, *cut))
            start += size
    replace_results(node, pieces)


def _full(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.full.default, *node.args, dtype=value_of(node).dtype)


def _scalar(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.full.default, [], node.args[0], dtype=value_of(node).dtype)


def _fill(number: float) -> _Rewrite:
    def rewrite(graph: fx.Graph, node: fx.Node) -> fx.Node:
        dtype = value_of(node).dtype
        return call(graph, _aten.full.default, shape_of(node), number, dtype=dtype)

    return rewrite


def _full_like(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _fill(arguments(node)[1])(graph, node)


def _same(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _view(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.view_copy.default, node.args[0], shape_of(node))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source, dims = arguments(node)
    dims = [dim % len(dims) for dim in dims]
    return call(graph, _aten.permute_copy.default, source, dims)


def _transpose(graph: fx.Graph, node: fx.Node) -> fx.Node:
    rank = len(shape_of(node))
    dims = list(range(rank))
    first, second = (dim % rank for dim in arguments(node)[1:3])
    dims[first], dims[second] = dims[second], dims[first]
    return call(graph, _aten.permute_copy.default, node.args[0], dims)


def _transpose_matrix(graph: fx.Graph, node: fx.Node) -> fx.Node:
    dims = list(reversed(range(len(shape_of(node)))))
    return call(graph, _aten.permute_copy.default, node.args[0], dims)


def _expand(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.expand_copy.default, node.args[0], shape_of(node))


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given, defaults = arguments(node), (None, 0, None, None, 1)
    source, dim, start, stop, step = given + defaults[len(given) :]
    shape = shape_of(source)
    dim %= len(shape)
    begin, end, _ = slice(start, stop).indices(shape[dim])
    return call(graph, _aten.slice_copy.Tensor, source, dim, begin, end, step)


def _select(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source, dim, index = arguments(node)
    shape = shape_of(source)
    dim %= len(shape)
    index %= shape[dim]
    piece = call(graph, _aten.slice_copy.Tensor, source, dim, index, index + 1, 1)
    return call(graph, _aten.view_copy.default, piece, shape_of(node))


def _reversed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    right, left, alpha = (*arguments(node), 1)[:3]
    if alpha == 1 and value_of(right).is_floating_point():
        shape = [1] if shape_of(right) else []
        number = call(graph, _aten.full.default, shape, left, dtype=value_of(node).dtype)
        return call(graph, _aten.sub.Tensor, number, right)
    negative = call(graph, _aten.neg.default, right)
    scaled = negative if alpha == 1 else call(graph, _aten.mul.Tensor, negative, alpha)
    return call(graph, _aten.add.Tensor, scaled, left)


def _with_number(target: Any) -> _Rewrite:
    """Writes an operator on a tensor and a number as the one that also takes two tensors."""

    def rewrite(graph: fx.Graph, node: fx.Node) -> fx.Node:
        left, right, *alpha = arguments(node)
        return call(graph, target, left, right, **({"alpha": alpha[0]} if alpha else {}))

    return rewrite


_REWRITES: Final[Mapping[Any, _Rewrite]] = {
    _aten.alias.default: _same,
    _aten.detach.default: _same,
    _aten.clone.default: _same,
    _aten.lift_fresh_copy.default: _same,
    _aten.view.default: _view,
    _aten._unsafe_view.default: _view,
    _aten.reshape.default: _view,
    _aten.unsqueeze.default: _view,
    _aten.squeeze.default: _view,
    _aten.squeeze.dim: _view,
    _aten.squeeze.dims: _view,
    _aten.permute.default: _permute,
    _aten.transpose.int: _transpose,
    _aten.t.default: _transpose_matrix,
    _aten.expand.default: _expand,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.full.default: _full,
    _aten.scalar_tensor.default: _scalar,
    _aten.full_like.default: _full_like,
    _aten.zeros_like.default: _fill(0),
    _aten.ones_like.default: _fill(1),
    _aten.new_zeros.default: _fill(0),
    _aten.rsub.Scalar: _reversed,
    _aten.add.Scalar: _with_number(_aten.add.Tensor),
    _aten.sub.Scalar: _with_number(_aten.sub.Tensor),
    _aten.mul.Scalar: _with_number(_aten.mul.Tensor),
    _aten.div.Scalar: _with_number(_aten.div.Tensor),
}
