"""Optimizers, as pure functions, follow those of PyTorch for 20 steps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pockmobile.errors import UsageError
from pockmobile.optim import (
    OPTIMIZERS,
    SGD,
    AdamW,
    Lion,
    Momentum,
    Optimizer,
    clip_by_global_norm,
)

NUM_STEPS = 20
Reference = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


class ReferenceLion(torch.optim.Optimizer):
    """Lion, in place, straight from algorithm 2 of the paper."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, beta1: float, beta2: float, decay: float
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.constants = beta1, beta2, decay

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2, decay = self.constants
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("m", torch.zeros_like(weight))
                sign = torch.sign(torch.lerp(weight.grad, momentum, beta1))
                weight.sub_(group["lr"] * (sign + decay * weight))
                momentum.copy_(torch.lerp(weight.grad, momentum, beta2))


def sgd(**constants: float | bool) -> Reference:
    return lambda params, lr: torch.optim.SGD(params, lr=lr, **constants)


def adamw(**constants: float | tuple[float, float]) -> Reference:
    return lambda params, lr: torch.optim.AdamW(params, lr=lr, **constants)


def lion(beta1: float = 0.9, beta2: float = 0.99, decay: float = 0.0) -> Reference:
    return lambda params, lr: ReferenceLion(params, lr, beta1, beta2, decay)


CASES: list[tuple[Optimizer, Reference]] = [
    (SGD(), sgd()),
    (SGD(weight_decay=0.1), sgd(weight_decay=0.1)),
    (Momentum(), sgd(momentum=0.9)),
    (Momentum(momentum=0.5, weight_decay=0.1), sgd(momentum=0.5, weight_decay=0.1)),
    (
        Momentum(nesterov=True, weight_decay=0.1),
        sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    (Momentum(momentum=0.0), sgd()),
    (AdamW(), adamw(weight_decay=0.01)),
    (
        AdamW(betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
        adamw(betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
    ),
    (AdamW(betas=(0.0, 0.9), weight_decay=0.0), adamw(betas=(0.0, 0.9), weight_decay=0.0)),
    (Lion(), lion()),
    (Lion(betas=(0.7, 0.9), weight_decay=0.2), lion(0.7, 0.9, 0.2)),
]


@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize(("optimizer", "reference"), CASES)
def test_twenty_steps(
    optimizer: Optimizer, reference: Reference, clip_norm: float | None
) -> None:
    torch.manual_seed(0)
    expected = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    stepper = reference(expected, 0.1)
    ours = [parameter.detach().clone() for parameter in expected]
    slots = [[torch.zeros_like(w) for _ in optimizer.slots] for w in ours]
    for count in range(1, NUM_STEPS + 1):
        rate = 0.1 / count
        stepper.param_groups[0]["lr"] = rate
        grads = [torch.randn_like(parameter) for parameter in ours]
        for parameter, grad in zip(expected, grads, strict=True):
            parameter.grad = grad.clone()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(expected, clip_norm)
            grads = clip_by_global_norm(grads, clip_norm)
        stepper.step()
        lr, step = torch.tensor([rate]), torch.tensor([float(count)])
        updates = [
            optimizer.update(weight, grad, own, lr, step)
            for weight, grad, own in zip(ours, grads, slots, strict=True)
        ]
        ours = [update.parameter for update in updates]
        slots = [list(update.slots) for update in updates]
    for found, parameter in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_an_update_changes_nothing_in_place() -> None:
    for optimizer, _ in CASES:
        weight, grad = torch.randn(3), torch.randn(3)
        slots = [torch.rand(3) for _ in optimizer.slots]
        before = [value.clone() for value in (weight, grad, *slots)]
        update = optimizer.update(weight, grad, slots, torch.tensor([0.1]), torch.ones(1))
        assert len(update.slots) == len(optimizer.slots)
        for value, old in zip((weight, grad, *slots), before, strict=True):
            assert torch.equal(value, old)


def test_the_bias_correction_keeps_its_digits_over_many_steps() -> None:
    weight, grad = torch.zeros(1), torch.ones(1)
    zeros = [torch.zeros(1), torch.zeros(1)]
    for count in (1.0, 1e6):
        parameter = nn.Parameter(weight.double())
        reference = torch.optim.AdamW([parameter], lr=1.0, betas=(0.9, 0.99999), weight_decay=0)
        parameter.grad = grad.double()
        reference.state[parameter] = {
            "step": torch.tensor(count - 1),
            "exp_avg": torch.zeros(1).double(),
            "exp_avg_sq": torch.zeros(1).double(),
        }
        reference.step()
        optimizer = AdamW(betas=(0.9, 0.99999), weight_decay=0.0)
        found = optimizer.update(weight, grad, zeros, torch.ones(1), torch.tensor([count]))
        torch.testing.assert_close(
            found.parameter, parameter.detach().float(), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("norm", [1e-3, 0.5, 1.0, 100.0])
def test_clipping_is_that_of_torch(norm: float) -> None:
    torch.manual_seed(0)
    grads = [torch.randn(4, 3), torch.randn(7), torch.randn(())]
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(parameters, norm)
    for found, parameter in zip(clip_by_global_norm(grads, norm), parameters, strict=True):
        torch.testing.assert_close(found.reshape(parameter.shape), parameter.grad)


def test_clipping_leaves_zeros() -> None:
    (found,) = clip_by_global_norm([torch.zeros(3)], 1.0)
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_norm_is_above_zero(norm: float) -> None:
    with pytest.raises(UsageError, match=f"clip_norm must be above 0, found {norm}"):
        clip_by_global_norm([torch.ones(3)], norm)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(weight_decay=-1.0), r"weight_decay must be at least 0\.0 .* found -1\.0"),
        (lambda: Momentum(momentum=1.0), r"momentum must be .* below 1\.0, found 1\.0"),
        (lambda: Momentum(momentum=float("nan")), "momentum must be .* found nan"),
        (lambda: AdamW(betas=(1.0, 0.9)), r"betas\[0\] must be at least 0\.0 and below 1\.0"),
        (lambda: AdamW(betas=(0.9, -0.1)), r"betas\[1\] must be .* found -0\.1"),
        (lambda: AdamW(eps=-1e-8), r"eps must be at least 0\.0 .* found -1e-08"),
        (lambda: Lion(betas=(0.9, 1.5)), r"betas\[1\] must be .* found 1\.5"),
        (lambda: Lion(weight_decay=-0.5), "weight_decay must be .* found -0.5"),
    ],
)
def test_constants_out_of_range(make: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_constants_are_what_the_manifest_holds() -> None:
    assert list(OPTIMIZERS) == ["sgd", "momentum", "adamw", "lion"]
    assert all(kind().constants()["name"] == name for name, kind in OPTIMIZERS.items())
    assert AdamW().constants() == {
        "name": "adamw",
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    }


def test_arithmetic_stays_in_float32() -> None:
    for optimizer, _ in CASES:
        values: list[Tensor] = [torch.ones(2) for _ in optimizer.slots]
        update = optimizer.update(
            torch.ones(2), torch.ones(2), values, torch.ones(1), torch.ones(1)
        )
        assert {value.dtype for value in (update.parameter, *update.slots)} == {torch.float32}
