"""Emits convolutions with constant weights, and pooling, on memory that lies as NHWC."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from torch import Tensor, fx

from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.xnnpack.blob import NO_VALUE
from pockmobile.targets.xnnpack.emitter import Emit, Emitter, Operand
from pockmobile.targets.xnnpack.layout import NHWC, Constant
from pockmobile.targets.xnnpack.matmul import frozen_product
from pockmobile.targets.xnnpack.quantize import precision, quantized

_aten = torch.ops.aten


def _convolution(emitter: Emitter, node: fx.Node) -> Operand:
    x, weight, bias, stride, padding, dilation, transposed, extra, groups = node.args
    kernel = emitter.operand(weight)  # type: ignore[arg-type]
    assert isinstance(kernel, Constant)
    groups = int(groups)  # type: ignore[arg-type]
    if _is_pointwise(kernel.shape, stride, padding, groups):
        return _pointwise(emitter, node, kernel.tensor[:, :, 0, 0], bool(transposed))
    result = emitter.new(shape_of(node), NHWC)
    height, width = kernel.shape[2:]
    inputs = kernel.shape[0] // groups if transposed else kernel.shape[1]
    outputs = kernel.shape[1] if transposed else kernel.shape[0] // groups
    is_depthwise = not transposed and inputs == 1 and outputs == 1 and groups > 1
    fields = {
        **_window(stride, padding, dilation),  # type: ignore[arg-type]
        "kernel_height": height,
        "kernel_width": width,
        "adjustment_height": extra[0],  # type: ignore[index]
        "adjustment_width": extra[1],  # type: ignore[index]
        "group_input_channels": inputs,
        "group_output_channels": outputs,
        "groups": groups,
        **_operands(
            emitter,
            emitter.arranged(emitter.operand(x), NHWC),  # type: ignore[arg-type]
            _filter(kernel.tensor, groups, bool(transposed), is_depthwise),
        ),
        "bias_id": _bias(emitter, bias),
        "output_id": result.id,
        "flags": 0,
    }
    kind = schema.XNNConvTranspose2d if transposed else schema.XNNConv2d
    emitter.blob.node((schema.XNNDepthwiseConv2d if is_depthwise else kind)(**fields))
    return result


def _is_pointwise(shape: Sequence[int], stride: Any, padding: Any, groups: int) -> bool:
    return groups == 1 and tuple(shape[2:]) == (1, 1) and not any(padding) and max(stride) == 1


def _pointwise(emitter: Emitter, node: fx.Node, weight: Tensor, transposed: bool) -> Operand:
    """Emits a 1x1 convolution as a matrix product over NHWC.

    The weight [out, in] serves the input's gradient too, read the other way, so it is
    stored once.
    """
    x, _, bias = node.args[:3]
    source = emitter.arranged(emitter.operand(x), NHWC)  # type: ignore[arg-type]
    result = emitter.new(shape_of(node), NHWC)
    matrix = weight.t() if transposed else weight
    frozen_product(
        emitter, source, matrix, _bias(emitter, bias), result.id, is_turned=transposed
    )
    return result


def _window(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, int]:
    return {
        "padding_top": padding[0],
        "padding_right": padding[1],
        "padding_bottom": padding[0],
        "padding_left": padding[1],
        "subsampling_height": stride[0],
        "subsampling_width": stride[1],
        "dilation_height": dilation[0],
        "dilation_width": dilation[1],
    }


def _filter(weight: Tensor, groups: int, transposed: bool, is_depthwise: bool) -> Tensor:
    """Returns the weight as [out, h, w, in/groups], or [1, h, w, channels] if depthwise."""
    if is_depthwise:
        return weight.permute(1, 2, 3, 0)
    if transposed:
        inputs, outputs, height, width = weight.shape
        split = weight.reshape(groups, inputs // groups, outputs, height, width)
        weight = split.transpose(1, 2).reshape(
            groups * outputs, inputs // groups, height, width
        )
    return weight.permute(0, 2, 3, 1)


def _operands(emitter: Emitter, source: int, filters: Tensor) -> dict[str, int]:
    """Returns the input and the filter, both in int8 where that pays."""
    blob = emitter.blob
    held = precision(emitter.frozen_weights, len(filters), filters[0].numel())
    if held == "int8" and len(filters) > 1:
        filter_id = blob.quantized_weight(quantized(filters))
        return {"input1_id": blob.quantized_rows(source, 3), "filter_id": filter_id}
    return {"input1_id": source, "filter_id": blob.weight(filters)}


def _bias(emitter: Emitter, bias: Any) -> int:
    if bias is None:
        return NO_VALUE
    operand = emitter.operand(bias)
    assert isinstance(operand, Constant)
    return emitter.blob.weight(operand.tensor)


def _max_pool(emitter: Emitter, node: fx.Node) -> Operand:
    given: list[Any] = [*node.args, *([], [0, 0], [1, 1], False)[len(node.args) - 2 :]]
    x, size, stride, padding, dilation, _ = given
    result = emitter.new([int(s) for s in node.meta["val"][0].shape], NHWC)
    window = _window(stride or size, padding, dilation)
    emitter.blob.node(
        schema.XNNMaxPooling2d(
            padding_top=window["padding_top"],
            padding_right=window["padding_right"],
            padding_bottom=window["padding_bottom"],
            padding_left=window["padding_left"],
            pooling_height=size[0],
            pooling_width=size[1],
            stride_height=window["subsampling_height"],
            stride_width=window["subsampling_width"],
            dilation_height=window["dilation_height"],
            dilation_width=window["dilation_width"],
            input_id=emitter.arranged(emitter.operand(x), NHWC),
            output_id=result.id,
            flags=0,
        )
    )
    return result


CONVOLUTION: Final[Mapping[Any, Emit]] = {
    _aten.convolution.default: _convolution,
    _aten.max_pool2d_with_indices.default: _max_pool,
}
