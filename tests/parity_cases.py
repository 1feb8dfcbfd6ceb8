"""What parity means here: a program's state follows eager PyTorch's, step by step.

Shared by `tests/test_parity.py` (a selection) and `scripts/parity.py` (the whole product).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as func
from torch import Tensor, nn

import pockmobile
from pockmobile import models
from pockmobile.models.llama import Llama
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.optim import SGD, AdamW, Lion, Momentum, Optimizer
from pockmobile.plan import Slice, UpdatePlan
from pockmobile.session import Session

ABSOLUTE, RELATIVE = 1e-5, 1e-4
NUM_STEPS = 20


@dataclass(frozen=True)
class Subject:
    """A model with the batches that it takes; `num_values` is its classes or tokens."""

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    labels: tuple[int, ...]
    num_values: int
    lr: float = 0.05
    sparse: str = "sparse:2:2"
    sliced: tuple[tuple[str, int, int, int], ...] = ()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns inputs and labels, one label ignored."""
        labels = torch.randint(self.num_values, self.labels, generator=generator)
        labels.view(-1)[0] = -100
        return self.inputs(generator), labels


def _images(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def _tokens(num_tokens: int, *shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(num_tokens, shape, generator=generator)


SUBJECTS: Final[Mapping[str, Subject]] = {
    "mlp": Subject(
        models.mlp, _images(4, 16), (4,), 4,
        sliced=(("layers.1.weight", 0, 4, 20), ("head.weight", 1, 8, 24)),
    ),
    "residual_cnn": Subject(
        models.residual_cnn, _images(4, 3, 16, 16), (4,), 4, sparse="sparse:2:1",
        sliced=(("blocks.0.conv1.weight", 1, 2, 6), ("blocks.1.conv1.weight", 0, 3, 9)),
    ),
    "mobilenet_v2": Subject(
        lambda: models.mobilenet_v2(0.35, num_classes=10), _images(2, 3, 64, 64), (2,), 10,
        lr=0.01, sparse="sparse:7:7",
        sliced=(
            ("features.15.conv.0.0.weight", 1, 8, 32), ("features.16.conv.2.weight", 0, 0, 16),
        ),
    ),
    "resnet18": Subject(
        lambda: models.resnet18(num_classes=10), _images(2, 3, 32, 32), (2,), 10,
        lr=0.002, sparse="sparse:4:2",
        sliced=(("layer4.1.conv1.weight", 1, 0, 64), ("layer4.0.conv2.weight", 0, 100, 164)),
    ),
    "tied_lm": Subject(
        lambda: TransformerLM(num_tokens=64, context=8, width=32, num_blocks=2, num_heads=2),
        _tokens(64, 4, 8), (4, 8), 64, sparse="sparse:2:1",
        sliced=(("blocks.1.mlp.0.weight", 1, 8, 24), ("blocks.0.mlp.2.weight", 0, 0, 16)),
    ),
    "llama": Subject(
        lambda: Llama(
            num_tokens=64, context=8, width=32, hidden=48, num_blocks=2, num_heads=4,
            num_key_heads=2,
        ),
        _tokens(64, 4, 8), (4, 8), 64,
        sliced=(("blocks.1.mlp.gate.weight", 1, 8, 24), ("blocks.0.mlp.down.weight", 0, 0, 16)),
    ),
}  # fmt: skip
PLANS: Final = ("full", "head", "bias", "sparse", "slices")
OPTIMIZERS: Final[Mapping[str, Optimizer]] = {
    "sgd": SGD(weight_decay=0.01),
    "momentum": Momentum(nesterov=True),
    "adamw": AdamW(),
    "lion": Lion(weight_decay=0.01),
}
TARGETS: Final = ("portable", "xnnpack")


@dataclass(frozen=True)
class Case:
    """One cell of the product."""

    subject: str
    plan: str
    optimizer: str
    target: str

    def __str__(self) -> str:
        return f"{self.subject}-{self.plan}-{self.optimizer}-{self.target}"


ALL: Final = tuple(
    Case(subject, plan, optimizer, target)
    for subject in SUBJECTS
    for plan in PLANS
    for optimizer in OPTIMIZERS
    for target in TARGETS
)


@cache
def model_of(subject: str) -> nn.Module:
    """Returns the model, in evaluation mode, with BatchNorm statistics that matter."""
    torch.manual_seed(0)
    model = SUBJECTS[subject].make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.6, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model


def plan_of(subject: Subject, plan: str) -> str | UpdatePlan:
    """Returns the preset, or the plan of channel slices."""
    if plan == "sparse":
        return subject.sparse
    if plan != "slices":
        return plan
    return UpdatePlan({name: Slice(*part) for name, *part in subject.sliced})


class Eager:
    """Eager PyTorch: what a plan trains are leaves, joined with what it freezes."""

    def __init__(self, model: nn.Module, program: pockmobile.Program, optimizer: str) -> None:
        self._model = model
        self._whole = {name: value.detach() for name, value in model.named_parameters()}
        self._parts = {e.parameter: e.slice for e in program.manifest.parameters}
        self.leaves = {name: self._cut(name).clone().requires_grad_() for name in self._parts}
        self._optimizer = _optimizer(optimizer, list(self.leaves.values()))

    def _cut(self, name: str) -> Tensor:
        part = self._parts[name]
        if part is None:
            return self._whole[name]
        return self._whole[name].narrow(part.dim, part.start, part.stop - part.start)

    def parameters(self) -> dict[str, Tensor]:
        """Returns all parameters, with the trained ones joined in."""
        joined = dict(self._whole)
        for name, part in self._parts.items():
            leaf, whole = self.leaves[name], self._whole[name]
            if part is None:
                joined[name] = leaf
                continue
            before = whole.narrow(part.dim, 0, part.start)
            after = whole.narrow(part.dim, part.stop, whole.shape[part.dim] - part.stop)
            joined[name] = torch.cat([before, leaf, after], part.dim)
        return joined

    def output(self, inputs: Tensor) -> Tensor:
        """Returns the model's output."""
        result: Tensor = torch.func.functional_call(self._model, self.parameters(), (inputs,))
        return result

    def step(self, inputs: Tensor, labels: Tensor, lr: float) -> float:
        """Takes one step and returns the loss before it."""
        loss = self.loss(inputs, labels)
        for leaf in self.leaves.values():
            leaf.grad = None
        loss.backward()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return loss.item()

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross entropy of the labels that count."""
        output = self.output(inputs)
        return func.cross_entropy(output.reshape(-1, output.shape[-1]), labels.reshape(-1))


class _EagerLion(torch.optim.Optimizer):
    """Lion, as its paper writes it (Chen et al., NeurIPS 2023, algorithm 2)."""

    def __init__(self, params: list[Tensor], lr: float, decay: float) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                sign = (0.9 * mean + 0.1 * parameter.grad).sign()
                parameter.sub_(group["lr"] * (sign + group["decay"] * parameter))
                mean.mul_(0.99).add_(parameter.grad, alpha=0.01)


def _optimizer(name: str, leaves: list[Tensor]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(leaves, lr=0.1, weight_decay=0.01)
    if name == "momentum":
        return torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True)
    if name == "adamw":
        return torch.optim.AdamW(leaves, lr=0.1)
    return _EagerLion(leaves, 0.1, 0.01)


def compile_case(case: Case) -> pockmobile.Program:
    """Compiles the program of a case."""
    subject = SUBJECTS[case.subject]
    example = subject.inputs(torch.Generator().manual_seed(1))
    return pockmobile.compile(
        model_of(case.subject),
        (example,),
        plan=plan_of(subject, case.plan),
        optimizer=OPTIMIZERS[case.optimizer],
        target=case.target,
    )


def worst_excess(case: Case, folder: Path, num_steps: int = NUM_STEPS) -> float:
    """Returns the largest |difference| / (1e-5 + 1e-4 |eager|) over all steps and tensors.

    Parity holds where it is at most 1. Batches are fresh at each step.
    """
    program = compile_case(case)
    path = folder / f"{case}.pte"
    program.save(path)
    session = Session(path)
    eager = Eager(model_of(case.subject), program, case.optimizer)
    subject = SUBJECTS[case.subject]
    # Steps of one sign, or of one size, move every weight: keep those small.
    lr = subject.lr * (0.02 if case.optimizer in ("adamw", "lion") else 1.0)
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for _ in range(num_steps):
        inputs, labels = subject.batch(generator)
        losses = session.step(inputs, labels, lr=lr), eager.step(inputs, labels, lr)
        worst = max(worst, _excess(torch.tensor(losses[0]), torch.tensor(losses[1])))
        for name, value in session.parameters.items():
            if not _is_noise(name, case.optimizer):
                worst = max(worst, _excess(value, eager.leaves[name].detach()))
    path.unlink()
    return worst


def _is_noise(name: str, optimizer: str) -> bool:
    """Whether what a tensor learns is rounding noise, which no two programs share.

    A bias of the keys adds the same to all scores of a query, so a softmax does not see it:
    its gradient is zero but for rounding, and optimizers that divide by its size, or take
    its sign, make whole steps of that. SGD leaves it where it is, and is held to that.
    """
    return name.endswith("key.bias") and optimizer in ("adamw", "lion")


def _excess(found: Tensor, expected: Tensor) -> float:
    allowed = ABSOLUTE + RELATIVE * expected.abs()
    # A number that is not finite is no parity, whatever it is compared with.
    return torch.nan_to_num((found - expected).abs() / allowed, nan=torch.inf).max().item()
