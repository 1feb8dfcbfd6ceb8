"""Cuts a graph into the fewest delegates, in one pass over it.

Each operator gets a phase: the number of times that a path from the inputs changes from a
delegate to the host. The delegated operators of one phase form one delegate. No cycle can
arise, since a path that leaves a delegate comes back in a later phase.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph
from pockmobile.graph.joint import constant_value

_aten = torch.ops.aten

_FREE: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.expand_copy.default,
    _aten.slice_copy.Tensor,
)
Refuse = Callable[[fx.Node, Container[fx.Node]], str | None]
"""Says why a delegate does not take a node, given the constants; None if it does."""

VIEWED: Final = "the runtime views an input without a copy"
"""Why a delegate that would copy leaves a view outside. It is no operator that runs there."""

_TOO_FEW: Final = "too few operators around it for a delegate"
_MIN_OPERATORS: Final = 4
"""A delegate with fewer operators costs more at its border than it saves."""


@final
@dataclass(frozen=True)
class Partition:
    """The delegates, each a list of nodes in order, and why the other operators stay out."""

    delegates: tuple[tuple[fx.Node, ...], ...]
    refusals: Mapping[fx.Node, str]


def constant_tensors(graph: JointGraph) -> dict[fx.Node, Tensor]:
    """Returns the tensors of nodes that depend on no input: constants, their views, fills."""
    found: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = constant_value(node)
        elif node.target is _aten.full.default and node.meta["val"].dtype == torch.float32:
            shape, value = node.args[:2]
            # One element in memory, whatever the shape.
            found[node] = torch.full((), float(value)).expand(shape)  # type: ignore
        elif node.target in _FREE and node.args[0] in found:
            found[node] = _view(node, found[node.args[0]])  # type: ignore[index]
    return found


def _view(node: fx.Node, source: Tensor) -> Tensor:
    """Views a constant without copying it, where that is possible."""
    if node.target is _aten.permute_copy.default:
        return source.permute(node.args[1])  # type: ignore[arg-type]
    if node.target is _aten.expand_copy.default:
        return source.expand(node.args[1])  # type: ignore[arg-type]
    if node.target is _aten.view_copy.default:
        return source.reshape(node.args[1])  # type: ignore[arg-type]
    return _aten.slice.Tensor(source, *node.args[1:])  # type: ignore[no-any-return]


def partition(
    graph: JointGraph, constants: Mapping[fx.Node, Tensor], refuse: Refuse
) -> Partition:
    """Returns the delegates of a graph, made of what `refuse` does not refuse.

    Delegates that are too small are given back to the host, which can join their neighbours;
    so the cut is made again without them.
    """
    refusals = {
        node: reason
        for node in graph.nodes
        if node.op == "call_function" and node not in constants
        for reason in [refuse(node, constants)]
        if reason
    }
    preludes = _small_preludes(graph, constants, refusals)
    # In the graph's order: a set's would change from one compilation to the next.
    refusals.update((node, _TOO_FEW) for node in graph.nodes if node in preludes)
    while True:
        groups = _groups(graph, constants, refusals)
        small = [group for group in groups if _is_small(group)]
        if not small:
            return Partition(tuple(tuple(group) for group in groups), refusals)
        for node in (node for group in small for node in group):
            refusals[node] = _TOO_FEW


def _small_preludes(
    graph: JointGraph, constants: Mapping[fx.Node, Tensor], refusals: Mapping[fx.Node, str]
) -> set[fx.Node]:
    """Returns operators that only prepare a host operator, and are too few for a delegate.

    Left to a delegate, a view of the labels would put the whole backward pass, which needs
    the host's one-hot labels, into a later delegate than the forward pass.
    """
    before: dict[fx.Node, frozenset[fx.Node]] = {}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node in constants:
            continue
        joined = frozenset[fx.Node]().union(*(before.get(p, ()) for p in node.all_input_nodes))
        if node in refusals:
            found |= joined if len(joined) < _MIN_OPERATORS else set()
            before[node] = frozenset()
        else:
            # Larger sets are never small again: stop counting.
            before[node] = joined if len(joined) >= _MIN_OPERATORS else joined | {node}
    return found


def _is_small(group: list[fx.Node]) -> bool:
    return sum(node.target not in _FREE for node in group) < _MIN_OPERATORS


def _groups(
    graph: JointGraph, constants: Mapping[fx.Node, Tensor], refusals: Mapping[fx.Node, str]
) -> list[list[fx.Node]]:
    phases: dict[fx.Node, int] = {}
    groups: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node in constants:
            continue
        is_host = node in refusals
        phase = 0
        for parent in node.all_input_nodes:
            if parent in phases:
                leaves_delegate = is_host and parent not in refusals
                phase = max(phase, phases[parent] + leaves_delegate)
        phases[node] = phase
        if not is_host:
            groups.setdefault(phase, []).append(node)
    return [groups[phase] for phase in sorted(groups)]
