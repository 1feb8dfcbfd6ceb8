"""Writes a task into a file, for another process to read.

Neither an exported graph nor an ATen operator can be pickled, and FX's own way, to trace
generated code again, folds constants. So a graph travels as a list of its nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from pockmobile.errors import UsageError
from pockmobile.sensitivity.task import Task


@final
@dataclass(frozen=True)
class _Reference:
    """Stands for a node among arguments."""

    node: str


@final
@dataclass(frozen=True)
class _Operator:
    """Stands for an operator of torch's registry."""

    namespace: str
    name: str
    overload: str


@final
@dataclass(frozen=True)
class _Node:
    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


@final
@dataclass(frozen=True)
class _Packed:
    """A task without its graph, and the nodes of that."""

    task: Task
    nodes: tuple[_Node, ...]


def pack(task: Task, path: Path) -> None:
    """Writes a task.

    Raises:
        UsageError: the loss is a function that another process cannot find.
    """
    bare = replace(task, forward=replace(task.forward, graph=fx.GraphModule({}, fx.Graph())))
    nodes = tuple(_pack_node(node) for node in task.forward.graph.graph.nodes)
    try:
        torch.save(_Packed(bare, nodes), path)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"loss {task.loss.name} cannot be handed to another process ({error}); define it "
            f"at the top of a module, or take one process"
        ) from error


def unpack(path: Path) -> Task:
    """Reads what `pack` wrote; the tensors are mapped, so that processes share them."""
    packed = torch.load(path, mmap=True, weights_only=False)
    forward = packed.task.forward
    values = {**forward.parameters, **forward.buffers}
    tensors = {target: values[name] for target, name in forward.tensors.items()}
    module = _unpack_graph(packed.nodes, tensors)
    task: Task = replace(packed.task, forward=replace(forward, graph=module))
    return task


def _pack_node(node: fx.Node) -> _Node:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.rpartition("::")[2]
        target = _Operator(target.namespace, name, target._overloadname)
    args, kwargs = tree_map_only(
        fx.Node, lambda other: _Reference(other.name), (tuple(node.args), dict(node.kwargs))
    )
    return _Node(node.op, node.name, target, args, kwargs)


def _unpack_graph(nodes: tuple[_Node, ...], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in nodes:
        target = node.target
        if isinstance(target, _Operator):
            packet = getattr(getattr(torch.ops, target.namespace), target.name)
            target = getattr(packet, target.overload)
        args, kwargs = tree_map_only(
            _Reference, lambda reference: made[reference.node], (node.args, node.kwargs)
        )
        made[node.name] = graph.create_node(node.op, target, args, kwargs, node.name)
    return fx.GraphModule(dict(tensors), graph)
