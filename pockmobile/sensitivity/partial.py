"""A forward pass of which parts of the parameters are trained."""

from collections.abc import Mapping, Sequence
from typing import Final, final

import torch
from torch import Tensor

from pockmobile.capture import Forward, ForwardInterpreter
from pockmobile.plan import Slice


@final
class PartlyTrained:
    """Runs a forward pass; `leaves` are the parts that are trained, by parameter.

    A leaf holds its slice alone and is joined with what is frozen around it, so that autograd
    computes the gradients of what is trained and nothing else can move.
    """

    def __init__(self, forward: Forward, update: Mapping[str, Slice | None]) -> None:
        """Starts from the model's own tensors, which stay as they are."""
        self._forward = forward
        self._update = dict(update)
        self._frozen: Final[Mapping[str, Tensor]] = {**forward.parameters, **forward.buffers}
        self._tensors = dict(self._frozen)
        self._interpreter = ForwardInterpreter(forward, self._tensors)
        self.leaves: dict[str, Tensor] = {}
        for name, part in update.items():
            self.set_leaf(name, _part(self._frozen[name], part).clone())

    def set_leaf(self, name: str, value: Tensor) -> None:
        """Replaces what is trained of a parameter."""
        self.leaves[name] = value.detach().requires_grad_()

    def output(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the model's first output for one batch."""
        for name, leaf in self.leaves.items():
            self._tensors[name] = _join(self._frozen[name], self._update[name], leaf)
        return self._interpreter.outputs(inputs)[0]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Returns the gradient of each leaf that influences the loss."""
        if not loss.requires_grad:
            return {}
        grads = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        pairs: Sequence[tuple[str, Tensor | None]] = list(zip(self.leaves, grads, strict=True))
        return {name: grad for name, grad in pairs if grad is not None}


def _part(whole: Tensor, part: Slice | None) -> Tensor:
    return whole if part is None else whole.narrow(part.dim, part.start, part.stop - part.start)


def _join(whole: Tensor, part: Slice | None, leaf: Tensor) -> Tensor:
    if part is None:
        return leaf
    before = whole.narrow(part.dim, 0, part.start)
    after = whole.narrow(part.dim, part.stop, whole.shape[part.dim] - part.stop)
    return torch.cat([before, leaf, after], part.dim)
