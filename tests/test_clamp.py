"""A clamp's gradient is PyTorch's, at the bounds too, and a delegate takes it."""

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.loss import MeanSquaredError
from tests.captured import joint_of
from tests.passes.graphs import run


class Clamped(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.bounds = low, high

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).clamp(*self.bounds)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1.0), (0.0, None), (None, 0.25), (0.3, 0.3)])
def test_the_gradient_passes_at_the_bounds(low: float | None, high: float | None) -> None:
    model = Clamped(low, high)
    edges = [bound for bound in (low, high) if bound is not None]
    x = torch.tensor([[*edges, *[-2.0, 0.0, 0.1, 3.0, 0.7][: 6 - len(edges)]]])
    x = torch.nn.functional.pad(x, (0, 6 - x.shape[1]))
    target = torch.full((1, 6), 5.0)
    found = run(joint_of(model, (x,), target, MeanSquaredError()), {"x": x, "target": target})
    loss = (model(x) - target).square().mean()
    (expected,) = torch.autograd.grad(loss, [model.weight])
    torch.testing.assert_close(found["grad.weight"], expected, rtol=0, atol=1e-6)


def test_whole_numbers_are_clamped_too() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens.clamp(0, 3))

    pockmobile.compile(Looked(), (torch.tensor([7, 1]),), target="portable")


def test_xnnpack_takes_the_gradient() -> None:
    model = nn.Sequential(nn.Linear(8, 8), _Bounded(), nn.Linear(8, 3))
    program = pockmobile.compile(model, (torch.randn(4, 8),))
    outside = {entry.operator for entry in program.manifest.methods["train_step"].outside}
    assert not outside & {"aten.where.self", "aten.ge.Scalar", "aten.le.Scalar"}


class _Bounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 6.0)
