"""Rows are put into a table where it lies, and nothing that is read later changes."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.passes import Canonicalize, run_passes
from pockmobile.pipeline import rewriting
from pockmobile.targets import lower_program, resolve_target
from pockmobile.targets.base import LoweredMethod
from tests.passes.graphs import aten, run, trace
from tests.targets.running import execute

INPUTS = {
    "p": torch.randn(40, 8),
    "v": torch.randn(5, 8),
    "rows": torch.tensor([3, 0, 3, 39, 3]),
}
NUM_BYTES = 40 * 8 * 4


def put(table: Tensor, rows: Tensor, values: Tensor, accumulate: bool) -> Tensor:
    return aten.index_put.default(table, [rows], values, accumulate)


def added(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p * 0.5, rows, v, True)


def set_once(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p * 0.5, rows[1:2], v[:1], False)


def read_later(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    table = p * 0.5
    return put(table, rows, v, True) * table


def seen_by_a_view(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    table = p * 0.5
    other = table.view(8, 40)
    return put(table, rows, v, True).view(8, 40) * other


def input_itself(p: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    return put(p, rows, v, True) * p


CASES = {added: True, set_once: True, read_later: False, seen_by_a_view: False}
"""Whether the table itself is written over."""


@pytest.mark.parametrize("target", ["portable", "xnnpack"])
@pytest.mark.parametrize("function", [*CASES, input_itself])
def test_the_runtime_computes_what_torch_does(
    function: Callable[..., Tensor], target: str
) -> None:
    graph, lowered = lower(function, target)
    (found,) = execute(graph, lowered, list(INPUTS.values()))
    expected = run(trace(function, INPUTS), INPUTS)["output"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", CASES)
def test_a_table_that_is_written_over_is_there_once(
    function: Callable[..., Tensor],
) -> None:
    planned: dict[str, int] = {}

    def note(bytes_of_methods: Mapping[str, int]) -> str:
        planned.update(bytes_of_methods)
        return ""

    lower_program({"method": lower(function, "portable")}, [torch.zeros(1)], note)
    assert (planned["method"] < 2 * NUM_BYTES) is CASES[function]


def lower(function: Callable[..., Tensor], target: str) -> tuple[JointGraph, LoweredMethod]:
    chosen = resolve_target(target)
    passes = [Canonicalize(), *rewriting(chosen)]
    graph, _ = run_passes(trace(function, INPUTS), passes)
    return graph, chosen.lower(graph)
