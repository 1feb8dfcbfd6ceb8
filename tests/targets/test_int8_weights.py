"""Frozen weights in int8: how far off products are, that training learns, and what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.errors import UsageError
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.targets.xnnpack.quantize import quantized

TOLERANCE = 0.05
"""Of a gradient, relative to its norm: weights are rounded, and what they multiply, twice."""


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (1, 9)])
def test_a_row_is_off_by_half_its_scale_at_most(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * torch.rand(shape[0], *[1] * (len(shape) - 1))
    found = quantized(weight)
    scales = found.scales.reshape(-1, *[1] * (len(shape) - 1))
    assert found.values.dtype == torch.int8
    assert found.values.abs().amax() == 127
    assert ((found.values * scales - weight).abs() <= scales / 2 + 1e-7).all()


def test_a_row_of_zeros_stays() -> None:
    assert quantized(torch.zeros(2, 3)).values.eq(0).all()


class Net(nn.Module):
    """Each kind of frozen product below a layer that learns, with its gradient above."""

    def __init__(self, frozen: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.first, self.frozen, self.head = first, frozen, nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.frozen(self.first(x).relu())
        return self.head(hidden.mean([2, 3]) if hidden.dim() == 4 else hidden)


CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 96), lambda: nn.Linear(32, 64), (8, 32)),
    "1x1": (lambda: nn.Conv2d(64, 80, 1), lambda: nn.Conv2d(3, 64, 1), (4, 3, 9, 8)),
    "3x3": (
        lambda: nn.Conv2d(32, 48, 3, padding=1),
        lambda: nn.Conv2d(3, 32, 1),
        (4, 3, 9, 8),
    ),
    "3x3, stride 2": (
        lambda: nn.Conv2d(32, 48, 3, stride=2),
        lambda: nn.Conv2d(3, 32, 1),
        (4, 3, 9, 8),
    ),
    "grouped": (
        lambda: nn.Conv2d(64, 64, 3, padding=1, groups=2),
        lambda: nn.Conv2d(3, 64, 1),
        (4, 3, 9, 8),
    ),
}


def steps(
    model: nn.Module, x: Tensor, plan: Any, path: Path, frozen_weights: str
) -> tuple[list[float], dict[str, Tensor], pockmobile.Program]:
    """Returns the losses of steps, how the state moved in the first, and the program."""
    labels = torch.arange(len(x)) % 4
    program = pockmobile.compile(model, (x,), plan=plan, frozen_weights=frozen_weights)
    program.save(path)
    session = pockmobile.Session(path, threads=1)
    before = session.state
    losses = [session.step(x, labels, lr=0.5)]
    moved = {name: value - before[name] for name, value in session.state.items()}
    losses += [session.step(x, labels, lr=0.5) for _ in range(9)]
    return losses, moved, program


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_a_frozen_product(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make_frozen, make_first, shape = CASES[name]
    model, x = Net(make_frozen(), make_first()), torch.randn(shape)
    model(x)
    trained = ["first.weight", "first.bias", "head.weight", "head.bias"]
    plan = pockmobile.UpdatePlan(dict.fromkeys(trained))
    exact = steps(model, x, plan, tmp_path / "fp32.pte", "fp32")
    close = steps(model, x, plan, tmp_path / "int8.pte", "int8")
    for parameter in trained:
        error = (close[1][parameter] - exact[1][parameter]).norm()
        assert 0 < error < TOLERANCE * exact[1][parameter].norm(), parameter
    torch.testing.assert_close(close[0], exact[0], rtol=0.02, atol=0)
    assert close[0][-1] < close[0][0] - 0.02
    assert close[2].manifest.frozen_bytes < 0.4 * exact[2].manifest.frozen_bytes
    assert "large weights in int8" in close[2].report()


def test_a_language_model_learns_the_same_in_a_quarter_of_the_room(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TransformerLM(num_tokens=64, context=16, width=128, num_blocks=4, num_heads=4)
    tokens = torch.randint(64, (4, 16))
    curves, frozen = [], []
    for dtype in ("fp32", "int8"):
        program = pockmobile.compile(
            model, (tokens,), (tokens,), plan="sparse:1:1", frozen_weights=dtype
        )
        program.save(tmp_path / "lm.pte")
        session = pockmobile.Session(tmp_path / "lm.pte", threads=1)
        curves.append([session.step(tokens, tokens, lr=0.5) for _ in range(20)])
        frozen.append(program.manifest.frozen_bytes)
    assert curves[0][-1] < 0.5 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=0.02, atol=0)
    assert frozen[1] < 0.3 * frozen[0]


def test_weights_of_the_same_numbers_keep_their_own_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(5))), torch.eye(32)
    with torch.no_grad():
        model[1].weight.copy_(4 * model[0].weight)
        model[2].weight.copy_(9 * model[0].weight)
    program = pockmobile.compile(
        model, (x,), plan="head", predict_batch_size=32, frozen_weights="int8"
    )
    program.save(tmp_path / "net.pte")
    found = pockmobile.Session(tmp_path / "net.pte", threads=1).predict(x)
    assert (found - model(x)).norm() < TOLERANCE * model(x).norm()


def test_the_gradient_of_a_choice_among_many_keeps_its_small_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4096))
    plan, x = pockmobile.UpdatePlan({"0.weight": None, "0.bias": None}), torch.randn(8, 64)
    exact, close = (
        steps(model, x, plan, tmp_path / f"{dtype}.pte", dtype)[1] for dtype in ("fp32", "int8")
    )
    for name, value in exact.items():
        assert (close[name] - value).norm() < 0.005 * value.norm(), name


def test_what_is_trained_stays_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 4)),
        torch.randn(8, 32),
    )
    curves = [
        steps(model, x, "full", tmp_path / f"{dtype}.pte", dtype)[0]
        for dtype in ("fp32", "int8")
    ]
    assert curves[0] == curves[1]


def test_small_weights_stay_in_float32(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(8, 8)
    found = [
        steps(model, x, "head", tmp_path / f"{dtype}.pte", dtype) for dtype in ("fp32", "int8")
    ]
    assert found[0][0] == found[1][0]
    assert found[0][2].manifest.frozen_bytes == found[1][2].manifest.frozen_bytes


@pytest.mark.parametrize(
    ("target", "dtype", "message"),
    [
        ("portable", "int8", "target portable takes frozen weights in fp32 only, found int8"),
        ("portable", "int4", "target portable takes frozen weights in fp32 only, found int4"),
        ("xnnpack", "int7", "unknown frozen weights 'int7'"),
    ],
)
def test_what_a_target_does_not_take(target: str, dtype: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pockmobile.compile(
            nn.Linear(3, 2), (torch.randn(2, 3),), target=target, frozen_weights=dtype
        )
