"""What a split program computes once for each example, to be kept by the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import torch

from pockmobile.errors import InputError

_LEVELS: Final = 127


@final
@dataclass(frozen=True)
class Bytes:
    """Values in int8: a row is its bytes [rows, ...] times its scale, float32 [rows]."""

    values: torch.Tensor
    scales: torch.Tensor


@final
@dataclass(frozen=True)
class Latents:
    """The latents of some examples, a row for each, in place of a split program's inputs.

    They depend on frozen weights alone, so they stay right while the model learns.
    `program_sha256` names the program, `tensors` are those by the names of its latents.
    """

    program_sha256: str
    tensors: Mapping[str, torch.Tensor | Bytes]

    def __len__(self) -> int:
        """Returns the number of examples."""
        first = next(iter(self.tensors.values()))
        return len(first.values if isinstance(first, Bytes) else first)

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return sum(part.nbytes for value in self.tensors.values() for part in _parts(value))

    def rows(self, numbers: Sequence[int] | torch.Tensor) -> "Latents":
        """Returns the latents of these examples, as a copy.

        Args:
            numbers: from 0 to len(self) - 1, in any order; a list or int64 [count].
        """
        index = torch.as_tensor(numbers, dtype=torch.int64)
        return self._with({n: _take(v, index) for n, v in self.tensors.items()})

    def joined(self, *others: "Latents") -> "Latents":
        """Returns the examples of all, in order.

        Raises:
            InputError: they are not of one program, or some are in int8 and others are not.
        """
        alike = {(one.program_sha256, _kinds(one.tensors)) for one in (self, *others)}
        if len(alike) > 1:
            raise InputError(
                "latents of several programs, or some of them in int8; join what is alike"
            )
        parts = {name: [one.tensors[name] for one in (self, *others)] for name in self.tensors}
        return self._with({name: _joined(values) for name, values in parts.items()})

    def in_int8(self) -> "Latents":
        """Returns floats in a quarter of the memory, each row with a scale of its own.

        A value is off by at most 1/254 of the largest of its row.
        """
        return self._with({name: _quantized(v) for name, v in self.tensors.items()})

    def values(self) -> dict[str, torch.Tensor]:
        """Returns the tensors as the program takes them."""
        return {name: _restored(value) for name, value in self.tensors.items()}

    def _with(self, tensors: Mapping[str, torch.Tensor | Bytes]) -> "Latents":
        return replace(self, tensors=tensors)


def _parts(value: torch.Tensor | Bytes) -> tuple[torch.Tensor, ...]:
    return (value.values, value.scales) if isinstance(value, Bytes) else (value,)


def _kinds(tensors: Mapping[str, torch.Tensor | Bytes]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, isinstance(value, Bytes)) for name, value in tensors.items())


def _take(value: torch.Tensor | Bytes, index: torch.Tensor) -> torch.Tensor | Bytes:
    parts = [part[index] for part in _parts(value)]
    return Bytes(*parts) if isinstance(value, Bytes) else parts[0]


def _joined(values: Sequence[torch.Tensor | Bytes]) -> torch.Tensor | Bytes:
    parts = [torch.cat(same) for same in zip(*map(_parts, values), strict=True)]
    return Bytes(*parts) if isinstance(values[0], Bytes) else parts[0]


def _quantized(value: torch.Tensor | Bytes) -> torch.Tensor | Bytes:
    if isinstance(value, Bytes) or not value.is_floating_point():
        return value
    flat = value.reshape(len(value), -1)
    scales = flat.abs().amax(1) / _LEVELS
    # A row of zeros stays one.
    levels = (flat / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).round()
    return Bytes(levels.to(torch.int8).reshape(value.shape), scales)


def _restored(value: torch.Tensor | Bytes) -> torch.Tensor:
    if not isinstance(value, Bytes):
        return value
    scales = value.scales.reshape(-1, *[1] * (value.values.dim() - 1))
    return value.values * scales
