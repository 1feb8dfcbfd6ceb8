"""How a graph is cut into delegates, and the reasons for what stays outside."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pockmobile.targets.partition import constant_tensors, partition
from pockmobile.targets.xnnpack import Xnnpack
from pockmobile.targets.xnnpack.support import refusal
from tests.passes.graphs import trace
from tests.targets.running import execute, rewritten


def _chain(x: Tensor) -> Tensor:
    return ((x * 2.0).tanh() + 1.0).exp() * 3.0


def test_a_graph_that_the_delegate_takes_whole_is_one_delegate() -> None:
    graph = rewritten(trace(_chain, {"x": torch.randn(3, 4)}), Xnnpack())
    cut = partition(graph, constant_tensors(graph), refusal)
    assert [len(group) for group in cut.delegates] == [5]
    assert not cut.refusals


def test_an_operator_outside_cuts_the_graph_in_two() -> None:
    graph = rewritten(
        trace(lambda x: _chain(_chain(x).cumsum(0)), {"x": torch.randn(3, 4)}), Xnnpack()
    )
    lowered = Xnnpack().lower(graph)
    assert lowered.num_partitions == 2
    assert [item.operator for item in lowered.outside] == ["aten.cumsum.default"]
    assert lowered.outside[0].reason == "XNNPACK has no such operator"


def test_branches_of_one_phase_share_a_delegate() -> None:
    def branches(x: Tensor, y: Tensor) -> Tensor:
        return _chain(x) + _chain(y.cumsum(0)) + _chain(x - 1.0)

    graph = rewritten(trace(branches, {"x": torch.randn(3), "y": torch.randn(3)}), Xnnpack())
    assert Xnnpack().lower(graph).num_partitions == 1


def test_a_delegate_of_few_operators_is_given_back() -> None:
    graph = rewritten(trace(lambda x: (x * 2.0).cumsum(0), {"x": torch.randn(3, 4)}), Xnnpack())
    lowered = Xnnpack().lower(graph)
    assert lowered.num_partitions == 0
    reasons = {item.operator: item.reason for item in lowered.outside}
    assert reasons["aten.mul.Tensor"] == "too few operators around it for a delegate"


def test_integers_stay_outside() -> None:
    def lookup(x: Tensor, index: Tensor) -> Tensor:
        return _chain(x[index + 1])

    x, index = torch.randn(5, 4), torch.tensor([0, 2])
    graph = rewritten(trace(lookup, {"x": x, "index": index}), Xnnpack())
    lowered = Xnnpack().lower(graph)
    assert {item.operator for item in lowered.outside} == {
        "aten.add.Tensor",
        "aten.index.Tensor",
    }
    (found,) = execute(graph, lowered, [x, index])
    torch.testing.assert_close(found, lookup(x, index), rtol=1e-5, atol=1e-5)


def test_a_value_that_two_delegates_and_the_output_use() -> None:
    def shared(x: Tensor) -> dict[str, Tensor]:
        first = _chain(x)
        return {"first": first, "second": _chain(first.cumsum(0)) + first}

    x = torch.randn(3, 4) * 0.1
    graph = rewritten(trace(shared, {"x": x}), Xnnpack())
    found = execute(graph, Xnnpack().lower(graph), [x])
    for left, right in zip(found, shared(x).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_equal_bytes_as_a_bias_and_as_an_operand_both_live(tmp_path: Path) -> None:
    """The runtime frees a bias once it is packed, and unmaps it: no operand may share it."""

    def layers(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
        return (torch.addmm(bias, x.tanh(), weight.t()) + shift).tanh()

    x, weight, same = torch.randn(3, 1024), torch.randn(1024, 1024), torch.randn(1024)
    constants = {"weight": weight, "bias": same, "shift": same.clone()}
    graph = rewritten(trace(layers, {"x": x}, constants=constants), Xnnpack())
    (found,) = execute(graph, Xnnpack().lower(graph), [x], path=tmp_path / "program.pte")
    torch.testing.assert_close(found, layers(x, *constants.values()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_linear_layer_that_is_trained_in_part(trained: str, tmp_path: Path) -> None:
    """The runtime frees what it takes for packed, whether XNNPACK packed it or not."""
    values = {"weight": torch.randn(1024, 1024), "bias": torch.randn(1024)}
    x, run_time = torch.randn(3, 1024), values.pop(trained)

    def layer(x: Tensor, run_time: Tensor, constant: Tensor) -> Tensor:
        pair = (run_time, constant) if trained == "weight" else (constant, run_time)
        return torch.addmm(pair[1].tanh(), x.tanh(), pair[0].t()).tanh().neg()

    inputs = {"x": x, "run_time": run_time}
    graph = rewritten(trace(layer, inputs, constants=values), Xnnpack())
    path = tmp_path / "program.pte"
    (found,) = execute(graph, Xnnpack().lower(graph), [x, run_time], path=path)
    expected = layer(x, run_time, *values.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_large_input_is_seen_by_other_axes_without_a_copy() -> None:
    def product(weight: Tensor, x: Tensor) -> Tensor:
        return (weight.reshape(512, -1) @ x).tanh().neg().exp() + 1.0

    weight, x = torch.randn(512, 64, 3, 3) * 0.01, torch.randn(576, 8)
    graph = rewritten(trace(product, {"weight": weight, "x": x}), Xnnpack())
    lowered = Xnnpack().lower(graph)
    assert not lowered.outside
    assert max(size for size, _ in lowered.memory) < weight.numel() * 4
    (found,) = execute(graph, lowered, [weight, x])
    torch.testing.assert_close(found, product(weight, x), rtol=1e-4, atol=1e-5)
