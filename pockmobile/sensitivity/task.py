"""What a model is fine-tuned on, and the batches that are drawn from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pockmobile.capture import Forward
from pockmobile.errors import UsageError
from pockmobile.loss import Loss


@final
@dataclass(frozen=True)
class Data:
    """Examples: `inputs` by the forward pass's names, and `targets`; dim 0 is the example."""

    inputs: Mapping[str, Tensor]
    targets: tuple[Tensor, ...]

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(next(iter(self.inputs.values())))

    def select(self, rows: Tensor) -> "Data":
        """Returns a copy of some examples (`rows`: int64 [n]), in this order."""
        inputs = {name: value.index_select(0, rows) for name, value in self.inputs.items()}
        return Data(inputs, tuple(value.index_select(0, rows) for value in self.targets))


@final
@dataclass(frozen=True)
class Task:
    """A model at its start, what it shall learn, and the data to train and to evaluate on.

    All batches have exactly `forward.batch_size` examples.

    Raises:
        UsageError: the data do not fit the model's inputs, or do not fill a batch.
    """

    forward: Forward
    loss: Loss
    train: Data
    eval: Data

    def __post_init__(self) -> None:
        """Checks the data's names, dtypes and shapes."""
        for kind, data in (("training", self.train), ("evaluation", self.eval)):
            _check(kind, data, self.forward)
        if self.train.num_examples < self.forward.batch_size:
            raise UsageError(
                f"{self.train.num_examples} training examples do not fill one batch of "
                f"{self.forward.batch_size}; give more, or a smaller example batch"
            )


def train_batches(task: Task, num_batches: int, seed: int) -> Iterator[Data]:
    """Yields shuffled training batches; the same ones for the same seed.

    Each epoch has a new order and leaves out what does not fill a batch.
    """
    size = task.forward.batch_size
    generator = torch.Generator().manual_seed(seed)
    num_left = num_batches
    while num_left:
        order = torch.randperm(task.train.num_examples, generator=generator)
        whole = [rows for rows in torch.split(order, size) if len(rows) == size]
        for rows in whole[:num_left]:
            yield task.train.select(rows)
        num_left -= min(num_left, len(whole))


def in_order(data: Data, size: int) -> Iterator[tuple[Data, int]]:
    """Yields all examples in batches of `size`, with the number that is real.

    The last example is repeated to fill the last batch.
    """
    for start in range(0, data.num_examples, size):
        rows = torch.arange(start, start + size).clamp(max=data.num_examples - 1)
        yield data.select(rows), min(size, data.num_examples - start)


def _check(kind: str, data: Data, forward: Forward) -> None:
    if list(data.inputs) != list(forward.inputs):
        raise UsageError(
            f"the {kind} data hold the inputs {', '.join(data.inputs) or 'none'}; the model "
            f"takes {', '.join(forward.inputs)}, in this order"
        )
    for name, example in forward.inputs.items():
        value = data.inputs[name]
        if value.dtype != example.dtype or value.shape[1:] != example.shape[1:]:
            raise UsageError(
                f"the {kind} data's {name} is {value.dtype} {list(value.shape)}, expected "
                f"{example.dtype} {['examples', *example.shape[1:]]}"
            )
    counts = {len(value) for value in (*data.inputs.values(), *data.targets)}
    if len(counts) > 1 or 0 in counts:
        raise UsageError(
            f"the {kind} data hold {', '.join(map(str, sorted(counts)))} examples; give as "
            f"many of each input and target, at least one"
        )
