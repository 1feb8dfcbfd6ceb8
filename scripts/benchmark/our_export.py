"""Exports a model to train with a program of ours, for `scripts/bench.py`."""

from torch import Tensor, nn

from pockmobile.compiler import compile
from pockmobile.optim import SGD
from scripts.benchmark.variants import Exported


def export_ours(
    model: nn.Module, batch: tuple[Tensor, Tensor], plan: str, *, split: bool
) -> Exported:
    """Returns the program that trains a plan (a preset, or the path of a file)."""
    inputs, targets = batch
    program = compile(model, (inputs,), (targets,), plan=plan, optimizer=SGD(), split=split)
    method = program.manifest.methods["train_step"]
    parts = {
        entry.parameter: entry.slice and (entry.slice.dim, entry.slice.start, entry.slice.stop)
        for entry in program.manifest.parameters
    }
    return Exported(program.buffer, method.planned_bytes, method.workspace_bytes, parts)
