"""Tiny tasks that can be learnt, for the tests of the sensitivity analysis."""

import torch
from torch import Tensor, nn

from pockmobile import models
from pockmobile.capture import Forward, describe_layers, export_forward
from pockmobile.loss import CrossEntropy, Loss
from pockmobile.optim import SGD
from pockmobile.plan import Slice
from pockmobile.sensitivity import Data, Schedule, Task
from pockmobile.space import UpdateSpace, update_space

BATCH = 4
SCHEDULE = Schedule(num_steps=6, lr=0.1, optimizer=SGD())


def mlp_task(*, num_train: int = 22, num_eval: int = 10, loss: Loss | None = None) -> Task:
    """Features of which the first decides the class; neither set is a multiple of a batch."""
    torch.manual_seed(0)
    model = models.mlp(num_inputs=8, num_classes=2)
    return task_of(model, torch.randn(num_train + num_eval, 8), num_train, loss)


def cnn_task(*, num_train: int = 12, num_eval: int = 6) -> Task:
    torch.manual_seed(0)
    model = models.residual_cnn(num_classes=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return task_of(model, torch.randn(num_train + num_eval, 3, 8, 8), num_train)


def task_of(model: nn.Module, inputs: Tensor, num_train: int, loss: Loss | None = None) -> Task:
    forward = export_forward(model, (inputs[:BATCH],))
    labels = (inputs.flatten(1)[:, 0] > 0).long()
    name = next(iter(forward.inputs))
    return Task(
        forward,
        loss or CrossEntropy(),
        Data({name: inputs[:num_train]}, (labels[:num_train],)),
        Data({name: inputs[num_train:]}, (labels[num_train:],)),
    )


def space_of(forward: Forward) -> UpdateSpace:
    shapes = {name: forward.parameters[name].shape for name in forward.trainable}
    return update_space(describe_layers(forward), shapes)


SLOW_SCHEDULE = Schedule(num_steps=300, lr=0.01, optimizer=SGD())
"""Slow enough for a run to be killed between its first and its last unit."""


def all_plans(task: Task) -> dict[str, dict[str, Slice | None]]:
    space = space_of(task.forward)
    return {option.name: {**space.base, **option.update} for option in space.options}
