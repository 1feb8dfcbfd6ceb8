"""Puts compiled delegates into a graph, as calls that ExecuTorch's exporter understands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, fx, nn

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import shape_of
from pockmobile.targets.xnnpack.emitter import Emitter
from pockmobile.targets.xnnpack.partition import Partition
from pockmobile.targets.xnnpack.support import EMITTERS


@final
@dataclass(frozen=True)
class Delegated:
    """A module whose delegates are compiled; `constant_bytes` is constants' sizes by hash."""

    module: nn.Module
    constant_bytes: Mapping[str, int]


@final
class _Shapes(nn.Module):
    """Stands for a delegate while the program around it is exported: only shapes count."""

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._shapes = shapes

    def forward(self, *_: Tensor) -> list[Tensor]:
        return [torch.zeros(tuple(shape)) for shape in self._shapes]


def insert_delegates(
    graph: JointGraph, cut: Partition, constants: Mapping[fx.Node, Tensor]
) -> Delegated:
    """Returns the graph's module with each delegate in the place of its operators."""
    result = fx.Graph()
    root = nn.Module()
    memo: dict[fx.Node, fx.Node] = {}
    constant_bytes: dict[str, int] = {}
    member = {node: index for index, group in enumerate(cut.delegates) for node in group}
    pending = _host_order(graph, cut, member)
    for step in pending:
        if isinstance(step, fx.Node):
            memo[step] = result.node_copy(step, memo.__getitem__)
            if step.op == "get_attr":
                root.register_buffer(str(step.target), constants[step])
        else:
            index = step
            _insert(result, root, memo, cut.delegates[index], index, constants, constant_bytes)
    return Delegated(fx.GraphModule(root, result), constant_bytes)


def _host_order(
    graph: JointGraph, cut: Partition, member: Mapping[fx.Node, int]
) -> list[fx.Node | int]:
    """Returns host nodes and delegates (by index) in an order that respects all uses."""
    done: set[fx.Node | int] = set()
    order: list[fx.Node | int] = []
    waiting: list[fx.Node | int] = [member.get(node, node) for node in graph.nodes]

    def needs(step: fx.Node | int) -> set[fx.Node | int]:
        nodes = cut.delegates[step] if isinstance(step, int) else (step,)
        found = {
            member.get(parent, parent) for node in nodes for parent in node.all_input_nodes
        }
        return found - {step}

    stack: list[fx.Node | int] = []
    for step in waiting:
        stack.append(step)
        while stack:
            top = stack[-1]
            missing = [] if top in done else [item for item in needs(top) if item not in done]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if top not in done:
                done.add(top)
                order.append(top)
    return order


def _insert(
    result: fx.Graph,
    root: nn.Module,
    memo: dict[fx.Node, fx.Node],
    nodes: Sequence[fx.Node],
    index: int,
    constants: Mapping[fx.Node, Tensor],
    constant_bytes: dict[str, int],
) -> None:
    inside = set(nodes)
    parents = (parent for node in nodes for parent in node.all_input_nodes)
    inputs = list(dict.fromkeys(p for p in parents if p not in inside and p not in constants))
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    emitter = Emitter(EMITTERS, constants)
    for node in inputs:
        emitter.add_input(node)
    for node in nodes:
        emitter.add(node)
    for node in outputs:
        emitter.add_output(node)
    constant_bytes.update(emitter.blob.constant_bytes)
    name = f"delegate_{index}"
    root.add_module(name, _lowered(emitter, inputs, outputs))
    call = result.call_function(
        executorch_call_delegate, (result.get_attr(name), *(memo[node] for node in inputs))
    )
    for position, node in enumerate(outputs):
        memo[node] = result.call_function(_getitem, (call, position))


def _getitem(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _lowered(
    emitter: Emitter, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> LoweredBackendModule:
    shapes = [shape_of(node) for node in outputs]
    examples = tuple(torch.zeros(shape_of(node)) for node in inputs)
    lowered = LoweredBackendModule(
        torch.export.export(_Shapes(shapes), examples, strict=False),
        "XnnpackBackend",
        emitter.blob.serialize(),
        [],
        emitter.blob.store.get_named_data_store_output(),
    )
    lowered.meta = {"debug_handle_map": {}}
    return lowered
