"""Exports a model to train with stock ExecuTorch, as its own examples do."""

from typing import Final, final

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.export.experimental import _export_forward_backward
from torch.export.graph_signature import OutputKind
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from scripts.benchmark.variants import Exported

_METHOD: Final = "forward"


@final
class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())


def export_stock(model: nn.Module, batch: tuple[Tensor, Tensor], lowering: str) -> Exported:
    """Returns the program that trains all parameters.

    Args:
        model: in evaluation mode; its tied parameters become separate ones.
        batch: example inputs and targets.
        lowering: "" for portable kernels, "xnnpack" for `XnnpackPartitioner`, "split-addmm"
            for portable kernels with each addmm as mm and add.
    """
    module = _WithLoss(model)
    tied = untie(module)
    # What flash attention leaves for the backward pass has no kernel.
    with sdpa_kernel(SDPBackend.MATH):
        joint = _export_forward_backward(torch.export.export(module, batch, strict=False))
    if lowering == "split-addmm":
        joint = _without_addmm(joint)
    manager = to_edge(joint, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    if lowering == "xnnpack":
        manager = manager.to_backend(XnnpackPartitioner())
    held = _held_parameters(manager.exported_program())
    program = manager.to_executorch()
    plans = {plan.name: plan for plan in program.executorch_program.execution_plan}
    planned = sum(plans[_METHOD].non_const_buffer_sizes)
    return Exported(bytes(program.buffer), planned, None, dict.fromkeys(held), tied)


def _held_parameters(program: ExportedProgram) -> list[str]:
    """Returns the parameters that a step can change, in the order in which it returns them.

    Others a delegate has taken in as constants, although the step returns their gradients.
    ExecuTorch's own binding names what the step returns as if there were none of these, and
    so adds gradients to parameters of other names and sizes.
    """
    signature = program.graph_signature
    gradients = {
        spec.target
        for spec in signature.output_specs
        if spec.kind == OutputKind.GRADIENT_TO_PARAMETER
    }
    inputs = [node.target for node in program.graph.nodes if node.op == "placeholder"]
    names = [signature.inputs_to_parameters.get(str(target)) for target in inputs]
    return [name for name in names if name in gradients and name is not None]


def untie(module: nn.Module) -> list[tuple[str, str]]:
    """Gives each use of a tied parameter one of its own, and returns the pairs of names.

    `_export_forward_backward` cannot capture tied ones (pytorch issue 147380).
    """
    first_names: dict[nn.Parameter, str] = {}
    pairs = []
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        first = first_names.setdefault(parameter, name)
        if first != name:
            path, _, attribute = name.rpartition(".")
            copy = nn.Parameter(parameter.detach().clone())
            setattr(module.get_submodule(path), attribute, copy)
            pairs.append((first, name))
    return pairs


def _without_addmm(joint: ExportedProgram) -> ExportedProgram:
    split: ExportedProgram = joint.run_decompositions(
        get_decompositions([torch.ops.aten.addmm.default])
    )
    return split
