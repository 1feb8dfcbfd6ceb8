"""Lowers a function and runs it on the stock runtime, for the tests of targets."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from executorch.runtime import Runtime
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.passes import (
    Canonicalize,
    EliminateCommon,
    FoldConstants,
    Prune,
    RemoveNoops,
    run_passes,
)
from pockmobile.targets import Target, lower_program
from pockmobile.targets.base import LoweredMethod
from pockmobile.targets.xnnpack import Xnnpack
from tests.passes.graphs import NO_TENSORS, trace


def rewritten(graph: JointGraph, target: Target) -> JointGraph:
    """Returns the graph in the target's operators."""
    after = [Canonicalize(), FoldConstants(), RemoveNoops(), EliminateCommon(), Prune()]
    result, _ = run_passes(graph, [Canonicalize(), *target.passes(), *after])
    return result


def execute(
    graph: JointGraph,
    lowered: LoweredMethod,
    inputs: list[Tensor],
    *,
    path: Path | None = None,
) -> list[Tensor]:
    """Runs a lowered graph as a program of one method, from memory or mapped from a file."""
    buffer = lower_program({"method": (graph, lowered)}, [torch.zeros(1)], lambda planned: "")
    if path is not None:
        path.write_bytes(buffer)
    program = Runtime.get().load_program(path or buffer)
    outputs = program.load_method("method").execute(inputs)
    return [value.clone() for value in outputs]


def check_on_xnnpack(
    function: Callable[..., Any],
    *inputs: Tensor,
    constants: Mapping[str, Tensor] = NO_TENSORS,
    tolerance: float = 1e-5,
    num_outside: int = 0,
    eager: Callable[..., Any] | None = None,
) -> LoweredMethod:
    """Asserts that the delegate computes what eager PyTorch does, and takes all of it.

    Delegates need a few operators to be worth their border, so the function is wrapped in
    some arithmetic.
    """

    def wrapped(*args: Tensor) -> Any:
        args = tuple(
            _busy(a) if a.is_floating_point() and i < len(inputs) else a
            for i, a in enumerate(args)
        )
        return function(*args)

    names = {f"x{index}": value for index, value in enumerate(inputs)}
    graph = rewritten(trace(wrapped, names, constants=constants), Xnnpack())
    lowered = Xnnpack().lower(graph)
    assert len(lowered.outside) == num_outside, lowered.outside
    found = execute(graph, lowered, list(inputs))
    expected = (eager or function)(
        *(_busy(x) if x.is_floating_point() else x for x in inputs), *constants.values()
    )
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    return lowered


def _busy(x: Tensor) -> Tensor:
    return ((x * 2.0 + 1.0) - 1.0) * 0.5 + 0.0 * x.abs()
