"""Pass: multiplies by a cube one factor after the other, which float16 can hold."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import call, replace_node
from pockmobile.passes.base import Numerics, Pass, finish

_aten = torch.ops.aten
_CUBE = 3


@final
@dataclass(frozen=True)
class SpreadPowers(Pass):
    """Never computes a cube that only multiplies something.

    The gradient of 1 / sqrt(x) holds its cube: of a norm over small numbers it is beyond
    float16's largest, though its product with the gradient that comes in is small.

    Before: mul(g, pow(r, 3))
    After:  mul(mul(mul(g, r), r), r)
    """

    name = "spread-powers"
    numerics = Numerics.CLOSE

    def apply(self, graph: JointGraph) -> JointGraph:
        """Returns the graph without such cubes."""
        if not any(_parts(node) for node in graph.nodes):
            return graph
        graph = graph.copy()
        for node in list(graph.nodes):
            parts = _parts(node)
            if parts is None:
                continue
            product, root = parts
            with graph.module.graph.inserting_before(node):
                for _ in range(_CUBE):
                    product = call(graph.module.graph, _aten.mul.Tensor, product, root)
            replace_node(node, product)
        return finish(graph)


def _parts(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns what a cube multiplies, and of what it is the cube."""
    if node.target is not _aten.mul.Tensor:
        return None
    arguments: Any = node.args
    for value, cube in (arguments, arguments[::-1]):
        is_cube = isinstance(cube, fx.Node) and cube.target is _aten.pow.Tensor_Scalar
        if is_cube and cube.args[1] == _CUBE and isinstance(value, fx.Node) and value != cube:
            root: Any = cube.args[0]
            return value, root
    return None
