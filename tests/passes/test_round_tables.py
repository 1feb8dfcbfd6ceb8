"""Large frozen tables are held in int8."""

import torch
from torch import Tensor

from pockmobile.passes import RoundTables
from pockmobile.targets.xnnpack.quantize import quantized
from tests.passes.graphs import apply, operators, run, trace

TABLE = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
ROWS = {"rows": torch.tensor([[3, 511], [0, 3]])}


def rounded(table: Tensor) -> tuple[Tensor, Tensor]:
    found = quantized(table)
    return found.values, found.scales


def _pick(rows: Tensor, table: Tensor) -> Tensor:
    return torch.nn.functional.embedding(rows, table) * 2.0


def test_rows_are_those_of_the_rounded_table() -> None:
    graph = trace(_pick, ROWS, constants={"table": TABLE})
    changed = apply(RoundTables(rounded), graph)
    assert operators(changed) == ["embedding", "embedding", "_to_copy", "mul", "mul"]
    numbers, scales = rounded(TABLE)
    expected = _pick(ROWS["rows"], numbers * scales[:, None])
    torch.testing.assert_close(run(changed, ROWS)["output"], expected, rtol=0, atol=1e-6)
    error = run(changed, ROWS)["output"] - run(graph, ROWS)["output"]
    assert 0 < error.abs().max() <= 2 * TABLE.abs().max() / 254 + 1e-6
    assert {value.dtype for value in changed.module.buffers()} == {torch.int8, torch.float32}
    assert sum(value.nbytes for value in changed.module.buffers()) == 512 * 16 + 512 * 4


def test_a_table_is_rounded_once() -> None:
    def twice(rows: Tensor, table: Tensor) -> Tensor:
        return _pick(rows, table) + _pick(rows * 0, table)

    changed = apply(RoundTables(rounded), trace(twice, ROWS, constants={"table": TABLE}))
    assert len(list(changed.module.buffers())) == 2


def test_what_is_trained_or_small_stays() -> None:
    def pick(table: Tensor, rows: Tensor) -> Tensor:
        return _pick(rows, table)

    graph = trace(pick, ROWS, parameters={"table": TABLE})
    assert apply(RoundTables(rounded), graph) is graph
    graph = trace(_pick, {"rows": torch.tensor([1])}, constants={"table": TABLE[:32]})
    assert apply(RoundTables(rounded), graph) is graph
