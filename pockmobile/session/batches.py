"""Turns what a host hands in into the tensors that a program takes, or says what is wrong."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch._utils import _flatten_dense_tensors

from pockmobile.artifact.manifest import Tensor
from pockmobile.errors import InputError, nearest

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Batch: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]
"""One array, several in the order of the manifest, or several by name."""

# Widening is exact; float64 is what numpy makes of Python numbers, and rounds to float32.
_CONVERSIONS: Final = {("int32", "int64"), ("float64", "float32")}

_SMALL: Final = 2**15
"""Elements of a tensor that is joined with others before they are read."""


def prepare(batch: Batch, tensors: Sequence[Tensor]) -> list[torch.Tensor]:
    """Returns `batch` as contiguous tensors of the dtypes of `tensors`, in their order.

    `tensors` are the manifest's inputs, or inputs and targets, of one method. Each result has
    the shape that the manifest says but for dimension 0, the same positive number of rows.

    Raises:
        InputError: a name, type, dtype, shape, value or number of rows is not what the program
            takes.
    """
    values = _in_order(batch, tensors)
    return [_convert(value, tensor) for value, tensor in zip(values, tensors, strict=True)]


def num_rows(prepared: Sequence[torch.Tensor], tensors: Sequence[Tensor]) -> int:
    """Returns the number of rows, the same for all and at least 1.

    Raises:
        InputError: the numbers of rows differ, or are 0.
    """
    counts = {tensor.name: len(value) for tensor, value in zip(tensors, prepared, strict=True)}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"numbers of rows differ ({listed}); give as many of each")
    rows = next(iter(counts.values()))
    if rows == 0:
        raise InputError(f"{', '.join(counts)}: no rows; give at least one")
    return rows


def pad(value: torch.Tensor, tensor: Tensor, rows: int) -> torch.Tensor:
    """Returns `value` with rows up to `rows`: repeated for an input, ignored for a target.

    Raises:
        InputError: rows are missing and the target has no label that counts for nothing.
    """
    missing = rows - len(value)
    if missing == 0:
        return value
    if tensor.role == "input":
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
    if tensor.ignored_value is None:
        raise InputError(
            f"{tensor.name} has {len(value)} rows of a batch of {rows}, and no label that "
            f"counts for nothing to fill it up; give a multiple of {rows} rows"
        )
    filler = value.new_full((missing, *value.shape[1:]), tensor.ignored_value)
    return torch.cat([value, filler])


def counts(value: torch.Tensor, tensor: Tensor) -> bool:
    """Returns whether any label of a target counts (is not the ignored one)."""
    return not bool(_ignored(value, tensor).all())


def _in_order(batch: Batch, tensors: Sequence[Tensor]) -> Sequence[object]:
    names = [tensor.name for tensor in tensors]
    if isinstance(batch, Mapping):
        return _by_name(batch, names)
    values = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(values) != len(names):
        raise InputError(
            f"found {len(values)} tensors, expected {len(names)} ({', '.join(names)}); "
            "give them in this order or by name"
        )
    return values


def _by_name(batch: Mapping[str, Array], names: Sequence[str]) -> Sequence[object]:
    for name in batch:
        if name not in names:
            raise InputError(
                f"unknown name {name!r}: {nearest(str(name), names)} "
                f"(the program takes {', '.join(names)})"
            )
    for name in names:
        if name not in batch:
            raise InputError(f"{name} is missing; the program takes {', '.join(names)}")
    return [batch[name] for name in names]


def _convert(value: object, tensor: Tensor) -> torch.Tensor:
    value = _as_torch(value, tensor)
    found = str(value.dtype).removeprefix("torch.")
    if found != tensor.dtype and (found, tensor.dtype) not in _CONVERSIONS:
        raise InputError(
            f"{tensor.name} has dtype {found}, expected {tensor.dtype}; convert it"
        )
    if value.dim() != len(tensor.shape) or value.shape[1:] != tensor.shape[1:]:
        sizes = ", ".join(map(str, tensor.shape[1:]))
        raise InputError(
            f"{tensor.name} has shape {list(value.shape)}, expected [rows, {sizes}]"
            if sizes
            else f"{tensor.name} has shape {list(value.shape)}, expected [rows]"
        )
    value = value.to(getattr(torch, tensor.dtype)).contiguous()
    _check_values(value, tensor)
    return value


def _as_torch(value: object, tensor: Tensor) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        try:
            # torch wants memory that it may write to, of native byte order and forward strides.
            value = torch.from_numpy(np.require(value, requirements=("C", "W")))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{tensor.name} is a numpy array of {value.dtype}, expected {tensor.dtype}"
            ) from error
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"{tensor.name} is a {type(value).__name__}, expected a torch tensor or numpy "
            f"array of {tensor.dtype} {list(tensor.shape)}"
        )
    if value.layout != torch.strided or value.device.type not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"{tensor.name} is a tensor on {value.device} of layout {value.layout}, expected a "
            "dense one in memory"
        )
    return value.detach().cpu()


def all_finite(value: torch.Tensor) -> bool:
    """Returns whether a tensor holds neither infinities nor NaN."""
    if not value.is_floating_point():
        return True
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def are_finite(values: Sequence[torch.Tensor]) -> bool:
    """Returns whether tensors are sure to hold neither infinities nor NaN.

    A finite sum has finite terms: one pass, without a mask as large as the tensors. Where it
    is too large, they may be finite all the same. Small tensors are joined first: to add one
    up takes less time than to ask for it.
    """
    total, small = 0.0, []
    for value in values:
        if value.numel() > _SMALL:
            total += value.sum().item()
        else:
            small.append(value)
    if small:
        total += _flatten_dense_tensors(small).sum().item()  # type: ignore[no-untyped-call]
    return math.isfinite(total)


def _is_plainly_right(value: torch.Tensor, tensor: Tensor) -> bool:
    """Whether all values are right and none is an ignored one, which takes longer to say."""
    if not all_finite(value):
        return False
    if tensor.low is None and tensor.high is None:
        return True
    low, high = (end.item() for end in value.aminmax())
    is_low = tensor.low is not None and low < tensor.low
    return not is_low and (tensor.high is None or high <= tensor.high)


def _check_values(value: torch.Tensor, tensor: Tensor) -> None:
    if value.numel() == 0 or _is_plainly_right(value, tensor):
        return
    bad = ~_ignored(value, tensor)
    if value.is_floating_point():
        _refuse(value, tensor, bad & ~value.isfinite(), "finite numbers")
    if tensor.low is not None or tensor.high is not None:
        low = "" if tensor.low is None else f"{tensor.low} <= "
        high = "" if tensor.high is None else f" <= {tensor.high}"
        outside = torch.zeros_like(bad)
        if tensor.low is not None:
            outside |= value < tensor.low
        if tensor.high is not None:
            outside |= value > tensor.high
        _refuse(value, tensor, bad & outside, f"{low}value{high}")


def _refuse(value: torch.Tensor, tensor: Tensor, bad: torch.Tensor, expected: str) -> None:
    if not bool(bad.any()):
        return
    place = bad.nonzero()[0].tolist()
    ignored = "" if tensor.ignored is None else f", or {tensor.ignored} for no label"
    raise InputError(
        f"{tensor.name}{place} is {value[tuple(place)].item()}, expected {expected}{ignored}"
    )


def _ignored(value: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    if tensor.ignored is None:
        return torch.zeros_like(value, dtype=torch.bool)
    return value.isnan() if tensor.ignored == "nan" else value == tensor.ignored
