"""Losses equal PyTorch's, ignored labels count for nothing, and misfits are named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as func

from pockmobile.errors import ModelError, UsageError
from pockmobile.loss import (
    LOSSES,
    BinaryCrossEntropy,
    Contrastive,
    CrossEntropy,
    CustomLoss,
    Evaluation,
    Loss,
    MeanSquaredError,
    NextToken,
    SigmoidContrastive,
    TargetRange,
    resolve_loss,
)

NAN = float("nan")


def gradient(loss: Loss, output: Tensor, target: Tensor) -> tuple[Evaluation, Tensor]:
    output = output.detach().requires_grad_()
    result = loss.evaluate(output, (target,))
    return result, torch.autograd.grad(result.loss, output)[0]


def assert_equals(loss: Loss, output: Tensor, target: Tensor, expected: Any) -> Evaluation:
    """Compares loss and gradient with those of `expected`, a function of the output."""
    result, grad = gradient(loss, output, target)
    reference = output.detach().requires_grad_()
    value = expected(reference)
    torch.testing.assert_close(result.loss, value)
    torch.testing.assert_close(grad, torch.autograd.grad(value, reference)[0])
    assert result.loss.shape == ()
    assert all(metric.shape == () for metric in result.metrics)
    assert all(metric.dtype == torch.float32 for metric in result.metrics)
    assert len(result.metrics) == len(loss.metrics)
    return result


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)])
def test_cross_entropy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 5), torch.randint(5, shape)
    labels.view(-1)[::3] = -100
    result = assert_equals(
        CrossEntropy(),
        logits,
        labels,
        lambda output: func.cross_entropy(output.flatten(0, -2), labels.flatten()),
    )
    kept = labels != -100
    assert result.metrics[0] == (logits.argmax(-1)[kept] == labels[kept]).sum()
    assert result.metrics[1] == kept.sum()


def test_next_token_shifts_the_labels() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    tokens[1, 2:] = -100
    result = assert_equals(
        NextToken(),
        logits,
        tokens,
        lambda output: func.cross_entropy(
            output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        ),
    )
    assert result.metrics[1] == 4
    _, grad = gradient(NextToken(), logits, tokens)
    assert not grad[:, -1].any()


def test_mean_squared_error() -> None:
    output, target = torch.randn(3, 2), torch.randn(3, 2)
    assert_equals(MeanSquaredError(), output, target, lambda o: func.mse_loss(o, target))


def test_binary_cross_entropy() -> None:
    output, target = torch.randn(3, 2), torch.rand(3, 2)
    assert_equals(
        BinaryCrossEntropy(),
        output,
        target,
        lambda o: func.binary_cross_entropy_with_logits(o, target),
    )


def test_binary_cross_entropy_of_large_logits_is_finite() -> None:
    output, target = torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0])
    result, grad = gradient(BinaryCrossEntropy(), output, target)
    assert result.loss == 200
    assert grad.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("loss", [MeanSquaredError(), BinaryCrossEntropy()])
def test_targets_of_nan_count_for_nothing(loss: Loss) -> None:
    output, target = torch.randn(4), torch.tensor([0.5, NAN, 1.0, NAN])
    result, grad = gradient(loss, output, target)
    kept, grad_of_kept = gradient(loss, output[::2], target[::2])
    torch.testing.assert_close(result.loss, kept.loss)
    torch.testing.assert_close(grad[::2], grad_of_kept)
    assert grad[1::2].tolist() == [0, 0]
    assert result.metrics[0] == 2


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (CrossEntropy(), torch.full((2,), -100)),
        (MeanSquaredError(), torch.full((2, 3), NAN)),
        (BinaryCrossEntropy(), torch.full((2, 3), NAN)),
    ],
)
def test_a_batch_of_padding_has_no_loss_and_no_gradient(loss: Loss, target: Tensor) -> None:
    result, grad = gradient(loss, torch.randn(2, 3), target)
    assert result.loss == 0
    assert not grad.any()
    assert result.metrics[-1] == 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_example_targets_fit_and_lie_in_the_range(loss: Loss) -> None:
    is_of_pairs = isinstance(loss, Contrastive | SigmoidContrastive)
    output = torch.randn((3, 3) if is_of_pairs else (2, 3, 4), requires_grad=True)
    targets = loss.example_targets(output)
    assert loss.evaluate(output, targets).loss.isfinite()
    low, high = loss.target_range(output).low, loss.target_range(output).high
    assert all(low is None or (target >= low).all() for target in targets)
    assert all(high is None or (target <= high).all() for target in targets)


def test_ranges() -> None:
    output = torch.randn(2, 3, 4)
    assert CrossEntropy().target_range(output) == TargetRange(0, 3, -100)
    assert NextToken().target_range(output) == TargetRange(0, 3, -100)
    assert MeanSquaredError().target_range(output) == TargetRange(None, None, "nan")
    assert BinaryCrossEntropy().target_range(output) == TargetRange(0, 1, "nan")


def clip_loss(similarity: Tensor) -> Tensor:
    labels = torch.arange(len(similarity))
    both = func.cross_entropy(similarity, labels) + func.cross_entropy(similarity.t(), labels)
    return both / 2.0


def siglip_loss(similarity: Tensor) -> Tensor:
    signs = 2.0 * torch.eye(len(similarity)) - 1.0
    return -func.logsigmoid(signs * similarity).sum(-1).mean()


PAIR_LOSSES = [(Contrastive(), clip_loss), (SigmoidContrastive(), siglip_loss)]


@pytest.mark.parametrize(("loss", "expected"), PAIR_LOSSES)
def test_pairs_are_told_apart_from_the_rest_of_the_batch(
    loss: Loss, expected: Callable[[Tensor], Tensor]
) -> None:
    output = 3.0 * torch.randn(5, 5)
    assert_equals(loss, output, torch.arange(5), expected)
    # The order of the columns says nothing.
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_equals(loss, output, order, lambda o: expected(o[:, order]))


@pytest.mark.parametrize(("loss", "expected"), PAIR_LOSSES)
def test_a_row_without_a_pair_is_not_there(
    loss: Loss, expected: Callable[[Tensor], Tensor]
) -> None:
    output = torch.randn(5, 5)
    output[:, 3], output[3] = 50.0, 50.0
    labels = torch.tensor([0, 1, 2, -100, 4])
    kept = torch.tensor([0, 1, 2, 4])
    assert_equals(loss, output, labels, lambda o: expected(o[kept][:, kept]))
    result = loss.evaluate(output, (labels,))
    best = output[kept][:, kept].argmax(1)
    assert result.metrics[0].item() == (best == torch.arange(4)).sum().item()
    assert result.metrics[1].item() == 4.0


def test_two_rows_may_share_a_column() -> None:
    output = torch.randn(3, 3)
    labels = torch.tensor([0, 0, 2])
    for loss, _ in PAIR_LOSSES:
        assert 0.0 < loss.evaluate(output, (labels,)).loss.item() < 10.0


def test_pairs_need_a_square() -> None:
    with pytest.raises(ModelError, match=r"needs outputs \[batch, batch\].*found \[2, 3\]"):
        Contrastive().evaluate(torch.randn(2, 3), (torch.arange(2),))
    assert Contrastive().example_targets(torch.randn(3, 3))[0].tolist() == [0, 1, 2]
    assert SigmoidContrastive().target_range(torch.randn(3, 3)) == TargetRange(0, 2, -100)


def test_names_resolve() -> None:
    assert list(LOSSES) == [
        "cross_entropy", "next_token", "mse", "bce", "contrastive", "sigmoid_contrastive",
    ]  # fmt: skip
    for name, loss in LOSSES.items():
        assert resolve_loss(name) is loss
        assert resolve_loss(loss) is loss
    with pytest.raises(
        UsageError, match="unknown loss 'cross_entrpy': did you mean cross_entropy"
    ):
        resolve_loss("cross_entrpy")


def scaled(output: Tensor, target: Tensor) -> Tensor:
    return (output * target).sum()


def test_a_function_is_a_loss() -> None:
    loss = resolve_loss(scaled)
    assert isinstance(loss, CustomLoss)
    assert loss.name.endswith("test_loss:scaled")
    output, target = torch.randn(2, 3), torch.randn(2, 3)
    assert_equals(loss, output, target, lambda o: scaled(o, target))
    assert loss.target_range(output) == TargetRange(None, None, None)
    with pytest.raises(ModelError, match="is your own, so example targets must be given"):
        loss.example_targets(output)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda output: output, r"torch.float32 \[2, 3\]"),
        (lambda output: output.sum().double(), r"torch.float64 \[\]"),
        (lambda output: float(output.sum()), "float"),
        (lambda output: None, "NoneType"),
    ],
)
def test_a_function_that_returns_no_number(function: Any, found: str) -> None:
    with pytest.raises(ModelError, match=f"must return one float32 number, found {found}$"):
        resolve_loss(function).evaluate(torch.randn(2, 3), ())


LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("loss", "output", "targets", "message"),
    [
        ("cross_entropy", (2, 3), (LABELS, LABELS), "cross_entropy takes one target, found 2"),
        ("mse", (2, 3), (), "mse takes one target, found 0"),
        (
            "cross_entropy",
            (2, 3),
            (LABELS.int(),),
            r"needs int64 labels of shape \[2\] .* \(classes last\), found torch.int32",
        ),
        (
            "cross_entropy",
            (2, 3, 4),
            (LABELS,),
            r"labels of shape \[2, 3\] .*found .*int64 \[2\]",
        ),
        ("next_token", (2, 3), (LABELS,), r"\[batch, time > 1, vocabulary\], found \[2, 3\]"),
        (
            "next_token",
            (2, 1, 3),
            (LABELS[:, None],),
            r"found \[2, 1, 3\]; choose cross_entropy",
        ),
        (
            "next_token",
            (2, 3, 4),
            (LABELS,),
            r"next_token needs int64 labels of shape \[2, 3\]",
        ),
        (
            "bce",
            (2, 3),
            (LABELS,),
            r"needs float32 targets of shape \[2, 3\], the outputs' own, found .*int64 \[2\]",
        ),
    ],
)
def test_targets_that_do_not_fit(
    loss: str, output: tuple[int, ...], targets: tuple[Tensor, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_loss(loss).evaluate(torch.randn(*output), targets)
