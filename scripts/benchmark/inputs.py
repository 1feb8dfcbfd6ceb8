"""The file that all variants of a work share in `scripts/bench.py`: a batch, and statistics."""

from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pockmobile.artifact.files import atomic_write
from scripts.benchmark.works import Work

_BATCH: Final = ("inputs", "targets")


def write_inputs(path: Path, work: Work, num_examples: int) -> None:
    """Writes the batch of a work and the statistics of its norms, all or nothing."""
    batch = dict(zip(_BATCH, work.batch(num_examples), strict=True))
    atomic_write(path, save({**batch, **work.statistics()}))


def read_batch(path: str) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets."""
    with safe_open(path, framework="pt") as file:
        inputs, targets = (file.get_tensor(name) for name in _BATCH)
    return inputs, targets


def read_statistics(path: str) -> dict[str, Tensor]:
    """Returns the buffers that `settled_model` takes."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in {*file.keys()} - {*_BATCH}}
