"""What operators do: multiply-adds and bytes moved, and the memory that they hold meanwhile."""

import operator
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, Final, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph, rewrite
from pockmobile.graph.joint import constant_nodes
from pockmobile.graph.rewrite import shape_of, value_of
from pockmobile.targets import Target

_aten = torch.ops.aten


class Work(StrEnum):
    """A kind of work, each with a rate of its own."""

    DENSE = "dense"  # multiply-adds of products and of convolutions without groups
    GROUPED = "grouped"  # multiply-adds of convolutions in groups
    PACKED = "packed"  # bytes of run-time weights, which are packed at each call
    BYTES = "bytes"  # bytes read and written, without constants
    OPERATORS = "operators"  # calls


@final
@dataclass(frozen=True)
class Load:
    """What a graph does: its work, and the most bytes that it holds above its outputs.

    Inputs that die in it count as held before: fewer bytes than none are possible.
    `is_host` says that no delegate takes all of it (but for what it does with single
    numbers): what it reads and writes lies in the runtime's own plan.
    """

    work: Mapping[Work, float]
    transient_bytes: int
    is_host: bool


NO_LOAD: Final = Load({}, 0, is_host=False)


def load_of(
    graph: JointGraph,
    target: Target,
    dying: Container[str] = (),
    *,
    writes_outside: bool = False,
) -> Load:
    """Returns what a graph in a target's own operators does.

    Args:
        graph: a graph in operators of `target`.
        target: where it runs.
        dying: the names of inputs that nothing reads afterwards.
        writes_outside: whether the results lie in other memory than what is held meanwhile.
    """
    constants = constant_nodes(graph)
    results = {root(node, target) for node in graph.results}
    operators = [
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in constants and target.moves(node)
    ]
    total: Counter[Work] = Counter()
    for node in operators:
        total.update(work_of(node, constants))
    pairs = zip(graph.inputs, graph.placeholders, strict=True)
    held = [node for port, node in pairs if port.name in dying]
    outside = results if writes_outside else set()
    peak = _peak(graph, target, held, set(operators) - outside, results)
    before = sum(map(num_bytes, held)) + sum(map(num_bytes, results - constants - outside))
    return Load(dict(total), peak - before, _is_host(operators, constants, target))


def _peak(
    graph: JointGraph,
    target: Target,
    held: Sequence[fx.Node],
    made: Container[fx.Node],
    results: Container[fx.Node],
) -> int:
    """Returns the most bytes alive at once, of those held before and those made."""
    places: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = root(node, target)
        value = None
        if source is node and node in made and node not in results:
            value = target.overwritten(node, lambda item: len(item.users))
        is_inside = value in made and value not in results
        places[node] = places[value] if value and is_inside else places.get(source, node)
    last = {
        places[parent]: index
        for index, node in enumerate(graph.nodes)
        for parent in node.all_input_nodes
    }
    live = {node: num_bytes(node) for node in held}
    peak = sum(live.values())
    constants = constant_nodes(graph)
    for index, node in enumerate(graph.nodes):
        if node in made and places[node] is node:
            live[node] = num_bytes(node)
        beside = _packed(node, constants).get(Work.PACKED, 0) if target.packs_products else 0
        peak = max(peak, sum(live.values()) + int(beside))
        live = {
            value: size
            for value, size in live.items()
            if value in results or last.get(value, -1) > index
        }
    return peak


def _is_host(
    operators: Sequence[fx.Node], constants: Container[fx.Node], target: Target
) -> bool:
    """Whether the host runs any of it, single numbers beside a delegate apart."""
    refused = [node for node in operators if not target.delegates(node, constants)]
    if len(refused) == len(operators):
        return bool(refused)
    return any(
        value_of(value).numel() > 1
        for node in refused
        for value in (node, *node.all_input_nodes)
        if isinstance(value.meta["val"], Tensor)
    )


def root(node: fx.Node, target: Target) -> fx.Node:
    """Returns the node where a result lies."""
    while node.op == "call_function" and not target.moves(node):
        node = node.all_input_nodes[0]
    return node


def num_bytes(node: fx.Node) -> int:
    """Returns the size of a node's tensor; where there are several, `getitem` has them."""
    return rewrite.num_bytes(node) if isinstance(node.meta["val"], Tensor) else 0


def work_of(node: fx.Node, constants: set[fx.Node]) -> Mapping[Work, float]:
    """Returns the work of one operator."""
    if node.target is operator.getitem:
        return {}
    rule = _RULES.get(node.target)
    work = rule(node) if rule else {}
    moved = {Work.BYTES: _moved(node, constants)}
    return {**work, **moved, **_packed(node, constants), Work.OPERATORS: 1}


def _moved(node: fx.Node, constants: set[fx.Node]) -> int:
    read = [parent for parent in node.all_input_nodes if parent not in constants]
    return rewrite.num_bytes(node) + sum(map(num_bytes, read))


def _packed(node: fx.Node, constants: set[fx.Node]) -> Mapping[Work, float]:
    place = _WEIGHT_PLACES.get(node.target)
    weight = node.args[place] if place is not None else None
    if not isinstance(weight, fx.Node) or weight in constants:
        return {}
    return {Work.PACKED: num_bytes(weight)}


_WEIGHT_PLACES: Final[Mapping[Any, int]] = {
    _aten.mm.default: 1,
    _aten.bmm.default: 1,
    _aten.linear.default: 1,
    _aten.addmm.default: 2,
}


def _product(node: fx.Node) -> Mapping[Work, float]:
    left = node.args[1 if node.target is _aten.addmm.default else 0]
    assert isinstance(left, fx.Node)
    return {Work.DENSE: prod(shape_of(node)) * shape_of(left)[-1]}


def _convolution(node: fx.Node) -> Mapping[Work, float]:
    weight, groups = node.args[1], node.args[8]
    assert isinstance(weight, fx.Node)
    kind = Work.DENSE if groups == 1 else Work.GROUPED
    # Each weight meets each place of the output; transposed, of the input.
    source = node.args[0] if node.args[6] else node
    assert isinstance(source, fx.Node)
    batch, _, *places = shape_of(source)
    return {kind: batch * prod(places) * prod(shape_of(weight))}


def _convolution_backward(node: fx.Node) -> Mapping[Work, float]:
    grad, _, weight, *_, groups, mask = node.args
    assert isinstance(weight, fx.Node)
    assert isinstance(grad, fx.Node)
    kind = Work.DENSE if groups == 1 else Work.GROUPED
    batch, _, *places = shape_of(grad)
    return {kind: sum(mask[:2]) * batch * prod(places) * prod(shape_of(weight))}  # type: ignore


_RULES: Final[Mapping[Any, Callable[[fx.Node], Mapping[Work, float]]]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _product,
    _aten.linear.default: _product,
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
}
