"""Describes a model's layers by structure, for the presets of an update plan."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import fx

from pockmobile.capture.adapters import is_adaptable
from pockmobile.capture.forward import Forward
from pockmobile.plan import Kind, Layer

_aten = torch.ops.aten

_LAYERS: Final[Mapping[Any, tuple[Kind, int, int]]] = {
    _aten.linear.default: ("linear", 1, 2),
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

_ATTENTION: Final = (
    _aten.scaled_dot_product_attention.default,
    _aten.softmax.int,
    _aten._softmax.default,
)


def describe_layers(forward: Forward) -> tuple[Layer, ...]:
    """Returns the layers whose parameters can be trained, in execution order."""
    calls = [node for node in forward.graph.graph.nodes if node.op == "call_function"]
    found = [(node, layer) for node in calls for layer in _layers_of(forward, node)]
    blocks = _blocks([layer for _, layer in found])
    layers = [
        (node, replace(layer, block=block))
        for (node, layer), block in zip(found, blocks, strict=True)
    ]
    leading = _leading(calls, layers)
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
    if kind == "other":
        for parent, name in names.items():
            is_vector = parent.meta["val"].dim() == 1 if "val" in parent.meta else False
            yield Layer(_owner(name), "", "norm" if is_vector else "other", name, "")
        return
    weight = names.get(_argument(node, weight_index), "")
    bias = names.get(_argument(node, bias_index), "")
    adapts = bool(weight) and is_adaptable(node, forward.parameters[weight])
    yield Layer(_owner(weight or bias), "", kind, weight, bias, is_adaptable=adapts)


def _argument(node: fx.Node, index: int) -> Any:
    return node.args[index] if 0 <= index < len(node.args) else None


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _blocks(layers: Sequence[Layer]) -> list[str]:
    """Returns each layer's block: the path to the first number in its name, or "".

    Numbers may also count what is no block. A norm that stands alone (`1` between the
    convolutions `0` and `3`) belongs to the block before it, and a single layer among blocks
    of several (MobileNetV2's first and last convolution) is in none. Without any number
    each layer is a block.
    """
    numbered = [_numbered_prefix(layer.path) for layer in layers]
    if not any(numbered):
        numbered = [layer.path for layer in layers]
    kinds = zip(numbered, layers, strict=True)
    num_weights = Counter(
        block for block, layer in kinds if layer.kind not in ("norm", "other")
    )
    blocks: list[str] = []
    for block in numbered:
        alone = bool(block) and not num_weights[block]
        blocks.append(blocks[-1] if alone and blocks else block)
    beside = Counter(_owner(block) for block in num_weights if num_weights[block] > 1)
    return [
        "" if num_weights[block] < 2 and beside[_owner(block)] else block for block in blocks
    ]


def _numbered_prefix(path: str) -> str:
    match = re.match(r"((?:[^.]+\.)*?\d+)(?:\.|$)", path)
    return match.group(1) if match else ""


def _leading(calls: Sequence[fx.Node], layers: Sequence[tuple[fx.Node, Layer]]) -> set[fx.Node]:
    """Returns the nodes whose weights the `sparse` preset trains."""
    order = {node: index for index, node in enumerate(calls)}
    attention = [order[node] for node in calls if node.target in _ATTENTION]
    leading: set[fx.Node] = set()
    for block in dict.fromkeys(layer.block for _, layer in layers if layer.block):
        inside = [
            (node, layer) for node, layer in layers if layer.block == block and layer.weight
        ]
        linears = [node for node, layer in inside if layer.kind == "linear"]
        convolutions = [node for node, layer in inside if layer.kind == "convolution"]
        spots = [
            spot
            for spot in attention
            if linears and order[linears[0]] < spot < order[linears[-1]]
        ]
        if spots:
            leading |= _attention_and_first_feed_forward(linears, order, spots[-1])
        elif convolutions:
            leading.add(next((n for n in convolutions if _groups(n) == 1), convolutions[0]))
        elif linears:
            leading.add(linears[0])
    return leading


def _attention_and_first_feed_forward(
    linears: Sequence[fx.Node], order: Mapping[fx.Node, int], spot: int
) -> set[fx.Node]:
    before = {node for node in linears if order[node] < spot}
    after = [node for node in linears if order[node] > spot]
    output, feed_forward = after[:1], after[1:]
    # Gated feed-forward layers (SwiGLU) have two first layers, which share their input.
    first = [node for node in feed_forward if node.args[0] is feed_forward[0].args[0]]
    return before | set(output) | set(first)


def _groups(node: fx.Node) -> int:
    index = 8 if node.target is _aten.convolution.default else 6
    groups = _argument(node, index)
    return int(groups) if groups is not None else 1
