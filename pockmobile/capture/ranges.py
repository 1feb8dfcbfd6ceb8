"""Finds which values an integer input may hold: rows of the tables that it indexes."""

from typing import Final

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
    while node.target in _SAME_VALUES:
        node = node.all_input_nodes[0]
    return node


_SAME_VALUES: Final = frozenset(
    {
        _aten.alias.default,
        _aten.detach.default,
        _aten.clone.default,
        _aten._to_copy.default,
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.permute.default,
        _aten.expand.default,
        _aten.slice.Tensor,
        _aten.select.int,
    }
)
