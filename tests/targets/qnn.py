"""What the tests of QNN share: whether its libraries are there, and a comparison with eager."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pockmobile import qualcomm
from pockmobile.graph import JointGraph
from pockmobile.targets.base import LoweredMethod
from pockmobile.targets.qnn import Qnn
from pockmobile.targets.qnn.calibration import LEAST_BATCHES, Batch, Observer
from tests.passes.graphs import NO_TENSORS, trace
from tests.targets.running import execute, rewritten

missing = qualcomm.missing()
_OF_WHOLE_NUMBERS = {"aten._to_copy.default", "aten.view_copy.default"}
needs_libraries = pytest.mark.skipif(missing is not None, reason=str(missing))


def lower(graph: JointGraph) -> LoweredMethod:
    """Returns the graph with its delegate compiled, for `execute`."""
    return Qnn().lower(graph, method="method")


def lower_in_int16(graph: JointGraph, inputs: Sequence[Tensor]) -> LoweredMethod:
    """Returns the graph with its delegate in 16 bits, calibrated with its very inputs."""
    batch = Batch(tuple(inputs), ())
    observer = Observer(graph)
    observer.run_on({}, batch, 0.0)
    ranges = {"method": observer.ranges}
    target = Qnn(precision="int16", calibration=[batch] * LEAST_BATCHES, ranges=ranges)
    return target.lower(graph, method="method")


def check_on_simulator(
    function: Callable[..., Any],
    *inputs: Tensor,
    constants: dict[str, Tensor] | None = None,
    tolerance: float = 2e-2,
    precision: str = "fp16",
) -> LoweredMethod:
    """Asserts that the Hexagon simulator computes what eager PyTorch does, and all of it.

    The host does no more than to make whole numbers small.
    """

    def results(*tensors: Tensor) -> list[Tensor]:
        found = function(*(_busy(x) for x in tensors[: len(inputs)]), *tensors[len(inputs) :])
        return list(found) if isinstance(found, Sequence) else [found]

    def named(*tensors: Tensor) -> dict[str, Tensor]:
        return {f"y{index}": y for index, y in enumerate(results(*tensors))}

    names = {f"x{index}": value for index, value in enumerate(inputs)}
    graph = rewritten(trace(named, names, constants=constants or NO_TENSORS), Qnn())
    lowered = lower(graph) if precision == "fp16" else lower_in_int16(graph, inputs)
    assert {item.operator for item in lowered.outside} <= _OF_WHOLE_NUMBERS, lowered.outside
    found = execute(graph, lowered, list(inputs))
    expected = results(*inputs, *(constants or {}).values())
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    return lowered


def _busy(x: Tensor) -> Tensor:
    """Some arithmetic: a delegate needs a few operators to be worth its border."""
    if not x.is_floating_point():
        return x
    return (x * 2.0 + 1.0) * 0.5 - 0.25 + 0.0 * x.abs()
