"""Emits what moves data: views, slices, rows that are picked or added to."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from coremltools.converters.mil.mil import Builder
from torch import fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.coreml.emitter import Emit, Emitter, Var, axes, sizes, source_of

_aten = torch.ops.aten


def _view(emitter: Emitter, node: fx.Node, x: Var, shape: Sequence[int]) -> Var:
    return Builder.reshape(x=x, shape=sizes(node))


def _permute(emitter: Emitter, node: fx.Node, x: Var, dims: Sequence[int]) -> Var:
    return Builder.transpose(x=x, perm=list(dims))


def _expand(emitter: Emitter, node: fx.Node, x: Var, shape: Sequence[int], **_: Any) -> Var:
    before, after = sizes(source_of(node)), sizes(node)
    aligned = [1] * (len(after) - len(before)) + before
    if aligned != before:
        x = Builder.reshape(x=x, shape=aligned)
    return Builder.tile(x=x, reps=[new // old for old, new in zip(aligned, after, strict=True)])


def _slice(
    emitter: Emitter, node: fx.Node, x: Var, dim: int, start: int, stop: int, step: int = 1
) -> Var:
    shape = sizes(source_of(node))
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    begin[dim], end[dim], stride[dim] = start, stop, step
    return Builder.slice_by_index(x=x, begin=begin, end=end, stride=stride)


def _cat(emitter: Emitter, node: fx.Node, values: Sequence[Var], dim: int = 0) -> Var:
    return Builder.concat(values=list(values), axis=axes(dim, node)[0])


def _pad(
    emitter: Emitter, node: fx.Node, x: Var, pads: Sequence[int], value: float = 0.0
) -> Var:
    # ATen begins with the last dimension, MIL with the first.
    given = [size for i in range(len(pads) - 2, -1, -2) for size in pads[i : i + 2]]
    flat = [0] * (2 * len(sizes(node)) - len(given)) + given
    return Builder.pad(x=x, pad=flat, mode="constant", constant_val=emitter.number(value, node))


def _flip(emitter: Emitter, node: fx.Node, x: Var, dims: Sequence[int]) -> Var:
    return Builder.reverse(x=x, axes=axes(list(dims), node))


def _full(emitter: Emitter, node: fx.Node, shape: Sequence[int], value: float, **_: Any) -> Var:
    return emitter.array(torch.full(sizes(node), value), node)


def _embedding(emitter: Emitter, node: fx.Node, table: Var, rows: Var, *_: Any) -> Var:
    return Builder.gather(x=table, indices=rows, axis=0)


def _index(emitter: Emitter, node: fx.Node, x: Var, indices: Sequence[Var]) -> Var:
    dim = len(indices) - 1
    return Builder.gather(x=x, indices=indices[dim], axis=dim)


def _index_put(
    emitter: Emitter, node: fx.Node, x: Var, indices: Sequence[Var], values: Var,
    accumulate: bool = False,
) -> Var:  # fmt: skip
    mode = "add" if accumulate else "update"
    return Builder.scatter(data=x, indices=indices[0], updates=values, axis=0, mode=mode)


def _cumsum(emitter: Emitter, node: fx.Node, x: Var, dim: int) -> Var:
    return Builder.cumsum(x=x, axis=axes(dim, node)[0])


def refuse_index(node: fx.Node) -> str | None:
    """Returns why the rows that an index picks cannot be picked by Core ML."""
    indices: Any = node.args[1]
    *others, last = indices
    if any(others) or last is None:
        return "Core ML indexes one dimension only"
    return None


def refuse_index_put(node: fx.Node) -> str | None:
    """Returns why values cannot be put at an index by Core ML."""
    indices: Any = node.args[1]
    values: Any = node.args[2]
    if len(indices) != 1 or indices[0] is None:
        return "Core ML puts values at rows only"
    x: Any = node.args[0]
    if shape_of(values) != shape_of(indices[0]) + shape_of(x)[1:]:
        return "the values do not have the shape of the rows that they are put at"
    return None


MOVEMENT: Final[Mapping[Any, Emit]] = {
    _aten.cat.default: _cat,
    _aten.constant_pad_nd.default: _pad,
    _aten.cumsum.default: _cumsum,
    _aten.embedding.default: _embedding,
    _aten.expand_copy.default: _expand,
    _aten.flip.default: _flip,
    _aten.full.default: _full,
    _aten.index.Tensor: _index,
    _aten.index_put.default: _index_put,
    _aten.permute_copy.default: _permute,
    _aten.slice_copy.Tensor: _slice,
    _aten.view_copy.default: _view,
}
