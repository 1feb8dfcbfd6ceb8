"""What parity means here: a program's state follows eager PyTorch's, step by step.

Shared by `tests/test_parity.py` (a selection) and `scripts/parity.py` (the whole product).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor, nn

import pockmobile
from pockmobile import models
from pockmobile.artifact.manifest import Manifest
from pockmobile.models.llama import Llama
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.optim import SGD, AdamW, Lion, Momentum, Optimizer
from pockmobile.plan import Slice, UpdatePlan
from pockmobile.session import Session
from tests.eager import Eager

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
    eager = Eager(model_of(case.subject), program, OPTIMIZERS[case.optimizer])
    worst = follow(Session(path), eager, SUBJECTS[case.subject], case.optimizer, num_steps)
    path.unlink()
    return worst


class Trained(Protocol):
    """What parity needs of a session."""

    @property
    def manifest(self) -> Manifest:
        """Names the state."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The state tensors by name."""

    def step(self, inputs: Tensor, targets: Tensor, *, lr: float) -> float:
        """Takes a step and returns the loss before it."""


def follow(
    session: Trained,
    eager: Eager,
    subject: Subject,
    optimizer: str,
    num_steps: int,
    allowed: tuple[float, float] = (ABSOLUTE, RELATIVE),
) -> float:
    """Trains both, and returns the largest |difference| / (absolute + relative |eager|)."""
    # Steps of one sign, or of one size, move every weight: keep those small.
    lr = subject.lr * (0.02 if optimizer in ("adamw", "lion") else 1.0)
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for _ in range(num_steps):
        inputs, labels = subject.batch(generator)
        losses = session.step(inputs, labels, lr=lr), eager.step(inputs, labels, lr)
        worst = max(worst, _excess(*map(torch.tensor, losses), allowed))
        worst = max(worst, _state_excess(session, eager, allowed))
    return worst


def _state_excess(session: Trained, eager: Eager, allowed: tuple[float, float]) -> float:
    worst, num_adopted, state = 0.0, 0, session.state
    for entry in session.manifest.state:
        found, expected = state[entry.name], eager.state_of(entry)
        if entry.role == "parameter":
            # Where rounding alone decides a direction either one is right: go on from ours.
            adopted = eager.undecided(entry.name) & ((found - expected).abs() > 0.1 * ABSOLUTE)
            eager.adopt(entry.name, adopted, found)
            expected = eager.state_of(entry)
            num_adopted += int(adopted.sum())
        worst = max(worst, _excess(found, expected, allowed))
    num_values = sum(leaf.numel() for leaf in eager.leaves.values())
    assert num_adopted <= max(1, 0.05 * num_values), "too much was left to rounding"
    return worst


def _excess(found: Tensor, expected: Tensor, allowed: tuple[float, float]) -> float:
    absolute, relative = allowed
    limits = absolute + relative * expected.abs()
    # A number that is not finite is no parity, whatever it is compared with.
    return torch.nan_to_num((found - expected).abs() / limits, nan=torch.inf).max().item()
