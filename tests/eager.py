"""Training in eager PyTorch, the oracle: only the parts that the plan trains are leaves."""

import copy
from collections.abc import Callable, Mapping
from typing import Final, final

import torch
import torch.nn.functional as func
from torch import Tensor, nn

import pockmobile
from pockmobile.artifact.manifest import StateEntry
from pockmobile.optim import SGD, AdamW, Lion, Momentum, Optimizer

_NOISE_FACTOR: Final = 100.0
"""How far above float32's rounding error a gradient must be to decide a direction."""
_SLOTS: Final = {
    "momentum": "momentum_buffer",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
}


@final
class Eager:
    """A model in evaluation mode whose planned parts are trained; all else stays as it is."""

    def __init__(
        self, model: nn.Module, program: pockmobile.Program, optimizer: Optimizer
    ) -> None:
        """Starts where the program starts."""
        self._model, self._exact = model, copy.deepcopy(model).double()
        self._whole = {name: value.detach() for name, value in model.named_parameters()}
        self._parts = {e.parameter: e.slice for e in program.manifest.parameters}
        self.leaves = {name: self._cut(name).clone().requires_grad_() for name in self._parts}
        self._rule = optimizer
        self._clip_norm = program.manifest.clip_norm
        self._optimizer = _torch_optimizer(optimizer, list(self.leaves.values()))
        self._noise = dict.fromkeys(self.leaves, 0.0)
        self._directions: dict[str, Tensor] = {}
        self._num_steps = 0

    def output(self, inputs: Tensor) -> Tensor:
        """Returns the model's output."""
        return self._output(self._model, self.leaves, inputs)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross entropy of the labels that count."""
        return _cross_entropy(self.output(inputs), labels)

    def step(self, inputs: Tensor, labels: Tensor, lr: float) -> float:
        """Takes one step and returns the loss before it."""
        loss = self.loss(inputs, labels)
        self._optimizer.zero_grad()
        loss.backward()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.leaves.values(), self._clip_norm)
        self._num_steps += 1
        if isinstance(self._rule, AdamW | Lion):
            self._measure_noise(inputs, labels)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return loss.item()

    def state_of(self, entry: StateEntry) -> Tensor:
        """Returns what a state tensor of the program should be."""
        if entry.role == "step":
            return torch.tensor([float(self._num_steps)])
        leaf = self.leaves[entry.parameter]
        if entry.role == "parameter":
            return leaf.detach()
        slot: Tensor = self._optimizer.state[leaf][_SLOTS[entry.role]]
        return slot

    def undecided(self, name: str) -> Tensor:
        """Returns where the last direction was a matter of rounding alone, as a mask.

        AdamW and Lion divide by the gradient's size. A gradient that is zero but for rounding
        (the bias of attention's keys) so moves as far as any other, in an arbitrary direction.
        """
        if name not in self._directions:
            return torch.zeros_like(self.leaves[name], dtype=torch.bool)
        return self._directions[name].abs() <= _NOISE_FACTOR * self._noise[name]

    @torch.no_grad()
    def adopt(self, name: str, where: Tensor, values: Tensor) -> None:
        """Takes over the program's values at some places."""
        self.leaves[name][where] = values[where]

    def _cut(self, name: str) -> Tensor:
        part = self._parts[name]
        if part is None:
            return self._whole[name]
        return self._whole[name].narrow(part.dim, part.start, part.stop - part.start)

    def _output(self, model: nn.Module, leaves: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        joined = {name: self._join(name, leaf) for name, leaf in leaves.items()}
        result: Tensor = torch.func.functional_call(model, joined, (inputs,))
        return result

    def _join(self, name: str, leaf: Tensor) -> Tensor:
        part, whole = self._parts[name], self._whole[name].to(leaf.dtype)
        if part is None:
            return leaf
        before = whole.narrow(part.dim, 0, part.start)
        after = whole.narrow(part.dim, part.stop, whole.shape[part.dim] - part.stop)
        return torch.cat([before, leaf, after], part.dim)

    def _measure_noise(self, inputs: Tensor, labels: Tensor) -> None:
        """Compares the gradients with float64's, and keeps what decides the directions."""
        exact = {
            name: leaf.detach().double().requires_grad_() for name, leaf in self.leaves.items()
        }
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        loss = _cross_entropy(self._output(self._exact, exact, inputs), labels)
        grads = torch.autograd.grad(loss, list(exact.values()))
        for (name, leaf), grad in zip(self.leaves.items(), grads, strict=True):
            assert leaf.grad is not None
            error = float((leaf.grad - grad).abs().max())
            self._noise[name] = max(self._noise[name], error)
            self._directions[name] = self._direction(leaf, leaf.grad)

    def _direction(self, leaf: Tensor, grad: Tensor) -> Tensor:
        """Returns the size whose sign (Lion) or reciprocal (AdamW) scales the update."""
        assert isinstance(self._rule, AdamW | Lion)
        (beta1, beta2), slots = self._rule.betas, self._optimizer.state[leaf]
        if isinstance(self._rule, Lion):
            return torch.lerp(grad, slots.get("exp_avg", torch.zeros_like(leaf)), beta1)
        square = torch.lerp(grad**2, slots.get("exp_avg_sq", torch.zeros_like(leaf)), beta2)
        deviation: Tensor = (square / (1 - beta2**self._num_steps)).sqrt()
        return deviation


@final
class _EagerLion(torch.optim.Optimizer):
    """Lion, as its paper writes it (Chen et al., NeurIPS 2023, algorithm 2)."""

    def __init__(self, params: list[Tensor], rule: Lion) -> None:
        super().__init__(params, {"lr": 0.0, "betas": rule.betas, "decay": rule.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for leaf in group["params"]:
                mean = self.state[leaf].setdefault("exp_avg", torch.zeros_like(leaf))
                sign = (beta1 * mean + (1 - beta1) * leaf.grad).sign()
                leaf.sub_(group["lr"] * (sign + group["decay"] * leaf))
                mean.mul_(beta2).add_(leaf.grad, alpha=1 - beta2)


def _cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    return func.cross_entropy(output.reshape(-1, output.shape[-1]), labels.reshape(-1))


def _torch_optimizer(rule: Optimizer, leaves: list[Tensor]) -> torch.optim.Optimizer:
    match rule:
        case SGD(weight_decay=decay):
            return torch.optim.SGD(leaves, lr=0.0, weight_decay=decay)
        case Momentum(momentum=momentum, weight_decay=decay, nesterov=nesterov):
            return torch.optim.SGD(
                leaves, lr=0.0, momentum=momentum, weight_decay=decay, nesterov=nesterov
            )
        case AdamW(betas=betas, eps=eps, weight_decay=decay):
            return torch.optim.AdamW(leaves, lr=0.0, betas=betas, eps=eps, weight_decay=decay)
        case Lion():
            return _EagerLion(leaves, rule)
    raise ValueError(f"{rule.name} has no eager twin")
