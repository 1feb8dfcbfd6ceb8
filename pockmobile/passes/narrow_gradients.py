"""Pass: computes only the slice of a gradient that is trained."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import call, replace_node, shape_of
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class NarrowGradients(Pass):
    """Moves slices up through the operators that made the value, to where they cost least.

    A slice of activations is taken right where they are made, so that only those channels
    are kept for the backward pass.

    Before: slice_copy(mm(a, b), dim=0, start, stop)
    After:  mm(slice_copy(a, dim=0, start, stop), b)
    """

    name = "narrow-gradients"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph with slices as early as they can be."""
        if not any(_movable(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        pending = [node for node in graph.nodes if _movable(node)]
        while pending:
            node = pending.pop()
            if not _movable(node):
                continue
            with graph.module.graph.inserting_before(node):
                result = _RULES[node.args[0].target](graph.module.graph, _Cut.of(node))  # type: ignore
            if result is None:
                continue
            source = node.args[0]
            replace_node(node, result)
            graph.module.graph.erase_node(source)  # type: ignore[arg-type]
            pending.extend(_made_slices(result))
        return finish(graph)


def _made_slices(node: fx.Node) -> list[fx.Node]:
    """Returns the slices among a new node's arguments, or its call's (for a getitem)."""
    made = node.args[0] if node.target is operator.getitem else node
    assert isinstance(made, fx.Node)
    return [
        parent for parent in made.all_input_nodes if parent.target is _aten.slice_copy.Tensor
    ]


@final
@dataclass(frozen=True)
class _Cut:
    """A slice `start:stop` of dimension `dim` of `source`."""

    source: fx.Node
    dim: int
    start: int
    stop: int

    @staticmethod
    def of(node: fx.Node) -> "_Cut":
        source, dim, start, stop = node.args[:4]
        return _Cut(source, dim, start, stop)  # type: ignore[arg-type]

    def take(self, graph: fx.Graph, node: fx.Node, dim: int) -> fx.Node:
        """Returns the same range of another tensor's dimension, cut where it is made."""
        if self.start == 0 and self.stop == shape_of(node)[dim]:
            return node
        place = node
        while place.next.op in ("placeholder", "get_attr"):
            place = place.next
        with graph.inserting_after(place):
            return call(graph, _aten.slice_copy.Tensor, node, dim, self.start, self.stop, 1)


def _movable(node: fx.Node) -> bool:
    if node.target is not _aten.slice_copy.Tensor or node.args[4:] not in ((), (1,)):
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source.target in _RULES and len(source.users) == 1


def _permute(graph: fx.Graph, cut: _Cut) -> fx.Node:
    source, dims = cut.source.args
    piece = cut.take(graph, source, dims[cut.dim])  # type: ignore
    return call(graph, _aten.permute_copy.default, piece, dims)


def _mm(graph: fx.Graph, cut: _Cut) -> fx.Node:
    operands: list[Any] = list(cut.source.args)
    operands[cut.dim] = cut.take(graph, operands[cut.dim], cut.dim)
    return call(graph, _aten.mm.default, *operands)


def _add(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    left, right = cut.source.args[:2]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    if shape_of(left) != shape_of(right) or cut.source.kwargs:
        return None
    return call(
        graph, _aten.add.Tensor, cut.take(graph, left, cut.dim), cut.take(graph, right, cut.dim)
    )


def _view(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Passes a view that only adds or drops dimensions of size one."""
    source: fx.Node = cut.source.args[0]  # type: ignore[assignment]
    before, after = shape_of(source), shape_of(cut.source)
    if [s for s in before if s != 1] != [s for s in after if s != 1] or after[cut.dim] == 1:
        return None
    rank = sum(size != 1 for size in after[: cut.dim])
    dim = [index for index, size in enumerate(before) if size != 1][rank]
    shape = list(after)
    shape[cut.dim] = cut.stop - cut.start
    return call(graph, _aten.view_copy.default, cut.take(graph, source, dim), shape)


def _sum(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    source, dims, *keep = cut.source.args
    rank = len(shape_of(source))  # type: ignore[arg-type]
    reduced = {int(dim) % rank for dim in dims}  # type: ignore
    kept = (
        list(range(rank)) if keep and keep[0] else [d for d in range(rank) if d not in reduced]
    )
    if kept[cut.dim] in reduced:
        return None
    piece = cut.take(graph, source, kept[cut.dim])  # type: ignore[arg-type]
    return call(graph, cut.source.target, piece, dims, *keep)


def _getitem(graph: fx.Graph, cut: _Cut) -> fx.Node | None:
    """Cuts the weight's gradient out of a convolution's backward operator."""
    backward, index = cut.source.args
    if backward.target is not _aten.convolution_backward.default or index != 1:  # type: ignore
        return None
    grad, x, weight, _, stride, padding, dilation, transposed, extra, groups, _ = backward.args  # type: ignore
    if transposed or (groups != 1 and cut.dim == 1) or groups not in (1, shape_of(x)[1]):
        return None
    if cut.dim == 0:
        grad = cut.take(graph, grad, 1)
    if cut.dim == 1 or groups != 1:
        x = cut.take(graph, x, 1)
    if groups != 1 and shape_of(weight)[0] != groups:
        return None
    weight = cut.take(graph, weight, cut.dim)
    groups = 1 if groups == 1 else cut.stop - cut.start
    mask = [False, True, False]
    call_ = call(
        graph, _aten.convolution_backward.default, grad, x, weight, None, stride, padding,
        dilation, transposed, extra, groups, mask,
    )  # fmt: skip
    item = graph.call_function(operator.getitem, (call_, 1))
    item.meta = {**call_.meta, "val": call_.meta["val"][1]}
    return item


_RULES: Final[Mapping[Any, Callable[[fx.Graph, _Cut], fx.Node | None]]] = {
    _aten.permute_copy.default: _permute,
    _aten.mm.default: _mm,
    _aten.add.Tensor: _add,
    _aten.view_copy.default: _view,
    _aten.sum.dim_IntList: _sum,
    operator.getitem: _getitem,
}
