"""Fine-tunes one plan and measures what it gives on the held-out data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pockmobile.errors import UsageError
from pockmobile.loss import Loss, NextToken
from pockmobile.optim import clip_by_global_norm
from pockmobile.plan import Slice
from pockmobile.sensitivity.partial import PartlyTrained
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.task import Data, Task, in_order, train_batches


@final
@dataclass(frozen=True)
class Outcome:
    """What a fine-tuning gave on the held-out data.

    `metric` is better the higher it is: the accuracy (0 to 1), or minus the mean loss. A run
    that diverged has the start's metric, since a device rolls it back, and infinite `loss`.
    """

    metric: float
    loss: float


def metric_name(loss: Loss) -> str:
    """Returns "accuracy", or "loss" where no label is simply right: there it says more."""
    is_classifier = "num_correct" in loss.metrics and not isinstance(loss, NextToken)
    return "accuracy" if is_classifier else "loss"


def fine_tune(
    task: Task, update: Mapping[str, Slice | None], schedule: Schedule, seed: int
) -> Outcome:
    """Trains what `update` names from the model's start, and evaluates it.

    Args:
        task: the model and its data.
        update: what is trained, as in a plan; nothing at all measures the start.
        schedule: how it is trained.
        seed: decides the order of the training batches, and nothing else.
    """
    model = PartlyTrained(task.forward, update)
    slots = {
        name: tuple(torch.zeros_like(leaf) for _ in schedule.optimizer.slots)
        for name, leaf in model.leaves.items()
    }
    batches = train_batches(task, schedule.num_steps if update else 0, seed)
    for step, batch in enumerate(batches):
        loss = task.loss.evaluate(model.output(batch.inputs), batch.targets).loss
        if not math.isfinite(loss.item()):
            return _rolled_back(task)
        _apply(model, model.gradients(loss), slots, schedule, step)
    outcome = _evaluate(task, model)
    return outcome if math.isfinite(outcome.loss) else _rolled_back(task)


def _rolled_back(task: Task) -> Outcome:
    return Outcome(_evaluate(task, PartlyTrained(task.forward, {})).metric, math.inf)


@torch.no_grad()
def _apply(
    model: PartlyTrained,
    grads: Mapping[str, Tensor],
    slots: dict[str, tuple[Tensor, ...]],
    schedule: Schedule,
    step: int,
) -> None:
    if grads and schedule.clip_norm is not None:
        clipped = clip_by_global_norm(list(grads.values()), schedule.clip_norm)
        grads = dict(zip(grads, clipped, strict=True))
    lr, number = torch.tensor([schedule.rate(step)]), torch.tensor([step + 1.0])
    for name, grad in grads.items():
        leaf = model.leaves[name]
        update = schedule.optimizer.update(leaf, grad, slots[name], lr, number)
        # Without a dimension it has got that of the learning rate.
        model.set_leaf(name, update.parameter.reshape(leaf.shape))
        slots[name] = tuple(slot.reshape(leaf.shape) for slot in update.slots)


@torch.no_grad()
def _evaluate(task: Task, model: PartlyTrained) -> Outcome:
    """Returns the mean over all labels that count, or over whole batches without a count."""
    loss, num_correct, num_counted = 0.0, 0.0, 0.0
    for batch, num_real in in_order(task.eval, task.forward.batch_size):
        output = model.output(batch.inputs)
        if not _ignore_padding(task.loss, output, batch, num_real):
            continue
        result = task.loss.evaluate(output, batch.targets)
        metrics = dict(zip(task.loss.metrics, map(float, result.metrics), strict=True))
        weight = metrics.get("num_counted", 1.0)
        num_counted += weight
        num_correct += metrics.get("num_correct", 0.0)
        loss += float(result.loss) * weight if weight else 0.0
    if not num_counted:
        raise UsageError(
            f"the {task.eval.num_examples} evaluation examples hold no label that counts, or "
            f"do not fill a batch of {task.forward.batch_size}; give more"
        )
    loss /= num_counted
    is_accuracy = metric_name(task.loss) == "accuracy"
    return Outcome(num_correct / num_counted if is_accuracy else -loss, loss)


def _ignore_padding(loss: Loss, output: Tensor, batch: Data, num_real: int) -> bool:
    """Lets the loss ignore what fills the batch up; returns whether it can."""
    if num_real == len(output):
        return True
    ignored = loss.target_range(output).ignored
    if ignored is None:
        return False
    for target in batch.targets:
        target[num_real:] = float(ignored)
    return True
