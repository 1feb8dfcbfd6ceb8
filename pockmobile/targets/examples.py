"""Example inputs without memory, for `torch.export`, which looks at shapes and types alone."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def fake_examples(values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns contiguous fake tensors on the CPU, of the shapes and types of `values`."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return tuple(torch.empty(value.shape, dtype=value.dtype) for value in values)


def absent_as_inputs(module: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """Makes inputs of the buffers on the meta device, which have no bytes to be written.

    Returns:
        The module with these inputs behind its own, and the buffers, in order. A module that
        has all of its buffers is returned itself.
    """
    absent = {name: value for name, value in module.named_buffers() if value.is_meta}
    if not absent:
        return module, []
    assert isinstance(module, fx.GraphModule)
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    values: list[Tensor] = []
    for name, value in absent.items():
        readers = [node for node in graph.nodes if (node.op, node.target) == ("get_attr", name)]
        if not readers:
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"absent_{len(values)}")
        values.append(value)
        for node in readers:
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    return fx.GraphModule(module, graph), values
