"""Puts compiled delegates into a graph, as calls that ExecuTorch's exporter understands."""

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, final

import torch
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, fx, nn

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import MODULE_KEY, shape_of, value_of
from pockmobile.targets.base import DelegateInfo, LoweredMethod, Outside
from pockmobile.targets.examples import fake_examples
from pockmobile.targets.partition import (
    VIEWED,
    Partition,
    Refuse,
    constant_tensors,
    partition,
)
from pockmobile.targets.portable import hash_and_size

_NAME: Final = "delegate_{}"


@final
@dataclass(frozen=True)
class Compiled:
    """A delegate: its bytes for the `backend` of that name, and the data that it names.

    `constant_bytes` is its constants' sizes by hash. `memory` follows its workspace: bytes
    alive while each of its operators runs, and the module that it is of; `arena_bytes` is what
    the backend plans for them, where that is known. `options` are what the backend is told
    when it loads the delegate.
    """

    backend: str
    blob: bytes
    named_data: NamedDataStoreOutput | None = None
    constant_bytes: Mapping[str, int] = field(default_factory=dict)
    memory: Sequence[tuple[int, str]] = ()
    arena_bytes: int = 0
    options: Mapping[str, bytes] = field(default_factory=dict)


Compile = Callable[[Sequence[fx.Node], Sequence[fx.Node], Sequence[fx.Node]], Compiled]
"""Compiles a delegate of the nodes, in order, with their inputs and outputs, in order."""


@final
@dataclass(frozen=True)
class Delegated:
    """A module whose delegates are compiled.

    `constant_bytes` is constants' sizes by hash. `memory` follows the delegates' workspace:
    bytes alive while each of their operators runs, and the module that it is of. The largest
    arena of one takes `arena_bytes`.
    """

    module: nn.Module
    constant_bytes: Mapping[str, int]
    memory: Sequence[tuple[int, str]]
    arena_bytes: int
    delegates: Sequence[DelegateInfo]


@final
class _Shapes(nn.Module):
    """Stands for a delegate while the program around it is exported: only types count."""

    def __init__(self, outputs: Sequence[fx.Node]) -> None:
        super().__init__()
        self._outputs = [(tuple(shape_of(node)), value_of(node).dtype) for node in outputs]

    def forward(self, *_: Tensor) -> list[Tensor]:
        return [torch.zeros(shape, dtype=dtype) for shape, dtype in self._outputs]


def lower_delegates(
    graph: JointGraph,
    refuse: Refuse,
    compiler: Callable[[Mapping[fx.Node, Tensor]], Compile],
    *,
    check: Callable[[JointGraph, Partition], None] = lambda graph, cut: None,
) -> LoweredMethod:
    """Returns the graph with what is not refused in delegates.

    `compiler` returns what compiles a delegate, given the constants. `check` may raise where a
    target cannot run the graph so cut.
    """
    constants = constant_tensors(graph)
    cut = partition(graph, constants, refuse)
    check(graph, cut)
    delegated = insert_delegates(graph, cut, constants, compiler(constants))
    outside = tuple(
        Outside(str(node.target), node.meta.get(MODULE_KEY, ""), reason)
        for node, reason in cut.refusals.items()
        if "getitem" not in str(node.target) and reason != VIEWED
    )
    used = {str(name) for name, _ in delegated.module.named_buffers()}
    frozen = dict(hash_and_size(delegated.module.get_buffer(name)) for name in used)
    return LoweredMethod(
        delegated.module,
        len(cut.delegates),
        sum(len(group) for group in cut.delegates),
        outside,
        {**frozen, **delegated.constant_bytes},
        delegated.memory,
        delegated.delegates,
        delegated.arena_bytes,
    )


def only_blob(lowered: LoweredMethod) -> bytes | None:
    """Returns the bytes of a method's delegate; None if it has none, or several."""
    found = [m for m in lowered.module.modules() if isinstance(m, LoweredBackendModule)]
    return found[0].processed_bytes if len(found) == 1 else None


def replace_blob(
    lowered: LoweredMethod, blob: bytes, named_data: NamedDataStoreOutput
) -> LoweredMethod:
    """Returns a method whose only delegate has other bytes, and names the data."""
    assert isinstance(lowered.module, fx.GraphModule)
    module = fx.GraphModule(lowered.module, lowered.module.graph)
    old = module.get_submodule(_NAME.format(0))
    assert isinstance(old, LoweredBackendModule)
    new = LoweredBackendModule(
        old.original_module, old.backend_id, blob, old.compile_specs, named_data
    )
    new.meta = old.meta
    module.add_submodule(_NAME.format(0), new)
    (info,) = lowered.delegates
    num_bytes = len(blob) + sum(map(len, named_data.buffers))
    return replace(lowered, module=module, delegates=(replace(info, num_bytes=num_bytes),))


