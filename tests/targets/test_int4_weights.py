"""Frozen weights in int4: products are those of the rounded weights, forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.targets.xnnpack.quantize import (
    Quantized,
    is_spread,
    precision,
    quantized_in_groups,
)

WIDTH = 64
CLOSE = 1e-4
"""Of products whose inputs are whole numbers, which int8 holds as they are."""
TOLERANCE = 0.03
"""Of a gradient, relative to its norm: what weights multiply is rounded to int8, row by row."""


def dequantized(weight: Quantized) -> Tensor:
    return weight.values * weight.scales.to(torch.float32).repeat_interleave(weight.group, 1)


def rounded(weight: Tensor) -> Tensor:
    """Returns a weight as products have it that sum over its last dimension."""
    return dequantized(quantized_in_groups(weight))


@pytest.mark.parametrize("shape", [(40, 32), (30, 96)])
def test_a_group_is_off_by_a_fourteenth_of_its_largest_at_most(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1) ** 4
    found = quantized_in_groups(weight)
    assert found.scales.shape == (shape[0], shape[1] // 32)
    assert (found.values.amin(), found.values.amax()) == (-8, 7)
    groups, errors = (
        value.reshape(shape[0], -1, 32) for value in (weight, dequantized(found) - weight)
    )
    bound = groups.abs().amax(2) / 14 * (1 + 2**-8)
    assert (errors.square().mean(2).sqrt() <= bound).all()
    assert errors.norm() < 0.1 * weight.norm()


def test_the_scale_is_no_worse_than_one_that_reaches_the_largest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 32)
    plain = (weight.abs().amax(1, keepdim=True) / 7).to(torch.bfloat16).to(torch.float32)
    reaching = (weight / plain).round().clamp(-8, 7) * plain
    errors = [(value - weight).square().sum(1) for value in (rounded(weight), reaching)]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < 0.9 * errors[1].sum()


def test_a_group_of_zeros_stays() -> None:
    found = quantized_in_groups(torch.zeros(2, 32))
    assert found.values.eq(0).all()
    assert (found.scales > 0).all()


def test_what_is_small_or_no_linear_layer_or_of_odd_sizes_stays_in_int8() -> None:
    assert precision("int4", 64, 64, is_linear=True) == "int4"
    assert precision("int4", 64, 64) == "int8"
    assert precision("int4", 32, 64, is_linear=True) == "int8"
    # A gradient's product is another way round: what holds a weight must not depend on it.
    assert precision("int4", 96, 80, is_linear=True) == "int8"
    assert precision("int4", 80, 96, is_linear=True) == "int8"
    assert precision("int4", 8, 8, is_linear=True) == "fp32"
    assert precision("int8", 64, 64, is_linear=True) == "int8"
    # Most of the gradient of a choice among many would be rounded to 0: it stays as it is.
    assert is_spread(128, 4096)
    assert not is_spread(4096, 128)
    assert precision("int4", 128, 4096, is_linear=True, is_spread=True) == "int8"
    assert precision("int4", 4096, 128, is_linear=True) == "int4"


def _identity(size: int) -> nn.Linear:
    layer = nn.Linear(size, size)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _whole_numbers(rows: int) -> Tensor:
    """Returns rows which a scale of 1 holds, as they are, in int8."""
    numbers = torch.randint(-128, 128, (rows, WIDTH)).to(torch.float32)
    numbers[:, 0], numbers[:, 1] = -128, 127
    return numbers


def _session(
    model: nn.Module, x: Tensor, y: Tensor, trained: list[str], path: Path
) -> pockmobile.Session:
    program = pockmobile.compile(
        model,
        (x,),
        (y,),
        loss="mse",
        plan=pockmobile.UpdatePlan(dict.fromkeys(trained)),
        predict_batch_size=len(x),
        frozen_weights="int4",
    )
    program.save(path)
    return pockmobile.Session(path, threads=1)


def test_products_are_those_of_the_rounded_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frozen = nn.Linear(WIDTH, 96)
    # A delegate has four operators at least.
    ends = [_identity(size) for size in (WIDTH, WIDTH, 96, 96)]
    model = nn.Sequential(*ends[:2], frozen, *ends[2:])
    x, gradient = _whole_numbers(8), torch.randint(-128, 128, (8, 96)).to(torch.float32)
    gradient[:, 0], gradient[:, 1] = -128, 127
    trained = [f"{layer}.{name}" for layer in (0, 1, 3, 4) for name in ("weight", "bias")]
    session = _session(model, x, torch.zeros(8, 96), trained, tmp_path / "net.pte")
    weight, bias = frozen.weight.detach(), frozen.bias.detach()
    output = x @ rounded(weight).t() + bias
    torch.testing.assert_close(session.predict(x), output, rtol=CLOSE, atol=CLOSE)
    assert (session.predict(x) - (x @ weight.t() + bias)).abs().max() > 1
    # The loss is the mean of squares: its gradient is twice what the output is off by.
    session.step(x, output - gradient, lr=gradient.numel() / 2)
    backward = gradient @ rounded(weight.t()).t()
    for layers, inputs, outputs in (((0, 1), x, backward), ((3, 4), output, gradient)):
        expected = {"weight": outputs.t() @ inputs, "bias": outputs.sum(0)}
        for layer in layers:
            for name, value in expected.items():
                start = model[layer].get_parameter(name)
                error = session.state[f"{layer}.{name}"] - (start - value)
                assert error.norm() < CLOSE * value.norm(), (layer, name)


class _Rounded(torch.autograd.Function):
    """A linear layer with one weight [out, in] forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return x @ forward.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.saved_tensors[0], None, None


