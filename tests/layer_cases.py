"""What training a layer, a loss or a family of the tables as eager PyTorch does means.

Shared by `tests/test_layers.py`, `tests/test_families.py` and `scripts/coverage.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

import pockmobile
from pockmobile.loss import resolve_loss
from pockmobile.plan import ADAPTER_A, ADAPTER_B
from pockmobile.targets.xnnpack.support import WHOLE_NUMBERS
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
    """A model, what draws each of its inputs, the loss that it is trained by, and the plan.

    It predicts `predicted_rows` at once: all of a batch where these are compared.
    """

    model: nn.Module
    inputs: Sequence[Callable[[torch.Generator], Tensor]]
    criterion: Criterion
    plan: str = "full"
    predicted_rows: int = 1

    def batch(
        self, generator: torch.Generator
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns inputs and targets."""
        inputs = tuple(draw(generator) for draw in self.inputs)
        return inputs, self.criterion.targets(generator)


@dataclass(frozen=True)
class Outcome:
    """How far training was from eager's, and what it costs.

    `share_delegated` is that of the operators that touch numbers with a point. `outside` names
    those of them that are the layer's or the model's own, and that no delegate took.
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
    draw = _draw(layer.shape, layer.num_values)
    return initialised(Subject(_around(layer), [draw], _CLASSES))


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
    return initialised(Subject(model, [_draw((model.num_inputs,), num_values)], _CLASSES))


def _draw(shape: tuple[int, ...], num_values: int) -> Callable[[torch.Generator], Tensor]:
    shape = (ROWS, *shape)
    if num_values:
        return lambda generator: torch.randint(num_values, shape, generator=generator)
    return lambda generator: torch.randn(shape, generator=generator)


def _around(layer: Layer) -> Around:
    before = nn.Identity() if layer.num_values else nn.Linear(layer.shape[-1], layer.shape[-1])
    return Around(before, layer.make(), _CLASSES.shape)


def loss_subject(name: str) -> Subject:
    """Returns a small model for a loss."""
    torch.manual_seed(0)
    criterion = LOSSES[name]
    model = Around(nn.Linear(6, 6), nn.Tanh(), criterion.shape)
    return initialised(Subject(model, [_draw((6,), 0)], criterion))


def initialised(subject: Subject) -> Subject:
    """Draws what starts at zero or one, and BatchNorm's statistics."""
    generator = torch.Generator().manual_seed(1)
    model = subject.model.eval()
    with torch.no_grad():
        model(*subject.batch(generator)[0])
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand(buffer.shape, generator=generator)
    return subject


def compile_subject(subject: Subject, target: str) -> pockmobile.Program:
    """Compiles a training program."""
    inputs, targets = subject.batch(torch.Generator().manual_seed(2))
    return pockmobile.compile(
        subject.model,
        inputs,
        targets,
        loss=subject.criterion.loss,
        plan=subject.plan,
        target=target,
        predict_batch_size=subject.predicted_rows,
    )


def train(subject: Subject, target: str, folder: Path) -> Outcome:
    """Trains in both ways on fresh batches; returns how far apart they were at the most."""
    program = compile_subject(subject, target)
    path = folder / "layer.pte"
    program.save(path)
    error = max(_errors(subject, pockmobile.Session(path)))
    step = program.manifest.methods["train_step"]
    outside = [item for item in step.outside if item.reason != WHOLE_NUMBERS]
    num_outside = sum(item.count for item in outside)
    own = {o.operator for o in outside if o.module.startswith(("layer", "model"))}
    return Outcome(
        error,
        step.num_delegated / (step.num_delegated + num_outside),
        step.num_partitions,
        step.planned_bytes,
        tuple(sorted(own)),
    )


def _errors(subject: Subject, session: pockmobile.Session) -> Iterator[float]:
    loss = resolve_loss(subject.criterion.loss)
    eager = _Eager(subject, session)
    generator = torch.Generator().manual_seed(3)
    for _ in range(NUM_STEPS):
        inputs, targets = subject.batch(generator)
        expected = loss.evaluate(eager.output(inputs), targets).loss
        eager.step(expected)
        found = session.step(inputs, targets, lr=_LR)
        yield abs(found - expected.item()) / max(1.0, abs(expected.item()))
        yield eager.distance(session.state)
    with torch.no_grad():
        output = eager.output(inputs)
    yield float((_predicted(session, inputs) - output).abs().max() / output.abs().max())


def _predicted(session: pockmobile.Session, inputs: tuple[Tensor, ...]) -> Tensor:
    output = session.predict(inputs)
    assert isinstance(output, Tensor)
    return output


class _Eager:
    """The model in eager PyTorch; what the plan trains, or all of it, has gradients."""

    def __init__(self, subject: Subject, session: pockmobile.Session) -> None:
        parameters = dict(subject.model.named_parameters())
        whole = {name: value.detach() for name, value in parameters.items()}
        self._model, self._whole = subject.model, whole
        self._start = session.state
        # A parameter that `full` should have trained, but did not, must not move here either.
        learns = {
            name: whole[name] for name, value in parameters.items() if value.requires_grad
        }
        watched = learns if subject.plan == "full" else {}
        self._leaves = {
            name: value.clone().requires_grad_()
            for name, value in {**watched, **self._start}.items()
        }
        self._optimizer = torch.optim.SGD(self._leaves.values(), lr=_LR)

    def output(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Runs the model with what was trained so far; adapters are added to their weights."""
        leaves = self._leaves
        weights = {name: leaf for name, leaf in leaves.items() if name in self._whole}
        adapters = leaves.keys() - self._whole.keys()
        for name in {adapter.rpartition(".lora_")[0] for adapter in adapters}:
            up, down = leaves[f"{name}.{ADAPTER_B}"], leaves[f"{name}.{ADAPTER_A}"]
            change = up.flatten(1) @ down.flatten(1)
            whole = self._whole[name]
            layer = self._model.get_submodule(name.rpartition(".")[0])
            # GPT-2's layers, which are no convolutions, hold their weights as [in, out].
            turned = change.t() if type(layer).__name__ == "Conv1D" else change
            weights[name] = whole + turned.reshape(whole.shape)
        result: Tensor = functional_call(self._model, weights, inputs)
        return result

    def step(self, loss: Tensor) -> None:
        """Trains on the gradients of a loss."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def distance(self, state: dict[str, Tensor]) -> float:
        """Compares what was added to the parameters so far, not their values.

        A parameter that hardly moves (attention's biases of keys, by rounding alone) is
        measured by a hundredth of what moves most, and no update is known better than to the
        last digit of its parameter.
        """
        start = {**self._whole, **self._start}
        updates = {name: leaf.detach() - start[name] for name, leaf in self._leaves.items()}
        largest = max(float(update.abs().max()) for update in updates.values())
        assert largest > 1e-4, "nothing was trained"
        worst = 0.0
        for name, update in updates.items():
            if name not in state:
                assert not update.any(), f"{name} should have been trained"
                continue
            found = state[name] - start[name]
            scale = max(float(update.abs().max()), 0.01 * largest)
            digit = torch.finfo(found.dtype).eps * start[name].abs()
            beyond = ((found - update).abs() - digit).clamp(min=0.0)
            worst = max(worst, float(beyond.nan_to_num(torch.inf).max()) / scale)
        return worst
