"""Low-rank adapters (Hu et al., LoRA, ICLR 2022) beside the linear layers of a model."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, fx

from pockmobile.capture.forward import Forward
from pockmobile.errors import PlanError, nearest
from pockmobile.plan import ADAPTER_A, ADAPTER_B

_aten = torch.ops.aten
_SEED: Final = 0


def with_adapters(forward: Forward, adapters: Mapping[str, int]) -> Forward:
    """Adds `x A^T B^T` to each linear layer that `adapters` names by its weight.

    The parameters are `<weight>.lora_a` [rank, in], uniform as in `nn.Linear`, and
    `<weight>.lora_b` [out, rank], zeros: at the start the model is the one that it was.

    Raises:
        PlanError: a name that is no linear layer's weight, or a rank that it cannot have.
    """
    if not adapters:
        return forward
    graph = fx.Graph()
    graph.output(graph.graph_copy(forward.graph.graph, {}))
    module = fx.GraphModule(forward.graph, graph)
    linears = _linears(module, forward)
    parameters, tensors = dict(forward.parameters), dict(forward.tensors)
    generator = torch.Generator().manual_seed(_SEED)
    for weight, rank in adapters.items():
        if weight not in linears:
            raise PlanError(
                f"{weight!r} is no linear layer's weight: {nearest(weight, linears)}"
            )
        low = _start(weight, rank, forward.parameters[weight], generator)
        for name, value in low.items():
            attribute = name.replace(".", "__")
            module.register_buffer(attribute, value)
            tensors[attribute], parameters[name] = name, value
        for node in linears[weight]:
            _insert(node, [name.replace(".", "__") for name in low])
    module.recompile()
    trainable = forward.trainable | (parameters.keys() - forward.parameters.keys())
    return replace(
        forward,
        graph=module,
        tensors=tensors,
        parameters=parameters,
        trainable=trainable,
        adapters=adapters,
    )


def _linears(module: fx.GraphModule, forward: Forward) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target is _aten.linear.default and node.args[1].op == "get_attr":
            name = forward.tensors[str(node.args[1].target)]
            found.setdefault(name, []).append(node)
    return {name: nodes for name, nodes in found.items() if name in forward.parameters}


def _start(
    name: str, rank: int, weight: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    outputs, inputs = weight.shape
    if not 0 < rank <= min(outputs, inputs):
        raise PlanError(f"{name} {list(weight.shape)} cannot have an adapter of rank {rank}")
    bound = 1.0 / math.sqrt(inputs)
    uniform = torch.rand((rank, inputs), generator=generator, dtype=weight.dtype)
    zeros = torch.zeros((outputs, rank), dtype=weight.dtype)
    return {f"{name}.{ADAPTER_A}": (2.0 * uniform - 1.0) * bound, f"{name}.{ADAPTER_B}": zeros}


def _insert(node: fx.Node, attributes: list[str]) -> None:
    graph, users = node.graph, list(node.users)
    with graph.inserting_before(node.next):
        down, up = (graph.get_attr(name) for name in attributes)
        low = graph.call_function(_aten.linear.default, (node.args[0], down))
        change = graph.call_function(_aten.linear.default, (low, up))
        total = graph.call_function(_aten.add.Tensor, (node, change))
    for added in (down, up, low, change, total):
        added.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, total)
