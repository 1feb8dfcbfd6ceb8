"""What cannot be captured is refused, with what was found and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pockmobile.capture import export_forward, model_output
from pockmobile.errors import ModelError
from pockmobile.loss import CrossEntropy, Loss, MeanSquaredError, NextToken, resolve_loss
from tests.captured import LABELS, Bert, bert_batch, joint_of


class Fails(nn.Module):
    def __init__(self, forward: Callable[[Tensor, nn.Linear], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(2, 3))
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(x, self)


FEATURES = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda x, m: m.linear(x.t()),
            r"forward pass fails on example inputs of shape \[2, 3\]: mat1 and mat2 shapes",
        ),
        (
            lambda x, m: m.linear(x) if x.sum() > 0 else x,
            r"torch.export cannot capture the model: .*; see the torch.export documentation",
        ),
        (lambda x, m: None, "the model returns no tensor; expected its outputs"),
        (lambda x, m: m.linear(x).detach(), "cross_entropy does not depend on any parameter"),
        (
            lambda x, m: m.linear(m.total.add_(x)),
            "writes into a buffer or an input; a program has no state but what it trains",
        ),
        (lambda x, m: m.linear(x.add_(1)), "writes into a buffer or an input"),
    ],
)
def test_models_that_cannot_be_captured(forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        joint_of(Fails(forward), (FEATURES,), LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "loss", "message"),
    [
        (
            torch.zeros(2, 4),
            CrossEntropy(),
            r"cross_entropy needs int64 labels of shape \[2\] for outputs of shape \[2, 3\]",
        ),
        (LABELS, NextToken(), r"next_token needs outputs \[batch, time > 1, vocabulary\]"),
        (torch.zeros(2, 4), MeanSquaredError(), r"mse needs float32 targets of shape \[2, 3\]"),
        (
            torch.zeros(2, 4),
            resolve_loss(lambda output, target: (output - target).sum()),
            r"fails on outputs of shape \[2, 3\] and targets of shape \[\[2, 4\]\]: \w",
        ),
    ],
)
def test_losses_that_do_not_fit(target: Tensor, loss: Loss, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        joint_of(nn.Linear(3, 3), (FEATURES,), target, loss)


def test_inputs_that_do_not_fit_an_archive() -> None:
    program = torch.export.export(Bert(), (), bert_batch(), strict=False)
    with pytest.raises(
        ModelError, match=r"keyword inputs \['kinds', 'ids', 'mask'\], found \['i'\]"
    ):
        export_forward(program, (), {"i": FEATURES})
    with pytest.raises(ModelError, match=r"takes 3 inputs \(kinds, ids, mask\), found 1"):
        export_forward(program, (FEATURES,))
    program = torch.export.export(nn.Linear(3, 3), (FEATURES,), strict=False)
    forward = export_forward(program, (torch.zeros(2, 4),))
    with pytest.raises(ModelError, match=r"fails on example inputs of shape \[2, 4\]"):
        model_output(forward, forward.inputs)


def test_a_model_without_tensor_inputs() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, times: int) -> Tensor:
            return self.weight * times

    with pytest.raises(ModelError, match="takes no tensor; expected at least one input tensor"):
        export_forward(Constant(), (2,))


def test_a_parameter_and_an_input_of_one_name() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.x

    with pytest.raises(ModelError, match="parameter and its input are both named 'x'; rename"):
        joint_of(Scale(), (FEATURES,), LABELS)
