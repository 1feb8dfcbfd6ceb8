"""Finds which values an integer input may hold: rows of the tables that it indexes."""

import torch
from torch import fx

from pockmobile.graph import JointGraph, Role
from pockmobile.graph.rewrite import shape_of

_aten = torch.ops.aten


def index_limits(graph: JointGraph) -> dict[str, int]:
    """Returns, for each input that indexes an embedding, the number of its rows."""
    limits: dict[str, int] = {}
    names = {node: name for name, node in graph.input_nodes(Role.INPUT).items()}
    for node in graph.nodes:
        if node.target is not _aten.embedding.default:
            continue
        table, index = node.args[:2]
        assert isinstance(table, fx.Node)
        assert isinstance(index, fx.Node)
        name = names.get(_source(index))
        if name is not None:
            num_rows = shape_of(table)[0]
            limits[name] = min(num_rows, limits.get(name, num_rows))
    return limits


def _source(node: fx.Node) -> fx.Node:
    """Follows views and casts up to where the value comes from."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node
