"""The graph that all passes work on: forward, loss, backward and update in one."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, final

import torch
from torch import Tensor, fx


class Role(StrEnum):
    """What a value that enters or leaves the graph is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    OPTIMIZER = "optimizer"
    INPUT = "input"
    TARGET = "target"
    LEARNING_RATE = "learning_rate"
    LOSS = "loss"
    METRIC = "metric"
    OUTPUT = "output"
    GRADIENT = "gradient"


STATE: Final = (Role.PARAMETER, Role.OPTIMIZER)
"""The roles of what a training step takes and returns anew."""


@final
@dataclass(frozen=True)
class Port:
    """One value that enters or leaves the graph.

    `parameter` is the fully qualified name of the parameter that it belongs to, if any;
    `slot` is the optimizer's name for the tensor (e.g. `exp_avg`).
    """

    name: str
    role: Role
    parameter: str = ""
    slot: str = ""


@final
@dataclass(frozen=True)
class JointGraph:
    """A plain FX graph of ATen operators with named inputs and outputs.

    `inputs` are the placeholders, in order; `outputs` the values returned, in order.
    Constants are `get_attr` nodes. Every node carries its fake tensor in `meta["val"]`.
    `initial` holds, by port name, the values of parameters and buffers that are inputs.
    """

    module: fx.GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    initial: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nodes(self) -> Iterable[fx.Node]:
        """The nodes in execution order."""
        return self.module.graph.nodes

    @property
    def placeholders(self) -> list[fx.Node]:
        """The nodes of the inputs, in order."""
        return [node for node in self.nodes if node.op == "placeholder"]

    @property
    def results(self) -> list[fx.Node]:
        """The nodes of the outputs, in order."""
        return list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]

    @property
    def num_operators(self) -> int:
        """The number of operator calls."""
        return sum(node.op == "call_function" for node in self.nodes)

    def input_nodes(self, role: Role) -> dict[str, fx.Node]:
        """Returns the placeholders of a role, by port name, in order."""
        pairs = zip(self.inputs, self.placeholders, strict=True)
        return {port.name: node for port, node in pairs if port.role is role}

    def output_nodes(self, role: Role) -> dict[str, fx.Node]:
        """Returns the outputs of a role, by port name, in order."""
        pairs = zip(self.outputs, self.results, strict=True)
        return {port.name: node for port, node in pairs if port.role is role}

    def initial_state(self) -> dict[str, Tensor]:
        """Returns the state before the first step, by port name, in order.

        It is the parameters' values, and zeros for the optimizer's tensors.
        """
        pairs = zip(self.inputs, self.placeholders, strict=True)
        return {
            port.name: self.initial.get(port.name, torch.zeros(node.meta["val"].shape))
            for port, node in pairs
            if port.role in STATE
        }

    def copy(self) -> "JointGraph":
        """Returns a copy whose graph can be changed; constants are shared."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.module.graph, {}))
        module = fx.GraphModule(self.module, graph)
        return replace(self, module=module)

    def keep_outputs(self, keep: Callable[[Port], bool]) -> "JointGraph":
        """Returns a copy with only the outputs that `keep` accepts (nothing is pruned)."""
        graph = self.copy()
        pairs = [
            pair for pair in zip(self.outputs, graph.results, strict=True) if keep(pair[0])
        ]
        set_results(graph.module, [node for _, node in pairs])
        return replace(graph, outputs=tuple(port for port, _ in pairs))


def set_results(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    """Makes the graph return `nodes`."""
    module.graph.output_node().args = (tuple(nodes),)


CONSTANT_PREFIX: Final = "constant_"


def add_constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    """Adds `value` to the module and returns a node for it, at the graph's insert point."""
    index = len(module._buffers)
    while hasattr(module, f"{CONSTANT_PREFIX}{index}"):
        index += 1
    name = f"{CONSTANT_PREFIX}{index}"
    module.register_buffer(name, value.detach())
    node = module.graph.get_attr(name)
    node.meta["val"] = fake_like(value)
    return node


def constant_nodes(graph: JointGraph) -> set[fx.Node]:
    """Returns the nodes that depend on no input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and all(p in found for p in node.all_input_nodes)
        ):
            found.add(node)
    return found


def constant_value(node: fx.Node) -> Tensor:
    """Returns the tensor of a `get_attr` node."""
    value = getattr(node.graph.owning_module, str(node.target))
    assert isinstance(value, Tensor)
    return value


def memory_of(value: Tensor) -> Hashable:
    """Returns what is the same for two tensors that are the same memory, seen alike.

    A tensor on the meta device has no address; its storage is told apart all the same.
    """
    if value.numel() == 0:
        return id(value)
    place = (
        (value.untyped_storage()._cdata, value.storage_offset())
        if value.is_meta
        else value.data_ptr()
    )
    return (place, tuple(value.shape), value.stride(), value.dtype)


def fake_like(value: Tensor) -> Tensor:
    """Returns a meta tensor of the shape, dtype and strides of `value`."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