def insert_delegates(
    graph: JointGraph,
    cut: Partition,
    constants: Mapping[fx.Node, Tensor],
    compile_delegate: Compile,
) -> Delegated:
    """Returns the graph's module with each delegate in the place of its operators."""
    writer = _Writer(constants, compile_delegate)
    for step in _order(graph, cut):
        if isinstance(step, fx.Node):
            writer.add_host(step)
        else:
            writer.add_delegate(cut.delegates[step])
    return writer.finish()


@final
class _Writer:
    """Writes the graph around the delegates."""

    def __init__(self, constants: Mapping[fx.Node, Tensor], compile_delegate: Compile) -> None:
        self._constants = constants
        self._compile = compile_delegate
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._memo: dict[fx.Node, fx.Node] = {}
        self._constant_bytes: dict[str, int] = {}
        self._delegates: list[DelegateInfo] = []
        self._memory: list[tuple[int, str]] = []
        self._arena_bytes = 0

    def add_host(self, node: fx.Node) -> None:
        """Copies a node that the host runs."""
        self._memo[node] = self._graph.node_copy(node, self._memo.__getitem__)
        if node.op == "get_attr":
            self._root.register_buffer(str(node.target), self._constants[node])

    def add_delegate(self, nodes: Sequence[fx.Node]) -> None:
        """Compiles a delegate and calls it."""
        inside = set(nodes)
        parents = dict.fromkeys(parent for node in nodes for parent in node.all_input_nodes)
        inputs = [p for p in parents if p not in inside and p not in self._constants]
        outputs = [node for node in nodes if any(user not in inside for user in node.users)]
        compiled = self._compile(nodes, inputs, outputs)
        name = _NAME.format(len(self._delegates))
        self._delegates.append(_info(compiled, nodes))
        self._root.add_module(name, _lowered(compiled, inputs, outputs))
        self._memory += compiled.memory
        # Delegates run one after the other, in one workspace.
        self._arena_bytes = max(self._arena_bytes, compiled.arena_bytes)
        self._constant_bytes.update(compiled.constant_bytes)
        arguments = (self._graph.get_attr(name), *(self._memo[node] for node in inputs))
        call = self._graph.call_function(executorch_call_delegate, arguments)
        for position, node in enumerate(outputs):
            self._memo[node] = self._graph.call_function(operator.getitem, (call, position))

    def finish(self) -> Delegated:
        """Returns the module, without the constants that delegates alone read."""
        module = fx.GraphModule(self._root, self._graph)
        module.graph.eliminate_dead_code()
        used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in module.named_buffers() if name not in used]:
            delattr(module, name)
        module.recompile()
        return Delegated(
            module, self._constant_bytes, self._memory, self._arena_bytes, self._delegates
        )


def _info(compiled: Compiled, nodes: Sequence[fx.Node]) -> DelegateInfo:
    data = compiled.named_data.buffers if compiled.named_data else []
    num_bytes = len(compiled.blob) + sum(map(len, data))
    names = [str(node.target) for node in nodes if node.target is not operator.getitem]
    return DelegateInfo(compiled.backend, num_bytes, dict(sorted(Counter(names).items())))


def _order(graph: JointGraph, cut: Partition) -> list[fx.Node | int]:
    """Returns host nodes and delegates (by index) in an order that respects all uses."""
    member = {node: index for index, group in enumerate(cut.delegates) for node in group}
    done: set[fx.Node | int] = set()
    order: list[fx.Node | int] = []

    def needs(step: fx.Node | int) -> list[fx.Node | int]:
        nodes = cut.delegates[step] if isinstance(step, int) else (step,)
        found = [
            member.get(parent, parent) for node in nodes for parent in node.all_input_nodes
        ]
        # No set, whose order would change from one compilation to the next.
        return [other for other in dict.fromkeys(found) if other != step]

    stack: list[fx.Node | int] = []
    for step in (member.get(node, node) for node in graph.nodes):
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


def _lowered(
    compiled: Compiled, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> LoweredBackendModule:
    examples = fake_examples(map(value_of, inputs))
    lowered = LoweredBackendModule(
        torch.export.export(_Shapes(outputs), examples, strict=False),
        compiled.backend,
        compiled.blob,
        [CompileSpec(key, value) for key, value in compiled.options.items()],
        compiled.named_data,
    )
    lowered.meta = {"debug_handle_map": {}}
    return lowered
