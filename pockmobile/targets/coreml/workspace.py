"""Estimates what a delegate needs while it runs: Core ML does not tell before."""

import operator
from collections.abc import Container, Sequence
from typing import Final

import torch
from torch import fx

from pockmobile.graph.rewrite import MODULE_KEY, value_of

_aten = torch.ops.aten
_VIEWS: Final = (_aten.view_copy.default, operator.getitem)


def workspace(
    nodes: Sequence[fx.Node], outputs: Sequence[fx.Node], half: Container[fx.Node]
) -> list[tuple[int, str]]:
    """Returns the bytes alive while each node runs, and the module that it is of.

    Values live from their operator to the last that reads them or a view of them, those in
    `half` in float16; outputs are the runtime's. Core ML needs more where it copies, less
    where it fuses.
    """
    storage: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        source = node.all_input_nodes[0] if node.target in _VIEWS else None
        storage[node] = storage.get(source, node) if source else node
    kept = {storage[node] for node in outputs if node in storage}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        for value in (node, *node.all_input_nodes):
            if value in storage:
                last[storage[value]] = place
    alive, moments = 0, []
    ending: dict[int, list[fx.Node]] = {}
    for owner, place in last.items():
        ending.setdefault(place, []).append(owner)
    for place, node in enumerate(nodes):
        if storage[node] is node and node not in kept:
            alive += _num_bytes(node, is_half=node in half)
        moments.append((alive, str(node.meta.get(MODULE_KEY, ""))))
        alive -= sum(
            _num_bytes(owner, is_half=owner in half)
            for owner in ending.get(place, ())
            if owner not in kept
        )
    return moments


def _num_bytes(node: fx.Node, *, is_half: bool) -> int:
    first = node.meta["val"]
    value = first[0] if isinstance(first, tuple) else value_of(node)
    if value.dtype == torch.bool:
        return int(value.numel())
    return int(value.numel()) * (2 if is_half and value.is_floating_point() else 4)
