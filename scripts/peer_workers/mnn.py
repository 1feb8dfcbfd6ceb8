"""Trains with MNN, from the model that `mnn_build` made."""

from typing import Any, Final, final

import MNN
import numpy as np
from numpy import ndarray

from scripts.benchmark.variants import Job
from scripts.peer_workers.network import read_batch

_DIMENSIONS: Final = MNN.Tensor_DimensionType_Caffe


def load_late() -> None:
    """Does nothing: all is imported."""


def open_engine(job: Job) -> "_Mnn":
    """Returns the trainer."""
    return _Mnn(job)


@final
class _Mnn:
    def __init__(self, job: Job) -> None:
        assert job.program is not None
        self._net = MNN.Interpreter(job.program)
        self._session = self._net.createSession({"numThread": job.threads, "backend": "CPU"})
        self._inputs = self._net.getSessionInputAll(self._session)
        batch = read_batch(job.inputs)
        self._batch = {
            "inputs": _tensor(batch.inputs),
            "targets": _tensor(batch.targets),
        }

    def step(self, lr: float) -> float:
        given = {**self._batch, "rate": _tensor(np.array(lr, np.float32))}
        for name, value in given.items():
            self._inputs[name].copyFrom(value)
        self._net.runSession(self._session)
        loss = self._net.getSessionOutput(self._session, "loss")
        return float(loss.getNumpyData().reshape(-1)[0])


def _tensor(value: ndarray) -> Any:
    kind = MNN.Halide_Type_Float if value.dtype.kind == "f" else MNN.Halide_Type_Int
    array = value.astype(np.float32 if value.dtype.kind == "f" else np.int32)
    return MNN.Tensor(array.shape, kind, array, _DIMENSIONS)
