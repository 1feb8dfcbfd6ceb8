"""Pass: turns gradients into updated parameters and optimizer state."""

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, fx

from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import fake_like, set_results
from pockmobile.graph.rewrite import inline
from pockmobile.optim import Optimizer, clip_by_global_norm
from pockmobile.passes.base import Numerics, Pass, finish


@final
@dataclass(frozen=True)
class AppendOptimizer(Pass):
    """Appends clipping and the optimizer's arithmetic; state and `lr` become inputs.

    Before: inputs parameters, batch; return loss, gradients
    After:  inputs parameters, optimizer state, batch, lr;
            return loss, new parameters, new optimizer state
    """

    optimizer: Optimizer
    clip_norm: float | None = None
    name = "append-optimizer"
    numerics = Numerics.CLOSE

    def options(self) -> dict[str, Any]:
        """Returns the optimizer's constants and the clipping norm."""
        return {"optimizer": dict(self.optimizer.constants()), "clip_norm": self.clip_norm}

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the training step."""
        graph = graph.copy()
        parameters = graph.input_nodes(Role.PARAMETER)
        grads = {
            port.parameter: node
            for port, node in zip(graph.outputs, graph.results, strict=True)
            if port.role is Role.GRADIENT
        }
        slots, slot_ports = self._add_slots(graph, parameters)
        step, step_ports = self._add_step(graph)
        lr = _add_placeholder(graph, "lr", torch.zeros(()), graph.placeholders[-1])
        names = list(parameters)

        def update(*flat: Tensor) -> list[Tensor]:
            return _update_all(self.optimizer, self.clip_norm, len(names), list(flat))

        anchor = next(node for node in graph.nodes if node.op == "output")
        arguments = [*parameters.values(), *(grads[name] for name in names), *slots, lr, *step]
        with graph.module.graph.inserting_before(anchor):
            results = inline(graph.module.graph, update, arguments)
        kept = [
            (port, node)
            for port, node in zip(graph.outputs, graph.results, strict=True)
            if port.role is Role.LOSS
        ]
        ports = [port for port in graph.inputs if port.role is Role.PARAMETER]
        rest = [port for port in graph.inputs if port.role is not Role.PARAMETER]
        state_ports = [*ports, *slot_ports, *step_ports]
        set_results(graph.module, [*(node for _, node in kept), *results])
        return finish(
            replace(
                graph,
                inputs=(*state_ports, *rest, Port("lr", Role.LEARNING_RATE)),
                outputs=(*(port for port, _ in kept), *state_ports),
            )
        )

    def _add_slots(
        self, graph: JointGraph, parameters: dict[str, fx.Node]
    ) -> tuple[list[fx.Node], list[Port]]:
        anchor = list(parameters.values())[-1]
        nodes: list[fx.Node] = []
        ports: list[Port] = []
        for name, parameter in parameters.items():
            for slot in self.optimizer.slots:
                anchor = _add_placeholder(
                    graph, f"{name}.{slot}", parameter.meta["val"], anchor
                )
                nodes.append(anchor)
                ports.append(Port(f"{name}.{slot}", Role.OPTIMIZER, parameter=name, slot=slot))
        return nodes, ports

    def _add_step(self, graph: JointGraph) -> tuple[list[fx.Node], list[Port]]:
        if not self.optimizer.counts_steps:
            return [], []
        num_state = sum(port.role is Role.PARAMETER for port in graph.inputs)
        num_state += num_state * len(self.optimizer.slots)
        anchor = graph.placeholders[num_state - 1]
        node = _add_placeholder(graph, "step", torch.zeros(1), anchor)
        return [node], [Port("step", Role.OPTIMIZER, slot="step")]


def _add_placeholder(graph: JointGraph, name: str, value: Tensor, after: fx.Node) -> fx.Node:
    with graph.module.graph.inserting_after(after):
        node = graph.module.graph.placeholder(name.replace(".", "_"))
    node.meta["val"] = fake_like(value)
    return node


def _update_all(
    optimizer: Optimizer, clip_norm: float | None, num_parameters: int, flat: list[Tensor]
) -> list[Tensor]:
    """Updates all parameters; `flat` is parameters, gradients, slots, lr and the step."""
    width = len(optimizer.slots)
    parameters, grads = flat[:num_parameters], flat[num_parameters : 2 * num_parameters]
    slots = flat[2 * num_parameters : (2 + width) * num_parameters]
    lr, *counter = flat[(2 + width) * num_parameters :]
    lr = lr.reshape(1)
    step = counter[0] + 1.0 if counter else lr
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm)
    new_parameters: list[Tensor] = []
    new_slots: list[Tensor] = []
    for index, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        own = slots[index * width : (index + 1) * width]
        update = optimizer.update(parameter, grad, own, lr, step)
        new_parameters.append(update.parameter)
        new_slots.extend(update.slots)
    return [*new_parameters, *new_slots, *([step] if counter else [])]
