"""Trains in PyTorch for `scripts/bench.py`: the parameters of a plan or all, eager or compiled.

A plan's slice of a parameter is trained through the gradient of all of it, as one does in
PyTorch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scripts.benchmark.inputs import read_batch, read_statistics
from scripts.benchmark.variants import Job, Part, VariantError
from scripts.benchmark.works import WORKS, settled_model


def load_late() -> None:
    """Imports the models, and takes a step on one number: the first one imports more."""
    import_module("pockmobile.models")
    number = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([number], lr=0.0)
    optimizer.zero_grad()
    number.sum().backward()
    optimizer.step()


def open_engine(job: Job) -> "_Eager":
    """Returns the trainer."""
    return _Eager(job)


@final
class _Eager:
    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._batch = read_batch(job.inputs)
        model = settled_model(WORKS[job.work], read_statistics(job.inputs))
        if job.parts is None:
            parts: Mapping[str, Part] = {name: None for name, _ in model.named_parameters()}
        else:
            parts = job.parts
        self._parts = freeze_rest(model, parts)
        self._optimizer = torch.optim.SGD([leaf for leaf, _ in self._parts], lr=0.0)
        self._loss: Callable[[Tensor, Tensor], Tensor] = _loss_of(model)
        if job.is_compiled:
            self._loss = torch.compile(self._loss, dynamic=False)

    def step(self, lr: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        loss = self._loss(*self._batch)
        loss.backward()
        for leaf, part in self._parts:
            if part is not None:
                keep_part(leaf, part)
        self._optimizer.step()
        return loss.item()


def freeze_rest(model: nn.Module, parts: Mapping[str, Part]) -> list[tuple[nn.Parameter, Part]]:
    """Freezes all parameters but those named, and returns these with their parts.

    Raises:
        VariantError: the model has no such parameter (it is an adapter's).
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in parts if name not in known]
    if missing:
        raise VariantError(f"the plan trains {missing[0]}, which the eager model has not")
    model.requires_grad_(False)
    for name in parts:
        known[name].requires_grad_()
    return [(known[name], part) for name, part in parts.items()]


def keep_part(leaf: nn.Parameter, part: tuple[int, int, int]) -> None:
    """Sets the gradient to zero outside a part of the parameter."""
    dim, start, stop = part
    assert leaf.grad is not None
    leaf.grad.narrow(dim, 0, start).zero_()
    leaf.grad.narrow(dim, stop, leaf.shape[dim] - stop).zero_()


def _loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(inputs).flatten(0, -2), targets.flatten())

    return loss
