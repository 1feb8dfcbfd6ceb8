"""Describes a model's layers by structure, for the presets of an update plan."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx

from pockmobile.capture.adapters import PRODUCTS, highest_rank
from pockmobile.capture.blocks import blocks_of
from pockmobile.capture.forward import Forward
from pockmobile.capture.leading import leading_nodes
from pockmobile.capture.towers import towers_of
from pockmobile.plan import Kind, Layer

_aten = torch.ops.aten

_LAYERS: Final[Mapping[Any, tuple[Kind, int, int]]] = {
    _aten.linear.default: ("linear", 1, 2),
    **{target: ("linear", weight, -1) for target, (_, weight) in PRODUCTS.items()},
    _aten.addmm.default: ("linear", 2, 0),
    _aten.conv1d.default: ("convolution", 1, 2),
    _aten.conv1d.padding: ("convolution", 1, 2),
    _aten.conv2d.default: ("convolution", 1, 2),
    _aten.conv2d.padding: ("convolution", 1, 2),
    _aten.convolution.default: ("convolution", 1, 2),
    _aten.batch_norm.default: ("norm", 1, 2),
    _aten._native_batch_norm_legit_functional.default: ("norm", 1, 2),
    _aten._native_batch_norm_legit_no_training.default: ("norm", 1, 2),
    _aten.layer_norm.default: ("norm", 2, 3),
    _aten.rms_norm.default: ("norm", 2, -1),
    _aten.group_norm.default: ("norm", 2, 3),
    _aten.instance_norm.default: ("norm", 1, 2),
    _aten.embedding.default: ("embedding", 0, -1),
}
"""Operator -> kind of layer, and which arguments are its weight and bias."""


def describe_layers(forward: Forward) -> tuple[Layer, ...]:
    """Returns the layers whose parameters can be trained, in execution order."""
    calls = [node for node in forward.graph.graph.nodes if node.op == "call_function"]
    found = [(node, layer) for node in calls for layer in _layers_of(forward, node)]
    blocks = blocks_of([layer for _, layer in found])
    towers = towers_of(forward.graph.graph, found)
    layers = [
        (node, replace(layer, block=block, towers=towers[node]))
        for (node, layer), block in zip(found, blocks, strict=True)
    ]
    leading = leading_nodes(calls, layers)
    return tuple(replace(layer, is_leading=node in leading) for node, layer in layers)


def _layers_of(forward: Forward, node: fx.Node) -> Iterator[Layer]:
    kind, weight_index, bias_index = _LAYERS.get(node.target, ("other", -1, -1))
    names = {
        parent: forward.tensors[str(parent.target)]
        for parent in node.all_input_nodes
        if parent.op == "get_attr" and forward.tensors[str(parent.target)] in forward.trainable
    }
    if not names:
        return
    weight = names.get(_argument(node, weight_index), "")
    bias = names.get(_argument(node, bias_index), "")
    if not weight and not bias:
        for parent, name in names.items():
            is_vector = parent.meta["val"].dim() == 1 if "val" in parent.meta else False
            yield Layer(_owner(name), "", "norm" if is_vector else "other", name, "")
        return
    rank = highest_rank(node, forward.parameters[weight]) if weight else 0
    outputs = _num_outputs(node, forward.parameters[weight]) if weight else 0
    yield Layer(
        _owner(weight or bias), "", kind, weight, bias, max_rank=rank, num_outputs=outputs
    )


def _num_outputs(node: fx.Node, weight: Tensor) -> int:
    """Returns the number of a linear layer's outputs, else 0."""
    if node.target is _aten.linear.default:
        return weight.shape[0]
    return weight.shape[-1] if node.target in PRODUCTS else 0


def _argument(node: fx.Node, index: int) -> Any:
    return node.args[index] if 0 <= index < len(node.args) else None


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]
