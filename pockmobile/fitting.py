"""Fits a training step into a memory budget by making values again instead of keeping them."""

from collections.abc import Mapping
from typing import Final

import torch

from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.graph.liveness import Liveness
from pockmobile.passes import PassRun, Recompute, run_passes
from pockmobile.targets import Target, lower_program

_MOST_TRIES: Final = 6
_MARGIN: Final = 0.98


def fit(
    graph: JointGraph, target: Target, memory_budget: int
) -> tuple[JointGraph, list[PassRun]]:
    """Returns a `train_step` that needs no more than a budget, and the pass that made it so.

    What a step needs is known once it is lowered: the bytes that the runtime plans, and the
    workspace of delegates. So the peak that the graph itself shows is lowered until that fits.

    Args:
        graph: in the target's operators.
        target: what runs it.
        memory_budget: bytes beside the frozen weights.

    Raises:
        UsageError: the step needs more, even where all is made again that helps.
    """
    fitted, runs = graph, list[PassRun]()
    needed = least = _bytes_needed(graph, target)
    limit = Liveness.of(graph, target.views).peak
    for _ in range(_MOST_TRIES):
        if needed <= memory_budget:
            return fitted, runs
        limit = int(limit * memory_budget / needed * _MARGIN)
        fitted, runs = run_passes(graph, [Recompute(limit, target.views)])
        needed = _bytes_needed(fitted, target)
        least = min(least, needed)
        if Liveness.of(fitted, target.views).peak > limit:
            break  # A lower limit would find no more.
    if needed <= memory_budget:
        return fitted, runs
    raise UsageError(
        f"a training step needs {least / 1e6:.4g} MB even where values are computed again "
        f"instead of kept, the budget is {memory_budget / 1e6:.4g} MB; train less (another "
        "plan), or on smaller batches"
    )


def _bytes_needed(graph: JointGraph, target: Target) -> int:
    lowered = target.lower(graph)
    planned: dict[str, int] = {}

    def note(bytes_of_methods: Mapping[str, int]) -> str:
        planned.update(bytes_of_methods)
        return ""

    lower_program({"train_step": (graph, lowered)}, [torch.zeros(1)], note)
    return planned["train_step"] + lowered.workspace_bytes
