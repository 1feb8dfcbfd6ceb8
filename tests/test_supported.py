"""What no program can hold is refused while it is captured, by operator and module."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor, nn

import pockmobile
from pockmobile.capture import export_forward
from pockmobile.errors import ModelError, PockmobileWarning, UnsupportedOperatorError


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
            lambda x: torch.linalg.inv(x @ x.t()) @ x,
            r"linalg_inv_ex.default \(from odd, .*supported.py:\d+\).*; replace that layer",
        ),
        (
            lambda x: func.dropout(x, 0.1, training=True),
            r"aten.dropout.default \(from odd, .*supported.py:\d+\) draws random numbers, in",
        ),
        (
            lambda x: func.alpha_dropout(x, 0.1, training=True),
            r"aten.alpha_dropout.default \(from odd, .*supported.py:\d+\) draws",
        ),
        (
            lambda x: func.rrelu(x, training=True),
            r"aten.rrelu.default \(from odd, .*supported.py:\d+\) draws",
        ),
        (
            lambda x: func.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
            r"scaled_dot_product_attention.default \(from odd, .*supported.py:\d+\) draws",
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


def test_a_label_that_a_loss_of_ones_own_refuses() -> None:
    def plain(output: Tensor, labels: Tensor) -> Tensor:
        return func.cross_entropy(output, labels)

    with pytest.raises(
        ModelError, match=r"loss .*plain fails on .*: Target 7 is out of bounds"
    ):
        pockmobile.compile(
            nn.Linear(8, 3), (torch.randn(4, 8),), (torch.tensor([0, 1, 7, 2]),), loss=plain
        )


@pytest.mark.parametrize(
    "noise",
    [
        torch.rand_like,
        lambda x: func.dropout(x, 0.5),
        lambda x: torch.empty_like(x).exponential_(),
    ],
)
def test_a_loss_that_draws_random_numbers(noise: Callable[[Tensor], Tensor]) -> None:
    def noisy(output: Tensor, target: Tensor) -> Tensor:
        return (output * noise(output) - target).square().mean()

    with pytest.raises(UnsupportedOperatorError, match=r"\(from the loss\) draws random"):
        pockmobile.compile(
            nn.Linear(8, 3), (torch.randn(4, 8),), (torch.randn(4, 3),), loss=noisy
        )


class _Dropped(nn.Module):
    """Drops values in two ways: one as the mode says, one always."""

    def __init__(self, *, is_stubborn: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)
        self.features = nn.FeatureAlphaDropout(0.5)
        self._is_stubborn = is_stubborn

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.features(x))
        return self.linear(func.dropout(x, 0.5) if self._is_stubborn else x)


def _archive(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (torch.ones(4, 8),), strict=False)


def test_an_archive_in_training_mode_is_told_that_dropout_is_off() -> None:
    program = _archive(_Dropped(is_stubborn=False).train())
    said = r"dropout.default \(from features.*, and 1 more\) drops values .*model.eval\(\)"
    with pytest.warns(PockmobileWarning, match=said):
        export_forward(program, (torch.ones(4, 8),))


def test_an_archive_in_evaluation_mode_that_drops_values_is_refused() -> None:
    export_forward(_archive(_Dropped(is_stubborn=False).eval()), (torch.ones(4, 8),))
    with pytest.raises(UnsupportedOperatorError, match=r"model's own forward\(\), .* draws"):
        export_forward(_archive(_Dropped(is_stubborn=True).eval()), (torch.ones(4, 8),))
