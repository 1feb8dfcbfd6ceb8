"""Pass: freezes what the plan does not name and splits what it trains in part."""

from collections.abc import Mapping
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
        graph = graph.copy()
        self._check_gradients(graph)
        update = self.plan.update
        initial: dict[str, Tensor] = {}
        ports: list[Port] = []
        for port, node in zip(graph.inputs, graph.placeholders, strict=True):
            if port.role not in (Role.PARAMETER, Role.BUFFER):
                ports.append(port)
            elif port.role is Role.PARAMETER and port.parameter in update:
                ports.append(port)
                value = graph.initial[port.name]
                initial[port.name] = _split(graph, node, value, update[port.parameter])
            else:
                _freeze(graph, node, graph.initial[port.name])
        outputs = self._narrow_gradients(graph, update)
        return finish(replace(graph, inputs=tuple(ports), outputs=outputs, initial=initial))

    def _check_gradients(self, graph: JointGraph) -> None:
        known = {port.parameter for port in graph.outputs if port.role is Role.GRADIENT}
        missing = [name for name in self.plan.update if name not in known]
        if known and missing:
            raise PlanError(
                f"the plan trains {missing[0]!r}, which does not influence the loss: {nearest(missing[0], known)}"
            )

    def _narrow_gradients(
        self, graph: JointGraph, update: Mapping[str, Slice | None]
    ) -> tuple[Port, ...]:
        ports: list[Port] = []
        results: list[fx.Node] = []
        anchor = next(node for node in graph.nodes if node.op == "output")
        for port, node in zip(graph.outputs, graph.results, strict=True):
            if port.role is Role.GRADIENT and port.parameter not in update:
                continue
            part = update.get(port.parameter) if port.role is Role.GRADIENT else None
            with graph.module.graph.inserting_before(anchor):
                results.append(node if part is None else _slice(graph.module.graph, node, part))
            ports.append(port)
        set_results(graph.module, results)
        return tuple(ports)


def _freeze(graph: JointGraph, node: fx.Node, value: Tensor) -> None:
    with graph.module.graph.inserting_after(graph.placeholders[-1]):
        constant = add_constant(graph.module, value.contiguous())
    node.replace_all_uses_with(constant)
    graph.module.graph.erase_node(node)


def _split(graph: JointGraph, node: fx.Node, value: Tensor, part: Slice | None) -> Tensor:
    """Narrows the placeholder to the slice and returns the slice's values."""
    if part is None:
        return value.contiguous()
    trained = value.narrow(part.dim, part.start, part.stop - part.start).contiguous()
    users = list(node.users)
    module = graph.module
    with module.graph.inserting_after(graph.placeholders[-1]):
        before = _constant_part(module, value, part.dim, 0, part.start)
        after = _constant_part(module, value, part.dim, part.stop, value.shape[part.dim])
    node.meta["val"] = fake_like(trained)
    if before is None and after is None:
        return trained
    anchor = after or before
    assert anchor is not None
    later = anchor if before is None or after is None else max(before, after)
    with module.graph.inserting_after(later):
        pieces = [piece for piece in (before, node, after) if piece is not None]
        whole = call(module.graph, _aten.cat.default, pieces, part.dim)
    for user in users:
        user.replace_input_with(node, whole)
    return trained


def _constant_part(
    module: fx.GraphModule, value: Tensor, dim: int, start: int, stop: int
) -> fx.Node | None:
    if start == stop:
        return None
    return add_constant(module, value.narrow(dim, start, stop - start).contiguous())


def _slice(graph: fx.Graph, node: fx.Node, part: Slice) -> fx.Node:
    piece = call(graph, _aten.slice_copy.Tensor, node, part.dim, part.start, part.stop, 1)
    piece.meta["val"] = piece.meta["val"].contiguous()
    return piece
