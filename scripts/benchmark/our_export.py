"""Exports a model to train with a program of ours, for `scripts/bench.py`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from pockmobile import passes
from pockmobile.compiler import compile
from pockmobile.graph import JointGraph
from pockmobile.optim import SGD
from pockmobile.passes import Pass
from scripts.benchmark.variants import Exported, Precision, VariantError


def export_ours(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    plan: str,
    *,
    split: bool,
    frozen_weights: Precision,
    without: str = "",
) -> Exported:
    """Returns the program that trains a plan.

    Args:
        model: in evaluation mode.
        batch: example inputs and targets.
        plan: a preset, or the path of a file.
        split: whether it starts from latents.
        frozen_weights: how frozen weights may be held.
        without: the name of a pass that is left out, if any.

    Raises:
        VariantError: the pass changes nothing of this program, so there is nothing to compare.
    """
    inputs, targets = batch
    with _left_out(without):
        program = compile(
            model,
            (inputs,),
            (targets,),
            plan=plan,
            optimizer=SGD(),
            split=split,
            frozen_weights=frozen_weights,
        )
    method = program.manifest.methods["train_step"]
    parts = {
        entry.parameter: entry.slice and (entry.slice.dim, entry.slice.start, entry.slice.stop)
        for entry in program.manifest.parameters
    }
    return Exported(program.buffer, method.planned_bytes, method.workspace_bytes, parts)


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Leaves a pass out of all that run, each time it would; "" leaves none out.

    Raises:
        VariantError: it would have changed nothing, each time.
    """
    run_passes, has_changed = passes.run_passes, False

    def run_others(
        graph: JointGraph,
        items: Sequence[Pass],
        report: Callable[[str], None] = lambda _: None,
    ) -> tuple[JointGraph, list[passes.PassRun]]:
        nonlocal has_changed
        for index, item in enumerate(items):
            if item.name == name and not has_changed:
                # Only to see whether it would do something here: what it returns is dropped.
                before, _ = run_passes(graph, items[:index])
                has_changed = item.apply(before) is not before
        return run_passes(graph, [item for item in items if item.name != name], report)

    if not name:
        yield
        return
    passes.run_passes = run_others  # type: ignore[assignment]
    try:
        yield
    finally:
        passes.run_passes = run_passes
    if not has_changed:
        raise VariantError(f"{name} changes nothing here")
