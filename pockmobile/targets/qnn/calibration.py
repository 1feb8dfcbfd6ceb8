"""Measures between which numbers each value of a program lies, while the program trains."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, fx

from pockmobile.errors import UsageError, nearest
from pockmobile.graph import JointGraph, Role
from pockmobile.graph.joint import STATE
from pockmobile.graph.rewrite import shape_of, value_of
from pockmobile.targets.qnn.encodings import Range, range_of

Ranges: TypeAlias = Mapping[str, Range]
"""The range of each float32 value of a graph, by its node's name."""

LEAST_BATCHES: Final = 2


@final
@dataclass(frozen=True)
class Batch:
    """Inputs by position and by name, and targets, of a training step."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def ordered(self, names: Collection[str]) -> "Batch":
        """Returns the batch with all inputs by position, for a program that names them so.

        Raises:
            UsageError: it has one of another name.
        """
        for name in self.named:
            if name not in names:
                raise UsageError(
                    f"the calibration has an input {name!r}, which the program has not: "
                    f"{nearest(name, names)}"
                )
        by_position = iter(self.inputs)
        found = [self.named[n] if n in self.named else next(by_position, None) for n in names]
        values = [value for value in (*found, *by_position) if value is not None]
        return Batch(tuple(values), self.targets)


def check_batches(is_needed: bool, batches: Sequence[Any], is_compiled: bool) -> None:
    """Checks that there are batches where they count, and none where they do not.

    Raises:
        UsageError: it is otherwise.
    """
    if batches and not is_needed:
        raise UsageError("calibration is for precision int16, found fp16; leave it out")
    if is_needed and is_compiled and len(batches) < LEAST_BATCHES:
        raise UsageError(
            f"precision int16 needs {LEAST_BATCHES} batches of examples at least to calibrate, "
            f"found {len(batches)}; give --calibration FILE, or Qnn(calibration=batches)"
        )


def as_batches(batches: Sequence[Any]) -> tuple[Batch, ...]:
    """Returns pairs (inputs, targets), each a tensor or a sequence of tensors, as batches.

    Raises:
        UsageError: something is no such pair.
    """
    return tuple(_batch(index, pair) for index, pair in enumerate(batches))


def _batch(index: int, pair: Any) -> Batch:
    if isinstance(pair, Batch):
        return pair
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        inputs, targets = pair
        named = inputs if isinstance(inputs, Mapping) else {}
        batch = Batch(() if named else _tensors(inputs), _tensors(targets), named)
        values = (*batch.inputs, *batch.named.values(), *batch.targets)
        if values and all(isinstance(value, Tensor) for value in values):
            return batch
    raise UsageError(
        f"calibration batch {index} is a {type(pair).__name__}, expected a pair (inputs, "
        f"targets), each a tensor or a tuple of tensors; inputs may be tensors by name"
    )


def _tensors(side: Any) -> tuple[Any, ...]:
    return tuple(side) if isinstance(side, (tuple, list)) else (side,)


def measure(
    graphs: Mapping[str, JointGraph], batches: Sequence[Batch], lr: float
) -> Mapping[str, Ranges]:
    """Returns the ranges of each method's values.

    The program trains, a step on each batch; what trained and what untrained parameters make
    of the batches counts in the other methods. They take the batches in pieces of their size.

    Args:
        graphs: each method's graph; `encode`, where it is there, makes the step's inputs.
        batches: batches of the training step.
        lr: the learning rate of these steps.

    Raises:
        UsageError: a batch does not fit, or the training diverges.
    """
    observers = {method: Observer(graph) for method, graph in graphs.items()}
    names = (graphs.get("encode") or graphs["train_step"]).input_nodes(Role.INPUT)
    whole = batches = [batch.ordered(names) for batch in batches]
    if "encode" in observers:
        encode = observers["encode"]
        batches = [Batch(tuple(encode.run_on({}, b, lr)), b.targets) for b in batches]
    train = graphs["train_step"]
    before = state = train.initial_state()
    for batch in batches:
        _, *updated = observers["train_step"].run_on(state, batch, lr)
        state = dict(zip(state, updated, strict=True))
    _check_finite(state)
    for parameters in (before, state):
        for batch in batches:
            observers["evaluate"].run_on(parameters, batch, lr)
        for batch in _pieces(graphs["predict"], whole):
            observers["predict"].run_on(parameters, batch, lr)
    return {method: observer.ranges for method, observer in observers.items()}


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise UsageError(
                f"training on the calibration makes {name} infinite or NaN; lower "
                f"calibration_lr, or check the examples"
            )


def _pieces(graph: JointGraph, batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yields the inputs in pieces of a graph's own size; the last one is filled up."""
    (first, *_) = graph.input_nodes(Role.INPUT).values()
    size = shape_of(first)[0]
    for batch in batches:
        num_rows = len(batch.inputs[0])
        for start in range(0, num_rows, size):
            rows = torch.arange(start, start + size) % num_rows
            yield Batch(tuple(value[rows] for value in batch.inputs), ())


@final
class Observer(fx.Interpreter):
    """Runs a graph, and remembers between which numbers each float32 value was."""

    def __init__(self, graph: JointGraph) -> None:
        """Takes the graph; nothing has been seen of it yet."""
        super().__init__(graph.module)
        self._joint = graph
        self.ranges: dict[str, Range] = {}

    def run_on(self, state: Mapping[str, Tensor], batch: Batch, lr: float) -> list[Tensor]:
        """Returns the graph's outputs.

        Raises:
            UsageError: the batch is not what the graph takes.
        """
        self._check(batch)
        sources = {
            Role.INPUT: iter(batch.inputs),
            Role.TARGET: iter(batch.targets),
            Role.LEARNING_RATE: iter([torch.tensor(lr)]),
        }
        values = [
            state[port.name] if port.role in STATE else next(sources[port.role])
            for port in self._joint.inputs
        ]
        with torch.no_grad():
            return list(self.run(*values))

    def run_node(self, node: fx.Node) -> Any:
        """Computes a node, and remembers its range."""
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            found = range_of(value)
            known = self.ranges.get(node.name, found)
            self.ranges[node.name] = found.joined(known)
        return value

    def _check(self, batch: Batch) -> None:
        for role, values in ((Role.INPUT, batch.inputs), (Role.TARGET, batch.targets)):
            nodes = self._joint.input_nodes(role)
            expected = [_layout(name, value_of(node)) for name, node in nodes.items()]
            found = [_layout(name, value) for name, value in zip(nodes, values, strict=False)]
            if expected and (found != expected or len(values) != len(nodes)):
                raise UsageError(
                    f"a calibration batch has {len(values)} {role} tensors "
                    f"({', '.join(found) or 'none'}), expected {', '.join(expected)}"
                )


def _layout(name: str, value: Tensor) -> str:
    return f"{name}: {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
