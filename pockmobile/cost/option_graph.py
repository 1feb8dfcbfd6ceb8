"""One joint graph with a gradient for every option of an update space."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import final

import torch
from torch import fx

from pockmobile import passes as p
from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import set_results
from pockmobile.graph.rewrite import arguments, call, infer
from pockmobile.passes.base import finish
from pockmobile.pipeline import pruning, simplification
from pockmobile.plan import Slice, UpdatePlan
from pockmobile.space import UpdateSpace
from pockmobile.targets import Target

_aten = torch.ops.aten
Part = tuple[str, Slice | None]
"""A parameter by name, whole or in part."""


@final
@dataclass(frozen=True)
class OptionGraph:
    """A joint graph whose outputs are the loss and the gradients of `parts`.

    A plan's training step is what its own gradients need of it.
    """

    graph: JointGraph
    gradients: Mapping[Part, fx.Node]


def option_graph(joint: JointGraph, space: UpdateSpace, target: Target) -> OptionGraph:
    """Returns the graph, rewritten as far as no operator is written in the target's own."""
    parts = list(_parts(space))
    everything = UpdatePlan(dict.fromkeys(name for name, _ in parts))
    graph, _ = p.run_passes(joint, pruning(everything))
    graph = _with_parts(_one_result_each(graph), parts)
    own = takewhile(lambda item: not isinstance(item, p.Decompose), target.passes())
    rewrites = [
        p.Prune(),
        p.Canonicalize(),
        p.RemoveNoops(),
        p.SplitOneHot(),
        p.NarrowGradients(),
        *simplification(),
        *own,
        p.EliminateCommon(),
    ]
    graph, _ = p.run_passes(graph, rewrites)
    names = {_port_name(part): part for part in parts}
    found = graph.output_nodes(Role.GRADIENT).items()
    return OptionGraph(graph, {names[name]: node for name, node in found})


def _parts(space: UpdateSpace) -> Iterator[Part]:
    seen = dict.fromkeys(space.base.items())
    for option in space.options:
        seen.update(dict.fromkeys(option.update.items()))
    yield from seen


def _port_name(part: Part) -> str:
    name, cut = part
    return f"grad.{name}" + (f"[{cut.dim}:{cut.start}:{cut.stop}]" if cut else "")


def _one_result_each(graph: JointGraph) -> JointGraph:
    """Computes each result of a convolution's backward operator by an operator of its own.

    Before: g = convolution_backward(..., mask=[True, True, False]); g[0]; g[1]
    After:  convolution_backward(..., mask=[True, False, False])[0];
            convolution_backward(..., mask=[False, True, False])[1]
    """
    graph = graph.copy()
    for node in list(graph.nodes):
        if node.target is not _aten.convolution_backward.default:
            continue
        for user in list(node.users):
            _, index = arguments(user)
            with graph.module.graph.inserting_before(user):
                own = graph.module.graph.node_copy(node)
            own.args = (*node.args[:-1], [place == index for place in range(3)])
            own.meta["val"] = infer(own.target, own.args, own.kwargs)
            user.replace_input_with(node, own)
    return finish(graph)


def _with_parts(graph: JointGraph, parts: list[Part]) -> JointGraph:
    """Returns a gradient for each part, in operators that no other gradient shares."""
    graph = graph.copy()
    whole = {
        port.parameter: node
        for port, node in zip(graph.outputs, graph.results, strict=True)
        if port.role is Role.GRADIENT
    }
    ports, results = list(graph.outputs), list(graph.results)
    for name, cut in parts:
        if cut is None or name not in whole:
            continue
        copied = _copy_alone(graph.module.graph, whole[name])
        with graph.module.graph.inserting_before(graph.module.graph.output_node()):
            sliced = call(
                graph.module.graph, _aten.slice_copy.Tensor, copied, cut.dim, cut.start,
                cut.stop, 1,
            )  # fmt: skip
        ports.append(Port(_port_name((name, cut)), Role.GRADIENT, parameter=name))
        results.append(sliced)
    set_results(graph.module, results)
    return finish(replace(graph, outputs=tuple(ports)))


def _copy_alone(graph: fx.Graph, result: fx.Node) -> fx.Node:
    """Copies a gradient with all that is computed for it alone; returns the copy."""
    alone: dict[fx.Node, None] = {result: None}
    for node in reversed(list(graph.nodes)):
        # The output is a user too, and never among them.
        is_alone = bool(node.users) and all(user in alone for user in node.users)
        if is_alone and node.op == "call_function":
            alone[node] = None
    memo: dict[fx.Node, fx.Node] = {}
    place = result.next
    for node in reversed(alone):
        with graph.inserting_before(place):
            memo[node] = graph.node_copy(node, lambda old: memo.get(old, old))
    return memo[result]
