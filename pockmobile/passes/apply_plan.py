"""Pass: freezes what the plan does not name and splits what it trains in part."""

from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, fx

from pockmobile.errors import PlanError, nearest
from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import add_constant, fake_like, set_results
from pockmobile.graph.rewrite import call
from pockmobile.passes.base import Pass, finish
from pockmobile.plan import Slice, UpdatePlan

_aten = torch.ops.aten


@final
@dataclass(frozen=True)
class ApplyPlan(Pass):
    """Makes constants of what is frozen; a weight trained in part becomes a concatenation.

    Before: placeholder frozen; placeholder weight; return grad.frozen, grad.weight
    After:  constant frozen; weight = cat(constant, placeholder, constant);
            return slice_copy(grad.weight)
    """

    plan: UpdatePlan = field(repr=False)
    name = "apply-plan"

    def options(self) -> dict[str, Any]:
        """The plan stands elsewhere in the manifest."""
        return {}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph whose parameters are the plan's alone.

        Raises:
            PlanError: a parameter that does not influence the loss.
        """
        self._check_gradients(graph)
        if all(self._keeps(graph, port) for port in graph.inputs):
            return graph
        graph = graph.copy()
        initial: dict[str, Tensor] = {}
        ports: list[Port] = []
        for port, node in zip(graph.inputs, graph.placeholders, strict=True):
            if port.name not in graph.initial:
                ports.append(port)
            elif port.parameter in self.plan.update:
                ports.append(port)
                value, part = graph.initial[port.name], self.plan.update[port.parameter]
                initial[port.name] = _trained(value, part)
                node.meta["val"] = fake_like(initial[port.name])
                if part is not None:
                    _complete(graph, node, value, part)
            else:
                _freeze(graph, node, graph.initial[port.name])
        outputs = self._narrow_gradients(graph)
        return finish(replace(graph, inputs=tuple(ports), outputs=outputs, initial=initial))

    def _check_gradients(self, graph: JointGraph) -> None:
        known = {port.parameter for port in graph.outputs if port.role is Role.GRADIENT}
        missing = [name for name in self.plan.update if name not in known]
        if known and missing:
            raise PlanError(
                f"the plan trains {missing[0]!r}, which does not influence the loss: "
                f"{nearest(missing[0], known)}"
            )

    def _keeps(self, graph: JointGraph, port: Port) -> bool:
        """Whether the plan leaves an input as it is."""
        if port.name not in graph.initial:
            return True
        is_whole = port.parameter in self.plan.update and not self.plan.update[port.parameter]
        return is_whole and graph.initial[port.name].is_contiguous()

    def _narrow_gradients(self, graph: JointGraph) -> tuple[Port, ...]:
        """Returns only what is trained; what is trained in part is sliced."""
        update = self.plan.update
        ports: list[Port] = []
        results: list[fx.Node] = []
        for port, node in zip(graph.outputs, graph.results, strict=True):
            if port.role is Role.GRADIENT and port.parameter not in update:
                continue
            part = update.get(port.parameter) if port.role is Role.GRADIENT else None
            with graph.module.graph.inserting_before(graph.module.graph.output_node()):
                results.append(node if part is None else _slice(graph.module.graph, node, part))
            ports.append(port)
        set_results(graph.module, results)
        return tuple(ports)


def _freeze(graph: JointGraph, node: fx.Node, value: Tensor) -> None:
    with graph.module.graph.inserting_before(graph.placeholders[-1].next):
        constant = add_constant(graph.module, value.contiguous())
    node.replace_all_uses_with(constant)
    graph.module.graph.erase_node(node)


def _trained(value: Tensor, part: Slice | None) -> Tensor:
    if part is not None:
        value = value.narrow(part.dim, part.start, part.stop - part.start)
    return value.contiguous()


def _complete(graph: JointGraph, node: fx.Node, value: Tensor, part: Slice) -> None:
    """Puts the frozen channels of `value` around the placeholder of the trained ones."""
    users = list(node.users)
    module = graph.module
    with module.graph.inserting_before(graph.placeholders[-1].next):
        pieces = [
            *_frozen_part(module, value, part.dim, 0, part.start),
            node,
            *_frozen_part(module, value, part.dim, part.stop, value.shape[part.dim]),
        ]
        if len(pieces) == 1:
            return
        whole = call(module.graph, _aten.cat.default, pieces, part.dim)
    for user in users:
        user.replace_input_with(node, whole)


def _frozen_part(
    module: fx.GraphModule, value: Tensor, dim: int, start: int, stop: int
) -> list[fx.Node]:
    """Returns the frozen channels `start` to `stop`, if there are any."""
    if start == stop:
        return []
    return [add_constant(module, value.narrow(dim, start, stop - start).contiguous())]


def _slice(graph: fx.Graph, node: fx.Node, part: Slice) -> fx.Node:
    return call(graph, _aten.slice_copy.Tensor, node, part.dim, part.start, part.stop, 1)
