"""Losses that a training program can hold; each is a pure function of outputs and targets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from pockmobile.errors import ModelError, UsageError, nearest

IGNORED_LABEL: Final = -100
"""The label whose example counts for nothing, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class TargetRange:
    """The values that a target may hold: `low` to `high`, both included, and `ignored`."""

    low: int | None
    high: int | None
    ignored: int | str | None

    def check(self, name: str, target: Tensor) -> None:
        """Checks a target's values.

        Raises:
            ModelError: naming the first one that it may not hold.
        """
        outside = torch.zeros(target.shape, dtype=torch.bool)
        if self.low is not None:
            outside |= target < self.low
        if self.high is not None:
            outside |= target > self.high
        if isinstance(self.ignored, int):
            outside &= target != self.ignored
        if not bool(outside.any()):
            return
        place = outside.nonzero()[0].tolist()
        ends = f"{self.low} to {self.high}"
        ignored = "" if self.ignored is None else f", or {self.ignored} where there is none"
        raise ModelError(
            f"example {name}{place} is {target[tuple(place)].item()}, expected {ends}{ignored}"
        )


@dataclass(frozen=True)
class Evaluation:
    """A loss (float32, shape []) and its metrics (float32, shape [] each), in order."""

    loss: Tensor
    metrics: tuple[Tensor, ...]


class Loss(ABC):
    """A loss with the metrics that go with it.

    `evaluate` returns the mean loss over the labels that count; metrics are sums, so that
    they can be added over batches.
    """

    name: str
    metrics: tuple[str, ...]

    @abstractmethod
    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns the loss and the metrics of one batch."""

    @abstractmethod
    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Returns targets that fit `output` (the model's, for one batch)."""

    @abstractmethod
    def target_range(self, output: Tensor) -> TargetRange:
        """Returns the values that the targets may hold for such an `output`."""


class _LabelLoss(torch.autograd.Function):
    """Mean cross entropy over labels; its gradient needs no gather and no logarithm."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: Tensor, labels: Tensor
    ) -> Tensor:
        counts = (labels != IGNORED_LABEL).to(logits.dtype).unsqueeze(-1)
        index = labels.clamp(min=0).unsqueeze(-1)
        scale = 1.0 / counts.sum().clamp(min=1.0)
        ctx.save_for_backward(logits, index, counts, scale)
        picked = torch.log_softmax(logits, dim=-1).gather(-1, index)
        return -(picked * counts).sum() * scale

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        logits, index, counts, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        one_hot = torch.zeros_like(logits).scatter(-1, index, counts)
        difference = torch.softmax(logits, dim=-1) * counts - one_hot
        return difference * (grad * scale), None


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = _LabelLoss.apply(logits, labels)  # type: ignore[no-untyped-call]
    return loss


def _label_metrics(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    counts = labels != IGNORED_LABEL
    correct = (logits.argmax(dim=-1) == labels) & counts
    return correct.to(torch.float32).sum(), counts.to(torch.float32).sum()


def _one_target(name: str, targets: tuple[Tensor, ...]) -> Tensor:
    if len(targets) != 1:
        raise ModelError(f"loss {name} takes one target, found {len(targets)}")
    return targets[0]


def _check_labels(name: str, logits: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:-1]:
        raise ModelError(
            f"loss {name} needs int64 labels of shape {list(logits.shape[:-1])} for outputs of "
            f"shape {list(logits.shape)} (classes last), found {labels.dtype} "
            f"{list(labels.shape)}; give such targets or choose another loss"
        )


@final
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy of logits [..., classes] with int64 labels [...]; -100 is ignored."""

    name = "cross_entropy"
    metrics = ("num_correct", "num_counted")

    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns the mean loss, the number correct and the number counted."""
        labels = _one_target(self.name, targets)
        _check_labels(self.name, output, labels)
        return Evaluation(_label_loss(output, labels), _label_metrics(output, labels))

    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Returns labels of class 0."""
        return (torch.zeros(output.shape[:-1], dtype=torch.int64),)

    def target_range(self, output: Tensor) -> TargetRange:
        """Labels are 0 to classes - 1, or -100."""
        return TargetRange(0, output.shape[-1] - 1, IGNORED_LABEL)


