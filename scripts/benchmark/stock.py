"""Trains a program of stock ExecuTorch for `scripts/bench.py`, with its own Python binding."""

from typing import Any, Final, final

from executorch.extension.pybindings import portable_lib
from executorch.extension.training import (
    _load_for_executorch_for_training,
    get_sgd_optimizer,
)
from torch import Tensor

from scripts.benchmark.inputs import read_batch
from scripts.benchmark.variants import Job

_METHOD: Final = "forward"


def load_late() -> None:
    """Does nothing: all is imported."""


def open_engine(job: Job) -> "_Stock":
    """Returns the trainer."""
    return _Stock(job)


@final
class _Stock:
    def __init__(self, job: Job) -> None:
        assert job.program is not None
        self._batch = read_batch(job.inputs)
        if portable_lib._threadpool_get_thread_count() != job.threads:
            portable_lib._unsafe_reset_threadpool(job.threads)
        self._module = _load_for_executorch_for_training(job.program)
        self._names, self._tied = list(job.parts or ()), job.tied
        # The rate is fixed when such an optimizer is made.
        self._optimizers: dict[float, Any] = {}

    def step(self, lr: float) -> float:
        (loss,) = self._module.forward_backward(_METHOD, self._batch)
        grads: dict[str, Tensor] = self._module.named_gradients()
        for first, second in self._tied:
            grads[first] = grads[second] = grads[first] + grads[second]
        if lr not in self._optimizers:
            self._optimizers[lr] = get_sgd_optimizer(self._parameters(), lr)
        self._optimizers[lr].step({name: grads[name] for name in self._names})
        return float(loss.item())

    def _parameters(self) -> dict[str, Tensor]:
        """Returns what the step returns by its right name: see `_held_parameters`."""
        values = list(self._module.named_parameters().values())
        return dict(zip(self._names, values, strict=True))
