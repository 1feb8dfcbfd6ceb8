"""Pass: computes each value once."""

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx
from torch.utils._pytree import tree_map

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import constant_value, memory_of
from pockmobile.graph.rewrite import AGAIN_KEY, is_random, num_bytes, shape_of
from pockmobile.passes.base import Pass, finish


@final
@dataclass(frozen=True)
class EliminateCommon(Pass):
    """Merges operators that have the same arguments, and constants of the same values.

    A value that is much larger than what it is made of is computed again where it is needed
    long after (the windows of a convolution, in the forward and in the backward pass): kept
    all the while, it would be most of a training step's memory. So is what only moves data
    (a view, a slice, a pad, a depthwise convolution, with which a target gathers what lies
    under the taps of a kernel), since what it moves is there as well.

    Before: a = exp(x); b = exp(x); add(a, b)
    After:  a = exp(x); add(a, a)
    """

    name = "eliminate-common"

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without duplicates."""
        if not _duplicates(graph):
            return graph
        graph = graph.copy()
        for node, first in _duplicates(graph).items():
            node.replace_all_uses_with(first)
        return finish(graph)


_FAR: Final = 64
"""Operators between two places that are far from each other."""

_MUCH: Final = 2

_aten = torch.ops.aten
_MOVES: Final = (
    _aten.view_copy.default,
    _aten.slice_copy.Tensor,
    _aten.constant_pad_nd.default,
    _aten.cat.default,
)
_GROUPS: Final = 8

_MAX_COMPARED: Final = 4096
"""Elements of the largest constant that is compared by its bytes, others by their address."""


def _duplicates(graph: JointGraph) -> dict[fx.Node, fx.Node]:
    """Returns each node that repeats an earlier one, with that one."""
    seen: dict[Any, tuple[int, fx.Node]] = {}
    found: dict[fx.Node, fx.Node] = {}
    place = 0  # Only what stays counts: a second run sees the same distances.
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr") or is_random(node):
            continue
        key = _key(node, found)
        before, first = seen.setdefault(key, (place, node))
        if place - before > _FAR and (_is_move(node) or _is_expanding(node)):
            seen[key] = place, node
        elif first is not node:
            found[node] = first
            continue
        place += 1
    return found


def _is_move(node: fx.Node) -> bool:
    if node.target is not _aten.convolution.default:
        return node.target in _MOVES
    return node.args[_GROUPS] == shape_of(node.args[0])[1]  # type: ignore[arg-type]


def _is_expanding(node: fx.Node) -> bool:
    """Whether the result is much larger than the values that it is made of."""
    sources = [parent for parent in node.all_input_nodes if parent.op != "get_attr"]
    return bool(sources) and num_bytes(node) > _MUCH * sum(map(num_bytes, sources))


def _key(node: fx.Node, found: dict[fx.Node, fx.Node]) -> Any:
    if node.op == "get_attr":
        value = constant_value(node)
        if value.is_meta or value.numel() > _MAX_COMPARED:
            return ("constant", memory_of(value))
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return ("constant", value.dtype, tuple(value.shape), data)
    args = tree_map(
        lambda leaf: found.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf, node.args
    )
    # 1 and 1.0 and True are equal as keys, yet mean different operators: keep their types.
    again = node.meta.get(AGAIN_KEY, False)
    return (node.target, repr(args), repr(dict(node.kwargs)), again)
