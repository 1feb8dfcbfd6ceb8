"""Optimizers as pure functions, so that a program can hold their arithmetic."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from pockmobile.errors import UsageError


@dataclass(frozen=True)
class Update:
    """A parameter's new value and the new values of its slots, all of the parameter's shape."""

    parameter: Tensor
    slots: tuple[Tensor, ...]


class Optimizer(ABC):
    """One rule that updates each parameter from its gradient; `lr` is an input of the program.

    `slots` names the tensors kept for each parameter (float32, zeros at the start, of the
    parameter's shape); `counts_steps` asks for one shared float32 counter of shape [1].
    """

    name: str
    slots: tuple[str, ...] = ()
    counts_steps: bool = False

    @abstractmethod
    def update(
        self, parameter: Tensor, grad: Tensor, slots: Sequence[Tensor], lr: Tensor, step: Tensor
    ) -> Update:
        """Returns the new parameter and slots; `lr` and `step` (from 1) are float32 [1]."""

    def constants(self) -> Mapping[str, Any]:
        """Returns the name and constants, as the manifest holds them."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise UsageError(f"{name} must be at least {low} and below {high}, found {value}")


@final
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Plain gradient descent, with L2 weight decay as in `torch.optim.SGD`."""

    weight_decay: float = 0.0
    name = "sgd"

    def __post_init__(self) -> None:
        """Checks the constants."""
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def update(
        self, parameter: Tensor, grad: Tensor, slots: Sequence[Tensor], lr: Tensor, step: Tensor
    ) -> Update:
        """Returns parameter - lr * gradient."""
        return Update(parameter - lr * _decayed(grad, parameter, self.weight_decay), ())


@final
@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """SGD with momentum, plain or Nesterov's, as in `torch.optim.SGD(momentum=...)`."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    name = "momentum"
    slots = ("momentum",)

    def __post_init__(self) -> None:
        """Checks the constants."""
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def update(
        self, parameter: Tensor, grad: Tensor, slots: Sequence[Tensor], lr: Tensor, step: Tensor
    ) -> Update:
        """Returns parameter - lr * (decayed sum of gradients)."""
        grad = _decayed(grad, parameter, self.weight_decay)
        buffer = slots[0] * self.momentum + grad
        direction = grad + buffer * self.momentum if self.nesterov else buffer
        return Update(parameter - lr * direction, (buffer,))


@final
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter, ICLR 2019), as in `torch.optim.AdamW`."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    name = "adamw"
    slots = ("exp_avg", "exp_avg_sq")
    counts_steps = True

    def __post_init__(self) -> None:
        """Checks the constants."""
        _check("betas[0]", self.betas[0], 0.0, 1.0)
        _check("betas[1]", self.betas[1], 0.0, 1.0)
        _check("eps", self.eps, 0.0, float("inf"))
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def update(
        self, parameter: Tensor, grad: Tensor, slots: Sequence[Tensor], lr: Tensor, step: Tensor
    ) -> Update:
        """Returns the decoupled-decay Adam step, bias-corrected."""
        beta1, beta2 = self.betas
        mean = slots[0] * beta1 + grad * (1.0 - beta1)
        square = slots[1] * beta2 + grad * grad * (1.0 - beta2)
        rate = lr / _bias_correction(beta1, step)
        deviation = square.sqrt() / _bias_correction(beta2, step).sqrt() + self.eps
        shrunk = parameter * (1.0 - lr * self.weight_decay) if self.weight_decay else parameter
        return Update(shrunk - rate * (mean / deviation), (mean, square))


@final
@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion (Chen et al., NeurIPS 2023, algorithm 2): the sign of an interpolated momentum."""

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    name = "lion"
    slots = ("exp_avg",)

    def __post_init__(self) -> None:
        """Checks the constants."""
        _check("betas[0]", self.betas[0], 0.0, 1.0)
        _check("betas[1]", self.betas[1], 0.0, 1.0)
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def update(
        self, parameter: Tensor, grad: Tensor, slots: Sequence[Tensor], lr: Tensor, step: Tensor
    ) -> Update:
        """Returns parameter (decayed) - lr * sign(interpolation), and the new momentum."""
        beta1, beta2 = self.betas
        direction = (slots[0] * beta1 + grad * (1.0 - beta1)).sign()
        shrunk = parameter * (1.0 - lr * self.weight_decay) if self.weight_decay else parameter
        mean = slots[0] * beta2 + grad * (1.0 - beta2)
        return Update(shrunk - lr * direction, (mean,))


OPTIMIZERS: Final[Mapping[str, type[Optimizer]]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adamw": AdamW,
    "lion": Lion,
}


def clip_by_global_norm(grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Scales gradients so that their joint norm is at most `max_norm`.

    The same formula as `torch.nn.utils.clip_grad_norm_`, with its 1e-6.

    Raises:
        UsageError: `max_norm` is not above 0.
    """
    if not max_norm > 0.0:
        raise UsageError(f"clip_norm must be above 0, found {max_norm}")
    squares = [(grad * grad).sum().reshape(1) for grad in grads]
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    scale = (max_norm / (total.sqrt() + 1e-6)).clamp(max=1.0)
    return [grad * scale for grad in grads]


def _decayed(grad: Tensor, parameter: Tensor, weight_decay: float) -> Tensor:
    return grad + parameter * weight_decay if weight_decay else grad


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    # 1 - beta**step loses all digits for small steps in float32; expm1 keeps them.
    return -torch.expm1(step * float(torch.tensor(beta, dtype=torch.float64).log()))
