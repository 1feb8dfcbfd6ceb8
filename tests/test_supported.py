"""What no program can hold is refused while it is captured, by operator and module."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.errors import ModelError, UnsupportedOperatorError


class _Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


class _Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.odd = _Layer(function)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd(self.first(x)))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda x: x * x.sum().item(),
            r"\(from odd, .*:\d+\) depends in size, or as a plain number",
        ),
        (
            lambda x: x * x.nonzero().sum(),
            r"aten.nonzero.default \(from odd, .*\) depends in size",
        ),
        (
            lambda x: torch.igamma(x.abs(), x.abs()),
            r"aten.igamma \(from odd, .*\) has no gradient",
        ),
    ],
)
def test_an_operator_that_cannot_be_captured(
    function: Callable[[Tensor], Tensor], text: str
) -> None:
    with pytest.raises(UnsupportedOperatorError, match=text):
        pockmobile.compile(_Model(function), (torch.randn(4, 8),))


def test_a_model_that_fixes_its_batch_predicts_on_that() -> None:
    program = pockmobile.compile(_Model(lambda x: x.reshape(4, 8)), (torch.randn(4, 8),))
    (tensor,) = program.manifest.methods["predict"].inputs_of("input")
    assert tensor.shape == (4, 8)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda x: x + torch.rand_like(x),
            r"aten.rand_like.default \(from odd, .*:\d+\) draws",
        ),
        (lambda x: torch.fft.fft(x).abs(), r"\(from odd, .*\) computes with complex numbers"),
        (
            lambda x: torch.cdist(x[None], x[None])[0] @ x,
            r"_cdist_backward.default \(from odd, .*supported.py:\d+\); replace that layer",
        ),
    ],
)
def test_an_operator_that_no_program_can_hold(
    function: Callable[[Tensor], Tensor], text: str
) -> None:
    with pytest.raises(UnsupportedOperatorError, match=text):
        pockmobile.compile(_Model(function), (torch.randn(4, 8),), target="portable")


def test_an_operator_of_a_loss_is_named_so() -> None:
    def far(output: Tensor, target: Tensor) -> Tensor:
        return torch.cdist(output, target).mean()

    named = r"_cdist_backward.default \(from the loss\)"
    with pytest.raises(UnsupportedOperatorError, match=named):
        pockmobile.compile(
            nn.Linear(8, 3), (torch.randn(4, 8),), (torch.randn(4, 3),), loss=far,
            target="portable",
        )  # fmt: skip


def test_example_targets_are_checked() -> None:
    labels = torch.tensor([0, 2, 3, -100])
    with pytest.raises(ModelError, match=r"example target\[2\] is 3, expected 0 to 2, or -100"):
        pockmobile.compile(nn.Linear(8, 3), (torch.randn(4, 8),), (labels,))
