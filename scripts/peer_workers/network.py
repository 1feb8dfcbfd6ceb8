"""Reads a network that `scripts/benchmark/network.py` wrote, with numpy alone.

An activation is [B, C, H, W], or [R, W] with a row for each image or token.

| operator | inputs | result |
|---|---|---|
| `fold_weight` | weight [O, I, H, W], gamma [O], scale [O] | its rows times gamma * scale |
| `fold_bias` | beta [O], gamma [O], shift [O] | beta - gamma * shift |
| `convolution` | x, weight [O, I, H, W], bias [O] | `stride`, `padding`, `groups` |
| `relu6` | x | min(max(x, 0), 6) |
| `add` | x, y of the same shape | x + y |
| `mean_pool` | x [B, C, H, W] | [B, C] |
| `linear` | x [R, I], weight [O, I], bias [O] | x weight^T + bias |
| `embedding` | tokens [B, T], table [N, W] | [B * T, W] |
| `add_positions` | x [B * T, W], positions [T, W] | each row's own added; `length` T, `width` |
| `layer_norm` | x [R, W], weight [W], bias [W] | over W; `epsilon` |
| `causal_attention` | query, key, value [B * T, heads * width] | `length` T, `heads`, `width` |
| `gelu` | x | x * Phi(x), with the error function |
| `cross_entropy` | logits [R, N], labels of R elements | the mean over R |
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from numpy import ndarray
from safetensors import safe_open

_Value = TypeVar("_Value")


@final
@dataclass(frozen=True)
class Operator:
    """One operator: its kind, what it reads, the name of its result, and its attributes."""

    kind: str
    inputs: Sequence[str]
    output: str
    attributes: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Network:
    """Operators in order, the last of which is the loss, and the tensors that they read.

    `trained` names tensors, each of which may be read more than once; the others are frozen.
    """

    operators: Sequence[Operator]
    tensors: Mapping[str, ndarray]
    trained: Sequence[str]


@final
@dataclass(frozen=True)
class Batch:
    """Inputs, float32 or int64, and labels, int64."""

    inputs: ndarray
    targets: ndarray


class Build(Generic[_Value]):
    """Runs a network's operators as a table of functions builds them."""

    def __init__(self, table: Mapping[str, Callable[..., _Value]]) -> None:
        """Takes a function for each kind: its inputs by position, its attributes by name."""
        self._table = table

    def __call__(self, network: Network, values: Mapping[str, _Value]) -> _Value:
        """Returns the loss; `values` are the inputs and the tensors, by name."""
        known = dict(values)
        for operator in network.operators:
            inputs = [known[name] for name in operator.inputs]
            known[operator.output] = self._table[operator.kind](*inputs, **operator.attributes)
        return known[network.operators[-1].output]


def read_network(path: str) -> Network:
    """Returns the network in a file."""
    with safe_open(path, framework="np") as file:
        written = json.loads(file.metadata()["network"])
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    operators = [Operator(**fields) for fields in written["operators"]]
    return Network(operators, tensors, written["trained"])


def read_batch(path: str) -> Batch:
    """Returns the batch in the file that all variants of a work share."""
    with safe_open(path, framework="np") as file:
        return Batch(file.get_tensor("inputs"), file.get_tensor("targets"))
