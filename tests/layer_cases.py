"""What training a layer or a loss of the table as eager PyTorch does means.

Shared by `tests/test_layers.py` and `scripts/coverage.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.loss import resolve_loss
from tests.layers import LAYERS, REFUSED, Layer
from tests.losses import LOSSES, ROWS, Criterion

NUM_STEPS: Final = 5
TOLERANCE: Final = 1e-4
_LR: Final = 0.1
_NUM_CLASSES: Final = 3
_CLASSES: Final = Criterion(
    "cross_entropy",
    (_NUM_CLASSES,),
    lambda g: (torch.randint(_NUM_CLASSES, (ROWS,), generator=g),),
)


class Around(nn.Module):
    """A layer between two that are trained, so that its input's gradient is needed, too."""

    def __init__(self, before: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.layer, self._shape = before, layer, shape
        self.head = nn.LazyLinear(int(torch.Size(shape).numel()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs of the loss's shape."""
        seen: Tensor = self.head(self.layer(self.before(x)).flatten(1))
        return seen.reshape(x.shape[0], *self._shape)


@dataclass(frozen=True)
class Subject:
    """A model, the loss that it is trained by, and its batches."""

    model: nn.Module
    criterion: Criterion
    shape: tuple[int, ...]
    num_values: int

    def batch(self, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns inputs and targets."""
        shape = (ROWS, *self.shape)
        if self.num_values:
            inputs = torch.randint(self.num_values, shape, generator=generator)
        else:
            inputs = torch.randn(shape, generator=generator)
        return inputs, self.criterion.targets(generator)


@dataclass(frozen=True)
class Outcome:
    """How far training was from eager's, and what it costs.

    `outside` names the operators of the layer itself that no delegate took.
    """

    error: float
    share_delegated: float
    num_partitions: int
    planned_bytes: int
    outside: tuple[str, ...]


def layer_subject(name: str) -> Subject:
    """Returns the model around a layer, at random weights."""
    layer = {**LAYERS, **REFUSED}[name]
    torch.manual_seed(0)
    return _initialised(Subject(_around(layer), _CLASSES, layer.shape, layer.num_values))


class Beside(nn.Module):
    """Layers beside each other, each between two of its own; their outputs are added."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        layers = [LAYERS[name] for name in names]
        self.branches = nn.ModuleList(_around(layer) for layer in layers)
        self._shapes = [layer.shape for layer in layers]
        self.num_inputs = max(int(torch.Size(shape).numel()) for shape in self._shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives each layer as many of the inputs as it takes."""
        parts = (
            x[:, : torch.Size(shape).numel()].reshape(-1, *shape) for shape in self._shapes
        )
        seen = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        return torch.stack(seen).sum(0)


def layers_subject(names: Sequence[str]) -> Subject:
    """Returns the model of layers beside each other; all take tokens, or none does."""
    torch.manual_seed(0)
    (num_values,) = {LAYERS[name].num_values for name in names}
    model = Beside(names)
    return _initialised(Subject(model, _CLASSES, (model.num_inputs,), num_values))


def _around(layer: Layer) -> Around:
    before = nn.Identity() if layer.num_values else nn.Linear(layer.shape[-1], layer.shape[-1])
    return Around(before, layer.make(), _CLASSES.shape)


def loss_subject(name: str) -> Subject:
    """Returns a small model for a loss."""
    torch.manual_seed(0)
    criterion = LOSSES[name]
    model = Around(nn.Linear(6, 6), nn.Tanh(), criterion.shape)
    return _initialised(Subject(model, criterion, (6,), 0))


def _initialised(subject: Subject) -> Subject:
    """Draws what starts at zero or one, and BatchNorm's statistics."""
    generator = torch.Generator().manual_seed(1)
    model = subject.model.eval()
    with torch.no_grad():
        model(subject.batch(generator)[0])
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand(buffer.shape, generator=generator)
    return subject


def compile_subject(subject: Subject, target: str) -> pockmobile.Program:
    """Compiles a training program of all of the model."""
    inputs, targets = subject.batch(torch.Generator().manual_seed(2))
    return pockmobile.compile(
        subject.model, (inputs,), targets, loss=subject.criterion.loss, target=target
    )


def train(subject: Subject, target: str, folder: Path) -> Outcome:
    """Trains in both ways on fresh batches; returns how far apart they were at the most."""
    program = compile_subject(subject, target)
    path = folder / "layer.pte"
    program.save(path)
    error = max(_errors(subject, pockmobile.Session(path)))
    step = program.manifest.methods["train_step"]
    num_outside = sum(item.count for item in step.outside)
    share = step.num_delegated / (step.num_delegated + num_outside)
    own = {o.operator for o in step.outside if o.module.startswith("layer")}
    return Outcome(error, share, step.num_partitions, step.planned_bytes, tuple(sorted(own)))


def _errors(subject: Subject, session: pockmobile.Session) -> Iterator[float]:
    model, loss = subject.model, resolve_loss(subject.criterion.loss)
    trained = {entry.parameter for entry in session.manifest.state}
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    generator = torch.Generator().manual_seed(3)
    for _ in range(NUM_STEPS):
        inputs, targets = subject.batch(generator)
        expected = loss.evaluate(model(inputs), targets).loss
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        found = session.step(inputs, targets, lr=_LR)
        yield abs(found - expected.item()) / max(1.0, abs(expected.item()))
        yield _distance(session, start, dict(model.named_parameters()), trained)
    with torch.no_grad():
        output = model(inputs)
    yield float((session.predict(inputs) - output).abs().max() / output.abs().max())


def _distance(
    session: pockmobile.Session,
    start: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    trained: set[str],
) -> float:
    """Compares what was added to the parameters so far, not their values.

    A parameter that hardly moves (attention's biases of keys, by rounding alone) is measured
    by a hundredth of what moves most.
    """
    updates = {name: parameters[name].detach() - value for name, value in start.items()}
    largest = max(float(update.abs().max()) for update in updates.values())
    assert largest > 1e-4, "nothing was trained"
    worst = 0.0
    for name, update in updates.items():
        if name not in trained:
            assert not update.any(), f"{name} should have been trained"
            continue
        found = session.state[name] - start[name]
        scale = max(float(update.abs().max()), 0.01 * largest)
        worst = max(worst, float((found - update).abs().max()) / scale)
    return worst
