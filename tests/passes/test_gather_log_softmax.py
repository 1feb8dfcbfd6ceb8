"""The loss is read from the softmax of the gradient."""

import torch
from torch import Tensor

from pockmobile.passes import EliminateCommon, GatherLogSoftmax
from tests.passes.graphs import apply, assert_close, operators, run, trace

INPUTS = {"x": torch.randn(4, 9), "index": torch.tensor([[0], [3], [8], [2]])}


def _loss(x: Tensor, index: Tensor) -> Tensor:
    return x.log_softmax(-1).gather(-1, index)


def test_one_logarithm_for_each_label() -> None:
    graph = trace(_loss, INPUTS)
    changed = apply(GatherLogSoftmax(), graph)
    assert operators(changed) == ["_softmax", "gather", "clamp", "log"]
    assert_close(graph, changed, INPUTS, tolerance=1e-6)


def test_the_softmax_is_that_of_the_gradient() -> None:
    def both(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": _loss(x, index), "grad": x.softmax(-1)}

    changed = apply(EliminateCommon(), apply(GatherLogSoftmax(), trace(both, INPUTS)))
    assert operators(changed).count("_softmax") == 1


def test_an_impossible_label_costs_a_bounded_loss() -> None:
    changed = apply(GatherLogSoftmax(), trace(_loss, INPUTS))
    certain = torch.tensor([[1000.0] + [0.0] * 8] * 4)
    values = run(changed, {"x": certain, "index": torch.tensor([[1], [0], [1], [1]])})["output"]
    assert values[1].item() == 0.0
    assert torch.isfinite(values).all()
    assert abs(values[0].item() + 87.3365) < 1e-3


def test_a_log_softmax_that_is_read_whole_stays() -> None:
    graph = trace(lambda x, index: x.log_softmax(-1).sum(-1), INPUTS)
    assert apply(GatherLogSoftmax(), graph) is graph
