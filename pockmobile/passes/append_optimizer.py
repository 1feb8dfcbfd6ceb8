"""Pass: turns gradients into updated parameters and optimizer state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, fx

from pockmobile.errors import ModelError
from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import fake_like, set_results
from pockmobile.graph.rewrite import OPTIMIZER, inline, value_of
from pockmobile.optim import Optimizer, clip_by_global_norm
from pockmobile.passes.base import Numerics, Pass, finish


@final
@dataclass(frozen=True)
class AppendOptimizer(Pass):
    """Appends clipping and the optimizer's arithmetic; state and `lr` become inputs.

    Before: inputs parameters, batch; return loss, metrics, gradients
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
        """Returns the training step; a graph without gradients is left as it is.

        Raises:
            ModelError: an input of the model has a name that the step needs.
        """
        if not graph.output_nodes(Role.GRADIENT):
            return graph
        graph = graph.copy()
        parameters = graph.input_nodes(Role.PARAMETER)
        slots = self._slots(parameters)
        lr = Port("lr", Role.LEARNING_RATE)
        _check_names(graph, [*slots, lr])
        last_parameter = list(parameters.values())[-1]
        slot_nodes = _add_placeholders(graph, slots, after=last_parameter)
        (lr_node,) = _add_placeholders(
            graph, {lr: torch.zeros(())}, after=graph.placeholders[-1]
        )
        grads = _gradients(graph, parameters)
        with graph.module.graph.inserting_before(graph.module.graph.output_node()):
            new_state = inline(
                graph.module.graph,
                self._update,
                [list(parameters.values()), grads, slot_nodes, lr_node],
                module=OPTIMIZER,
            )
        losses = graph.output_nodes(Role.LOSS)
        set_results(graph.module, [*losses.values(), *new_state])
        trained = [port for port in graph.inputs if port.role is Role.PARAMETER]
        batch = [port for port in graph.inputs if port.role is not Role.PARAMETER]
        returned = [port for port in graph.outputs if port.role is Role.LOSS]
        return finish(
            replace(
                graph,
                inputs=(*trained, *slots, *batch, lr),
                outputs=(*returned, *trained, *slots),
            )
        )

    def _slots(self, parameters: dict[str, fx.Node]) -> dict[Port, Tensor]:
        """Returns the optimizer's state, in order, with its shapes; the counter is last."""
        slots = {
            Port(f"{name}.{slot}", Role.OPTIMIZER, parameter=name, slot=slot): value_of(node)
            for name, node in parameters.items()
            for slot in self.optimizer.slots
        }
        if self.optimizer.counts_steps:
            slots[Port("step", Role.OPTIMIZER, slot="step")] = torch.zeros(1)
        return slots

    def _update(
        self, parameters: list[Tensor], grads: list[Tensor], slots: list[Tensor], lr: Tensor
    ) -> list[Tensor]:
        """Returns the new parameters, then the new slots."""
        lr = lr.reshape(1)
        counter = [slots[-1] + 1.0] if self.optimizer.counts_steps else []
        step = counter[0] if counter else lr  # An optimizer that does not count ignores it.
        if self.clip_norm is not None:
            grads = clip_by_global_norm(grads, self.clip_norm)
        num_slots = len(self.optimizer.slots)
        new_parameters: list[Tensor] = []
        new_slots: list[Tensor] = []
        for index, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
            own = slots[index * num_slots : (index + 1) * num_slots]
            update = self.optimizer.update(parameter, grad, own, lr, step)
            new_parameters.append(_shaped(update.parameter, parameter))
            new_slots.extend(_shaped(slot, parameter) for slot in update.slots)
        return [*new_parameters, *new_slots, *counter]


def _shaped(value: Tensor, parameter: Tensor) -> Tensor:
    # A parameter of shape [] becomes [1] beside the rate, which has shape [1].
    return value if value.shape == parameter.shape else value.reshape(parameter.shape)


def _check_names(graph: JointGraph, added: Sequence[Port]) -> None:
    taken = {port.name for port in graph.inputs}
    for port in added:
        if port.name in taken:
            raise ModelError(
                f"the model has an input or a parameter named {port.name!r}, which is the name "
                f"of the program's {port.role.value.replace('_', ' ')}; rename it in the model"
            )


def _gradients(graph: JointGraph, parameters: dict[str, fx.Node]) -> list[fx.Node]:
    """Returns the gradient of each parameter, in the order of the parameters."""
    pairs = zip(graph.outputs, graph.results, strict=True)
    grads = {port.parameter: node for port, node in pairs if port.role is Role.GRADIENT}
    return [grads[name] for name in parameters]


def _add_placeholders(
    graph: JointGraph, ports: dict[Port, Tensor], *, after: fx.Node
) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    with graph.module.graph.inserting_before(after.next):
        for port, value in ports.items():
            node = graph.module.graph.placeholder(port.name.replace(".", "_"))
            node.meta["val"] = fake_like(value)
            nodes.append(node)
    return nodes
