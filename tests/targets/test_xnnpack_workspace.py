"""What the manifest says of a delegate's workspace is what XNNPACK allocates."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from torch import Tensor, nn

import pockmobile
from pockmobile.targets.memory import Life
from pockmobile.targets.xnnpack import Xnnpack
from pockmobile.targets.xnnpack.workspace import alive, lives, planned_bytes
from tests.passes.graphs import trace

_MEASURE = """
import ctypes, sys
import torch
from executorch.extension.pybindings import portable_lib

class Info(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def allocated():
    info = libc.mallinfo2()
    return info.field4 + info.field7  # hblkhd, uordblks

program = portable_lib._load_program(sys.argv[1])
state = [value.clone() for value in program.load_method("initial_state")([])]
batch = [torch.zeros(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64), torch.tensor(0.1)]
method = program.load_method("train_step")
before = allocated()
outputs = method([*state, *batch], False)
print(allocated() - before)
"""
_OVERHEAD = 2**20
"""Bytes beside the workspace: what XNNPACK and the runtime know of operators."""


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU6(), nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.ReLU6(), nn.Conv2d(32, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    ]  # fmt: skip
    return nn.Sequential(*layers).eval()


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc's mallinfo2 measures: needs Linux"
)
@pytest.mark.parametrize("plan", ["head", "full"])
def test_the_workspace_is_what_is_allocated(plan: str, tmp_path: Path) -> None:
    batch = torch.zeros(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64)
    program = pockmobile.compile(_net(), batch[:1], batch[1:], plan=plan)
    path = tmp_path / "program.pte"
    program.save(path)
    command = [sys.executable, "-c", _MEASURE, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    allocated = int(run.stdout)
    said = program.manifest.methods["train_step"].workspace_bytes
    assert said > 4 * _OVERHEAD
    assert said <= allocated <= 1.1 * said + _OVERHEAD


def workspace(
    operators: Sequence[Any], sizes: Mapping[int, int], inputs: Mapping[int, int]
) -> list[int]:
    return alive(lives(operators, sizes, inputs), len(operators))


def test_gaps_between_values_are_planned() -> None:
    # The second lies above the first, and stays; the third is too large for the gap.
    values = [Life(64, 0, 1), Life(65, 1, 3), Life(128, 2, 3)]
    assert alive(values, 4) == [64, 129, 193, 193]
    assert planned_bytes(values) == 256
    values = [Life(256, 0, 1), Life(192, 1, 3), Life(320, 2, 3)]
    assert planned_bytes(values) == 320 + 192


def _fully_connected(source: int, weight: int, result: int) -> Any:
    return schema.XNNFullyConnected(source, weight, 2**32 - 1, result, 0)


def test_a_clamp_lies_where_its_product_does() -> None:
    operators = [_fully_connected(0, 9, 1), schema.XNNClamp(1, 2, 0), schema.XNNCopy(2, 3, 0)]
    assert workspace(operators, {1: 10, 2: 10}, {0: 5}) == [10, 10, 10]


def test_an_elementwise_operator_writes_over_what_is_read_once() -> None:
    chain = [schema.XNNAbs(0, 1, 0), schema.XNNExp(1, 2, 0), schema.XNNAbs(2, 3, 0)]
    assert workspace(chain, {1: 10, 2: 10}, {0: 10}) == [10, 10, 10]
    # Read twice, or by none of the delegate's, it stays.
    read_twice = [*chain, schema.XNNMultiply(1, 1, 4, 0)]
    assert workspace(read_twice, {1: 10, 2: 10}, {0: 10}) == [10, 20, 20, 10]


def test_of_two_arguments_one_of_the_same_size_is_written_over() -> None:
    operators = [
        schema.XNNAbs(0, 1, 0),
        schema.XNNAbs(0, 2, 0),
        schema.XNNMultiply(1, 2, 3, 0),
        schema.XNNAbs(3, 4, 0),
    ]
    assert workspace(operators, {1: 1, 2: 10, 3: 10}, {0: 10}) == [1, 11, 11, 10]


def test_a_right_operand_that_comes_at_run_time_is_packed() -> None:
    operators = [_fully_connected(0, 1, 2), schema.XNNAbs(2, 3, 0)]
    assert workspace(operators, {2: 10}, {0: 5, 1: 7}) == [17, 10]
    assert workspace(operators, {2: 10}, {0: 5}) == [10, 10]


def test_the_cost_model_knows_what_is_written_over() -> None:
    def chain(x: Tensor) -> Tensor:
        product = (x @ x.t()).relu()
        return (product.exp().neg() + product).abs()

    graph = trace(chain, {"x": torch.randn(4, 4)})
    found = {
        str(node.target): value and str(value.target)
        for node in graph.nodes
        if node.op == "call_function"
        for value in [Xnnpack().overwritten(node, lambda item: len(item.users))]
    }
    # Fused; read twice, so that it stays; over what is read once; nothing reads the last.
    assert found["aten.relu.default"] == "aten.mm.default"
    assert found["aten.exp.default"] is None
    assert found["aten.neg.default"] == "aten.exp.default"
    assert found["aten.add.Tensor"] == "aten.neg.default"
