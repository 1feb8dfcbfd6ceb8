"""Emits products, convolutions, pooling, and what adds up along dimensions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from coremltools.converters.mil.mil import Builder
from torch import fx

from pockmobile.targets.coreml.emitter import Emit, Emitter, Var, axes, sizes, source_of

_aten = torch.ops.aten


def _matmul(emitter: Emitter, node: fx.Node, x: Var, y: Var) -> Var:
    # A constant that is used both ways is held once.
    turned = emitter.turned_constant(node.args[-1])
    if turned is None:
        return Builder.matmul(x=x, y=y)
    return Builder.matmul(x=x, y=turned, transpose_y=True)


def _addmm(emitter: Emitter, node: fx.Node, bias: Var, x: Var, y: Var) -> Var:
    return Builder.add(x=_matmul(emitter, node, x, y), y=bias)


def _convolution(
    emitter: Emitter, node: fx.Node, x: Var, weight: Var, bias: Var | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    extra: Sequence[int], groups: int,
) -> Var:  # fmt: skip
    options = {
        "x": x,
        "weight": weight,
        "strides": stride,
        "pad_type": "custom",
        "pad": [size for size in padding for _ in range(2)],
        "dilations": dilation,
        "groups": groups,
    }
    if bias is not None:
        options["bias"] = bias
    return Builder.conv_transpose(**options) if transposed else Builder.conv(**options)


def _max_pool(
    emitter: Emitter, node: fx.Node, x: Var, kernel: Sequence[int], stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), ceil_mode: bool = False,
) -> Var:  # fmt: skip
    return Builder.max_pool(
        x=x,
        kernel_sizes=kernel,
        strides=stride or kernel,
        pad_type="custom",
        pad=[size for size in padding for _ in range(2)],
        ceil_mode=ceil_mode,
    )


def first_of_pool(emitter: Emitter, node: fx.Node, values: Var, index: int) -> Var:
    """Takes the pooled values of a pooling, of which nothing else is used."""
    return values


def _reduction(operator: Callable[..., Var]) -> Emit:
    def emit(
        emitter: Emitter, node: fx.Node, x: Var, dims: Any = None, keep: bool = False, **_: Any
    ) -> Var:
        found = axes(dims, source_of(node))
        if len(found) < len(sizes(source_of(node))) or keep:
            return operator(x=x, axes=found, keep_dims=keep)
        return Builder.reshape(x=operator(x=x, axes=found, keep_dims=True), shape=sizes(node))

    return emit


def _softmax(emitter: Emitter, node: fx.Node, x: Var, dim: int, _: bool) -> Var:
    return Builder.softmax(x=x, axis=axes(dim, source_of(node))[0])


def _argmax(emitter: Emitter, node: fx.Node, x: Var, dim: int, keep: bool = False) -> Var:
    return Builder.reduce_argmax(x=x, axis=axes(dim, source_of(node))[0], keep_dims=keep)


PRODUCTS: Final[Mapping[Any, Emit]] = {
    _aten.addmm.default: _addmm,
    _aten.amax.default: _reduction(Builder.reduce_max),
    _aten.amin.default: _reduction(Builder.reduce_min),
    _aten.argmax.default: _argmax,
    _aten.bmm.default: _matmul,
    _aten.convolution.default: _convolution,
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.mean.dim: _reduction(Builder.reduce_mean),
    _aten.mm.default: _matmul,
    _aten._softmax.default: _softmax,
    _aten.sum.dim_IntList: _reduction(Builder.reduce_sum),
    _aten.sum.default: _reduction(Builder.reduce_sum),
    _aten.mean.default: _reduction(Builder.reduce_mean),
}
