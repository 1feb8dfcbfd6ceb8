"""Lets the runtime put rows into a table where it lies, instead of into a copy of it."""

from typing import Final

import torch
from executorch.exir.dialects._ops import ops
from torch import fx

from pockmobile.graph.rewrite import arguments, value_of
from pockmobile.passes.sum_rows import can_write_over

_aten = ops.edge.aten

_VIEWS: Final = frozenset(
    {
        _aten.view_copy.default,
        _aten.squeeze_copy.dims,
        _aten.unsqueeze_copy.default,
        _aten.select_copy.int,
        _aten.slice_copy.Tensor,
    }
)
"""Operators that the exporter may write without moving memory."""


def put_in_place(graph: fx.Graph) -> None:
    """Rewrites such operators of a graph in the edge dialect, where nothing else would see it.

    ExecuTorch's own pass (`exir/passes/reinplace.py`) does so too, but also where its kernel
    cannot (rows that are added), and where a view still shows the table as it was.
    """
    for node in graph.nodes:
        if node.target is _aten.index_put.default and _can(node):
            node.target = _aten.index_put_.default


def _can(node: fx.Node) -> bool:
    _, indices, _, *accumulates = arguments(node)
    if len(indices) != 1 or any(accumulates) or not can_write_over(node, _VIEWS):
        return False
    rows = value_of(indices[0])
    return rows.dim() == 1 and rows.dtype in (torch.int32, torch.int64)