@final
@dataclass(frozen=True)
class NextToken(Loss):
    """Cross entropy of logits [batch, time, vocabulary] with the *following* token.

    Targets are the tokens themselves, int64 [batch, time] (the convention of causal language
    models: the shift is done here); the logits of the last place predict nothing.
    """

    name = "next_token"
    metrics = ("num_correct", "num_counted")

    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns the mean loss, the number of tokens predicted and the number counted."""
        tokens = _one_target(self.name, targets)
        if output.dim() != 3 or output.shape[1] < 2:
            raise ModelError(
                f"loss next_token needs outputs [batch, time > 1, vocabulary], found "
                f"{list(output.shape)}; choose cross_entropy for one label an example"
            )
        _check_labels(self.name, output, tokens)
        # The last place is ignored, not cut off: a slice would copy all the logits.
        labels = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED_LABEL)], 1)
        return Evaluation(_label_loss(output, labels), _label_metrics(output, labels))

    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Returns tokens of number 0."""
        return (torch.zeros(output.shape[:-1], dtype=torch.int64),)

    def target_range(self, output: Tensor) -> TargetRange:
        """Tokens are 0 to vocabulary - 1, or -100."""
        return TargetRange(0, output.shape[-1] - 1, IGNORED_LABEL)


class _PairLoss(Loss):
    """A loss of similarities between the two sides of a batch, of which some are pairs.

    Outputs are float32 [batch, batch], scaled as the model has it (CLIP's `logits_per_image`).
    The target is int64 [batch]: the number of the column that belongs to a row, usually the
    row's own, or -100 where the row and that column count for nothing, as in a short batch.
    """

    metrics = ("num_correct", "num_counted")

    @abstractmethod
    def mean(self, output: Tensor, pairs: Tensor) -> Tensor:
        """Returns the mean loss over the pairs, of which `pairs` [batch, batch] has ones."""

    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns the mean loss, the rows whose best column is theirs, and those that count."""
        labels = _one_target(self.name, targets)
        if output.dim() != 2 or output.shape[0] != output.shape[1]:
            raise ModelError(
                f"loss {self.name} needs outputs [batch, batch], each row's similarity to each "
                f"column, found {list(output.shape)}; see the manual on contrastive losses"
            )
        _check_labels(self.name, output, labels)
        columns = torch.arange(output.shape[1], device=output.device)
        pairs = (labels.unsqueeze(1) == columns).to(output.dtype)
        metrics = _label_metrics(output + _absent(pairs, 0), labels)
        return Evaluation(self.mean(output, pairs), metrics)

    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Returns the rows' own numbers."""
        return (torch.arange(len(output)),)

    def target_range(self, output: Tensor) -> TargetRange:
        """Columns are 0 to batch - 1, or -100."""
        return TargetRange(0, output.shape[-1] - 1, IGNORED_LABEL)


def _paired(pairs: Tensor, dim: int) -> Tensor:
    """Returns ones for the columns (dim 0) or rows (dim 1) that some pair has, else zeros."""
    return pairs.sum(dim, keepdim=True).clamp(max=1.0)


def _absent(pairs: Tensor, dim: int) -> Tensor:
    """Returns zeros for what some pair has, and very negative numbers for the others."""
    return (_paired(pairs, dim) - 1.0) * 1e30


@final
@dataclass(frozen=True)
class Contrastive(_PairLoss):
    """CLIP's loss: cross entropy of rows over columns and of columns over rows, averaged."""

    name = "contrastive"

    def mean(self, output: Tensor, pairs: Tensor) -> Tensor:
        """Returns half of the sum of both directions' means."""
        of_rows = torch.log_softmax(output + _absent(pairs, 0), 1)
        of_columns = torch.log_softmax(output + _absent(pairs, 1), 0)
        num_pairs = pairs.sum().clamp(min=1.0)
        return -((of_rows + of_columns) * pairs).sum() / (2.0 * num_pairs)