class Net(nn.Module):
    """A frozen layer below one that learns and above another."""

    def __init__(self, *, is_rounded: bool = False) -> None:
        super().__init__()
        self.first, self.frozen = nn.Linear(32, WIDTH), nn.Linear(WIDTH, 96)
        self.head, self.is_rounded = nn.Linear(96, 4), is_rounded

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        if not self.is_rounded:
            return self.head(self.frozen(hidden).relu())
        weight = self.frozen.weight.detach()
        ways = rounded(weight), rounded(weight.t()).t()
        product = _Rounded.apply(hidden, *ways) + self.frozen.bias.detach()  # type: ignore
        return self.head(product.relu())


def test_training_is_that_of_eager_with_the_rounded_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(16, 32), torch.randn(16, 4)
    eager = Net(is_rounded=True)
    eager.load_state_dict(model.state_dict())
    trained = ["first.weight", "first.bias", "head.weight", "head.bias"]
    session = _session(model, x, y, trained, tmp_path / "net.pte")
    optimizer = torch.optim.SGD([eager.get_parameter(name) for name in trained], lr=0.1)
    for step in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(eager(x), y)
        loss.backward()
        optimizer.step()
        assert session.step(x, y, lr=0.1) == pytest.approx(loss.item(), rel=0.01)
        for name in trained if step in (0, 19) else []:
            start = model.get_parameter(name)
            moved = eager.get_parameter(name) - start
            error = session.state[name] - start - moved
            assert error.norm() < TOLERANCE * moved.norm(), (step, name)
    assert loss.item() < 0.8 * nn.functional.mse_loss(model(x), y).item()


def _programs(model: nn.Module, x: Tensor, plan: Any) -> list[pockmobile.Program]:
    return [
        pockmobile.compile(model, (x,), plan=plan, frozen_weights=held)
        for held in ("fp32", "int8", "int4")
    ]


def test_a_weight_below_all_that_learns_takes_half_of_its_int8() -> None:
    body = [layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.ReLU())]
    programs = _programs(nn.Sequential(*body, nn.Linear(128, 4)), torch.randn(4, 128), "head")
    elements, channels = 4 * 128 * 128, 4 * 128
    exact, close, closer = (program.manifest.frozen_bytes for program in programs)
    assert exact - close == 3 * elements - 4 * channels
    assert close - closer == elements // 2 - 2 * elements // 32 + 4 * channels
    records = [record for record in programs[2].manifest.passes if "quantize" in record.name]
    assert [record.options for record in records] == [{"dtype": "int4"}]
    assert programs[2].manifest.frozen_weights == "int4"
    assert "large weights in int4: losses differ by about 2 %" in programs[2].report()


def test_a_weight_that_the_gradient_passes_is_held_twice() -> None:
    trained = dict.fromkeys(["first.weight", "first.bias", "head.weight", "head.bias"])
    plan = pockmobile.UpdatePlan(trained)
    exact, close, closer = _programs(Net(), torch.randn(4, 32), plan)
    elements, biases = WIDTH * 96, 4 * 96
    ones = close.manifest.frozen_bytes - elements - 4 * 96 - biases
    assert closer.manifest.frozen_bytes < biases + 2 * (elements // 2 + elements // 16) + ones
    assert closer.manifest.frozen_bytes < 0.3 * exact.manifest.frozen_bytes


def test_a_convolution_stays_in_int8() -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 4)
    )
    _, close, closer = _programs(model, torch.randn(2, 64, 3, 3), "head")
    assert close.manifest.frozen_bytes == closer.manifest.frozen_bytes


def test_a_language_model_learns_over_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TransformerLM(num_tokens=64, context=16, width=64, num_blocks=2, num_heads=2)
    tokens = torch.randint(64, (4, 16))
    curves = []
    for held in ("fp32", "int4"):
        program = pockmobile.compile(
            model, (tokens,), (tokens,), plan="sparse:1:1", frozen_weights=held
        )
        program.save(tmp_path / "lm.pte")
        session = pockmobile.Session(tmp_path / "lm.pte", threads=1)
        curves.append([session.step(tokens, tokens, lr=0.1) for _ in range(20)])
    assert curves[1][-1] < 0.5 * curves[1][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=0.05, atol=0)
