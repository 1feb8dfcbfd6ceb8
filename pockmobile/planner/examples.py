"""The data of an analysis, as it comes in: batches, or whole tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from pockmobile.errors import UsageError
from pockmobile.sensitivity import Data

_HELD_OUT = 5
"""One example in so many is held out where no data to evaluate on are given."""


@final
@dataclass(frozen=True)
class Examples:
    """Inputs by position and by keyword, and targets; dimension 0 is the example."""

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    targets: tuple[Tensor, ...]

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(next(iter((*self.args, *self.kwargs.values(), *self.targets))))

    def select(self, rows: Tensor) -> "Examples":
        """Returns a copy of some examples (`rows`: int64 [n]), in this order."""
        return Examples(
            tuple(value[rows] for value in self.args),
            {name: value[rows] for name, value in self.kwargs.items()},
            tuple(value[rows] for value in self.targets),
        )

    def first(self, number: int) -> "Examples":
        """Returns the first examples."""
        return Examples(
            tuple(value[:number] for value in self.args),
            {name: value[:number] for name, value in self.kwargs.items()},
            tuple(value[:number] for value in self.targets),
        )

    def split(self, seed: int) -> tuple["Examples", "Examples"]:
        """Returns a random four fifths, to train on, and the rest, to evaluate on."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(self.num_examples, generator=generator)
        num_held_out = max(1, self.num_examples // _HELD_OUT)
        return self.select(rows[num_held_out:]), self.select(rows[:num_held_out])

    def data(self, inputs: Iterable[str]) -> Data:
        """Returns them by the names of the forward pass's inputs: positional ones first.

        Raises:
            UsageError: they are not as many.
        """
        names = list(inputs)
        found = [*names[: len(self.args)], *self.kwargs]
        if set(names) != set(found) or len(names) != len(self.args) + len(self.kwargs):
            raise UsageError(
                f"the model takes the inputs {', '.join(names)}; the data hold "
                f"{len(self.args)} by position and {', '.join(self.kwargs) or 'none'} by name"
            )
        positional = dict(zip(names, self.args, strict=False))
        keywords = {name: self.kwargs[name] for name in names[len(self.args) :]}
        return Data({**positional, **keywords}, self.targets)


def join_batches(kind: str, batches: Iterable[Any]) -> tuple[Examples, int]:
    """Returns all examples of some batches, and the size of the first batch.

    Args:
        kind: what the batches are, for messages.
        batches: pairs (inputs, targets), each a tensor or a tuple of tensors; inputs may be
            tensors by keyword.

    Raises:
        UsageError: there are none, they are no such pairs, or they differ.
    """
    found = [_batch(kind, batch) for batch in batches]
    if not found:
        raise UsageError(f"the {kind} batches are empty; give at least one (inputs, targets)")
    first = found[0]
    for one in found:
        if _layout(one) != _layout(first):
            raise UsageError(
                f"the {kind} batches differ: the first one holds {_layout(first)}, another "
                f"one {_layout(one)}; give the same tensors in each"
            )
    args = tuple(torch.cat(parts) for parts in zip(*(one.args for one in found), strict=True))
    kwargs = {name: torch.cat([one.kwargs[name] for one in found]) for name in first.kwargs}
    targets = zip(*(one.targets for one in found), strict=True)
    joined = Examples(args, kwargs, tuple(torch.cat(parts) for parts in targets))
    return joined, first.num_examples


def _layout(batch: Examples) -> str:
    """Returns what each example of a batch holds, for people."""
    named = [
        *(("input", value) for value in batch.args),
        *sorted(batch.kwargs.items(), key=lambda pair: pair[0]),
        *(("target", value) for value in batch.targets),
    ]
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape[1:])}"
        for name, value in named
    )


def _batch(kind: str, batch: Any) -> Examples:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise UsageError(
            f"a {kind} batch must be a pair (inputs, targets), found {type(batch).__name__}"
        )
    inputs, targets = batch
    if isinstance(inputs, Mapping):
        values = _tensors(kind, list(inputs.values()))
        kwargs = dict(zip(inputs, values, strict=True))
        return Examples((), kwargs, _tensors(kind, targets))
    return Examples(_tensors(kind, inputs), {}, _tensors(kind, targets))


def _tensors(kind: str, values: Any) -> tuple[Tensor, ...]:
    found = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    for value in found:
        if not isinstance(value, Tensor) or not value.dim():
            raise UsageError(
                f"a {kind} batch must hold tensors with a batch dimension, found "
                f"{type(value).__name__}"
            )
    return found
