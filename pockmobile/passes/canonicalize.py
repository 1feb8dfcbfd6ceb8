"""Pass: one spelling for operators that move data, fill, or take a number."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import call, infer, replace_node, replace_results, shape_of
from pockmobile.passes.base import Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Writes views as copies of static shape, so that every tensor is contiguous.

    Before: unsqueeze, squeeze, select, view, permute, expand, slice, clone, full_like
    After:  view_copy, permute_copy, expand_copy, slice_copy, full
    """

    name = "canonicalize"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph in the dialect that all other passes expect."""
        if not any(_rewrite_of(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            if node.target is _aten.split_with_sizes.default:
                _split(graph, node)
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            rewrite = _rewrite_of(node)
            if rewrite is None:
                _refresh(node)
                continue
            with graph.module.graph.inserting_before(node):
                replace_node(node, rewrite(graph.module.graph, node))
        return finish(graph)


_Rewrite = Callable[[fx.Graph, fx.Node], Any]


def _split(graph: JointGraph, node: fx.Node) -> None:
    source, sizes, *rest = node.args
    dim = int(rest[0]) if rest else 0  # type: ignore[arg-type]
    dim %= len(shape_of(source))  # type: ignore[arg-type]
    pieces: list[fx.Node | None] = []
    start = 0
    with graph.module.graph.inserting_before(node):
        for size in sizes:  # type: ignore[union-attr]
            cut = (source, dim, start, start + size, 1)
            pieces.append(_contiguous(call(graph.module.graph, _aten.slice_copy.Tensor, *cut)))
            start += size  # type: ignore[operator]
    replace_results(node, pieces)


def _rewrite_of(node: fx.Node) -> _Rewrite | None:
    if node.target is _aten.full.default and set(node.kwargs) == {"dtype"}:
        return None
    return _REWRITES.get(node.target)


def _full(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.full.default, *node.args, dtype=node.meta["val"].dtype)


def _scalar(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.full.default, [], node.args[0], dtype=node.meta["val"].dtype)


def _refresh(node: fx.Node) -> None:
    """Computes the value again, since the strides of the arguments may have changed."""
    if node.target is operator.getitem:
        node.meta["val"] = node.args[0].meta["val"][node.args[1]]  # type: ignore
    else:
        node.meta["val"] = infer(node.target, node.args, node.kwargs)
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        node.meta["val"] = value.contiguous()


def _same(graph: fx.Graph, node: fx.Node) -> Any:
    return node.args[0]


def _view(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return call(graph, _aten.view_copy.default, node.args[0], shape_of(node))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node:
    dims = [int(dim) % len(node.args[1]) for dim in node.args[1]]  # type: ignore
    return _contiguous(call(graph, _aten.permute_copy.default, node.args[0], dims))


def _transpose(graph: fx.Graph, node: fx.Node) -> fx.Node:
    rank = len(shape_of(node))
    dims = list(range(rank))
    first, second = (int(dim) % rank for dim in (node.args[1:3] or (0, 1)))  # type: ignore
    dims[first], dims[second] = dims[second], dims[first]
    return _contiguous(call(graph, _aten.permute_copy.default, node.args[0], dims))


def _expand(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _contiguous(call(graph, _aten.expand_copy.default, node.args[0], shape_of(node)))


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source, dim, start, stop, step, *_ = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    shape = shape_of(source)  # type: ignore[arg-type]
    dim = int(dim) % len(shape)  # type: ignore
    begin, end, _ = slice(start, stop).indices(shape[dim])
    return _contiguous(call(graph, _aten.slice_copy.Tensor, source, dim, begin, end, int(step)))  # type: ignore


def _select(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source, dim, index = node.args
    shape = shape_of(source)  # type: ignore[arg-type]
    dim = int(dim) % len(shape)  # type: ignore
    index = int(index) % shape[dim]  # type: ignore
    piece = _contiguous(call(graph, _aten.slice_copy.Tensor, source, dim, index, index + 1, 1))
    return call(graph, _aten.view_copy.default, piece, shape_of(node))


def _fill(value_index: int) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    def rewrite(graph: fx.Graph, node: fx.Node) -> fx.Node:
        value = node.args[value_index] if value_index > 0 else -value_index
        dtype = node.meta["val"].dtype
        return call(graph, _aten.full.default, shape_of(node), value, dtype=dtype)

    return rewrite


def _number_first(target: Any) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    return lambda graph, node: call(graph, target, *node.args, **node.kwargs)


def _reversed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    negative = call(graph, _aten.neg.default, node.args[0])
    return call(graph, _aten.add.Tensor, negative, node.args[1])


def _contiguous(node: fx.Node) -> fx.Node:
    node.meta["val"] = node.meta["val"].contiguous()
    return node


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
    _aten.t.default: _transpose,
    _aten.expand.default: _expand,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.full.default: _full,
    _aten.scalar_tensor.default: _scalar,
    _aten.full_like.default: _fill(1),
    _aten.zeros_like.default: _fill(0),
    _aten.ones_like.default: _fill(-1),
    _aten.new_zeros.default: _fill(0),
    _aten.rsub.Scalar: _reversed,
    _aten.add.Scalar: _number_first(_aten.add.Tensor),
    _aten.sub.Scalar: _number_first(_aten.sub.Tensor),
    _aten.mul.Scalar: _number_first(_aten.mul.Tensor),
    _aten.div.Scalar: _number_first(_aten.div.Tensor),
}
