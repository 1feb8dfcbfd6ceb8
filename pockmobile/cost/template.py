"""What one operator costs once a target has written it in operators of its own."""

import operator
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any, final

import torch
from torch import Tensor, fx

from pockmobile import passes as p
from pockmobile.cost.work import NO_LOAD, Load, load_of
from pockmobile.graph import JointGraph, Port, Role
from pockmobile.graph.joint import add_constant, fake_like, set_results
from pockmobile.graph.rewrite import inline
from pockmobile.optim import Optimizer
from pockmobile.passes.base import finish
from pockmobile.pipeline import cleaning, rewriting
from pockmobile.targets import Target


@final
class Templates:
    """Loads of single operators, each found by running the target's own rewrites on it."""

    def __init__(self, target: Target) -> None:
        """Starts without any."""
        self._target = target
        self._loads: dict[Any, Load] = {}

    def operator(
        self, node: fx.Node, constant: frozenset[fx.Node], dying: frozenset[fx.Node]
    ) -> Load:
        """Returns the load of a node.

        Args:
            node: an operator.
            constant: its inputs that are frozen.
            dying: its inputs that nothing reads afterwards.
        """
        if _is_getitem(node):
            return NO_LOAD
        key = _key(node, constant, dying)
        if key not in self._loads:
            own = dropwhile(lambda x: not isinstance(x, p.Decompose), self._target.passes())
            graph = _alone(node, constant)
            free = [parent for parent in node.all_input_nodes if parent not in constant]
            names = [
                port.name
                for port, parent in zip(graph.inputs, free, strict=True)
                if parent in dying
            ]
            self._loads[key] = self._load(graph, [*own, *cleaning()], names)
        return self._loads[key]

    def update(
        self, optimizer: Optimizer, parameter: Tensor, *, grad_dies: bool = False
    ) -> Load:
        """Returns the load of updating a tensor of the shape of `parameter`.

        A delegate writes what is new into the runtime's plan: that is no part of what it
        holds. `grad_dies` says that nothing reads the gradient afterwards.
        """
        key = (optimizer, tuple(parameter.shape), grad_dies)
        if key not in self._loads:
            graph = _update(optimizer, parameter)
            passes = [p.Canonicalize(), *rewriting(self._target)]
            dying = [graph.inputs[1].name] if grad_dies else []
            rewritten, _ = p.run_passes(graph, passes)
            found = load_of(rewritten, self._target, dying)
            if not found.is_host:
                found = load_of(rewritten, self._target, dying, writes_outside=True)
            self._loads[key] = found
        return self._loads[key]

    def _load(
        self, graph: JointGraph, passes: Sequence[p.Pass], dying: Sequence[str] = ()
    ) -> Load:
        rewritten, _ = p.run_passes(graph, passes)
        return load_of(rewritten, self._target, dying)


def _key(node: fx.Node, constant: frozenset[fx.Node], dying: frozenset[fx.Node]) -> Any:
    names: dict[fx.Node, int] = {}

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return str(leaf)
        value = leaf.meta["val"]
        number = names.setdefault(leaf, len(names))
        state = (leaf in constant, leaf in dying)
        return (number, tuple(value.shape), str(value.dtype), *state)

    arguments = fx.node.map_aggregate((node.args, dict(node.kwargs)), describe)
    results = sorted(str(user.args[1]) for user in node.users if _is_getitem(user))
    return (str(node.target), str(arguments), str(results))


def _is_getitem(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _alone(node: fx.Node, constant: frozenset[fx.Node]) -> JointGraph:
    """Returns a graph of this operator alone."""
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    module.graph.output(())
    memo: dict[fx.Node, fx.Node] = {}
    ports: list[Port] = []
    for parent in node.all_input_nodes:
        if parent not in constant:
            memo[parent] = _placeholder(module.graph, f"x{len(ports)}", parent.meta["val"])
            ports.append(Port(f"x{len(ports)}", Role.INPUT))
    with module.graph.inserting_before(module.graph.output_node()):
        for parent in node.all_input_nodes:
            if parent in constant:
                memo[parent] = add_constant(module, _example(parent.meta["val"]))
        copied = module.graph.node_copy(node, memo.__getitem__)
        picks = {user.args[1]: user for user in node.users if _is_getitem(user)}
        memo[node] = copied
        results = [
            module.graph.node_copy(user, memo.__getitem__) for user in picks.values()
        ] or [copied]
    set_results(module, results)
    outputs = tuple(Port(f"y{index}", Role.OUTPUT) for index in range(len(results)))
    return finish(JointGraph(module, tuple(ports), outputs))


def _placeholder(graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
    with graph.inserting_before(graph.output_node()):
        node = graph.placeholder(name)
    node.meta["val"] = fake_like(value)
    return node


def _example(value: Tensor) -> Tensor:
    """Returns a constant that differs from element to element, so that nothing folds away."""
    if value.is_floating_point():
        return torch.rand(value.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    return torch.zeros(value.shape, dtype=value.dtype)


def _update(optimizer: Optimizer, parameter: Tensor) -> JointGraph:
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    module.graph.output(())
    one = torch.zeros(1)
    values = [parameter, parameter, *[parameter] * len(optimizer.slots), one, one]
    inputs = [_placeholder(module.graph, f"x{i}", value) for i, value in enumerate(values)]

    def update(parameter: Tensor, grad: Tensor, *rest: Tensor) -> list[Tensor]:
        *slots, lr, step = rest
        result = optimizer.update(parameter, grad, slots, lr, step)
        return [result.parameter, *result.slots]

    with module.graph.inserting_before(module.graph.output_node()):
        results = inline(module.graph, update, inputs)
    set_results(module, results)
    ports = tuple(Port(node.name, Role.INPUT) for node in inputs)
    outputs = tuple(Port(f"y{index}", Role.OUTPUT) for index in range(len(results)))
    return finish(JointGraph(module, ports, outputs))
