"""Recurrent layers of a fixed length, step by step, without writing in place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as func
from torch import Tensor

_aten = torch.ops.aten

_State: TypeAlias = tuple[Tensor, ...]
_Cell: TypeAlias = Callable[[Tensor, Tensor, _State], _State]
"""Returns the next state of what the input and the hidden state were multiplied to."""


def lstm(
    x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], has_biases: bool,
    num_layers: int, dropout: float, training: bool, two_ways: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs long short-term memory; returns outputs, last hidden and last cell states."""
    shape = (has_biases, two_ways, batch_first)
    outputs, (hidden, cell) = _run(_lstm_cell, x, tuple(state), weights, *shape)
    return outputs, hidden, cell


def _recurrent(cell: _Cell) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        x: Tensor, state: Tensor, weights: Sequence[Tensor], has_biases: bool,
        num_layers: int, dropout: float, training: bool, two_ways: bool, batch_first: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        shape = (has_biases, two_ways, batch_first)
        outputs, (hidden,) = _run(cell, x, (state,), weights, *shape)
        return outputs, hidden

    return run


def _lstm_cell(seen: Tensor, kept: Tensor, state: _State) -> _State:
    enter, forget, candidate, leave = (seen + kept).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru_cell(seen: Tensor, kept: Tensor, state: _State) -> _State:
    (reset, update, new), (reset_kept, update_kept, new_kept) = (
        part.chunk(3, -1) for part in (seen, kept)
    )
    candidate = (new + (reset + reset_kept).sigmoid() * new_kept).tanh()
    return (candidate + (update + update_kept).sigmoid() * (state[0] - candidate),)


def _tanh_cell(seen: Tensor, kept: Tensor, state: _State) -> _State:
    return ((seen + kept).tanh(),)


def _relu_cell(seen: Tensor, kept: Tensor, state: _State) -> _State:
    return ((seen + kept).relu(),)


def _run(
    cell: _Cell, x: Tensor, state: _State, weights: Sequence[Tensor], has_biases: bool,
    two_ways: bool, batch_first: bool,
) -> tuple[Tensor, _State]:  # fmt: skip
    """Runs all layers over x [time, batch, in], or [batch, time, in], or [time, in]."""
    is_single = x.dim() == 2
    if is_single:
        x, state = x.unsqueeze(1), tuple(part.unsqueeze(1) for part in state)
    elif batch_first:
        x = x.transpose(0, 1)
    last: list[_State] = []
    for layer in _layers(weights, state, has_biases, 2 if two_ways else 1):
        sides: list[Tensor] = []
        for parts, start in layer:
            turned = len(sides) == 1
            outputs, end = _run_layer(cell, x.flip(0) if turned else x, start, parts)
            sides.append(outputs.flip(0) if turned else outputs)
            last.append(end)
        x = torch.cat(sides, -1) if two_ways else sides[0]
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    if is_single:
        return x.squeeze(1), tuple(part.squeeze(1) for part in ends)
    return (x.transpose(0, 1) if batch_first else x), ends


_Weights: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of the input, of the hidden state, their biases, and of the projection."""


def _layers(
    weights: Sequence[Tensor], state: _State, has_biases: bool, num_ways: int
) -> Iterator[list[tuple[_Weights, _State]]]:
    """Yields, for each layer, the weights and the first state of each way."""
    num_runs = len(state[0])
    count = len(weights) // num_runs
    is_projected = count % 2 == 1
    for first in range(0, num_runs, num_ways):
        ways = []
        for run in range(first, first + num_ways):
            own = weights[run * count : (run + 1) * count]
            biases = (own[2], own[3]) if has_biases else (None, None)
            parts = (own[0], own[1], *biases, own[-1] if is_projected else None)
            ways.append((parts, tuple(part[run] for part in state)))
        yield ways


def _run_layer(
    cell: _Cell, x: Tensor, state: _State, weights: _Weights
) -> tuple[Tensor, _State]:
    of_input, of_hidden, bias, hidden_bias, projection = weights
    seen = func.linear(x, of_input, bias)
    outputs: list[Tensor] = []
    for step in seen.unbind(0):
        state = cell(step, func.linear(state[0], of_hidden, hidden_bias), state)
        if projection is not None:
            state = (func.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), state


RECURRENCE: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.lstm.input: lstm,
    _aten.gru.input: _recurrent(_gru_cell),
    _aten.rnn_tanh.input: _recurrent(_tanh_cell),
    _aten.rnn_relu.input: _recurrent(_relu_cell),
}
"""Operators of the forward pass and what is traced in their place."""
