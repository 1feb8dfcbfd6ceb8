"""The verifier that runs before the first pass and after every pass, on the result."""

import torch
from torch import Tensor

from pockmobile.graph.joint import STATE, JointGraph, Role

_UNNAMED_ROLES = (Role.LOSS, Role.LEARNING_RATE)


def verify(graph: JointGraph) -> None:
    """Checks that `graph` is well formed.

    Raises:
        AssertionError: a fault of ours, with the node at fault.
    """
    graph.module.graph.lint()
    assert len(graph.placeholders) == len(graph.inputs), "a placeholder without a port"
    assert len(graph.results) == len(graph.outputs), "an output without a port"
    names = [port.name for port in graph.inputs]
    assert len(set(names)) == len(names), f"two inputs of one name: {names}"
    for port in graph.inputs:
        held = port.name in graph.initial
        assert held == (port.role in (Role.PARAMETER, Role.BUFFER)), f"{port} has no value"
    for node in graph.nodes:
        if node.op == "output":
            continue
        assert node.op in ("placeholder", "get_attr", "call_function"), f"{node}: {node.op}"
        assert "val" in node.meta, f"{node.format_node()} carries no value"
        if node.op == "call_function":
            _verify_target(node.target)
        if node.op == "get_attr":
            assert isinstance(getattr(graph.module, str(node.target), None), Tensor), node
    _verify_results(graph)


def _verify_target(target: object) -> None:
    is_getitem = getattr(target, "__name__", "") == "getitem"
    assert is_getitem or isinstance(target, torch._ops.OpOverload), f"{target} is no operator"


def _verify_results(graph: JointGraph) -> None:
    for port, node in zip(graph.outputs, graph.results, strict=True):
        value = node.meta["val"]
        assert isinstance(value, Tensor), f"output {port.name} is no tensor"
        if port.role in STATE and port.name in graph.initial:
            assert value.shape == graph.initial[port.name].shape, f"{port.name} changed shape"