@final
@dataclass(frozen=True)
class SigmoidContrastive(_PairLoss):
    """SigLIP's loss: each row with each column is a pair or none, by binary cross entropy."""

    name = "sigmoid_contrastive"

    def mean(self, output: Tensor, pairs: Tensor) -> Tensor:
        """Returns the sum over the rows and columns that count, for each pair."""
        counts = _paired(pairs, 0) * _paired(pairs, 1)
        losses = BinaryCrossEntropy().elements(output, pairs)
        return (losses * counts).sum() / pairs.sum().clamp(min=1.0)


class _ValueLoss(Loss):
    """Mean of a value for each element, where a target of NaN counts for nothing."""

    metrics = ("num_counted",)

    @abstractmethod
    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of each element, of the shape of `output`."""

    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns the mean loss over the elements that count, and their number."""
        target = _one_target(self.name, targets)
        if target.dtype != torch.float32 or target.shape != output.shape:
            raise ModelError(
                f"loss {self.name} needs float32 targets of shape {list(output.shape)}, the "
                f"outputs' own, found {target.dtype} {list(target.shape)}"
            )
        known = target == target  # NaN alone differs from itself.
        counts = known.to(output.dtype)
        filled = torch.where(known, target, torch.zeros_like(target))
        num_counted = counts.sum()
        total = (self.elements(output, filled) * counts).sum()
        return Evaluation(total / num_counted.clamp(min=1.0), (num_counted,))

    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Returns zeros of the shape of `output`."""
        return (torch.zeros(output.shape),)


@final
@dataclass(frozen=True)
class MeanSquaredError(_ValueLoss):
    """Mean squared error; targets float32 of the outputs' shape, NaN is ignored."""

    name = "mse"

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns the squared differences."""
        difference = output - target
        return difference * difference

    def target_range(self, output: Tensor) -> TargetRange:
        """Any number, or NaN."""
        return TargetRange(None, None, "nan")


@final
@dataclass(frozen=True)
class BinaryCrossEntropy(_ValueLoss):
    """Binary cross entropy of logits; targets float32 in 0..1 of their shape, NaN ignored."""

    name = "bce"

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns max(x, 0) - x t + log(1 + exp(-|x|)), which never overflows."""
        return output.relu() - output * target + (1.0 + (-output.abs()).exp()).log()

    def target_range(self, output: Tensor) -> TargetRange:
        """0 to 1, or NaN."""
        return TargetRange(0, 1, "nan")


@final
@dataclass(frozen=True)
class CustomLoss(Loss):
    """A user's function of (output, *targets) that returns a scalar."""

    name: str
    function: Callable[..., Tensor]
    metrics = ()

    def evaluate(self, output: Tensor, targets: tuple[Tensor, ...]) -> Evaluation:
        """Returns what the function returns."""
        loss = self.function(output, *targets)
        is_tensor = isinstance(loss, Tensor)
        if not is_tensor or loss.numel() != 1 or loss.dtype != torch.float32:
            found = f"{loss.dtype} {list(loss.shape)}" if is_tensor else type(loss).__name__
            raise ModelError(f"loss {self.name} must return one float32 number, found {found}")
        return Evaluation(loss.reshape(()), ())

    def example_targets(self, output: Tensor) -> tuple[Tensor, ...]:
        """Raises ModelError: only the user knows what such a loss takes."""
        raise ModelError(
            f"loss {self.name} is your own, so example targets must be given (name them "
            f"`target` in the file of example inputs)"
        )

    def target_range(self, output: Tensor) -> TargetRange:
        """Any number."""
        return TargetRange(None, None, None)


LOSSES: Final[Mapping[str, Loss]] = {
    loss.name: loss
    for loss in (
        CrossEntropy(),
        NextToken(),
        MeanSquaredError(),
        BinaryCrossEntropy(),
        Contrastive(),
        SigmoidContrastive(),
    )
}


def resolve_loss(loss: str | Loss | Callable[..., Tensor]) -> Loss:
    """Returns the loss of that name, or wraps a function (output, *targets) -> scalar.

    Raises:
        UsageError: the name is unknown.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        module = getattr(loss, "__module__", "")
        return CustomLoss(f"{module}:{getattr(loss, '__name__', 'loss')}", loss)
    if loss not in LOSSES:
        raise UsageError(f"unknown loss {loss!r}: {nearest(loss, LOSSES)}")
    return LOSSES[loss]
