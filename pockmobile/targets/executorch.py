"""From lowered methods to one `.pte`: everything that touches ExecuTorch's exporter."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.program._program import ExecutorchProgramManager
from executorch.exir.schema import Operator
from torch import Tensor, nn
from torch.export import ExportedProgram

from pockmobile.graph import JointGraph
from pockmobile.graph.rewrite import value_of
from pockmobile.targets.base import LoweredMethod
from pockmobile.targets.examples import absent_as_inputs, fake_examples
from pockmobile.targets.in_place import put_in_place
from pockmobile.targets.kernels import check_kernels, check_limits, explain_failure
from pockmobile.targets.memory import memory_planner


@final
class _InitialState(nn.Module):
    """Returns the tensors at the start; those that are all zero take no room in the file."""

    def __init__(self, state: Sequence[Tensor]) -> None:
        super().__init__()
        self._shapes = [tuple(value.shape) for value in state]
        self._stored = [bool(value.count_nonzero()) for value in state]
        for index, value in enumerate(state):
            if self._stored[index]:
                self.register_buffer(f"state_{index}", value.detach().clone())

    def forward(self) -> list[Tensor]:
        return [
            getattr(self, f"state_{index}").clone() if stored else torch.zeros(shape)
            for index, (stored, shape) in enumerate(
                zip(self._stored, self._shapes, strict=True)
            )
        ]


def lower_program(
    methods: Mapping[str, tuple[JointGraph, LoweredMethod]],
    state: Sequence[Tensor],
    write_manifest: Callable[[Mapping[str, int]], str],
) -> bytes:
    """Lowers the methods into one program, and returns its bytes.

    Args:
        methods: each method's graph (for its inputs) and its lowered form.
        state: the values that `initial_state` returns.
        write_manifest: gets the bytes that the runtime will plan for each method, and
            returns what the method `manifest` says.

    Raises:
        UnsupportedOperatorError: an operator that the runtime does not have, and the module
            that it came from.
    """
    check_limits(methods)
    exported = {
        name: _export(lowered.module, graph) for name, (graph, lowered) in methods.items()
    }
    exported["initial_state"] = torch.export.export(_InitialState(state), (), strict=False)
    config = ExecutorchBackendConfig(
        # Inputs come in by pointer: state is not copied into the plan.
        memory_planning_pass=MemoryPlanningPass(memory_planner(), alloc_graph_input=False),
    )
    edge_config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
    try:
        edge = to_edge(exported, compile_config=edge_config)
        for name in edge.methods:
            put_in_place(edge.exported_program(name).graph)
        manager = edge.to_executorch(config)
    # Whatever it stumbles upon: RuntimeError, AttributeError, AssertionError and others.
    except Exception as error:
        explain_failure(methods, error)
        raise
    plans = manager.executorch_program.execution_plan
    check_kernels(methods, {_name(op) for plan in plans for op in plan.operators})
    planned = {plan.name: sum(plan.non_const_buffer_sizes) for plan in plans}
    manifest = write_manifest(planned)
    # The manifest tells the bytes planned, so the program is emitted once more with it.
    final_manager = ExecutorchProgramManager(
        manager._execution_programs, {"manifest": manifest}, config, manager._named_data
    )
    return bytes(final_manager.buffer)


def _export(module: nn.Module, graph: JointGraph) -> ExportedProgram:
    """Exports a lowered method; what it holds on the meta device becomes an input.

    Inputs come in by pointer, as constants are read where they lie: neither is planned.
    """
    with torch.no_grad():
        module, absent = absent_as_inputs(module)
        values = [*map(value_of, graph.placeholders), *absent]
        return torch.export.export(module, fake_examples(values), strict=False)


def _name(operator: Operator) -> str:
    """The name by which kernels are registered: `aten::add.out`."""
    return f"{operator.name}.{operator.overload}" if operator.overload else operator.name
