"""Finds the weights that the `sparse` preset trains in a block, by structure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx

from pockmobile.capture.adapters import PRODUCTS
from pockmobile.graph.rewrite import arguments
from pockmobile.plan import Layer

_aten = torch.ops.aten

_ATTENTION: Final = (
    _aten.scaled_dot_product_attention.default,
    _aten.softmax.int,
    _aten._softmax.default,
)


def leading_nodes(
    calls: Sequence[fx.Node], layers: Sequence[tuple[fx.Node, Layer]]
) -> set[fx.Node]:
    """Returns the layers of each block whose weights `sparse` trains.

    They are attention and the first feed-forward layer behind it; without attention the first
    full convolution, or the first linear layer (ConvNeXt's 1x1 convolution). Where a block is
    gone through several times (ALBERT's), they are those of the last time.
    """
    order = {node: index for index, node in enumerate(calls)}
    attention = [node for node in calls if node.target in _ATTENTION]
    leading: set[fx.Node] = set()
    for block in dict.fromkeys(layer.block for _, layer in layers if layer.block):
        inside = _last_time(
            [(node, layer) for node, layer in layers if layer.block == block and layer.weight]
        )
        linears = [node for node, layer in inside if layer.kind == "linear"]
        convolutions = [node for node, layer in inside if layer.kind == "convolution"]
        spots = [
            spot
            for spot in attention
            if linears and order[linears[0]] < order[spot] < order[linears[-1]]
        ]
        if spots:
            leading |= _of_attention(linears, order, spots)
        else:
            full = [node for node in convolutions if _groups(node) == 1]
            leading.update([*full, *linears, *convolutions][:1])
    return leading


def _last_time(inside: list[tuple[fx.Node, Layer]]) -> list[tuple[fx.Node, Layer]]:
    seen: list[tuple[fx.Node, Layer]] = []
    for node, layer in inside:
        if any(layer.weight == other.weight for _, other in seen):
            seen = []
        seen.append((node, layer))
    return seen


def _of_attention(
    linears: Sequence[fx.Node], order: Mapping[fx.Node, int], spots: Sequence[fx.Node]
) -> set[fx.Node]:
    attending = {node for spot in spots for node in _attending(linears, order, spot)}
    leading = set(attending)
    for spot in spots:
        after = [node for node in linears if order[node] > order[spot]]
        output, feed_forward = after[:1], after[1:]
        leading.update(output)
        if feed_forward and feed_forward[0] not in attending:
            # Gated feed-forward layers (SwiGLU) have two first ones, which share their input.
            first = _input(feed_forward[0])
            leading |= {node for node in feed_forward if _input(node) is first}
    return leading


def _attending(
    linears: Sequence[fx.Node], order: Mapping[fx.Node, int], spot: fx.Node
) -> set[fx.Node]:
    """Returns the layers of queries, keys and values.

    A softmax has not seen the values; they are computed from what the keys are.
    """
    nearest = set(_nearest(spot, set(linears)))
    sources = {_input(node) for node in nearest}
    return nearest | {n for n in linears if order[n] < order[spot] and _input(n) in sources}


def _nearest(spot: fx.Node, linears: set[fx.Node]) -> Iterator[fx.Node]:
    """Finds the linear layers before `spot` without another one in between."""
    pending, seen = [spot], {spot}
    while pending:
        for parent in pending.pop().all_input_nodes:
            if parent in seen:
                continue
            seen.add(parent)
            if parent in linears:
                yield parent
            else:
                pending.append(parent)


def _input(linear: fx.Node) -> Any:
    return linear.args[PRODUCTS.get(linear.target, (0, 1))[0]]


def _groups(node: fx.Node) -> int:
    index = 8 if node.target is _aten.convolution.default else 6
    groups = arguments(node)[index : index + 1]
    return int(groups[0]) if groups else 1
