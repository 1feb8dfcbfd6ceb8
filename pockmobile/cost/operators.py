"""What holds of the operators of an option graph, whatever the plan."""

from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, fx

from pockmobile.cost.option_graph import OptionGraph, Part
from pockmobile.cost.template import Templates
from pockmobile.cost.work import Load, num_bytes, root
from pockmobile.graph import JointGraph, Role
from pockmobile.graph.rewrite import value_of
from pockmobile.optim import Optimizer
from pockmobile.targets import Target

_aten = torch.ops.aten

_UNFOLDED: Final = (
    _aten.view_copy.default,
    _aten.permute_copy.default,
    _aten.slice_copy.Tensor,
    _aten.expand_copy.default,
    _aten.full.default,
)

_SCALINGS: Final = (_aten.mul.Tensor, _aten.div.Tensor)


@final
class Operators:
    """The operators of an option graph, by number, and what holds of them in every plan.

    What one operator costs is read off the target's own rewrite of it.
    """

    def __init__(
        self, options: OptionGraph, optimizer: Optimizer, target: Target, *, clips: bool = False
    ) -> None:
        """Finds what each operator depends on, and what each gradient needs.

        `clips` says that gradients are clipped by their joint norm.
        """
        self.optimizer = optimizer
        self.clips = clips
        self.target = target
        self.templates = Templates(target)
        self.nodes = [node for node in options.graph.nodes if node.op != "output"]
        self.index = index = {node: number for number, node in enumerate(self.nodes)}
        self.parents = [[index[p] for p in node.all_input_nodes] for node in self.nodes]
        self.roots = [index[root(node, target)] for node in self.nodes]
        self.reads = [[index[p] for p in read(node)] for node in self.nodes]
        self.sizes = [self._size(number) for number in range(len(self.nodes))]
        parameters = options.graph.input_nodes(Role.PARAMETER)
        self.parameters = {name: index[node] for name, node in parameters.items()}
        self.gradients = {part: index[node] for part, node in options.gradients.items()}
        self.reads_data, self.depends = self._dependencies()
        self.unfolded = self._unfolded()
        self.needs = {part: self._ancestors(n) for part, n in self.gradients.items()}
        self.loss_needs = self._ancestors(index[_loss(options.graph)])
        self._loads: dict[Any, Load] = {}

    def load(self, number: int, frozen: tuple[int, ...], dying: tuple[int, ...]) -> Load:
        """Returns the load of a node of whose inputs some are frozen and some die with it."""
        key = (number, frozen, dying)
        if key not in self._loads:
            parts = (frozenset(self.nodes[p] for p in group) for group in (frozen, dying))
            self._loads[key] = self.templates.operator(self.nodes[number], *parts)
        return self._loads[key]

    def value(self, part: Part) -> Tensor:
        """Returns the meta tensor of a part's gradient."""
        return value_of(self.nodes[self.gradients[part]])

    def _size(self, number: int) -> int:
        """Returns the bytes of a node's value.

        What is expanded in a delegate stays as small as it was, and so does it times a number.
        """
        node, parents = self.nodes[number], self.parents[number]
        if node.target in _SCALINGS and len(parents) == 1:
            return min(num_bytes(node), num_bytes(self.nodes[self.roots[parents[0]]]))
        return num_bytes(node)

    def _dependencies(self) -> tuple[list[bool], list[int]]:
        """Returns of each node whether it reads the batch, and (as bits) which parameters."""
        reads_data: list[bool] = []
        depends: list[int] = []
        bits = {number: 1 << place for place, number in enumerate(self.parameters.values())}
        for number, node in enumerate(self.nodes):
            parents = self.parents[number]
            is_data = node.op == "placeholder" and number not in bits
            reads_data.append(is_data or any(reads_data[p] for p in parents))
            own = bits.get(number, 0)
            for parent in parents:
                own |= depends[parent]
            depends.append(own)
        return reads_data, depends

    def _unfolded(self) -> set[int]:
        """Returns the nodes that stay operators, whatever is frozen."""
        found: set[int] = set()
        for number, node in enumerate(self.nodes):
            whole = {p for p in self.parents[number] if self.nodes[p].op != "call_function"}
            if node.target in _UNFOLDED and found | whole >= set(self.parents[number]):
                found.add(number)
        return found

    def _ancestors(self, number: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        found = np.zeros(len(self.nodes), dtype=bool)
        pending = [number]
        while pending:
            node = pending.pop()
            if not found[node]:
                found[node] = True
                pending.extend(self.parents[node])
        return found


def read(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes whose values a node reads: of some it needs the shape alone."""
    if node.target is not _aten.convolution_backward.default:
        return node.all_input_nodes
    grad, x, weight, *_ = node.args
    results = {user.args[1] for user in node.users}
    found = [grad, *([x] if 1 in results else []), *([weight] if 0 in results else [])]
    return [value for value in found if isinstance(value, fx.Node)]


def _loss(graph: JointGraph) -> fx.Node:
    (loss,) = graph.output_nodes(Role.LOSS).values()
    return loss
